//! The image tower: patches and a class token, encoder, the class token's state.

use crate::ClipError;
use crate::config::ClipVisionConfig;
use crate::encoder::{ClipEncoder, EncoderShape};
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use deme_kernels::ConvGeometry;
use deme_nn::{Conv2d, Embedding, Init, LayerNorm};

/// Patches, class token and positions.
#[derive(Module, Debug)]
pub struct ClipVisionEmbeddings {
    /// `[width]`.
    pub class_embedding: Param<Tensor<1>>,
    /// `[width, channels, patch, patch]`, stride `patch`, no bias.
    pub patch_embedding: Conv2d,
    /// `[patches + 1, width]`.
    pub position_embedding: Embedding,
}

/// transformers' `CLIPVisionTransformer`.
#[derive(Module, Debug)]
pub struct ClipVisionTransformer {
    /// Patches, class token and positions.
    pub embeddings: ClipVisionEmbeddings,
    /// Before the encoder (transformers' spelling).
    pub pre_layrnorm: LayerNorm,
    /// The layers.
    pub encoder: ClipEncoder,
    /// Over the class token's state.
    pub post_layernorm: LayerNorm,
    #[module(skip)]
    channels: usize,
    #[module(skip)]
    image_size: usize,
}

impl ClipVisionTransformer {
    pub(crate) fn new(config: &ClipVisionConfig, init: &mut Init) -> Self {
        let width = config.hidden_size;
        let shape = EncoderShape {
            width,
            mlp_width: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
        };
        let patch = config.patch_size;
        let geometry = ConvGeometry { stride: patch, padding_begin: 0, padding_end: 0 };
        let class_embedding = init.normal([width], (width as f32).powf(-0.5));
        let mut patch_embedding =
            Conv2d::without_bias(config.num_channels, width, patch, geometry, init);
        patch_embedding.weight =
            Param::from_tensor(init.normal([width, config.num_channels, patch, patch], 0.02));
        let patches = (config.image_size / patch).pow(2);
        Self {
            embeddings: ClipVisionEmbeddings {
                class_embedding: Param::from_tensor(class_embedding),
                patch_embedding,
                position_embedding: Embedding::new(patches + 1, width, 0.02, init),
            },
            pre_layrnorm: LayerNorm::new(width, config.layer_norm_eps, init),
            encoder: ClipEncoder::new(&shape, init),
            post_layernorm: LayerNorm::new(width, config.layer_norm_eps, init),
            channels: config.num_channels,
            image_size: config.image_size,
        }
    }

    /// The class token's state after the last layer norm: `[B, channels, size, size]`, normalised
    /// as the preprocessor says, to `[B, width]`.
    ///
    /// # Errors
    /// [`ClipError::PixelShape`].
    pub fn pooled_output(&self, pixels: Tensor<4>) -> Result<Tensor<2>, ClipError> {
        let (found, channels, size) = (pixels.dims(), self.channels, self.image_size);
        if found[0] == 0 || found[1..] != [channels, size, size] {
            return Err(ClipError::PixelShape { found, channels, size });
        }
        let patches = self.embeddings.patch_embedding.forward(pixels);
        let [b, width, rows, columns] = patches.dims();
        let patches = patches.reshape([b, width, rows * columns]).swap_dims(1, 2);
        let class = self.embeddings.class_embedding.val().reshape([1, 1, width]);
        let x = Tensor::cat(vec![class.repeat_dim(0, b), patches], 1);
        let positions = self.embeddings.position_embedding.weight.val();
        let x = x + positions.reshape([1, rows * columns + 1, width]);
        let x = self.encoder.forward(self.pre_layrnorm.forward(x), false);
        let class = x.slice([0..b, 0..1, 0..width]).reshape([b, width]);
        Ok(self.post_layernorm.forward(class))
    }
}
