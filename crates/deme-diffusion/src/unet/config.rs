//! The UNet's shape, field by field as diffusers' `config.json` holds it.
//!
//! Not here: how a `config.json` is read (`model_config`).

use serde::{Deserialize, Serialize};

use super::ProjectionPlacement;
use super::resnet::ResnetShape;
use crate::model_config::{ModelConfigError, Network};

/// Why a config describes no UNet we can build.
pub type UNetConfigError = ModelConfigError;

const NETWORK: Network = Network { name: "UNet", class: "UNet2DModel", off: &[] };

/// Configuration of a [`UNet2DModel`](super::UNet2DModel); fields and defaults are those of diffusers'
/// `UNet2DModel`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UNet2DConfig {
    /// Height and width in pixels that the model was trained on; it runs on other sizes too.
    pub sample_size: Option<SampleSize>,
    /// Channels of the noisy image.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Map the input from `[0, 1]` to `[-1, 1]` first.
    pub center_input_sample: bool,
    /// Only `positional` (sines and cosines).
    pub time_embedding_type: String,
    /// Width of the time embedding; `4 block_out_channels[0]` when not given.
    pub time_embedding_dim: Option<usize>,
    /// Subtracted from the number of frequencies when their spacing is computed; 1 in the DDPM models.
    pub freq_shift: f64,
    /// Cosines before sines; false in the DDPM models.
    pub flip_sin_to_cos: bool,
    /// The way down, from the full resolution.
    pub down_block_types: Vec<DownBlockType>,
    /// The block at the lowest resolution, or none.
    pub mid_block_type: Option<MidBlockType>,
    /// The way up, from the lowest resolution; as many as on the way down.
    pub up_block_types: Vec<UpBlockType>,
    /// Channels of each block on the way down.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per block on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// What the outputs of the mid block's layers are divided by.
    pub mid_block_scale_factor: f64,
    /// Zero padding of the downsampling convolution; 0 pads one row below and one column to the right.
    pub downsample_padding: usize,
    /// Only `conv`.
    pub downsample_type: String,
    /// Only `conv`.
    pub upsample_type: String,
    /// Probability of dropout in [0, 1). Read and written, but **never applied**: inference has none, and
    /// finetuning here is done without it, as with a diffusers model in `eval` mode. So the loss is a
    /// function of the weights and the batch alone.
    pub dropout: f64,
    /// Only `silu`, also called `swish`.
    pub act_fn: String,
    /// Channels per attention head; null is one head of all channels.
    pub attention_head_dim: Option<usize>,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Groups of the mid block's attention norm; null is [`Self::norm_num_groups`], or no norm at all with
    /// [`TimeScaleShift::ScaleShift`].
    pub attn_norm_num_groups: Option<usize>,
    /// Added to the variance in every group norm.
    pub norm_eps: f64,
    /// How the time embedding enters a residual block.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Attention in the mid block.
    pub add_attention: bool,
    /// Only null: there is no class conditioning.
    pub class_embed_type: Option<String>,
    /// Only null: there is no class conditioning.
    pub num_class_embeds: Option<usize>,
    /// Number of learned time embeddings; unused by the positional one.
    pub num_train_timesteps: Option<usize>,
    /// Ours, not diffusers': where the channel projection matrices `projection.0 ..` act.
    #[serde(skip_serializing_if = "ProjectionPlacement::is_none")]
    pub channel_projection: ProjectionPlacement,
}

/// Height and width in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SampleSize {
    /// A square.
    Square(usize),
    /// Height, then width.
    Rectangle([usize; 2]),
}

/// A block on the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks.
    #[serde(rename = "DownBlock2D", alias = "UNetResDownBlock2D")]
    DownBlock2D,
    /// Residual blocks with attention behind each.
    #[serde(rename = "AttnDownBlock2D", alias = "UNetResAttnDownBlock2D")]
    AttnDownBlock2D,
}

/// The block at the lowest resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MidBlockType {
    /// Residual block, attention, residual block.
    #[serde(rename = "UNetMidBlock2D")]
    UNetMidBlock2D,
}

/// A block on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks.
    #[serde(rename = "UpBlock2D", alias = "UNetResUpBlock2D")]
    UpBlock2D,
    /// Residual blocks with attention behind each.
    #[serde(rename = "AttnUpBlock2D", alias = "UNetResAttnUpBlock2D")]
    AttnUpBlock2D,
}

/// How the time embedding enters a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeScaleShift {
    /// Added before the second norm.
    Default,
    /// Scales and shifts the second norm's output.
    ScaleShift,
}

impl Default for UNet2DConfig {
    fn default() -> Self {
        use DownBlockType::{AttnDownBlock2D, DownBlock2D};
        use UpBlockType::{AttnUpBlock2D, UpBlock2D};
        Self {
            sample_size: None,
            in_channels: 3,
            out_channels: 3,
            center_input_sample: false,
            time_embedding_type: "positional".into(),
            time_embedding_dim: None,
            freq_shift: 0.0,
            flip_sin_to_cos: true,
            down_block_types: vec![DownBlock2D, AttnDownBlock2D, AttnDownBlock2D, AttnDownBlock2D],
            mid_block_type: Some(MidBlockType::UNetMidBlock2D),
            up_block_types: vec![AttnUpBlock2D, AttnUpBlock2D, AttnUpBlock2D, UpBlock2D],
            block_out_channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            downsample_padding: 1,
            downsample_type: "conv".into(),
            upsample_type: "conv".into(),
            dropout: 0.0,
            act_fn: "silu".into(),
            attention_head_dim: Some(8),
            norm_num_groups: 32,
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            resnet_time_scale_shift: TimeScaleShift::Default,
            add_attention: true,
            class_embed_type: None,
            num_class_embeds: None,
            num_train_timesteps: None,
            channel_projection: ProjectionPlacement::None,
        }
    }
}

/// Channels of one block's residual blocks, each `(in, out)`.
pub(crate) type ResnetChannels = Vec<(usize, usize)>;

impl UNet2DConfig {
    /// Reads `config.json`. Fields that are absent (configs of old diffusers versions) have diffusers'
    /// defaults; keys that begin with `_` are notes and are skipped.
    ///
    /// # Errors
    /// [`UNetConfigError`] for text that is no JSON object, another class, an unknown field, and everything
    /// [`Self::check`] refuses.
    pub fn from_json(text: &str) -> Result<Self, UNetConfigError> {
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
    /// [`UNetConfigError::Unsupported`] or [`UNetConfigError::Invalid`], naming the field.
    pub fn check(&self) -> Result<(), UNetConfigError> {
        NETWORK.only("time_embedding_type", &self.time_embedding_type, &["positional"])?;
        NETWORK.only("downsample_type", &self.downsample_type, &["conv"])?;
        NETWORK.only("upsample_type", &self.upsample_type, &["conv"])?;
        let padding = self.downsample_padding.to_string();
        NETWORK.only("downsample_padding", &padding, &["0", "1"])?;
        NETWORK.only("act_fn", &self.act_fn.to_lowercase(), &["silu", "swish"])?;
        let null = |field, found: Option<String>| match found {
            None => Ok(()),
            Some(found) => {
                Err(NETWORK.unsupported(field, found, "null (no class conditioning)".to_owned()))
            }
        };
        null("class_embed_type", self.class_embed_type.as_ref().map(|t| format!("`{t}`")))?;
        null("num_class_embeds", self.num_class_embeds.map(|n| n.to_string()))?;

        let invalid = |field, reason: String| Err(NETWORK.invalid(field, reason));
        let blocks = self.block_out_channels.len();
        if blocks == 0 {
            return invalid("block_out_channels", "is empty; give at least one block".into());
        }
        for (field, found) in [
            ("down_block_types", self.down_block_types.len()),
            ("up_block_types", self.up_block_types.len()),
        ] {
            if found != blocks {
                let reason = format!(
                    "has {found} entries, but block_out_channels has {blocks}; give one per block"
                );
                return invalid(field, reason);
            }
        }
        NETWORK.nonzero([
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("layers_per_block", self.layers_per_block),
            ("norm_num_groups", self.norm_num_groups),
            ("time_embedding_dim", self.time_embedding_dim.unwrap_or(1)),
            ("attn_norm_num_groups", self.attn_norm_num_groups.unwrap_or(1)),
            ("block_out_channels", self.block_out_channels.iter().copied().min().unwrap_or(0)),
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
        self.check_groups()?;
        self.check_heads()
    }

    fn check_groups(&self) -> Result<(), UNetConfigError> {
        let resnets = (0..self.block_out_channels.len())
            .flat_map(|i| [self.down_resnet_channels(i), self.up_resnet_channels(i)])
            .flatten();
        let channels = resnets.flat_map(|(c_in, c_out)| [c_in, c_out]);
        NETWORK.groups("norm_num_groups", self.norm_num_groups, channels)?;
        let (mid, groups) = (self.mid_channels(), self.mid_attention_groups().unwrap_or(1));
        if mid % groups != 0 {
            let reason =
                format!("is {groups}, which does not divide the mid block's {mid} channels");
            return Err(NETWORK.invalid("attn_norm_num_groups", reason));
        }
        Ok(())
    }

    fn check_heads(&self) -> Result<(), UNetConfigError> {
        let Some(head_dim) = self.attention_head_dim else {
            return Ok(());
        };
        let down = self.down_block_types.iter().zip(&self.block_out_channels);
        let down =
            down.filter(|(kind, _)| **kind == DownBlockType::AttnDownBlock2D).map(|(_, c)| *c);
        let up = self.up_block_types.iter().zip(self.block_out_channels.iter().rev());
        let up = up.filter(|(kind, _)| **kind == UpBlockType::AttnUpBlock2D).map(|(_, c)| *c);
        let mid = self.mid_block_type.filter(|_| self.add_attention).map(|_| self.mid_channels());
        for channels in down.chain(up).chain(mid) {
            if head_dim == 0 || head_dim > channels {
                let reason = format!("is {head_dim}, but attention acts on {channels} channels");
                return Err(NETWORK.invalid("attention_head_dim", reason));
            }
        }
        Ok(())
    }

    /// Checks that images of that shape pass through the network.
    ///
    /// # Errors
    /// [`UNetConfigError::ImageShape`] for other channels, and for a height or width that does not halve and
    /// double back to itself: the skip connections would not fit.
    pub fn check_image_shape(&self, [c, h, w]: [usize; 3]) -> Result<(), UNetConfigError> {
        check_image_shape(
            [c, h, w],
            self.in_channels,
            self.block_out_channels.len() - 1,
            self.downsample_padding,
        )
    }

    /// `[C, H, W]` of the images the model was trained on, when the config says so.
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        let [h, w] = self.sample_size?.height_width();
        Some([self.in_channels, h, w])
    }

    /// Width of the time embedding.
    pub fn time_embed_dim(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.block_out_channels[0])
    }

    pub(super) fn mid_channels(&self) -> usize {
        self.block_out_channels[self.block_out_channels.len() - 1]
    }

    /// Groups of the norm in the mid block's attention, or none without that norm.
    pub(super) fn mid_attention_groups(&self) -> Option<usize> {
        let by_default = match self.resnet_time_scale_shift {
            TimeScaleShift::Default => Some(self.norm_num_groups),
            TimeScaleShift::ScaleShift => None,
        };
        self.attn_norm_num_groups.or(by_default)
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

    /// The residual blocks of down block `i`.
    pub(super) fn down_resnet_channels(&self, i: usize) -> ResnetChannels {
        down_resnet_channels(&self.block_out_channels, self.layers_per_block, i)
    }

    /// The residual blocks of up block `i`, counted from the lowest resolution. Each takes the hidden state
    /// and one skip connection.
    pub(super) fn up_resnet_channels(&self, i: usize) -> ResnetChannels {
        up_resnet_channels(&self.block_out_channels, self.layers_per_block, i)
    }
}

/// The residual blocks of down block `i`.
pub(crate) fn down_resnet_channels(
    block_out_channels: &[usize],
    layers: usize,
    i: usize,
) -> ResnetChannels {
    let c_out = block_out_channels[i];
    let c_in = block_out_channels[i.saturating_sub(1)];
    (0..layers).map(|layer| (if layer == 0 { c_in } else { c_out }, c_out)).collect()
}

/// The residual blocks of up block `i`, counted from the lowest resolution: one more than the `layers` on the
/// way down, each on the hidden state and one skip connection.
pub(crate) fn up_resnet_channels(
    block_out_channels: &[usize],
    layers: usize,
    i: usize,
) -> ResnetChannels {
    let reversed = |i: usize| {
        let last = block_out_channels.len() - 1;
        block_out_channels[last - i.min(last)]
    };
    let (before, c_out, below_skip) = (reversed(i.saturating_sub(1)), reversed(i), reversed(i + 1));
    (0..=layers)
        .map(|layer| {
            let hidden = if layer == 0 { before } else { c_out };
            let skip = if layer == layers { below_skip } else { c_out };
            (hidden + skip, c_out)
        })
        .collect()
}

/// Checks that images of that shape have the right channels, and a height and width that halve and double
/// back to themselves: else the skip connections would not fit.
pub(crate) fn check_image_shape(
    found: [usize; 3],
    channels: usize,
    halvings: usize,
    downsample_padding: usize,
) -> Result<(), ModelConfigError> {
    let refuse = |reason: String| Err(ModelConfigError::ImageShape { found, reason });
    let [c, sides @ ..] = found;
    if c != channels {
        return refuse(format!("the model takes {channels} channels"));
    }
    let geometry = super::down::downsample_geometry(downsample_padding);
    for side in sides {
        let mut size = side;
        let fits = side > 0
            && (0..halvings).all(|_| {
                let half = geometry.output_len(size, 3).unwrap_or(0);
                let doubles_back = half > 0 && half * 2 == size;
                size = half;
                doubles_back
            });
        if !fits {
            return refuse(format!(
                "the model halves height and width {halvings} times, so both must be multiples of {}",
                1usize << halvings
            ));
        }
    }
    Ok(())
}

impl SampleSize {
    /// `[H, W]`.
    pub fn height_width(self) -> [usize; 2] {
        match self {
            Self::Square(side) => [side, side],
            Self::Rectangle(sides) => sides,
        }
    }

    pub(crate) fn least(self) -> usize {
        let [h, w] = self.height_width();
        h.min(w)
    }
}
