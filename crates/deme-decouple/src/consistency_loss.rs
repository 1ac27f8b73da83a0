//! The consistency loss: an expert stays near what the pretrained model predicts (Ma et al. 2025).

use burn::tensor::Tensor;
use deme_diffusion::Denoiser;

/// `mean((eps_theta(x_t, t) - eps_theta_i(x_t, t))^2)` over all elements, theta the frozen teacher.
///
/// Teacher and student look at the same `x_t`. No gradient reaches the teacher: it runs on tensors without
/// autodiff, and its prediction is a constant.
///
/// # Shapes
/// student_prediction, x_t: `[B, C, H, W]`; t: one per image; returns `[1]`.
pub fn consistency_loss(
    teacher: &dyn Denoiser,
    student_prediction: Tensor<4>,
    x_t: Tensor<4>,
    t: &[usize],
) -> Tensor<1> {
    let teacher_prediction = teacher.predict(x_t.without_autodiff(), t).without_autodiff();
    (student_prediction - teacher_prediction).square().mean()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::test_models::{images, tiny_unet};
    use burn::tensor::Device;
    use deme_diffusion::DenoiserFn;
    use deme_nn::{Gradients, to_state_dict, with_gradients};

    #[test]
    fn it_is_the_mean_squared_difference_and_sees_x_t_and_t() {
        let device = Device::flex();
        let x_t = Tensor::<4>::ones([2, 1, 2, 2], &device);
        let teacher = DenoiserFn(|x: Tensor<4>, t: &[usize]| x * t[0] as f64);
        let loss = consistency_loss(&teacher, x_t.clone() * 5.0, x_t, &[2, 2]);
        assert_eq!(loss.into_scalar::<f32>(), 9.0);
    }

    #[test]
    fn the_teacher_sees_plain_tensors_and_its_own_gradient_is_not_taken() {
        let device = Device::flex();
        let (student, teacher) = (tiny_unet(1, &device), tiny_unet(2, &device));
        let x_t = images(2, 5, &device);
        let t = [3, 700];
        let before = to_state_dict(&teacher).content_hash();
        let watched = DenoiserFn(|x: Tensor<4>, t: &[usize]| {
            assert!(!x.is_autodiff());
            teacher.predict(x, t)
        });
        let live = with_gradients(&student);
        let prediction = live.forward(x_t.clone(), &t);
        let loss = consistency_loss(&watched, prediction, x_t.clone(), &t);
        let gradients = Gradients::of(&loss, &live);
        assert!(gradients.norm() > 0.0);
        assert_eq!(to_state_dict(&teacher).content_hash(), before);

        // The same gradient as against a constant: nothing flows through the teacher.
        let constant = teacher.predict(x_t.clone(), &t);
        let fixed = DenoiserFn(|_: Tensor<4>, _: &[usize]| constant.clone());
        let live = with_gradients(&student);
        let loss = consistency_loss(&fixed, live.forward(x_t.clone(), &t), x_t, &t);
        let expected = Gradients::of(&loss, &live).to_state_dict().content_hash();
        assert_eq!(gradients.to_state_dict().content_hash(), expected);
    }
}
