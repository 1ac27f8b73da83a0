//! The time embedding: sines and cosines of t, then two linear layers.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData, activation};
use deme_nn::{Init, Linear};

/// Longest period of the sines is `2 pi` times this.
const MAX_PERIOD: f64 = 10000.0;

/// Sinusoidal embedding of timesteps (Vaswani et al. 2017, section 3.5; Ho et al. 2020, appendix B):
/// frequency i of n is `10000^(-i / (n - freq_shift))`, n = `width / 2`. An odd width ends with a zero.
///
/// Computed in f32 in the order of diffusers, so that large t round the same way.
///
/// # Shapes
/// t: B timesteps, which may lie between two of training; returns `[B, width]`.
pub fn sinusoidal_embedding(
    t: &[f64],
    width: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    device: &Device,
) -> Tensor<2> {
    let half = width / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| (-(MAX_PERIOD.ln() as f32) * i as f32 / (half as f64 - freq_shift) as f32).exp())
        .collect();
    let mut values = Vec::with_capacity(t.len() * width);
    for &t in t {
        let angles = frequencies.iter().map(|frequency| t as f32 * frequency);
        let (sines, cosines) = (angles.clone().map(f32::sin), angles.map(f32::cos));
        if flip_sin_to_cos {
            values.extend(cosines.chain(sines));
        } else {
            values.extend(sines.chain(cosines));
        }
        values.resize(values.len() + width % 2, 0.0);
    }
    Tensor::from_data(TensorData::new(values, [t.len(), width]), device)
}

/// `linear_2(silu(linear_1(.)))` on the sinusoidal embedding.
#[derive(Module, Debug)]
pub struct TimestepEmbedding {
    /// From `block_out_channels[0]` to the embedding's width.
    pub linear_1: Linear,
    /// Keeps the width.
    pub linear_2: Linear,
}

impl TimestepEmbedding {
    pub(crate) fn new(width: usize, embed_dim: usize, init: &mut Init) -> Self {
        Self {
            linear_1: Linear::new(width, embed_dim, true, init),
            linear_2: Linear::new(embed_dim, embed_dim, true, init),
        }
    }

    /// `silu(temb)`: every residual block begins with that SiLU, so it is computed once.
    ///
    /// # Shapes
    /// `[B, block_out_channels[0]]` to `[B, time_embed_dim]`.
    pub fn forward_silu(&self, sinusoidal: Tensor<2>) -> Tensor<2> {
        let hidden = activation::silu(self.linear_1.forward(sinusoidal));
        activation::silu(self.linear_2.forward(hidden))
    }
}
