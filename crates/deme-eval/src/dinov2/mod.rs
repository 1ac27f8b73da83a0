//! DINOv2's vision transformer (Oquab et al. 2023, arXiv 2304.07193): features of pictures that were
//! learnt without labels.
//!
//! Stein et al. 2023 (arXiv 2306.04675) compare generative models on the features of ViT-L/14, which
//! agree better with people than Inception's. A feature is the class token's state behind the last
//! layer norm. [`Dinov2`] is the network, read from either of the two forms it is published in;
//! [`Dinov2Extractor`] prepares pictures as their dgm-eval does.
//!
//! Not here: the variant with registers, patch tokens, the training.

mod config;
mod extractor;
mod names;
mod positions;

pub use config::Dinov2Config;
pub use extractor::Dinov2Extractor;
pub use positions::PositionInterpolation;

use crate::EvalError;
use crate::named_weights::NamedWeights;
use burn::tensor::{Device, Tensor, TensorData, activation};
use deme_merge::StateDict;
use names::Names;
use positions::interpolate_positions;
use std::path::Path;

/// Tensors that no feature depends on: what patches were replaced by in the training.
const NEEDLESS: [&str; 2] = ["mask_token", "embeddings.mask_token"];

/// DINOv2's vision transformer for inference at 224 x 224. Cloning shares the weights.
#[derive(Debug, Clone)]
pub struct Dinov2 {
    config: Dinov2Config,
    patch_projection: Linear,
    /// The class token, its position added: `[1, 1, width]`.
    class_token: Tensor<3>,
    /// Of the patches: `[1, patches, width]`.
    positions: Tensor<3>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    hash: String,
    device: Device,
}

impl Dinov2 {
    /// Height and width of the pictures it takes.
    pub const IMAGE_SIZE: usize = 224;

    /// Reads a folder as `save_pretrained` writes it (`config.json` and weights), or a file of
    /// tensors: Meta's `dinov2_vit*14_pretrain.pth` (without executing it) or safetensors. Without
    /// `config.json` all sizes come from the tensors' shapes. Positions are interpolated as the
    /// program does that names tensors so ([`PositionInterpolation`]).
    ///
    /// # Errors
    /// [`EvalError::State`], [`EvalError::Io`] and [`EvalError::Json`] for files that cannot be read,
    /// [`EvalError::Registers`], [`EvalError::Config`] and [`EvalError::Weights`] for another network.
    pub fn load(path: &Path, device: &Device) -> Result<Self, EvalError> {
        let config = path.is_dir().then(|| Dinov2Config::load(path)).transpose()?;
        let state = StateDict::load(path)?;
        let interpolation = Names::of(&state).interpolation;
        Self::from_state_dict(&state, config.as_ref(), interpolation, path, device)
    }

    /// The network of these tensors, under any of the names; messages call them `path`. Without a
    /// config all sizes come from their shapes.
    ///
    /// # Errors
    /// As [`Dinov2::load`].
    pub fn from_state_dict(
        state: &StateDict,
        config: Option<&Dinov2Config>,
        interpolation: PositionInterpolation,
        path: &Path,
        device: &Device,
    ) -> Result<Self, EvalError> {
        if names::REGISTERS.iter().any(|name| state.get(name).is_some()) {
            return Err(EvalError::Registers { path: path.to_owned() });
        }
        state.check_finite()?;
        let names = Names::of(state);
        let config = match config {
            Some(config) => config.clone(),
            None => Dinov2Config::of_shapes(state, names, path)?,
        };
        config.check(path)?;
        let mut layers = Layers { weights: NamedWeights::new(state), names, device };
        let l = &mut layers;
        let (width, patch, grid) = (config.hidden_size, config.patch_size, config.grid);
        let patch_width = 3 * patch * patch;
        let projection = l.take(&format!("{}.weight", names.patch), &[width, 3, patch, patch]);
        let class_token = l.take(names.class_token, &[1, 1, width]);
        let positions = l.take(names.positions, &[1, 1 + grid * grid, width]);
        let class_token = class_token.iter().zip(&positions).map(|(a, b)| a + b).collect();
        let new_grid = Self::IMAGE_SIZE / patch;
        let patches = interpolate_positions(&positions[width..], grid, new_grid, interpolation);
        let patch_bias = l.take(&format!("{}.bias", names.patch), &[width]);
        let dinov2 = Self {
            patch_projection: Linear {
                weight: l.tensor(projection, [width, patch_width]),
                bias: l.tensor(patch_bias, [width]),
            },
            class_token: l.tensor(class_token, [1, 1, width]),
            positions: l.tensor(patches, [1, new_grid * new_grid, width]),
            blocks: (0..config.num_hidden_layers).map(|i| Block::new(i, &config, l)).collect(),
            norm: l.norm(names.norm, &config),
            hash: String::new(),
            device: device.clone(),
            config,
        };
        let needless = |name: &str| NEEDLESS.contains(&name);
        let weights = layers.weights.finish(path, "DINOv2's vision transformer", needless)?;
        // The same tensors give other features where positions are interpolated otherwise.
        let hash = match interpolation {
            PositionInterpolation::Size => weights,
            PositionInterpolation::OffsetScale => names::hash_with_offset(&weights),
        };
        Ok(Self { hash, ..dinov2 })
    }

    /// The class token's state behind the last layer norm.
    ///
    /// # Shapes
    /// patches: `[B, (224 / patch)^2, 3 * patch * patch]`, each `[3, patch, patch]` of a normalised
    /// picture, row by row; returns `[B, width]`.
    pub fn forward(&self, patches: Tensor<3>) -> Tensor<2> {
        let [b, _, _] = patches.dims();
        let width = self.config.hidden_size;
        let x = self.patch_projection.forward(patches) + self.positions.clone();
        let x = Tensor::cat(vec![self.class_token.clone().repeat_dim(0, b), x], 1);
        let (last, others) = self.blocks.split_last().expect("a config has at least one layer");
        let x = others.iter().fold(x, |x, block| block.forward(x));
        self.norm.forward(last.forward_class_token(x)).reshape([b, width])
    }

    /// Its sizes.
    pub fn config(&self) -> &Dinov2Config {
        &self.config
    }

    /// SHA-256, in hex, of all that decides the features: the weights, as they are stored, and how
    /// positions are interpolated.
    pub fn weights_hash(&self) -> &str {
        &self.hash
    }

    /// Whether the kernels of the CPU run it.
    fn on_cpu(&self) -> bool {
        deme_kernels::on_cpu(&self.positions)
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

#[derive(Debug, Clone)]
struct Linear {
    /// `[d_out, d_in]`.
    weight: Tensor<2>,
    bias: Tensor<1>,
}

impl Linear {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        deme_kernels::linear(x, self.weight.clone(), Some(self.bias.clone()))
    }
}

#[derive(Debug, Clone)]
struct LayerNorm {
    weight: Tensor<1>,
    bias: Tensor<1>,
    eps: f64,
}

impl LayerNorm {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        deme_kernels::layer_norm(x, self.weight.clone(), self.bias.clone(), self.eps)
    }
}

/// Attention, then an MLP, each behind a layer norm and added to its input.
#[derive(Debug, Clone)]
struct Block {
    norm1: LayerNorm,
    /// Queries, keys and values of all heads: `[3 width, width]`.
    qkv: Linear,
    attention_out: Linear,
    norm2: LayerNorm,
    mlp_in: Linear,
    mlp_out: Linear,
    heads: usize,
    swiglu: bool,
}

impl Block {
    fn new(index: usize, config: &Dinov2Config, layers: &mut Layers<'_>) -> Self {
        let names = layers.names;
        let (width, mlp_width) = (config.hidden_size, config.mlp_width);
        let within = |part: &str| format!("{}.{index}.{part}", names.blocks);
        let joined = |parts: &[&str]| parts.iter().map(|part| within(part)).collect::<Vec<_>>();
        let (mlp_in, mlp_in_width, mlp_out) = if config.swiglu {
            (names.swiglu_in, 2 * mlp_width, names.swiglu_out)
        } else {
            (&["mlp.fc1"][..], mlp_width, "mlp.fc2")
        };
        let (scale1, scale2) = (within(names.scale1), within(names.scale2));
        Self {
            norm1: layers.norm(&within("norm1"), config),
            qkv: layers.linear(&joined(names.qkv), width, 3 * width),
            attention_out: layers.scaled_linear(
                &within(names.attention_out),
                &scale1,
                width,
                width,
            ),
            norm2: layers.norm(&within("norm2"), config),
            mlp_in: layers.linear(&joined(mlp_in), width, mlp_in_width),
            mlp_out: layers.scaled_linear(&within(mlp_out), &scale2, mlp_width, width),
            heads: config.num_attention_heads,
            swiglu: config.swiglu,
        }
    }

    /// `[B, L, width]` to the same.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [_, l, _] = x.dims();
        self.forward_first(x, l)
    }

    /// `[B, L, width]` to the class token's `[B, 1, width]`. In the last block no other token's
    /// state is used, only its key and value.
    fn forward_class_token(&self, x: Tensor<3>) -> Tensor<3> {
        self.forward_first(x, 1)
    }

    /// The first `count` tokens' states, after attention to all tokens.
    fn forward_first(&self, x: Tensor<3>, count: usize) -> Tensor<3> {
        let [b, l, width] = x.dims();
        let d = width / self.heads;
        let qkv = self.qkv.forward(self.norm1.forward(x.clone()));
        let heads = |part: usize, tokens: usize| {
            let part = qkv.clone().slice([0..b, 0..tokens, part * width..(part + 1) * width]);
            part.reshape([b, tokens, self.heads, d]).swap_dims(1, 2)
        };
        let scale = (d as f64).powf(-0.5);
        let y = deme_kernels::attention(heads(0, count), heads(1, l), heads(2, l), scale, false);
        let y = self.attention_out.forward(y.swap_dims(1, 2).reshape([b, count, width]));
        let x = x.slice([0..b, 0..count, 0..width]) + y;

        let y = self.mlp_in.forward(self.norm2.forward(x.clone()));
        let y = if self.swiglu {
            let [gate, up]: [Tensor<3>; 2] =
                y.chunk(2, 2).try_into().expect("an even width has two halves");
            activation::silu(gate) * up
        } else {
            activation::gelu(y)
        };
        x + self.mlp_out.forward(y)
    }
}

/// Layers out of a checkpoint.
struct Layers<'a> {
    weights: NamedWeights<'a>,
    names: &'static Names,
    device: &'a Device,
}

impl Layers<'_> {
    fn take(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        self.weights.take(name, shape)
    }

    fn tensor<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), self.device)
    }

    fn norm(&mut self, name: &str, config: &Dinov2Config) -> LayerNorm {
        let width = config.hidden_size;
        let mut take = |part: &str| self.weights.take(&format!("{name}.{part}"), &[width]);
        let (weight, bias) = (take("weight"), take("bias"));
        let (weight, bias) = (self.tensor(weight, [width]), self.tensor(bias, [width]));
        LayerNorm { weight, bias, eps: config.layer_norm_eps }
    }

    /// Linear maps of one input as one, their outputs side by side.
    fn linear(&mut self, names: &[String], d_in: usize, d_out: usize) -> Linear {
        let part = d_out / names.len();
        let mut take = |name: &String| {
            let weight = self.weights.take(&format!("{name}.weight"), &[part, d_in]);
            (weight, self.weights.take(&format!("{name}.bias"), &[part]))
        };
        let (weights, biases): (Vec<_>, Vec<_>) = names.iter().map(&mut take).unzip();
        let (weight, bias) = (weights.concat(), biases.concat());
        Linear { weight: self.tensor(weight, [d_out, d_in]), bias: self.tensor(bias, [d_out]) }
    }

    /// A linear map and the layer scale behind it, a factor for each of its outputs, as one map.
    fn scaled_linear(&mut self, name: &str, scale: &str, d_in: usize, d_out: usize) -> Linear {
        let mut weight = self.take(&format!("{name}.weight"), &[d_out, d_in]);
        let mut bias = self.take(&format!("{name}.bias"), &[d_out]);
        let scale = self.take(scale, &[d_out]);
        for ((row, bias), factor) in weight.chunks_exact_mut(d_in).zip(&mut bias).zip(scale) {
            row.iter_mut().for_each(|w| *w *= factor);
            *bias *= factor;
        }
        Linear { weight: self.tensor(weight, [d_out, d_in]), bias: self.tensor(bias, [d_out]) }
    }
}
