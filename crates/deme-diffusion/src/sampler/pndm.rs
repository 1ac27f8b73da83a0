//! Pseudo numerical methods for diffusion models (Liu et al. 2022, arXiv 2202.09778): the Runge-Kutta and
//! linear multistep methods of ordinary differential equations, each step of which is a DDIM step.

use super::{SampleError, SamplerKind, SamplingMethod, sampling_timesteps};
use crate::noise_schedule::{NoiseSchedule, Rates};
use crate::prediction::PredictionType;
use crate::scheduler_config::{SchedulerClass, SchedulerConfig};
use burn::tensor::Tensor;

/// Steps that the Runge-Kutta method makes, with four calls of the model each.
const RUNGE_KUTTA_STEPS: usize = 3;

/// The numbers of one transfer from a timestep to an earlier one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PndmTransfer {
    /// abar where the transfer begins.
    pub alpha_cumprod: f64,
    /// abar where it leads.
    pub alpha_cumprod_prev: f64,
    /// What the model's output stands for.
    pub prediction_type: PredictionType,
}

/// The transfer (eq. 9 and 11), a DDIM step with an eps that may be a mean of several:
/// `sqrt(abar_prev / abar) x_t - (abar_prev - abar) eps / (abar sqrt(1 - abar_prev) +
/// sqrt(abar (1 - abar) abar_prev))`.
///
/// A model that predicts v gives a mean of v, which becomes an eps at x_t, as in diffusers.
///
/// # Shapes
/// x_t, model_output: `[B, C, H, W]`; returns `[B, C, H, W]`.
pub fn pndm_transfer(
    x_t: Tensor<4>,
    model_output: Tensor<4>,
    transfer: &PndmTransfer,
) -> Tensor<4> {
    let (abar, prev) = (transfer.alpha_cumprod, transfer.alpha_cumprod_prev);
    let rates = Rates::of(&[abar], &x_t.device());
    let eps = transfer.prediction_type.eps(x_t.clone(), model_output, &rates);
    let of_eps = (prev - abar) / (abar * (1.0 - prev).sqrt() + (abar * (1.0 - abar) * prev).sqrt());
    x_t * (prev / abar).sqrt() - eps * of_eps
}

/// What becomes of one output of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Call {
    /// Slope number 0..4 of a Runge-Kutta step (eq. 13); the fourth ends it.
    RungeKutta(usize),
    /// Euler's step, which [`Call::Improve`] makes again with a better slope.
    First,
    /// The mean of the slopes at both ends (Heun), from where [`Call::First`] began.
    Improve,
    /// Adams and Bashforth's method (eq. 12) over so many outputs, the present one among them.
    Multistep(usize),
}

/// PNDM over a whole schedule.
///
/// With the Runge-Kutta method in the beginning (F-PNDM, algorithm 2) the model is called `steps + 9` times,
/// without (`skip_prk_steps`, PLMS) `steps + 1` times: its second timestep is visited twice.
///
/// Each step leads from t to `t - T div steps` whatever the spacing, as in diffusers; below zero abar is 1
/// where `set_alpha_to_one` is on, or else `abar_0`. The predicted x_0 is never clamped.
#[derive(Debug, Clone)]
pub struct Pndm {
    timesteps: Vec<f64>,
    calls: Vec<(Call, PndmTransfer)>,
    /// The last outputs the multistep method needs, oldest first.
    outputs: Vec<Tensor<4>>,
    /// Where the present Runge-Kutta or first step began.
    began: Option<Tensor<4>>,
    /// The slopes of the present Runge-Kutta step so far, weighted.
    slope: Option<Tensor<4>>,
}

impl Pndm {
    /// Prepares `steps` steps.
    ///
    /// # Errors
    /// [`SampleError::UnsupportedPrediction`] for a model that predicts x_0;
    /// [`SampleError::NoZeroSnr`] for a schedule that ends without signal, which this method does not know;
    /// [`SampleError::TooFewSteps`] for less than 4 steps with the Runge-Kutta method; those of
    /// [`sampling_timesteps`] and of the schedule.
    pub fn new(scheduler: &SchedulerConfig, steps: usize) -> Result<Self, SampleError> {
        let scheduler = &scheduler.as_class(SchedulerClass::Pndm);
        let prediction_type = scheduler.prediction_type;
        if prediction_type == PredictionType::Sample {
            return Err(SampleError::UnsupportedPrediction {
                sampler: SamplerKind::Pndm,
                prediction_type,
            });
        }
        if scheduler.rescale_betas_zero_snr {
            return Err(SampleError::NoZeroSnr { sampler: SamplerKind::Pndm });
        }
        let schedule = scheduler.noise_schedule()?;
        let visited = sampling_timesteps(scheduler, steps)?;
        if !scheduler.skip_prk_steps && steps <= RUNGE_KUTTA_STEPS {
            return Err(SampleError::TooFewSteps { steps, least: RUNGE_KUTTA_STEPS + 1 });
        }
        let stride = scheduler.num_train_timesteps / steps;
        let planned = match scheduler.skip_prk_steps {
            true => multistep_alone(&visited, stride),
            false => runge_kutta_first(&visited, stride),
        };
        let behind_the_last =
            if scheduler.ends_without_noise() { 1.0 } else { schedule.alphas_cumprod()[0] };
        let (mut timesteps, mut calls) = (Vec::new(), Vec::new());
        for Planned { t, call, from, to } in planned {
            timesteps.push(t as f64);
            let transfer = PndmTransfer {
                alpha_cumprod: schedule.alpha_cumprod(from)?,
                alpha_cumprod_prev: abar_at(&schedule, to, behind_the_last)?,
                prediction_type,
            };
            calls.push((call, transfer));
        }
        Ok(Self { timesteps, calls, outputs: Vec::new(), began: None, slope: None })
    }

    /// The last four outputs, the new one among them, weighted as `order` of them ask for (eq. 12).
    fn multistep(&mut self, output: Tensor<4>, order: usize) -> Tensor<4> {
        self.outputs.push(output);
        let surplus = self.outputs.len().saturating_sub(4);
        self.outputs.drain(..surplus);
        let weights: &[f64] = match order {
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let newest_first = self.outputs.iter().rev();
        newest_first
            .zip(weights)
            .map(|(output, &weight)| output.clone() * weight)
            .reduce(|sum, term| sum + term)
            .expect("an output was just pushed")
    }
}

/// One call of the model: at timestep t, and from where to where its output then leads.
struct Planned {
    t: usize,
    call: Call,
    from: usize,
    /// None leads behind the last timestep.
    to: Option<usize>,
}

/// PLMS: no Runge-Kutta steps. The first step is made twice.
fn multistep_alone(visited: &[usize], stride: usize) -> Vec<Planned> {
    let mut planned = Vec::new();
    for (index, &t) in visited.iter().enumerate() {
        let call = match index {
            0 => Call::First,
            _ => Call::Multistep((index + 1).min(4)),
        };
        if index == 1 {
            planned.push(Planned { t, call: Call::Improve, from: t + stride, to: Some(t) });
        }
        planned.push(Planned { t, call, from: t, to: t.checked_sub(stride) });
    }
    planned
}

/// F-PNDM: three Runge-Kutta steps, then the multistep method. The middle of a step is half a stride above the
/// next timestep, whatever the spacing.
fn runge_kutta_first(visited: &[usize], stride: usize) -> Vec<Planned> {
    let half = stride / 2;
    let mut planned = Vec::new();
    for pair in visited[..=RUNGE_KUTTA_STEPS].windows(2) {
        let (from, next) = (pair[0], pair[1]);
        let middle = next + half;
        let asked = [from, middle, middle, next];
        let led = [from.checked_sub(half), Some(middle), Some(next), Some(next)];
        for (number, (t, to)) in asked.into_iter().zip(led).enumerate() {
            planned.push(Planned { t, call: Call::RungeKutta(number), from, to });
        }
    }
    for &t in &visited[RUNGE_KUTTA_STEPS..] {
        planned.push(Planned { t, call: Call::Multistep(4), from: t, to: t.checked_sub(stride) });
    }
    planned
}

fn abar_at(
    schedule: &NoiseSchedule,
    t: Option<usize>,
    behind_the_last: f64,
) -> Result<f64, SampleError> {
    t.map_or(Ok(behind_the_last), |t| Ok(schedule.alpha_cumprod(t)?))
}

impl SamplingMethod for Pndm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &mut self,
        index: usize,
        x_t: Tensor<4>,
        model_output: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let (call, transfer) = self.calls[index];
        let began = |began: &Option<Tensor<4>>| {
            began.clone().expect("a call that goes on follows one that begins")
        };
        match call {
            Call::RungeKutta(number) => {
                if number == 0 {
                    self.began = Some(x_t);
                    self.outputs.push(model_output.clone());
                }
                let weight = [1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0][number];
                let weighted = model_output.clone() * weight;
                let slope = match self.slope.take() {
                    Some(slope) => slope + weighted,
                    None => weighted,
                };
                let output = if number == 3 { slope.clone() } else { model_output };
                self.slope = (number < 3).then_some(slope);
                pndm_transfer(began(&self.began), output, &transfer)
            }
            Call::First => {
                self.began = Some(x_t.clone());
                self.outputs.push(model_output.clone());
                pndm_transfer(x_t, model_output, &transfer)
            }
            Call::Improve => {
                let first = self.outputs[0].clone();
                pndm_transfer(began(&self.began), (model_output + first) * 0.5, &transfer)
            }
            Call::Multistep(order) => {
                let output = self.multistep(model_output, order);
                pndm_transfer(x_t, output, &transfer)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn timesteps(skip_prk_steps: bool, steps: usize) -> Vec<f64> {
        let scheduler = SchedulerConfig { skip_prk_steps, ..Default::default() };
        Pndm::new(&scheduler, steps).unwrap().timesteps
    }

    #[test]
    fn plms_visits_its_second_timestep_twice() {
        assert_eq!(timesteps(true, 4), [750.0, 500.0, 500.0, 250.0, 0.0]);
        assert_eq!(timesteps(true, 2), [500.0, 0.0, 0.0]);
        assert_eq!(timesteps(true, 1), [0.0]);
    }

    #[test]
    fn the_runge_kutta_method_asks_four_times_a_step() {
        let expected = [
            [800.0, 700.0, 700.0, 600.0],
            [600.0, 500.0, 500.0, 400.0],
            [400.0, 300.0, 300.0, 200.0],
        ];
        let found = timesteps(false, 5);
        assert_eq!(found[..12], *expected.as_flattened());
        assert_eq!(found[12..], [200.0, 0.0]);
    }

    #[test]
    fn a_transfer_is_a_ddim_step() {
        use crate::sampler::{DdimStep, X0Limit, ddim_step};
        use burn::tensor::Device;
        let device = Device::default();
        let (x, eps) =
            (Tensor::full([1, 1, 1, 1], 0.7, &device), Tensor::full([1, 1, 1, 1], -1.3, &device));
        for kind in [PredictionType::Epsilon, PredictionType::VPrediction] {
            let step = DdimStep::new(0.3, 0.6, 0.0, kind, X0Limit::None);
            let transfer =
                PndmTransfer { alpha_cumprod: 0.3, alpha_cumprod_prev: 0.6, prediction_type: kind };
            let ddim = ddim_step(x.clone(), eps.clone(), &step, || panic!("no noise"));
            let pndm = pndm_transfer(x.clone(), eps.clone(), &transfer);
            assert!((ddim - pndm).abs().into_scalar::<f32>() < 1e-6);
        }
    }
}
