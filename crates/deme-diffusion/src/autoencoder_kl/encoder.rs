//! From an image to the parameters of its latents' distribution: diffusers' `Encoder`.

use burn::module::Module;
use burn::tensor::Tensor;
use deme_kernels::ConvGeometry;
use deme_nn::{Conv2d, GroupNorm, Init};

use super::config::{AutoencoderKlConfig, NORM_EPS};
use super::mid_block;
use crate::unet::UNetMidBlock2D;
use crate::unet::channel_projection::BlockProjection;
use crate::unet::down::downsample_geometry;
use crate::unet::resnet::{Downsample2D, ResnetBlock2D};

/// Convolution, blocks that halve the resolution, the mid block, and a convolution to twice the latents'
/// channels.
#[derive(Module, Debug)]
pub struct Encoder {
    /// 3x3, from the image's channels.
    pub conv_in: Conv2d,
    /// From the full resolution down.
    pub down_blocks: Vec<DownEncoderBlock2D>,
    /// At the lowest resolution.
    pub mid_block: UNetMidBlock2D,
    /// Norm before the output.
    pub conv_norm_out: GroupNorm,
    /// 3x3, to mean and log-variance.
    pub conv_out: Conv2d,
}

impl Encoder {
    pub(super) fn new(config: &AutoencoderKlConfig, init: &mut Init) -> Self {
        let same = ConvGeometry::same(3);
        let (first, last) = (config.block_out_channels[0], config.mid_channels());
        let blocks = config.block_out_channels.len();
        Self {
            conv_in: Conv2d::new(config.in_channels, first, 3, same, init),
            down_blocks: (0..blocks).map(|i| DownEncoderBlock2D::new(i, config, init)).collect(),
            mid_block: mid_block(config, init),
            conv_norm_out: GroupNorm::new(config.norm_num_groups, last, NORM_EPS, init),
            conv_out: Conv2d::new(last, 2 * config.latent_channels, 3, same, init),
        }
    }

    /// # Shapes
    /// `[B, in_channels, H, W]` to `[B, 2 latent_channels, H / f, W / f]`.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        let x = self.conv_in.forward(image);
        let x = self.down_blocks.iter().fold(x, |x, block| block.forward(x));
        let x = self.mid_block.forward(x, None, &BlockProjection::None);
        self.conv_out.forward_normalised(&self.conv_norm_out, x)
    }
}

/// Residual blocks, and a downsampler except in the last block.
#[derive(Module, Debug)]
pub struct DownEncoderBlock2D {
    /// `layers_per_block` of them.
    pub resnets: Vec<ResnetBlock2D>,
    /// One, or none in the last block.
    pub downsamplers: Vec<Downsample2D>,
}

impl DownEncoderBlock2D {
    fn new(i: usize, config: &AutoencoderKlConfig, init: &mut Init) -> Self {
        let shape = config.resnet_shape();
        let channels = config.encoder_channels(i).into_iter();
        let resnets = channels.map(|channels| ResnetBlock2D::new(channels, &shape, init)).collect();
        let last = i + 1 == config.block_out_channels.len();
        // One row below and one column to the right.
        let geometry = downsample_geometry(0);
        let channels = config.block_out_channels[i];
        let downsamplers =
            if last { Vec::new() } else { vec![Downsample2D::new(channels, geometry, init)] };
        Self { resnets, downsamplers }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.resnets.iter().fold(x, |x, resnet| resnet.forward(x, None, None));
        self.downsamplers.iter().fold(x, |x, downsampler| downsampler.forward(x, None))
    }
}
