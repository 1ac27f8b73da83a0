//! From latents to an image: diffusers' `Decoder`.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_kernels::ConvGeometry;
use deme_nn::{Conv2d, GroupNorm, Init};

use super::config::{AutoencoderKlConfig, NORM_EPS};
use super::mid_block;
use crate::unet::UNetMidBlock2D;
use crate::unet::channel_projection::BlockProjection;
use crate::unet::resnet::{ResnetBlock2D, Upsample2D};

/// Convolution, the mid block, blocks that double the resolution, and a convolution to the image.
#[derive(Module, Debug)]
pub struct Decoder {
    /// 3x3, from the latents' channels.
    pub conv_in: Conv2d,
    /// From the lowest resolution up.
    pub up_blocks: Vec<UpDecoderBlock2D>,
    /// At the lowest resolution.
    pub mid_block: UNetMidBlock2D,
    /// Norm before the output.
    pub conv_norm_out: GroupNorm,
    /// 3x3, to the image's channels.
    pub conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn new(config: &AutoencoderKlConfig, init: &mut Init) -> Self {
        let same = ConvGeometry::same(3);
        let (first, last) = (config.block_out_channels[0], config.mid_channels());
        let blocks = config.block_out_channels.len();
        Self {
            conv_in: Conv2d::new(config.latent_channels, last, 3, same, init),
            up_blocks: (0..blocks).map(|i| UpDecoderBlock2D::new(i, config, init)).collect(),
            mid_block: mid_block(config, init),
            conv_norm_out: GroupNorm::new(config.norm_num_groups, first, NORM_EPS, init),
            conv_out: Conv2d::new(first, config.out_channels, 3, same, init),
        }
    }

    /// # Shapes
    /// `[B, latent_channels, h, w]` to `[B, out_channels, f h, f w]`.
    pub fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        let x = self.conv_in.forward(latents);
        let x = self.mid_block.forward(x, None, &BlockProjection::None);
        let x = self.up_blocks.iter().fold(x, |x, block| block.forward(x));
        self.conv_out.forward_normalised(&self.conv_norm_out, x)
    }
}

/// Residual blocks, and an upsampler except in the last block.
#[derive(Module, Debug)]
pub struct UpDecoderBlock2D {
    /// `layers_per_block + 1` of them.
    pub resnets: Vec<ResnetBlock2D>,
    /// One, or none in the last block.
    pub upsamplers: Vec<Upsample2D>,
}

impl UpDecoderBlock2D {
    fn new(i: usize, config: &AutoencoderKlConfig, init: &mut Init) -> Self {
        let shape = config.resnet_shape();
        let channels = config.decoder_channels(i);
        let (_, c_out) = channels[0];
        let channels = channels.into_iter();
        let resnets = channels.map(|channels| ResnetBlock2D::new(channels, &shape, init)).collect();
        let last = i + 1 == config.block_out_channels.len();
        let upsamplers = if last { Vec::new() } else { vec![Upsample2D::new(c_out, init)] };
        Self { resnets, upsamplers }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.resnets.iter().fold(x, |x, resnet| resnet.forward(x, None, None));
        self.upsamplers.iter().fold(x, |x, upsampler| upsampler.forward(x, None))
    }
}
