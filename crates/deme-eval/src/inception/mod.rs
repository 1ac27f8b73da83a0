//! Inception-v3 (Szegedy et al. 2016, arXiv 1512.00567) as the Fréchet inception distance uses it.
//!
//! FID is defined by one set of weights, TensorFlow's of 2015-12-05, in one network. This is that
//! network as pytorch-fid ports it (`pt_inception-2015-12-05-*.pth`), departures from the paper
//! included, because published numbers depend on them: see `blocks`. torchvision's own Inception has
//! the same names, other weights and other poolings; features of it are not comparable.
//!
//! [`Inception`] is the network, [`InceptionExtractor`] brings pictures to it as one of the published
//! protocols does. Not here: the training of it, its auxiliary classifier.

mod blocks;
mod extractor;

pub use extractor::{InceptionExtractor, InceptionProtocol};

use crate::EvalError;
use crate::named_weights::NamedWeights;
use blocks::{InceptionA, InceptionB, InceptionC, InceptionD, InceptionE, Pooling};
use burn::tensor::{Device, Tensor, TensorData};
use deme_kernels::{ConvRelu, Window, global_avg_pool2d, max_pool2d};
use deme_merge::StateDict;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Where in the network features are taken. pytorch-fid calls these by their number of channels; each
/// is the mean over the map of what the block puts out.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum InceptionBlock {
    /// Behind the first max pool: 64 channels.
    Pool1,
    /// Behind the second max pool: 192 channels.
    Pool2,
    /// Before the auxiliary classifier would branch off: 768 channels.
    PreAux,
    /// The final average pool: 2048 channels. FID is on these.
    #[default]
    Pool3,
}

impl InceptionBlock {
    /// All of them, from the input to the output.
    pub const ALL: [Self; 4] = [Self::Pool1, Self::Pool2, Self::PreAux, Self::Pool3];

    /// Entries of a feature.
    pub fn dim(self) -> usize {
        match self {
            Self::Pool1 => 64,
            Self::Pool2 => 192,
            Self::PreAux => 768,
            Self::Pool3 => 2048,
        }
    }

    /// The name of an extractor of these features, such as `inception_pool3`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pool1 => "inception_pool1",
            Self::Pool2 => "inception_pool2",
            Self::PreAux => "inception_preaux",
            Self::Pool3 => "inception_pool3",
        }
    }
}

/// Whether logits contain the last layer's bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitBias {
    /// As the network was trained.
    Added,
    /// As TensorFlow's original Inception score left it out, and with it every published score.
    LeftOut,
}

/// FID's Inception-v3 for inference. Cloning shares the weights.
#[derive(Debug, Clone)]
pub struct Inception {
    conv2d_1a_3x3: ConvRelu,
    conv2d_2a_3x3: ConvRelu,
    conv2d_2b_3x3: ConvRelu,
    conv2d_3b_1x1: ConvRelu,
    conv2d_4a_3x3: ConvRelu,
    mixed_5: [InceptionA; 3],
    mixed_6a: InceptionB,
    mixed_6: [InceptionC; 4],
    mixed_7a: InceptionD,
    mixed_7: [InceptionE; 2],
    fc_weight: Tensor<2>,
    fc_bias: Tensor<1>,
    hash: String,
    device: Device,
}

impl Inception {
    /// Height and width of the pictures it was trained on.
    pub const IMAGE_SIZE: usize = 299;
    /// Logits: TensorFlow's 1000 classes of ImageNet and 8 that nothing belongs to.
    pub const CLASSES: usize = 1008;

    /// Reads pytorch-fid's `.pth` (without executing it) or a safetensors file of the same names.
    ///
    /// # Errors
    /// [`EvalError::State`] for a file that cannot be read, [`EvalError::Weights`] for one of another
    /// network.
    pub fn load(path: &Path, device: &Device) -> Result<Self, EvalError> {
        Self::from_state_dict(&StateDict::load(path)?, path, device)
    }

    /// The network of these tensors; messages call them `path`.
    ///
    /// # Errors
    /// [`EvalError::Weights`] lists all that is missing, unused or of another shape;
    /// [`EvalError::State`] names a tensor that is not finite.
    pub fn from_state_dict(
        state: &StateDict,
        path: &Path,
        device: &Device,
    ) -> Result<Self, EvalError> {
        state.check_finite()?;
        let mut layers = Layers { weights: NamedWeights::new(state), device };
        let l = &mut layers;
        let c7 = [128, 160, 160, 192];
        let inception = Self {
            conv2d_1a_3x3: l.conv("Conv2d_1a_3x3", 3, 32, Window::square(3, 2, 0)),
            conv2d_2a_3x3: l.conv("Conv2d_2a_3x3", 32, 32, Window::square(3, 1, 0)),
            conv2d_2b_3x3: l.conv("Conv2d_2b_3x3", 32, 64, Window::square(3, 1, 1)),
            conv2d_3b_1x1: l.conv("Conv2d_3b_1x1", 64, 80, Window::square(1, 1, 0)),
            conv2d_4a_3x3: l.conv("Conv2d_4a_3x3", 80, 192, Window::square(3, 1, 0)),
            mixed_5: [
                InceptionA::new("Mixed_5b", 192, 32, l),
                InceptionA::new("Mixed_5c", 256, 64, l),
                InceptionA::new("Mixed_5d", 288, 64, l),
            ],
            mixed_6a: InceptionB::new("Mixed_6a", 288, l),
            mixed_6: [
                InceptionC::new("Mixed_6b", 768, c7[0], l),
                InceptionC::new("Mixed_6c", 768, c7[1], l),
                InceptionC::new("Mixed_6d", 768, c7[2], l),
                InceptionC::new("Mixed_6e", 768, c7[3], l),
            ],
            mixed_7a: InceptionD::new("Mixed_7a", 768, l),
            mixed_7: [
                InceptionE::new("Mixed_7b", 1280, Pooling::Average, l),
                InceptionE::new("Mixed_7c", 2048, Pooling::Max, l),
            ],
            fc_weight: l.tensor("fc.weight", [Self::CLASSES, 2048]),
            fc_bias: l.tensor("fc.bias", [Self::CLASSES]),
            hash: String::new(),
            device: device.clone(),
        };
        // Batch norms of newer files count the batches they were trained on.
        let needless = |name: &str| name.ends_with(".num_batches_tracked");
        let hash = layers.weights.finish(path, "FID's Inception-v3", needless)?;
        Ok(Self { hash, ..inception })
    }

    /// The features of one block.
    ///
    /// # Shapes
    /// images_signed: `[B, 3, H, W]` in [-1, 1], at least 75 pixels high and wide (299 for FID);
    /// returns `[B, block.dim()]`.
    pub fn forward(&self, images_signed: Tensor<4>, block: InceptionBlock) -> Tensor<2> {
        // Sizes are those of a map of 299 x 299.
        let x = self.conv2d_1a_3x3.forward(images_signed); // 32 x 149 x 149
        let x = self.conv2d_2a_3x3.forward(x); // 32 x 147 x 147
        let x = self.conv2d_2b_3x3.forward(x); // 64 x 147 x 147
        let x = max_pool2d(x, Window::square(3, 2, 0)); // 64 x 73 x 73
        if block == InceptionBlock::Pool1 {
            return global_avg_pool2d(x);
        }
        let x = self.conv2d_3b_1x1.forward(x); // 80 x 73 x 73
        let x = self.conv2d_4a_3x3.forward(x); // 192 x 71 x 71
        let x = max_pool2d(x, Window::square(3, 2, 0)); // 192 x 35 x 35
        if block == InceptionBlock::Pool2 {
            return global_avg_pool2d(x);
        }
        let x = self.mixed_5.iter().fold(x, |x, mixed| mixed.forward(x)); // 288 x 35 x 35
        let x = self.mixed_6a.forward(x); // 768 x 17 x 17
        let x = self.mixed_6.iter().fold(x, |x, mixed| mixed.forward(x)); // 768 x 17 x 17
        if block == InceptionBlock::PreAux {
            return global_avg_pool2d(x);
        }
        let x = self.mixed_7a.forward(x); // 1280 x 8 x 8
        let x = self.mixed_7.iter().fold(x, |x, mixed| mixed.forward(x)); // 2048 x 8 x 8
        global_avg_pool2d(x)
    }

    /// The logits of 1008 classes from [`InceptionBlock::Pool3`] features: dropout does nothing
    /// outside training, so the last layer alone is missing to them.
    ///
    /// # Shapes
    /// pool3: B features of 2048; returns B rows of [`Self::CLASSES`].
    ///
    /// # Errors
    /// [`EvalError::FeatureLength`] for features of another block.
    pub fn logits<F: AsRef<[f32]>>(
        &self,
        pool3: &[F],
        bias: LogitBias,
    ) -> Result<Vec<Vec<f32>>, EvalError> {
        let expected = InceptionBlock::Pool3.dim();
        let mut values = Vec::with_capacity(pool3.len() * expected);
        for (index, feature) in (0..).zip(pool3) {
            let feature = feature.as_ref();
            if feature.len() != expected {
                return Err(EvalError::FeatureLength { index, found: feature.len(), expected });
            }
            values.extend_from_slice(feature);
        }
        if values.is_empty() {
            return Ok(Vec::new());
        }
        let data = TensorData::new(values, [pool3.len(), expected]);
        let bias = (bias == LogitBias::Added).then(|| self.fc_bias.clone());
        let features = Tensor::<2>::from_data(data, &self.device);
        let logits = deme_kernels::linear(features, self.fc_weight.clone(), bias);
        Ok(rows(logits))
    }

    /// SHA-256, in hex, of all weights.
    pub fn weights_hash(&self) -> &str {
        &self.hash
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

/// The rows of a matrix, on the host.
fn rows(x: Tensor<2>) -> Vec<Vec<f32>> {
    let [_, width] = x.dims();
    let values = x.into_data().try_into_vec::<f32>().expect("the network computes in f32");
    values.chunks(width).map(<[f32]>::to_vec).collect()
}

/// Layers out of a checkpoint.
struct Layers<'a> {
    weights: NamedWeights<'a>,
    device: &'a Device,
}

impl Layers<'_> {
    /// torchvision's `BasicConv2d`: a convolution without bias, batch norm, ReLU. Outside training
    /// the norm is a factor and a sum per channel, which go into the convolution.
    fn conv(&mut self, name: &str, c_in: usize, c_out: usize, window: Window) -> ConvRelu {
        /// TensorFlow's, where PyTorch's default is 1e-5.
        const EPS: f64 = 0.001;
        let [kh, kw] = window.kernel;
        let mut weight = self.weights.take(&format!("{name}.conv.weight"), &[c_out, c_in, kh, kw]);
        let mut of_norm = |part: &str| self.weights.take(&format!("{name}.bn.{part}"), &[c_out]);
        let (gamma, beta) = (of_norm("weight"), of_norm("bias"));
        let (mean, variance) = (of_norm("running_mean"), of_norm("running_var"));
        let mut bias = beta;
        for (c, weights) in weight.chunks_exact_mut(c_in * kh * kw).enumerate() {
            let factor = f64::from(gamma[c]) / (f64::from(variance[c]) + EPS).sqrt();
            weights.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
            bias[c] = (f64::from(bias[c]) - f64::from(mean[c]) * factor) as f32;
        }
        let weight = TensorData::new(weight, [c_out, c_in, kh, kw]);
        let weight = Tensor::from_data(weight, self.device);
        let bias = Tensor::from_data(TensorData::new(bias, [c_out]), self.device);
        ConvRelu::new(weight, bias, window.stride, window.padding)
    }

    fn tensor<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<D> {
        let values = self.weights.take(name, &shape);
        Tensor::from_data(TensorData::new(values, shape), self.device)
    }
}
