//! One file per command.

pub mod ablate;
pub mod clip_score;
pub mod compare;
pub mod fid;
pub mod inspect;
pub mod merge;
pub mod plan;
pub mod predict;
pub mod run;
pub mod sample;

use burn::tensor::Device;

use crate::cli::DeviceName;

/// The device of that name.
pub fn device(name: DeviceName) -> Device {
    match name {
        DeviceName::Cpu => Device::flex(),
        #[cfg(feature = "vulkan")]
        DeviceName::Vulkan => Device::vulkan(Default::default()),
        #[cfg(feature = "wgpu")]
        DeviceName::Wgpu => Device::wgpu(Default::default()),
        #[cfg(feature = "cuda")]
        DeviceName::Cuda => Device::cuda(burn::tensor::DeviceIndex::Default),
    }
}

/// Prints to standard output; a closed pipe (as in `deme inspect x | head`) ends quietly.
pub fn print(text: &str) -> Result<(), crate::diagnostics::Problem> {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(crate::diagnostics::Problem::write("standard output".as_ref(), error))
        }
        _ => Ok(()),
    }
}
