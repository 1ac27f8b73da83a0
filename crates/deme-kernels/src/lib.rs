//! CPU kernels as one Burn backend extension, with a plain-tensor path for every other device.
