//! One step of finetuning (Ma et al. 2025, section 3; hyper-parameters in [`FinetuneConfig`]).

use burn::tensor::Tensor;
use deme_diffusion::image_shards::image_shards;
use deme_diffusion::{
    DenoiserFn, NoisePredictor, NoiseSchedule, PredictionType, ScheduleError, UNet2DModel,
};
use deme_nn::{AdamW, Gradients, with_gradients};
use rayon::prelude::*;
use replace_with::replace_with_or_abort_and_return;

use crate::consistency_loss::consistency_loss;
use crate::diffusion_loss::{batch_weights, diffusion_loss};
use crate::ema::Ema;
use crate::finetune_config::FinetuneConfig;
use crate::micro_batch::MicroBatch;

/// A model in training with all that changes from step to step.
#[derive(Debug, Clone)]
pub struct Finetuner<N = UNet2DModel> {
    config: FinetuneConfig,
    schedule: NoiseSchedule,
    prediction: PredictionType,
    teacher: Option<N>,
    pub(crate) student: N,
    pub(crate) ema: Option<Ema<N>>,
    pub(crate) optimizer: AdamW,
    pub(crate) iteration: u64,
}

/// What one step measured, on the model before the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean (weighted) squared error of the prediction.
    pub diffusion_loss: f64,
    /// Mean squared distance from the teacher's prediction, before its weight; none without a teacher.
    pub consistency_loss: Option<f64>,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of this step's update of the moving average, where there is one.
    pub ema_decay: Option<f64>,
}

/// Why a step was not taken. The weights are those before the step.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StepError {
    /// NaN or infinity in a loss.
    #[error(
        "the loss is not finite in iteration {iteration}: diffusion loss {diffusion_loss}, consistency loss \
         {consistency_loss:?}. Lower `learning_rate`, add `lr_schedule.warmup_iterations`, or set \
         `max_grad_norm`; a loss weighting that grows without bound at low signal (`snr_plus_one`, \
         `truncated_snr`) can do this too"
    )]
    NonFiniteLoss {
        /// The iteration, from 1.
        iteration: u64,
        /// The diffusion loss.
        diffusion_loss: f64,
        /// The consistency loss.
        consistency_loss: Option<f64>,
    },
    /// NaN or infinity in the gradient.
    #[error(
        "the gradient's norm is {grad_norm} in iteration {iteration} (diffusion loss {diffusion_loss}). \
         Lower `learning_rate` or add `lr_schedule.warmup_iterations`"
    )]
    NonFiniteGradient {
        /// The iteration, from 1.
        iteration: u64,
        /// The norm.
        grad_norm: f64,
        /// The diffusion loss.
        diffusion_loss: f64,
    },
    /// Timesteps outside the schedule, or images and noise that do not belong together.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

impl<N: NoisePredictor> Finetuner<N> {
    /// Starts at `student` (which carries its channel projections already), with `teacher` frozen. Without a
    /// teacher, or with a consistency weight of 0, there is no consistency loss.
    pub fn new(
        config: &FinetuneConfig,
        student: N,
        teacher: Option<&N>,
        schedule: &NoiseSchedule,
        prediction: PredictionType,
    ) -> Self {
        Self {
            schedule: schedule.clone(),
            prediction,
            teacher: teacher.filter(|_| config.consistency_weight > 0.0).cloned(),
            ema: config.ema.enabled.then(|| Ema::new(config.ema, student.clone())),
            student,
            optimizer: AdamW::new(config.optimizer),
            iteration: 0,
            config: config.clone(),
        }
    }

    /// One optimiser step on the mean gradient of `micro_batches` (at least one, all of one size).
    ///
    /// # Errors
    /// [`StepError`] when a loss or the gradient is not finite, or a micro-batch is ill-formed. The model is
    /// then as it was.
    pub fn step(
        &mut self,
        micro_batches: impl IntoIterator<Item = MicroBatch<N::Condition>>,
    ) -> Result<StepReport, StepError> {
        let iteration = self.iteration + 1;
        let (mut count, mut sum) = (0.0, None::<Losses>);
        for micro_batch in micro_batches {
            let losses = self.losses_and_gradients(&micro_batch)?;
            count += 1.0;
            sum = Some(match sum {
                None => losses,
                Some(sum) => sum.plus(losses),
            });
        }
        let Losses { diffusion, consistency, gradients } =
            sum.expect("a step has at least one micro-batch");
        let diffusion_loss = diffusion / count;
        let consistency_loss = consistency.map(|sum| sum / count);
        if !(diffusion_loss.is_finite() && consistency_loss.is_none_or(f64::is_finite)) {
            return Err(StepError::NonFiniteLoss { iteration, diffusion_loss, consistency_loss });
        }

        // The mean's norm, and one factor for the mean and the clipping together.
        let grad_norm = gradients.norm() / count;
        if !grad_norm.is_finite() {
            return Err(StepError::NonFiniteGradient { iteration, grad_norm, diffusion_loss });
        }
        let scale = clip_factor(grad_norm, self.config.max_grad_norm) / count;

        let learning_rate = self.config.learning_rate_at(self.iteration);
        let (optimizer, ema) = (&mut self.optimizer, &mut self.ema);
        // Moved out and in again: weights that nobody shares are changed in place.
        let ema_decay = replace_with_or_abort_and_return(&mut self.student, |student| {
            let Some(ema) = ema else {
                return (None, optimizer.step(student, gradients, learning_rate, scale));
            };
            let (student, decay) = ema.update(|average, decay| {
                optimizer.step_with_average(
                    student,
                    average,
                    decay,
                    gradients,
                    learning_rate,
                    scale,
                )
            });
            (Some(decay), student)
        });
        self.iteration = iteration;
        Ok(StepReport { diffusion_loss, consistency_loss, grad_norm, learning_rate, ema_decay })
    }

    /// `|target - student(x_t, t)|^2 + weight |teacher(x_t, t) - student(x_t, t)|^2` and its gradient. The
    /// parts of the batch run at the same time; their sums have one order.
    fn losses_and_gradients(
        &self,
        micro_batch: &MicroBatch<N::Condition>,
    ) -> Result<Losses, StepError> {
        let images = micro_batch.t.len() as f64;
        let shards = image_shards(&micro_batch.x_0);
        let parts = shards.into_par_iter().map(|range| {
            self.losses_and_gradients_of_part(micro_batch.part(&range), range.len() as f64 / images)
        });
        // On the worker threads even when it is one part: from outside, each layer would wait for one
        // to wake up.
        let parts: Vec<Losses> = rayon::scope(|_| parts.collect::<Result<_, _>>())?;
        Ok(parts.into_iter().reduce(Losses::plus).expect("a batch has at least one part"))
    }

    /// The share of a part in the losses and the gradient of its batch.
    fn losses_and_gradients_of_part(
        &self,
        part: MicroBatch<N::Condition>,
        share: f64,
    ) -> Result<Losses, StepError> {
        let MicroBatch { x_0, eps, t, condition } = part;
        let device = x_0.device();
        let x_t = self.schedule.add_noise(x_0.clone(), eps.clone(), &t)?;
        let target = self.prediction.target(x_0, eps, &self.schedule.rates(&t, &device)?);
        let weights = batch_weights(
            self.config.loss_weighting,
            self.prediction,
            &self.schedule,
            &t,
            &device,
        )?;

        let (mut diffusion, mut consistency) = (f64::NAN, None);
        let loss = |prediction: Tensor<4>| {
            let to_target = diffusion_loss(prediction.clone(), target, weights);
            diffusion = share * scalar(&to_target);
            let Some(teacher) = &self.teacher else { return to_target * share };
            let teacher =
                DenoiserFn(|x_t: Tensor<4>, t: &[usize]| teacher.output(x_t, t, condition.clone()));
            let to_teacher = consistency_loss(&teacher, prediction, x_t.clone(), &t);
            consistency = Some(share * scalar(&to_teacher));
            (to_target + to_teacher * self.config.consistency_weight) * share
        };
        let (seen, under) = (x_t.clone(), condition.clone());
        let gradients = if self.config.gradient_checkpointing {
            self.student.checkpointed_gradients(seen, &t, under, loss)
        } else {
            let live = with_gradients(&self.student);
            Gradients::of(&loss(live.output(seen, &t, under)), &live)
        };
        Ok(Losses { diffusion, consistency, gradients })
    }

    /// The model in training, with its channel projections.
    pub fn student(&self) -> &N {
        &self.student
    }

    /// Its moving average, where there is one.
    pub fn ema(&self) -> Option<&Ema<N>> {
        self.ema.as_ref()
    }

    /// Steps taken.
    pub fn iteration(&self) -> u64 {
        self.iteration
    }

    /// What finetuning results in: the moving average, or without one the student.
    pub fn result(&self) -> &N {
        self.ema.as_ref().map_or(&self.student, Ema::model)
    }
}

struct Losses {
    diffusion: f64,
    consistency: Option<f64>,
    gradients: Gradients,
}

impl Losses {
    /// The sum with another part of the same step.
    fn plus(self, other: Self) -> Self {
        Self {
            diffusion: self.diffusion + other.diffusion,
            consistency: self.consistency.zip(other.consistency).map(|(a, b)| a + b),
            gradients: self.gradients.plus(other.gradients),
        }
    }
}

/// The factor that brings a gradient of this norm down to `max_norm` (0: no clipping), as
/// `torch.nn.utils.clip_grad_norm_` computes it.
fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm == 0.0 { 1.0 } else { (max_norm / (norm + 1e-6)).min(1.0) }
}

fn scalar(loss: &Tensor<1>) -> f64 {
    f64::from(loss.clone().without_autodiff().into_scalar::<f32>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ema::EmaConfig;
    use crate::test_models::{images, schedule, tiny_config, tiny_unet};
    use burn::tensor::Device;
    use deme_nn::{map_parameters, to_state_dict};

    fn micro_batch(seed: u64) -> MicroBatch {
        let device = Device::flex();
        MicroBatch {
            x_0: images(2, seed, &device).clamp(-1.0, 1.0),
            eps: images(2, seed + 1000, &device),
            t: vec![(seed as usize * 37) % 1000, 500],
            condition: (),
        }
    }

    fn finetuner(config: &FinetuneConfig, with_teacher: bool) -> Finetuner {
        let device = Device::flex();
        let (student, teacher) = (tiny_unet(1, &device), tiny_unet(2, &device));
        let teacher = with_teacher.then_some(&teacher);
        Finetuner::new(config, student, teacher, &schedule(), PredictionType::Epsilon)
    }

    fn largest_difference(a: &UNet2DModel, b: &UNet2DModel) -> f32 {
        let (a, b) = (to_state_dict(a), to_state_dict(b));
        let pairs = a
            .iter()
            .zip(b.iter())
            .flat_map(|((_, a), (_, b))| a.to_f32().unwrap().into_iter().zip(b.to_f32().unwrap()));
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn the_loss_falls_on_a_batch_seen_again_and_again() {
        let config = FinetuneConfig { learning_rate: 1e-3, ..tiny_config() };
        let mut finetuner = finetuner(&config, false);
        let losses: Vec<f64> =
            (0..15).map(|_| finetuner.step([micro_batch(1)]).unwrap().diffusion_loss).collect();
        assert!(losses[14] < 0.9 * losses[0], "{losses:?}");
    }

    #[test]
    fn accumulated_micro_batches_make_the_step_of_one_large_batch() {
        let config = tiny_config();
        let (mut one, mut two) = (finetuner(&config, true), finetuner(&config, true));
        let parts = [micro_batch(1), micro_batch(2)];
        let cat =
            |part: fn(&MicroBatch) -> Tensor<4>| Tensor::cat(parts.iter().map(part).collect(), 0);
        let whole = MicroBatch {
            x_0: cat(|b| b.x_0.clone()),
            eps: cat(|b| b.eps.clone()),
            t: parts.iter().flat_map(|b| b.t.clone()).collect(),
            condition: (),
        };
        let a = one.step([whole]).unwrap();
        let b = two.step(parts).unwrap();
        assert!((a.diffusion_loss - b.diffusion_loss).abs() < 1e-5);
        assert!((a.consistency_loss.unwrap() - b.consistency_loss.unwrap()).abs() < 1e-5);
        assert!((a.grad_norm - b.grad_norm).abs() < 1e-4 * a.grad_norm);
    }

    #[test]
    fn a_large_batch_goes_in_parts_to_the_same_bytes_on_any_number_of_threads() {
        let device = Device::flex();
        let whole = MicroBatch {
            x_0: images(20, 1, &device).clamp(-1.0, 1.0),
            eps: images(20, 2, &device),
            t: (0..20).map(|i| i * 50).collect(),
            condition: (),
        };
        let after_step = |threads: usize, micro_batches: Vec<MicroBatch>| {
            let mut finetuner = finetuner(&tiny_config(), true);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let report = pool.install(|| finetuner.step(micro_batches)).unwrap();
            (report, to_state_dict(finetuner.student()).content_hash())
        };
        let of_one_thread = after_step(1, vec![whole.clone()]);
        assert_eq!(after_step(3, vec![whole.clone()]), of_one_thread);
        let halves = vec![whole.part(&(0..10)), whole.part(&(10..20))];
        assert_eq!(after_step(2, halves), of_one_thread);
    }

    #[test]
    fn the_average_follows_the_student_and_changes_no_other_model() {
        let first = tiny_unet(1, &Device::flex());
        let hash = |model: &UNet2DModel| to_state_dict(model).content_hash();
        let weights = |model: &UNet2DModel| -> Vec<f32> {
            to_state_dict(model).iter().flat_map(|(_, x)| x.to_f32().unwrap()).collect()
        };
        let (before, mut expected) = (hash(&first), weights(&first));
        let start = |enabled: bool| {
            let config = tiny_config();
            let ema = EmaConfig { enabled, ..config.ema };
            let config = FinetuneConfig { ema, ..config };
            // Student, teacher and average begin as one model in one memory.
            let (student, teacher) = (first.clone(), Some(&first));
            Finetuner::new(&config, student, teacher, &schedule(), PredictionType::Epsilon)
        };
        let (mut with, mut without) = (start(true), start(false));
        for i in 0..3 {
            assert_eq!(without.step([micro_batch(i)]).unwrap().ema_decay, None);
            let decay = with.step([micro_batch(i)]).unwrap().ema_decay.unwrap();
            let (keep, take) = (decay as f32, (1.0 - decay) as f32);
            for (average, theta) in expected.iter_mut().zip(weights(with.student())) {
                *average = *average * keep + theta * take;
            }
        }
        assert_eq!(weights(with.ema().unwrap().model()), expected);
        assert_eq!(hash(with.student()), hash(without.student()));
        assert_eq!(hash(&first), before);
    }

    #[test]
    fn without_consistency_weight_no_teacher_is_evaluated() {
        let config = FinetuneConfig { consistency_weight: 0.0, ..tiny_config() };
        let (mut with, mut without) = (finetuner(&config, true), finetuner(&config, false));
        let report = with.step([micro_batch(3)]).unwrap();
        assert_eq!(report.consistency_loss, None);
        assert_eq!(without.step([micro_batch(3)]).unwrap(), report);
        assert_eq!(largest_difference(with.student(), without.student()), 0.0);
    }

    #[test]
    fn a_student_that_is_its_teacher_has_no_consistency_loss_to_begin_with() {
        let device = Device::flex();
        let model = tiny_unet(1, &device);
        for placement in ["none", "block", "folded"] {
            let placement = serde_json::from_str(&format!("\"{placement}\"")).unwrap();
            let student = model.clone().with_projection(placement).unwrap();
            let mut finetuner = Finetuner::new(
                &tiny_config(),
                student,
                Some(&model),
                &schedule(),
                PredictionType::Epsilon,
            );
            let first = finetuner.step([micro_batch(1)]).unwrap().consistency_loss.unwrap();
            let second = finetuner.step([micro_batch(2)]).unwrap().consistency_loss.unwrap();
            assert!(first < 1e-9, "{first}");
            assert!(second > first);
        }
    }

    #[test]
    fn gradients_are_clipped_to_the_norm_as_pytorch_does() {
        assert_eq!(clip_factor(3.0, 0.0), 1.0);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
    }

    #[test]
    fn checkpointing_changes_a_step_by_rounding_alone() {
        let config = FinetuneConfig { learning_rate: 1e-3, ..tiny_config() };
        let checkpointed = FinetuneConfig { gradient_checkpointing: true, ..config.clone() };
        let (mut plain, mut sparing) = (finetuner(&config, true), finetuner(&checkpointed, true));
        for seed in 0..3 {
            let a = plain.step([micro_batch(seed)]).unwrap();
            let b = sparing.step([micro_batch(seed)]).unwrap();
            let numbers = |report: StepReport| {
                [report.diffusion_loss, report.consistency_loss.unwrap(), report.grad_norm]
            };
            for (a, b) in numbers(a).into_iter().zip(numbers(b)) {
                assert!((a - b).abs() < 1e-4 * a, "{a} {b}");
            }
        }
    }

    #[test]
    fn every_prediction_type_learns() {
        let config = FinetuneConfig { learning_rate: 1e-3, ..tiny_config() };
        for prediction in
            [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction]
        {
            let student = tiny_unet(1, &Device::flex());
            let mut finetuner = Finetuner::new(&config, student, None, &schedule(), prediction);
            let losses: Vec<f64> =
                (0..10).map(|_| finetuner.step([micro_batch(1)]).unwrap().diffusion_loss).collect();
            assert!(losses[9] < losses[0], "{prediction:?} {losses:?}");
        }
    }

    #[test]
    fn a_loss_that_is_not_finite_is_an_error_that_names_the_iteration() {
        let mut finetuner = finetuner(&tiny_config(), false);
        finetuner.step([micro_batch(1)]).unwrap();
        let before = to_state_dict(finetuner.student()).content_hash();
        let mut broken = micro_batch(2);
        broken.x_0 = broken.x_0 * f32::NAN;
        let error = finetuner.step([broken]).unwrap_err();
        assert!(matches!(error, StepError::NonFiniteLoss { iteration: 2, .. }), "{error}");
        assert!(error.to_string().contains("learning_rate"));
        assert_eq!(to_state_dict(finetuner.student()).content_hash(), before);
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_an_error_that_names_the_iteration() {
        // Output 0 and a target near 1e17: the loss, near 1e34, is finite. Activations near 1e30 before
        // the last convolution: its gradient, near 1e47, is not.
        let student =
            map_parameters(tiny_unet(1, &Device::flex()), &mut |name, tensor| match name {
                "conv_norm_out.weight" => tensor.zeros_like() + 1e30,
                "conv_out.weight" => tensor.zeros_like(),
                _ => tensor,
            });
        let mut finetuner =
            Finetuner::new(&tiny_config(), student, None, &schedule(), PredictionType::Epsilon);
        let huge = MicroBatch { eps: micro_batch(2).eps * 1e17, t: vec![0, 0], ..micro_batch(2) };
        let error = finetuner.step([huge]).unwrap_err();
        assert!(matches!(error, StepError::NonFiniteGradient { iteration: 1, .. }), "{error}");
    }

    #[test]
    fn timesteps_outside_the_schedule_are_an_error() {
        let mut finetuner = finetuner(&tiny_config(), false);
        let outside = MicroBatch { t: vec![0, 1000], ..micro_batch(1) };
        let error = finetuner.step([outside]).unwrap_err();
        assert!(matches!(error, StepError::Schedule(_)), "{error}");
    }
}
