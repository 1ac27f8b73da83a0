//! CLIP's symmetric cross-entropy over the cosines of a batch (Radford et al. 2021, figure 3).

use burn::tensor::{Tensor, TensorData, activation};

/// The logarithm of the inverse temperature is kept at or below `ln 100` (section 2.5).
pub const MAX_LOGIT_SCALE: f32 = 4.605_170_2;

/// Mean of the cross-entropies of picture -> caption and caption -> picture.
///
/// Row i of both sides belongs together. A departure from the paper: `same[i] == same[j]` says that
/// rows i and j carry the same caption, and equal captions share the target evenly. With distinct
/// captions this is the paper's loss.
///
/// # Shapes
/// image, text: `[B, d]`, normalised; logit_scale: `[1]`, the logarithm; same: B labels; returns `[1]`.
pub fn contrastive_loss(
    image: Tensor<2>,
    text: Tensor<2>,
    logit_scale: Tensor<1>,
    same: &[usize],
) -> Tensor<1> {
    let b = same.len();
    let logits = image.matmul(text.transpose()) * logit_scale.exp().reshape([1, 1]);
    let mut targets = vec![0f32; b * b];
    for (i, row) in targets.chunks_mut(b).enumerate() {
        let positives = same.iter().filter(|&&label| label == same[i]).count();
        for (target, &label) in row.iter_mut().zip(same) {
            if label == same[i] {
                *target = 1.0 / positives as f32;
            }
        }
    }
    let targets = Tensor::<2>::from_data(TensorData::new(targets, [b, b]), &logits.device());
    // The targets are symmetric, so both directions use the same matrix.
    let image_to_text = (activation::log_softmax(logits.clone(), 1) * targets.clone()).sum();
    let text_to_image = (activation::log_softmax(logits, 0) * targets).sum();
    (image_to_text + text_to_image) * (-0.5 / b as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use burn::tensor::Device;

    fn loss(image: [[f32; 2]; 2], text: [[f32; 2]; 2], scale: f32, same: [usize; 2]) -> f32 {
        let device = Device::flex();
        let tensor = |rows| Tensor::<2>::from_floats(rows, &device);
        let scale = Tensor::<1>::from_floats([scale.ln()], &device);
        contrastive_loss(tensor(image), tensor(text), scale, &same).into_scalar::<f32>()
    }

    #[test]
    fn equal_embeddings_give_ln_of_the_batch() {
        let rows = [[1.0, 0.0], [1.0, 0.0]];
        assert!((loss(rows, rows, 10.0, [0, 1]) - 2f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn orthogonal_pairs_give_the_closed_form() {
        let rows = [[1.0, 0.0], [0.0, 1.0]];
        // -ln(e^s / (e^s + 1)) with s = 3
        let expected = (1.0 + (-3f32).exp()).ln();
        assert!((loss(rows, rows, 3.0, [0, 1]) - expected).abs() < 1e-6);
    }

    #[test]
    fn equal_captions_share_the_target() {
        let rows = [[1.0, 0.0], [1.0, 0.0]];
        assert!((loss(rows, rows, 10.0, [7, 7]) - 2f32.ln()).abs() < 1e-6);
        let image = [[1.0, 0.0], [0.0, 1.0]];
        let mixed = loss(image, image, 3.0, [7, 7]);
        // mean of -ln p(right) and -ln p(other): ln(1 + e^-3) + 3/2
        assert!((mixed - ((1.0 + (-3f32).exp()).ln() + 1.5)).abs() < 1e-6);
    }
}
