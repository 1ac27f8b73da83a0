//! Pictures to DINOv2 features, as dgm-eval (Stein et al. 2023) prepares them.

use super::Dinov2;
use crate::extractor::image_unit;
use crate::{EvalError, FeatureExtractor};
use burn::tensor::{Tensor, TensorData};
use deme_data::{Interpolation, Picture, resize_rgb};
use rayon::prelude::*;

const SIZE: usize = Dinov2::IMAGE_SIZE;
/// ImageNet's mean per channel, of values in [0, 1].
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// ImageNet's deviation per channel.
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// [`Dinov2`] as extractor: the class token's state behind the last layer norm.
#[derive(Debug, Clone)]
pub struct Dinov2Extractor {
    dinov2: Dinov2,
    name: String,
}

impl Dinov2Extractor {
    /// The extractor of this network, called `dinov2_vitl14` or what its size says.
    pub fn new(dinov2: Dinov2) -> Self {
        let name = dinov2.config().name();
        Self { dinov2, name }
    }

    /// The network itself.
    pub fn dinov2(&self) -> &Dinov2 {
        &self.dinov2
    }

    /// The network's input: normalised patches `[B, patches, 3 * patch * patch]`.
    fn patches(&self, images_unit: &[&[f32]]) -> Tensor<3> {
        let patch = self.dinov2.config().patch_size;
        let grid = SIZE / patch;
        let mut values = Vec::with_capacity(images_unit.len() * 3 * SIZE * SIZE);
        for image in images_unit {
            for (row, column) in (0..grid * grid).map(|i| (i / grid * patch, i % grid * patch)) {
                for (plane, (mean, deviation)) in
                    image.chunks_exact(SIZE * SIZE).zip(MEAN.iter().zip(&DEVIATION))
                {
                    for line in plane[row * SIZE..].chunks(SIZE).take(patch) {
                        let pixels = line[column..column + patch].iter();
                        values.extend(pixels.map(|value| (value - mean) / deviation));
                    }
                }
            }
        }
        let shape = [images_unit.len(), grid * grid, 3 * patch * patch];
        Tensor::from_data(TensorData::new(values, shape), self.dinov2.device())
    }

    fn batch_features(&self, images_unit: &[&[f32]]) -> Vec<Vec<f32>> {
        let features = self.dinov2.forward(self.patches(images_unit));
        let values = features.into_data().try_into_vec::<f32>().expect("the network is of f32");
        values.chunks(self.dinov2.config().hidden_size).map(<[f32]>::to_vec).collect()
    }
}

impl FeatureExtractor for Dinov2Extractor {
    fn name(&self) -> &str {
        &self.name
    }

    fn weights_hash(&self) -> &str {
        self.dinov2.weights_hash()
    }

    fn dim(&self) -> usize {
        self.dinov2.config().hidden_size
    }

    fn image_shape(&self) -> [usize; 3] {
        [3, SIZE, SIZE]
    }

    fn resizing(&self) -> &str {
        "the whole picture to 224x224 by antialiased bicubic, as dgm-eval"
    }

    fn prepare(&self, picture: &Picture) -> Vec<f32> {
        image_unit(&resize_rgb(picture, SIZE as u32, SIZE as u32, Interpolation::Bicubic))
    }

    fn features(&self, images_unit: &[&[f32]]) -> Result<Vec<Vec<f32>>, EvalError> {
        EvalError::check_images(images_unit, self.image_shape())?;
        let features: Vec<Vec<f32>> = if self.dinov2.on_cpu() {
            // A picture by itself: the norms and the non-linearity between the kernels come from Burn,
            // which does not promise that a picture's values are the same in a batch.
            let one = |image: &&[f32]| self.batch_features(&[*image]);
            images_unit.par_iter().flat_map_iter(one).collect()
        } else {
            images_unit.chunks(IMAGES_AT_ONCE).flat_map(|b| self.batch_features(b)).collect()
        };
        EvalError::check_features(&features)?;
        Ok(features)
    }
}

/// On devices other than the CPU, which one picture does not fill.
const IMAGES_AT_ONCE: usize = 16;
