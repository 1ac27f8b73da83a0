//! Function space: schedules, samplers, the UNet, diffusers checkpoints.
