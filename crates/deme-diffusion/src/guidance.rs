//! Classifier-free guidance: a denoiser under a prompt, pushed away from what it predicts without.
//!
//! Ho and Salimans 2022 (arXiv 2207.12598), eq. 6, in the form `eps = eps_uncond + g (eps_cond - eps_uncond)`.
//! It acts on the raw output, whatever that stands for (eps, x_0 or v), and the unconditional part may be that
//! of a negative prompt.
//! Not here: the texts and their hidden states.

use crate::denoiser::{ConditionalDenoiser, Denoiser};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// How strongly the prompt guides. Defaults: scale 7.5, no rescaling.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuidanceConfig {
    /// g. 0 is the unconditional (or negative) prediction and 1 the conditional one, at the cost of one pass
    /// each; anything else takes two. Values between 0 and 1 mix the two predictions, values above 1 guide.
    ///
    /// The formula holds for every g. diffusers, which calls it `guidance_scale`, gives the conditional
    /// prediction for every g <= 1.
    pub scale: f64,
    /// How far the guided output is brought back to the deviation of the conditional one, in [0, 1] (Lin et al.
    /// 2024, arXiv 2305.08891, eq. 15 and 16; 0.7 there). 0 leaves it.
    pub rescale: f64,
}

impl Default for GuidanceConfig {
    fn default() -> Self {
        Self { scale: 7.5, rescale: 0.0 }
    }
}

impl GuidanceConfig {
    /// Evaluations of the network for each image and step.
    pub fn passes(&self) -> u64 {
        let one = self.scale == 1.0 || (self.scale == 0.0 && self.rescale == 0.0);
        if one { 1 } else { 2 }
    }

    /// Whether [`Guided`] needs hidden states for the unconditional prediction.
    pub fn needs_unconditional(&self) -> bool {
        self.scale != 1.0
    }

    /// # Errors
    /// [`GuidanceError::Scale`] for a scale that is no number; [`GuidanceError::Rescale`] outside [0, 1].
    pub fn check(&self) -> Result<(), GuidanceError> {
        if !self.scale.is_finite() {
            return Err(GuidanceError::Scale { scale: self.scale });
        }
        if !(0.0..=1.0).contains(&self.rescale) {
            return Err(GuidanceError::Rescale { rescale: self.rescale });
        }
        Ok(())
    }
}

/// A conditional denoiser under guidance, with the hidden states of its prompts bound in: a [`Denoiser`] like any
/// other.
///
/// Two predictions are made as one batch of twice the size, the unconditional half first.
#[derive(Debug, Clone)]
pub struct Guided<D> {
    denoiser: D,
    guidance: GuidanceConfig,
    prompt: Tensor<3>,
    negative: Option<Tensor<3>>,
}

impl<D> Guided<D> {
    /// Guides towards `prompt` and away from `negative`, the hidden states of the negative prompts (of the
    /// empty text for plain guidance).
    ///
    /// # Shapes
    /// Each `[B, L, width]`, one sequence per image, or `[1, L, width]`, the same for every image; L and width
    /// of both the same.
    ///
    /// # Errors
    /// Those of [`GuidanceConfig::check`]; [`GuidanceError::NoUnconditional`] where `negative` is needed;
    /// [`GuidanceError::Shape`] when the two do not fit together.
    pub fn new(
        denoiser: D,
        guidance: GuidanceConfig,
        prompt: Tensor<3>,
        negative: Option<Tensor<3>>,
    ) -> Result<Self, GuidanceError> {
        guidance.check()?;
        match &negative {
            None if guidance.needs_unconditional() => {
                return Err(GuidanceError::NoUnconditional { scale: guidance.scale });
            }
            Some(negative) => {
                let (found, expected) = (negative.dims(), prompt.dims());
                let rows_fit = found[0] == expected[0] || found[0] == 1 || expected[0] == 1;
                if found[1..] != expected[1..] || !rows_fit {
                    return Err(GuidanceError::Shape { prompt: expected, negative: found });
                }
            }
            None => {}
        }
        Ok(Self { denoiser, guidance, prompt, negative })
    }

    /// One pass or two; `ask` gives the network's output for images, times and hidden states.
    fn guided<T: Copy>(
        &self,
        x_t: Tensor<4>,
        t: &[T],
        ask: impl Fn(Tensor<4>, &[T], Tensor<3>) -> Tensor<4>,
    ) -> Tensor<4> {
        let GuidanceConfig { scale, rescale } = self.guidance;
        let images = x_t.dims()[0];
        let prompt = |hidden_states: &Tensor<3>| per_image(hidden_states, images);
        let negative = match &self.negative {
            Some(negative) if scale != 1.0 => negative,
            _ => return ask(x_t, t, prompt(&self.prompt)),
        };
        if scale == 0.0 && rescale == 0.0 {
            return ask(x_t, t, prompt(negative));
        }
        let both = ask(
            Tensor::cat(vec![x_t.clone(), x_t], 0),
            &[t, t].concat(),
            Tensor::cat(vec![prompt(negative), prompt(&self.prompt)], 0),
        );
        let unconditional = both.clone().narrow(0, 0, images);
        let conditional = both.narrow(0, images, images);
        let guided = unconditional.clone() + (conditional.clone() - unconditional) * scale;
        match rescale > 0.0 {
            true => rescaled(guided, conditional, rescale),
            false => guided,
        }
    }
}

/// One sequence per image, `[images, L, width]`.
fn per_image(hidden_states: &Tensor<3>, images: usize) -> Tensor<3> {
    let [sequences, length, width] = hidden_states.dims();
    assert!(
        sequences == images || sequences == 1,
        "{images} images need 1 or {images} sequences of hidden states, not {sequences}"
    );
    hidden_states.clone().expand([images, length, width])
}

/// `phi guided std(conditional) / std(guided) + (1 - phi) guided`, deviations per image (Lin et al. 2024, eq. 15
/// and 16). An image without any deviation stays as it is.
fn rescaled(guided: Tensor<4>, conditional: Tensor<4>, phi: f64) -> Tensor<4> {
    let deviation = |x: Tensor<4>| {
        let [b, c, h, w] = x.dims();
        let x = x.reshape([b, c * h * w]);
        let centred = x.clone() - x.mean_dim(1);
        (centred.clone() * centred).mean_dim(1).sqrt().reshape([b, 1, 1, 1])
    };
    let of_guided = deviation(guided.clone());
    let flat = of_guided.clone().equal_elem(0.0);
    let ratio = (deviation(conditional) / of_guided).mask_fill(flat, 1.0);
    guided * (ratio * phi + (1.0 - phi))
}

impl<D: ConditionalDenoiser> Denoiser for Guided<D> {
    /// # Panics
    /// When there are neither one sequence of hidden states nor as many as images.
    fn predict(&self, x_t: Tensor<4>, t: &[usize]) -> Tensor<4> {
        self.guided(x_t, t, |x_t, t, condition| self.denoiser.predict(x_t, t, condition))
    }

    fn predict_between(&self, x_t: Tensor<4>, t: &[f64]) -> Tensor<4> {
        self.guided(x_t, t, |x_t, t, condition| self.denoiser.predict_between(x_t, t, condition))
    }
}

/// Why nothing can be guided.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GuidanceError {
    /// A scale that is no number.
    #[error("guidance scale {scale} is no finite number; 7.5 is usual, 1 is without guidance")]
    Scale {
        /// The scale.
        scale: f64,
    },
    /// A rescaling outside [0, 1].
    #[error(
        "guidance rescale {rescale} is impossible; it lies in [0, 1] (0 leaves the output as it is)"
    )]
    Rescale {
        /// The value.
        rescale: f64,
    },
    /// No hidden states to guide away from.
    #[error(
        "guidance scale {scale} needs the hidden states of a negative prompt, or of the empty text; only \
         scale 1 goes without"
    )]
    NoUnconditional {
        /// The scale.
        scale: f64,
    },
    /// Hidden states that do not fit together.
    #[error(
        "hidden states of shape {negative:?} for the negative prompts do not fit those of shape {prompt:?} \
         for the prompts (sequences, length, width); pad both to one length and give one per image"
    )]
    Shape {
        /// Of the prompts.
        prompt: [usize; 3],
        /// Of the negative prompts.
        negative: [usize; 3],
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use burn::tensor::{Device, TensorData};
    use std::cell::RefCell;

    fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
    }

    fn values(x: Tensor<4>) -> Vec<f32> {
        x.into_data().try_into_vec::<f32>().unwrap()
    }

    /// Gives `x + t + sum of the hidden states times (1 + pixel index)` and remembers what it was asked.
    #[derive(Default)]
    struct Asked(RefCell<Vec<(Vec<f64>, usize)>>);

    impl ConditionalDenoiser for Asked {
        fn predict(&self, x_t: Tensor<4>, t: &[usize], condition: Tensor<3>) -> Tensor<4> {
            let t: Vec<f64> = t.iter().map(|&t| t as f64).collect();
            self.predict_between(x_t, &t, condition)
        }

        fn predict_between(&self, x_t: Tensor<4>, t: &[f64], condition: Tensor<3>) -> Tensor<4> {
            let [b, c, h, w] = x_t.dims();
            assert_eq!((t.len(), condition.dims()[0]), (b, b));
            self.0.borrow_mut().push((t.to_vec(), b));
            let pixels: Vec<f32> = (1..=c * h * w).map(|i| i as f32).collect();
            let times: Vec<f32> = t.iter().map(|&t| t as f32).collect();
            let sums = condition.sum_dim(2).sum_dim(1).reshape([b, 1, 1, 1]);
            x_t + tensor(&times, [b, 1, 1, 1]) + sums * tensor(&pixels, [1, c, h, w])
        }
    }

    const X: [f32; 4] = [0.5, -0.5, 2.0, 1.0];

    /// Two images of two pixels; prompts 3 and 4, negative prompts 1 and 2.
    fn guided(scale: f64, rescale: f64) -> (Vec<f32>, usize) {
        let asked = Asked::default();
        let (prompt, negative) = (tensor(&[3.0, 4.0], [2, 1, 1]), tensor(&[1.0, 2.0], [2, 1, 1]));
        let config = GuidanceConfig { scale, rescale };
        let guided = Guided::new(&asked, config, prompt, Some(negative)).unwrap();
        let output = values(guided.predict(tensor(&X, [2, 1, 1, 2]), &[10, 20]));
        let calls = asked.0.borrow();
        assert_eq!(calls.len(), 1);
        (output, calls[0].1)
    }

    /// What the network gives under one prompt per image.
    fn under(prompts: [f32; 2]) -> Vec<f32> {
        let x = tensor(&X, [2, 1, 1, 2]);
        values(Asked::default().predict(x, &[10, 20], tensor(&prompts, [2, 1, 1])))
    }

    #[test]
    fn the_formula_by_hand() {
        let (output, images) = guided(7.5, 0.0);
        assert_eq!(images, 4);
        // Image 0: x + 10 + (1 + 7.5 * (3 - 1)) (1, 2); image 1: x + 20 + (2 + 7.5 * 2) (1, 2).
        assert_eq!(output, [26.5, 41.5, 39.0, 55.0]);
    }

    #[test]
    fn scale_one_is_the_conditional_prediction_in_one_pass() {
        assert_eq!(guided(1.0, 0.0), (under([3.0, 4.0]), 2));
        assert_eq!(guided(1.0, 0.7), (under([3.0, 4.0]), 2));
    }

    #[test]
    fn scale_zero_is_the_unconditional_prediction_in_one_pass() {
        assert_eq!(guided(0.0, 0.0), (under([1.0, 2.0]), 2));
    }

    #[test]
    fn between_zero_and_one_predictions_are_mixed() {
        let (conditional, unconditional) = (under([3.0, 4.0]), under([1.0, 2.0]));
        for (i, found) in guided(0.25, 0.0).0.into_iter().enumerate() {
            let expected = 0.75 * unconditional[i] + 0.25 * conditional[i];
            assert!((found - expected).abs() < 1e-5, "{found} != {expected}");
        }
    }

    #[test]
    fn rescaling_brings_back_the_deviation() {
        let deviation = |pixels: &[f32]| (pixels[0] - pixels[1]).abs() / 2.0;
        let (plain, conditional) = (guided(7.5, 0.0).0, under([3.0, 4.0]));
        let (full, half) = (guided(7.5, 1.0).0, guided(7.5, 0.5).0);
        for image in [0..2, 2..4] {
            let of = |x: &[f32]| deviation(&x[image.clone()]);
            assert!((of(&full) - of(&conditional)).abs() < 1e-5);
            assert!((of(&half) - (of(&conditional) + of(&plain)) / 2.0).abs() < 1e-5);
            // Only the scale changes.
            let ratio = full[image.start] / plain[image.start];
            assert!((full[image.start + 1] / plain[image.start + 1] - ratio).abs() < 1e-5);
        }
    }

    #[test]
    fn an_image_without_deviation_is_not_rescaled_to_nothing() {
        let flat = tensor(&[2.0, 2.0], [1, 1, 1, 2]);
        let found = rescaled(flat, tensor(&[1.0, 3.0], [1, 1, 1, 2]), 0.7);
        for value in values(found) {
            assert!((value - 2.0).abs() < 1e-6);
        }
    }

    #[test]
    fn one_prompt_serves_all_images() {
        let asked = Asked::default();
        let (prompt, negative) = (tensor(&[3.0], [1, 1, 1]), tensor(&[1.0], [1, 1, 1]));
        let config = GuidanceConfig { scale: 2.0, rescale: 0.0 };
        let guided = Guided::new(&asked, config, prompt, Some(negative)).unwrap();
        let output = values(guided.predict_between(tensor(&X, [2, 1, 1, 2]), &[0.5, 0.5]));
        assert_eq!(output, [6.0, 10.0, 7.5, 11.5]);
        assert_eq!(asked.0.borrow()[0].0, [0.5; 4]);
    }

    #[test]
    fn without_guidance_no_negative_prompt_is_needed() {
        let config = GuidanceConfig { scale: 1.0, rescale: 0.0 };
        let prompt = tensor(&[3.0], [1, 1, 1]);
        let guided = Guided::new(Asked::default(), config, prompt.clone(), None).unwrap();
        assert_eq!(values(guided.predict(tensor(&[0.0], [1, 1, 1, 1]), &[0])), [3.0]);

        let config = GuidanceConfig { scale: 7.5, rescale: 0.0 };
        let error = Guided::new(Asked::default(), config, prompt, None).map(|_| ()).unwrap_err();
        assert_eq!(error, GuidanceError::NoUnconditional { scale: 7.5 });
        assert!(error.to_string().ends_with("only scale 1 goes without"), "{error}");
    }

    #[test]
    fn an_impossible_scale_is_an_error() {
        let config = GuidanceConfig { scale: f64::INFINITY, rescale: 0.0 };
        assert_eq!(config.check(), Err(GuidanceError::Scale { scale: f64::INFINITY }));
    }

    #[test]
    fn an_impossible_rescaling_is_an_error() {
        for rescale in [-0.1, 1.1] {
            let config = GuidanceConfig { rescale, ..Default::default() };
            assert_eq!(config.check(), Err(GuidanceError::Rescale { rescale }));
        }
    }

    #[test]
    fn hidden_states_that_do_not_fit_are_an_error() {
        let zeros = |shape: [usize; 3]| Tensor::<3>::zeros(shape, &Device::flex());
        let refusal = |prompt, negative| {
            let (config, negative) = (GuidanceConfig::default(), Some(zeros(negative)));
            Guided::new(Asked::default(), config, zeros(prompt), negative).map(|_| ()).unwrap_err()
        };
        for negative in [[2, 76, 8], [2, 77, 9], [3, 77, 8]] {
            let prompt = [2, 77, 8];
            let error = refusal(prompt, negative);
            assert_eq!(error, GuidanceError::Shape { prompt, negative });
            assert!(!error.to_string().contains(['\\', '\n']), "{error}");
        }
    }

    #[test]
    #[should_panic(expected = "need 1 or 2 sequences")]
    fn another_number_of_sequences_is_our_bug() {
        let config = GuidanceConfig { scale: 1.0, rescale: 0.0 };
        let prompt = tensor(&[0.0; 3], [3, 1, 1]);
        let guided = Guided::new(Asked::default(), config, prompt, None).unwrap();
        guided.predict(tensor(&X, [2, 1, 1, 2]), &[0, 0]);
    }
}
