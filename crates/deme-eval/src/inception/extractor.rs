//! Pictures to Inception features, by the protocols that published numbers follow.

use super::{Inception, InceptionBlock, rows};
use crate::extractor::image_unit;
use crate::{EvalError, FeatureExtractor};
use burn::tensor::{Tensor, TensorData};
use deme_data::{Interpolation, Picture, interpolate_bilinear, resize_channels};
use serde::{Deserialize, Serialize};

const SIZE: usize = Inception::IMAGE_SIZE;

/// How pictures come to the network. The same pictures have clearly different distances under the
/// two (Parmar et al. 2022, arXiv 2104.11222).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InceptionProtocol {
    /// pytorch-fid, and what papers call FID: bilinear without antialiasing on values in [0, 1], then
    /// `2 x - 1`.
    #[default]
    PytorchFid,
    /// clean-fid's mode `clean`: PIL's antialiased bicubic on each channel in floating point, cut
    /// off at 0 and 255, then `(x - 128) / 128`.
    CleanFid,
}

impl InceptionProtocol {
    /// The network's input from a value in [0, 1].
    fn signed_from_unit(self, value: f32) -> f32 {
        match self {
            Self::PytorchFid => 2.0 * value - 1.0,
            // 0 and 255 become -1 and 0.992: not the other protocol's scale.
            Self::CleanFid => (255.0 * value - 128.0) / 128.0,
        }
    }
}

/// [`Inception`] as extractor.
#[derive(Debug, Clone)]
pub struct InceptionExtractor {
    inception: Inception,
    block: InceptionBlock,
    protocol: InceptionProtocol,
}

impl InceptionExtractor {
    /// The features of FID.
    pub fn pool3(inception: Inception, protocol: InceptionProtocol) -> Self {
        Self::new(inception, InceptionBlock::Pool3, protocol)
    }

    /// The features of any block.
    pub fn new(inception: Inception, block: InceptionBlock, protocol: InceptionProtocol) -> Self {
        Self { inception, block, protocol }
    }

    /// The network itself, for its logits.
    pub fn inception(&self) -> &Inception {
        &self.inception
    }

    /// The network's input: `[B, 3, 299, 299]`.
    fn images_signed(&self, images_unit: &[&[f32]]) -> Tensor<4> {
        let values = images_unit.iter().flat_map(|image| image.iter());
        let values = values.map(|&value| self.protocol.signed_from_unit(value)).collect();
        let data = TensorData::new(values, [images_unit.len(), 3, SIZE, SIZE]);
        Tensor::from_data(data, self.inception.device())
    }
}

impl FeatureExtractor for InceptionExtractor {
    fn name(&self) -> &str {
        self.block.name()
    }

    fn weights_hash(&self) -> &str {
        self.inception.weights_hash()
    }

    fn dim(&self) -> usize {
        self.block.dim()
    }

    fn image_shape(&self) -> [usize; 3] {
        [3, SIZE, SIZE]
    }

    fn resizing(&self) -> &str {
        match self.protocol {
            InceptionProtocol::PytorchFid => {
                "to 299x299 by bilinear interpolation without antialiasing, as pytorch-fid"
            }
            InceptionProtocol::CleanFid => {
                "to 299x299 by antialiased bicubic in floating point, as clean-fid"
            }
        }
    }

    fn prepare(&self, picture: &Picture) -> Vec<f32> {
        match self.protocol {
            InceptionProtocol::PytorchFid => {
                let size = [picture.height as usize, picture.width as usize];
                interpolate_bilinear(&image_unit(picture), size, [SIZE, SIZE])
            }
            InceptionProtocol::CleanFid => {
                let side = SIZE as u32;
                let values = resize_channels(picture, side, side, Interpolation::Bicubic);
                values.into_iter().map(|value| value.clamp(0.0, 255.0) / 255.0).collect()
            }
        }
    }

    fn features(&self, images_unit: &[&[f32]]) -> Result<Vec<Vec<f32>>, EvalError> {
        EvalError::check_images(images_unit, self.image_shape())?;
        let mut features = Vec::with_capacity(images_unit.len());
        for images in images_unit.chunks(IMAGES_AT_ONCE) {
            features.extend(rows(self.inception.forward(self.images_signed(images), self.block)));
        }
        EvalError::check_features(&features)?;
        Ok(features)
    }

    /// `fid` and `clean_fid` on the features these are defined on.
    fn frechet_metric(&self) -> String {
        match (self.protocol, self.block) {
            (InceptionProtocol::PytorchFid, InceptionBlock::Pool3) => "fid".to_owned(),
            (InceptionProtocol::CleanFid, InceptionBlock::Pool3) => "clean_fid".to_owned(),
            (InceptionProtocol::PytorchFid, block) => format!("fd_{}", block.name()),
            (InceptionProtocol::CleanFid, block) => format!("clean_fd_{}", block.name()),
        }
    }
}

/// More would take more memory and no less time. A feature does not depend on it.
const IMAGES_AT_ONCE: usize = 16;
