//! Finetuning on timestep ranges: losses, samplers of timesteps, the loop, EMA, resumable state.
