//! The conditional UNet's shape, field by field as diffusers' `config.json` holds it.
//!
//! diffusers' **naming oddity**: `attention_head_dim` of a `UNet2DConditionModel` is not a head's width but the
//! **number of heads** (Stable Diffusion 1: 8 heads, of 40 to 160 channels), while in a `UNet2DModel` it is the
//! width. Not here: how a `config.json` is read (`model_config`).

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::model_config::{ModelConfigError, Network, Off, OnlyAt};
use crate::unet::config::{
    ResnetChannels, check_image_shape, down_resnet_channels, up_resnet_channels,
};
use crate::unet::resnet::ResnetShape;
use crate::unet::{ProjectionPlacement, SampleSize, TimeScaleShift};

const NULL: &[Off] = &[Off::Null];

const NETWORK: Network = Network {
    name: "UNet",
    class: "UNet2DConditionModel",
    off: &[
        OnlyAt("addition_embed_type", NULL),
        // The number of heads of an embedding that is not there: what diffusers writes, and nothing else.
        OnlyAt("addition_embed_type_num_heads", &[Off::Number(64.0)]),
        OnlyAt("addition_time_embed_dim", NULL),
        OnlyAt("attention_type", &[Off::Text("default")]),
        OnlyAt("class_embed_type", NULL),
        OnlyAt("class_embeddings_concat", &[Off::False]),
        OnlyAt("conv_in_kernel", &[Off::Number(3.0)]),
        OnlyAt("conv_out_kernel", &[Off::Number(3.0)]),
        OnlyAt("cross_attention_norm", NULL),
        OnlyAt("dual_cross_attention", &[Off::False]),
        OnlyAt("encoder_hid_dim", NULL),
        OnlyAt("encoder_hid_dim_type", NULL),
        OnlyAt("mid_block_only_cross_attention", &[Off::Null, Off::False]),
        OnlyAt("num_attention_heads", NULL),
        OnlyAt("num_class_embeds", NULL),
        OnlyAt("projection_class_embeddings_input_dim", NULL),
        OnlyAt("resnet_out_scale_factor", &[Off::Number(1.0)]),
        OnlyAt("resnet_skip_time_act", &[Off::False]),
        OnlyAt("reverse_transformer_layers_per_block", NULL),
        OnlyAt("time_cond_proj_dim", NULL),
        OnlyAt("time_embedding_act_fn", NULL),
        OnlyAt("timestep_post_act", NULL),
    ],
};

/// Configuration of a [`UNet2DConditionModel`](super::UNet2DConditionModel); fields and defaults are those of
/// diffusers' class. Its fields that are not here may only stand at the value that switches them off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UNet2DConditionConfig {
    /// Height and width of the latents that the model was trained on; it runs on other sizes too.
    pub sample_size: Option<SampleSize>,
    /// Channels of the noisy latents.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Map the input from `[0, 1]` to `[-1, 1]` first.
    pub center_input_sample: bool,
    /// Cosines before sines in the time embedding.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies when their spacing is computed.
    pub freq_shift: f64,
    /// The way down, from the full resolution.
    pub down_block_types: Vec<ConditionDownBlockType>,
    /// The block at the lowest resolution, or none.
    pub mid_block_type: Option<ConditionMidBlockType>,
    /// The way up, from the lowest resolution; as many as on the way down.
    pub up_block_types: Vec<ConditionUpBlockType>,
    /// Only false (one value, or one per block): transformer blocks begin with self-attention.
    pub only_cross_attention: PerBlock<bool>,
    /// Channels of each block on the way down.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per block on the way down; one more on the way up.
    pub layers_per_block: PerBlock<usize>,
    /// Zero padding of the downsampling convolution; 0 pads one row below and one column to the right.
    pub downsample_padding: usize,
    /// What the outputs of the mid block's residual blocks are divided by.
    pub mid_block_scale_factor: f64,
    /// Probability of dropout in [0, 1). Read and written, but **never applied**, as in
    /// [`UNet2DConfig`](crate::unet::UNet2DConfig).
    pub dropout: f64,
    /// Only `silu`, also called `swish`.
    pub act_fn: String,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Added to the variance in the group norms of residual blocks; those of transformers have 1e-6.
    pub norm_eps: f64,
    /// Width of the text's hidden states.
    pub cross_attention_dim: PerBlock<usize>,
    /// Transformer blocks per attention.
    pub transformer_layers_per_block: PerBlock<usize>,
    /// The **number of heads**, whatever its name says (see the module).
    pub attention_head_dim: PerBlock<usize>,
    /// The maps into and out of a transformer are linear instead of 1x1 convolutions: the same arithmetic,
    /// but the weights are stored as `[d_out, d_in]`.
    pub use_linear_projection: bool,
    /// Compute attention in f32. It always is here, so both values mean the same.
    pub upcast_attention: bool,
    /// How the time embedding enters a residual block.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Only `positional` (sines and cosines).
    pub time_embedding_type: String,
    /// Width of the time embedding; `4 block_out_channels[0]` when not given.
    pub time_embedding_dim: Option<usize>,
    /// Ours, not diffusers': where the channel projection matrices `projection.0 ..` act.
    #[serde(skip_serializing_if = "ProjectionPlacement::is_none")]
    pub channel_projection: ProjectionPlacement,
}

/// One value for all blocks, or one for each block on the way down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerBlock<T> {
    /// The same everywhere.
    All(T),
    /// From the full resolution down.
    Each(Vec<T>),
}

impl<T: Copy> PerBlock<T> {
    /// The value of block `i` on the way down.
    ///
    /// # Panics
    /// When there are values for fewer blocks.
    pub fn at(&self, i: usize) -> T {
        match self {
            Self::All(value) => *value,
            Self::Each(values) => values[i],
        }
    }

    /// All values that stand there.
    pub fn values(&self) -> &[T] {
        match self {
            Self::All(value) => std::slice::from_ref(value),
            Self::Each(values) => values,
        }
    }
}

/// A block on the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionDownBlockType {
    /// Residual blocks.
    DownBlock2D,
    /// Residual blocks with a transformer behind each.
    CrossAttnDownBlock2D,
}

/// The block at the lowest resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionMidBlockType {
    /// Residual block, transformer, residual block.
    UNetMidBlock2DCrossAttn,
}

/// A block on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionUpBlockType {
    /// Residual blocks.
    UpBlock2D,
    /// Residual blocks with a transformer behind each.
    CrossAttnUpBlock2D,
}

/// What the transformers of one block are built from.
#[derive(Debug, Clone, Copy)]
pub(super) struct TransformerShape {
    pub channels: usize,
    pub heads: usize,
    pub layers: usize,
    pub context_dim: usize,
    pub norm_groups: usize,
    pub linear_projection: bool,
}

impl Default for UNet2DConditionConfig {
    fn default() -> Self {
        use ConditionDownBlockType::{CrossAttnDownBlock2D, DownBlock2D};
        use ConditionUpBlockType::{CrossAttnUpBlock2D, UpBlock2D};
        let (down, up) = (CrossAttnDownBlock2D, CrossAttnUpBlock2D);
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: vec![down, down, down, DownBlock2D],
            mid_block_type: Some(ConditionMidBlockType::UNetMidBlock2DCrossAttn),
            up_block_types: vec![UpBlock2D, up, up, up],
            only_cross_attention: PerBlock::All(false),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerBlock::All(2),
            downsample_padding: 1,
            mid_block_scale_factor: 1.0,
            dropout: 0.0,
            act_fn: "silu".into(),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: PerBlock::All(1280),
            transformer_layers_per_block: PerBlock::All(1),
            attention_head_dim: PerBlock::All(8),
            use_linear_projection: false,
            upcast_attention: false,
            resnet_time_scale_shift: TimeScaleShift::Default,
            time_embedding_type: "positional".into(),
            time_embedding_dim: None,
            channel_projection: ProjectionPlacement::None,
        }
    }
}

impl UNet2DConditionConfig {
    /// The UNet of Stable Diffusion 1.1 to 1.5: 860 million parameters, latents of 64x64, CLIP's ViT-L/14 text
    /// states.
    pub fn stable_diffusion_1() -> Self {
        Self {
            sample_size: Some(SampleSize::Square(64)),
            cross_attention_dim: PerBlock::All(768),
            ..Self::default()
        }
    }

    /// Reads `config.json`. Fields that are absent (configs of old diffusers versions) have diffusers'
    /// defaults; keys that begin with `_` are notes and are skipped.
    ///
    /// # Errors
    /// [`ModelConfigError`] for text that is no JSON object, another class, an unknown field, a field that is
    /// not implemented and not off, and everything [`Self::check`] refuses.
    pub fn from_json(text: &str) -> Result<Self, ModelConfigError> {
        let config: Self = NETWORK.read(text)?;
        config.check()?;
        Ok(config)
    }

    /// `config.json` as diffusers writes it.
    pub fn to_json(&self) -> String {
        NETWORK.write(self)
    }

    /// Checks that the fields fit together and stay within what is implemented.
    ///
    /// # Errors
    /// [`ModelConfigError::Unsupported`] or [`ModelConfigError::Invalid`], naming the field.
    pub fn check(&self) -> Result<(), ModelConfigError> {
        NETWORK.only("time_embedding_type", &self.time_embedding_type, &["positional"])?;
        let padding = self.downsample_padding.to_string();
        NETWORK.only("downsample_padding", &padding, &["0", "1"])?;
        NETWORK.only("act_fn", &self.act_fn.to_lowercase(), &["silu", "swish"])?;
        if self.only_cross_attention.values().contains(&true) {
            let found = json!(self.only_cross_attention).to_string();
            return Err(NETWORK.unsupported("only_cross_attention", found, "false".to_owned()));
        }
        self.check_counts()?;

        let invalid = |field, reason: String| Err(NETWORK.invalid(field, reason));
        let per_block = |values: &PerBlock<usize>| values.values().iter().copied().min();
        NETWORK.nonzero([
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("norm_num_groups", self.norm_num_groups),
            ("time_embedding_dim", self.time_embedding_dim.unwrap_or(1)),
            ("block_out_channels", self.block_out_channels.iter().copied().min().unwrap_or(0)),
            ("layers_per_block", per_block(&self.layers_per_block).unwrap_or(0)),
            ("cross_attention_dim", per_block(&self.cross_attention_dim).unwrap_or(0)),
            (
                "transformer_layers_per_block",
                per_block(&self.transformer_layers_per_block).unwrap_or(0),
            ),
            ("attention_head_dim", per_block(&self.attention_head_dim).unwrap_or(0)),
            ("sample_size", self.sample_size.map_or(1, SampleSize::least)),
        ])?;
        if !(0.0..1.0).contains(&self.dropout) {
            return invalid("dropout", format!("is {}; it must lie in [0, 1)", self.dropout));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps.is_finite()) {
            return invalid("norm_eps", format!("is {}; it must be above 0", self.norm_eps));
        }
        if !(self.mid_block_scale_factor.is_finite() && self.mid_block_scale_factor != 0.0) {
            let reason = format!("is {}; outputs are divided by it", self.mid_block_scale_factor);
            return invalid("mid_block_scale_factor", reason);
        }
        let frequencies = (self.block_out_channels[0] / 2) as f64;
        if !self.freq_shift.is_finite() || self.freq_shift >= frequencies {
            let reason = format!(
                "is {}, but there are only block_out_channels[0] / 2 = {frequencies} frequencies",
                self.freq_shift
            );
            return invalid("freq_shift", reason);
        }

        let resnets = (0..self.blocks())
            .flat_map(|i| [self.down_resnet_channels(i), self.up_resnet_channels(i)])
            .flatten();
        let channels = resnets.flat_map(|(c_in, c_out)| [c_in, c_out]);
        NETWORK.groups("norm_num_groups", self.norm_num_groups, channels)?;
        for (i, channels) in self.block_out_channels.iter().enumerate() {
            let heads = self.attention_head_dim.at(i);
            if self.has_attention(i) && channels % heads != 0 {
                let reason = format!(
                    "asks for {heads} heads (in a UNet2DConditionModel it is their number, not their width), \
                     but {heads} does not divide the {channels} channels of block {i}"
                );
                return invalid("attention_head_dim", reason);
            }
        }
        Ok(())
    }

    /// One entry per block wherever there is a list.
    fn check_counts(&self) -> Result<(), ModelConfigError> {
        let blocks = self.blocks();
        if blocks == 0 {
            let reason = "is empty; give at least one block".to_owned();
            return Err(NETWORK.invalid("block_out_channels", reason));
        }
        let of_list = |values: &PerBlock<usize>| match values {
            PerBlock::All(_) => blocks,
            PerBlock::Each(values) => values.len(),
        };
        for (field, found) in [
            ("down_block_types", self.down_block_types.len()),
            ("up_block_types", self.up_block_types.len()),
            ("layers_per_block", of_list(&self.layers_per_block)),
            ("cross_attention_dim", of_list(&self.cross_attention_dim)),
            ("transformer_layers_per_block", of_list(&self.transformer_layers_per_block)),
            ("attention_head_dim", of_list(&self.attention_head_dim)),
        ] {
            if found != blocks {
                let reason = format!(
                    "has {found} entries, but block_out_channels has {blocks}; give one per block"
                );
                return Err(NETWORK.invalid(field, reason));
            }
        }
        Ok(())
    }

    /// Whether any transformer acts on the channels of block `i` on the way down.
    fn has_attention(&self, i: usize) -> bool {
        let last = self.blocks() - 1;
        self.down_block_types[i] == ConditionDownBlockType::CrossAttnDownBlock2D
            || self.up_block_types[last - i] == ConditionUpBlockType::CrossAttnUpBlock2D
            || (i == last && self.mid_block_type.is_some())
    }

    /// Checks that latents of that shape pass through the network.
    ///
    /// # Errors
    /// [`ModelConfigError::ImageShape`] for other channels, and for a height or width that does not halve and
    /// double back to itself: the skip connections would not fit.
    pub fn check_image_shape(&self, shape: [usize; 3]) -> Result<(), ModelConfigError> {
        check_image_shape(shape, self.in_channels, self.blocks() - 1, self.downsample_padding)
    }

    /// `[C, H, W]` of the latents the model was trained on, when the config says so.
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        let [h, w] = self.sample_size?.height_width();
        Some([self.in_channels, h, w])
    }

    /// Width of the time embedding.
    pub fn time_embed_dim(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.block_out_channels[0])
    }

    pub(super) fn blocks(&self) -> usize {
        self.block_out_channels.len()
    }

    pub(super) fn resnet_shape(&self, output_scale_factor: f64) -> ResnetShape {
        ResnetShape {
            norm_groups: self.norm_num_groups,
            norm_eps: self.norm_eps,
            time_embed_dim: Some(self.time_embed_dim()),
            time_scale_shift: self.resnet_time_scale_shift,
            output_scale_factor,
        }
    }

    /// The transformers on the channels of block `i` on the way down.
    pub(super) fn transformer_shape(&self, i: usize) -> TransformerShape {
        TransformerShape {
            channels: self.block_out_channels[i],
            heads: self.attention_head_dim.at(i),
            layers: self.transformer_layers_per_block.at(i),
            context_dim: self.cross_attention_dim.at(i),
            norm_groups: self.norm_num_groups,
            linear_projection: self.use_linear_projection,
        }
    }

    /// The residual blocks of down block `i`.
    pub(super) fn down_resnet_channels(&self, i: usize) -> ResnetChannels {
        down_resnet_channels(&self.block_out_channels, self.layers_per_block.at(i), i)
    }

    /// The residual blocks of up block `i`, counted from the lowest resolution.
    pub(super) fn up_resnet_channels(&self, i: usize) -> ResnetChannels {
        let layers = self.layers_per_block.at(self.blocks() - 1 - i);
        up_resnet_channels(&self.block_out_channels, layers, i)
    }
}
