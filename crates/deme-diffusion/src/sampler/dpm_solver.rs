//! DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095): exponential integrators of the diffusion equation in
//! `lambda = log(alpha / sigma)`, over the predicted x_0; one call of the model per step.
//!
//! `alpha = sqrt(abar)` and `sigma = sqrt(1 - abar)` here, as in the paper; the noise levels of `sigmas` are
//! `sigma / alpha`.

use super::sigmas::{SigmaTable, falling, karras_sigmas};
use super::{SampleError, SamplingMethod, X0Limit, solver_timesteps};
use crate::noise_schedule::{BetaSchedule, Rates};
use crate::prediction::PredictionType;
use crate::scheduler_config::{FinalSigmasType, SchedulerClass, SchedulerConfig};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// From this number of steps on, the last ones keep their order.
const ENOUGH_STEPS: usize = 15;

/// Which equation is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SolverAlgorithm {
    /// The probability flow: no noise is added.
    #[default]
    #[serde(rename = "dpmsolver++")]
    Ode,
    /// The reverse diffusion: each step adds noise (Lu et al. 2022, appendix D).
    #[serde(rename = "sde-dpmsolver++")]
    Sde,
}

/// How the second-order solver uses the difference of two predictions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SolverType {
    /// Algorithm 2 of the paper.
    #[default]
    Midpoint,
    /// With the exact integral of the linear term, as the third-order solver has it.
    Heun,
}

/// Settings of DPM-Solver++ alone. Defaults: those of diffusers, which are DPM-Solver++(2M).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpmSolverConfig {
    /// Which equation is solved.
    pub algorithm_type: SolverAlgorithm,
    /// 1 (which is DDIM), 2, or 3 (without noise only). The paper uses 2 for guided sampling.
    pub solver_order: usize,
    /// For order 2.
    pub solver_type: SolverType,
    /// Whether the last steps are of lower order when there are less than 15 steps.
    pub lower_order_final: bool,
    /// Whether the last step is of first order, however many steps there are. It is anyway where it leads
    /// to no noise at all.
    pub euler_at_final: bool,
    /// Timesteps with a smaller lambda are not visited. Cosine schedules, which end far out, want about -5.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda_min_clipped: Option<f64>,
}

impl Default for DpmSolverConfig {
    fn default() -> Self {
        Self {
            algorithm_type: SolverAlgorithm::Ode,
            solver_order: 2,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            lambda_min_clipped: None,
        }
    }
}

/// A noise level of an image `x = alpha x_0 + sigma eps`, with alpha^2 + sigma^2 = 1.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Level {
    alpha: f64,
    sigma: f64,
    lambda: f64,
}

impl Level {
    fn new(sigma_over_alpha: f64) -> Self {
        let alpha = 1.0 / (sigma_over_alpha * sigma_over_alpha + 1.0).sqrt();
        Self { alpha, sigma: sigma_over_alpha * alpha, lambda: -sigma_over_alpha.ln() }
    }
}

/// The numbers of one step of order k, which uses the predictions m_0 (newest), ..., m_(k-1):
/// `x = of_x x + of_d0 D_0 + of_d1 D_1 + of_d2 D_2 + std_dev z`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DpmSolverStep {
    /// 1, 2 or 3.
    pub order: usize,
    /// Weight of x.
    pub of_x: f64,
    /// Weights of D_0 = m_0 and of the divided differences D_1 and D_2; 0 beyond the order.
    pub of_d: [f64; 3],
    /// `1 / r_0` and `1 / r_1`, where r_i is the length of the i-th last step by this step's, in lambda; 0
    /// beyond the order.
    pub inverse_r: [f64; 2],
    /// Deviation of the step's noise.
    pub std_dev: f64,
}

impl DpmSolverStep {
    /// A step from `levels[0]` to `to`; of `levels` there are as many as its order, newest first.
    fn new(
        to: Level,
        levels: &[Level],
        algorithm: SolverAlgorithm,
        solver_type: SolverType,
    ) -> Self {
        let order = levels.len();
        let from = levels[0];
        let h = to.lambda - from.lambda;
        let inverse_r = |i: usize| {
            if i + 1 < order { h / (levels[i].lambda - levels[i + 1].lambda) } else { 0.0 }
        };
        // In the reverse diffusion everything decays twice as fast, for which noise makes up.
        let decayed = match algorithm {
            SolverAlgorithm::Ode => h,
            SolverAlgorithm::Sde => 2.0 * h,
        };
        let phi_1 = (-decayed).exp() - 1.0;
        // The integrals of the linear and of the quadratic term. A last step may have no length.
        let linear = if h == 0.0 { 0.0 } else { phi_1 / decayed + 1.0 };
        let quadratic = if h == 0.0 { 0.0 } else { (phi_1 + decayed) / decayed.powi(2) - 0.5 };
        let (of_d1, of_d2) = match (order, solver_type) {
            (1, _) => (0.0, 0.0),
            (2, SolverType::Midpoint) => (-0.5 * to.alpha * phi_1, 0.0),
            (2, SolverType::Heun) => (to.alpha * linear, 0.0),
            (_, _) => (to.alpha * linear, -to.alpha * quadratic),
        };
        let (of_x, std_dev) = match algorithm {
            SolverAlgorithm::Ode => (to.sigma / from.sigma, 0.0),
            SolverAlgorithm::Sde => {
                (to.sigma / from.sigma * (-h).exp(), to.sigma * (-phi_1).sqrt())
            }
        };
        Self {
            order,
            of_x,
            of_d: [-to.alpha * phi_1, of_d1, of_d2],
            inverse_r: [inverse_r(0), inverse_r(1)],
            std_dev,
        }
    }
}

/// One step (algorithm 2 and, with noise, appendix D): D_1 and D_2 are divided differences of the predictions,
/// `D_1 = (m_0 - m_1) / r_0` and, of order 3, what a parabola through all three has.
///
/// # Shapes
/// x and each of `predictions` (x_0, newest first, as many as the order): `[B, C, H, W]`, as is the result.
/// `noise` gives z and is called only where the step adds noise.
///
/// # Panics
/// When there are fewer predictions than the order.
pub fn dpm_solver_step(
    x: Tensor<4>,
    predictions: &[Tensor<4>],
    step: &DpmSolverStep,
    noise: impl FnOnce() -> Tensor<4>,
) -> Tensor<4> {
    let difference =
        |i: usize| (predictions[i].clone() - predictions[i + 1].clone()) * step.inverse_r[i];
    let [of_d0, of_d1, of_d2] = step.of_d;
    let x = x * step.of_x + predictions[0].clone() * of_d0;
    let x = match step.order {
        1 => x,
        2 => x + difference(0) * of_d1,
        _ => {
            let (newer, older) = (difference(0), difference(1));
            let (r_0, r_1) = (1.0 / step.inverse_r[0], 1.0 / step.inverse_r[1]);
            let bend = newer.clone() - older;
            let d_1 = newer + bend.clone() * (r_0 / (r_0 + r_1));
            x + d_1 * of_d1 + bend * (of_d2 / (r_0 + r_1))
        }
    };
    if step.std_dev > 0.0 { x + noise() * step.std_dev } else { x }
}

/// DPM-Solver++ over a whole schedule: as many calls of the model as steps.
///
/// The first steps are of lower order, for want of earlier predictions. The last is of first order where it
/// leads to no noise at all.
#[derive(Debug, Clone)]
pub struct DpmSolver {
    timesteps: Vec<f64>,
    /// abar at each step, which the prediction of x_0 is made with.
    alphas_cumprod: Vec<f64>,
    steps: Vec<DpmSolverStep>,
    prediction_type: PredictionType,
    limit: X0Limit,
    /// Predicted x_0 of the last steps, newest first.
    predictions: Vec<Tensor<4>>,
}

impl DpmSolver {
    /// Prepares `steps` steps.
    ///
    /// # Errors
    /// [`SampleError::SolverOrder`]; [`SampleError::NoiseNotFalling`] when two steps fall on one timestep;
    /// those of [`solver_timesteps`], of the schedule and of [`X0Limit::thresholding`].
    pub fn new(scheduler: &SchedulerConfig, steps: usize) -> Result<Self, SampleError> {
        let scheduler = &scheduler.as_class(SchedulerClass::DpmSolver);
        check_order(&scheduler.dpm_solver)?;
        let table = SigmaTable::new(scheduler)?;
        let end = clipped_end(&table, scheduler.dpm_solver.lambda_min_clipped);
        let mut timesteps = solver_timesteps(scheduler, steps, end)?;
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| table.at(t)).collect();
        if scheduler.use_karras_sigmas {
            let known = table.sigmas();
            sigmas = karras_sigmas(known[known.len() - 1], known[0], steps);
            // The model is asked at whole timesteps. Those of a cosine schedule are cut off by diffusers; the
            // first, which is whole, comes out a rounding error lower there (with 1000 timesteps) and loses
            // one too.
            let whole = match scheduler.beta_schedule {
                BetaSchedule::SquaredcosCapV2 => |t: f64| (t - TIME_ROUNDING).floor().max(0.0),
                _ => f64::round_ties_even,
            };
            timesteps = sigmas.iter().map(|&sigma| whole(table.time_of(sigma))).collect();
        }
        sigmas.push(table.last(scheduler.final_sigmas_type));
        Self::over(timesteps, &sigmas, scheduler)
    }

    /// Over any falling noise levels `sigmas`, one more than timesteps.
    fn over(
        timesteps: Vec<f64>,
        sigmas: &[f64],
        scheduler: &SchedulerConfig,
    ) -> Result<Self, SampleError> {
        falling(sigmas)?;
        let DpmSolverConfig { algorithm_type, solver_type, .. } = scheduler.dpm_solver;
        let levels: Vec<Level> = sigmas.iter().map(|&sigma| Level::new(sigma)).collect();
        let step = |i: usize| {
            let known: Vec<Level> = levels[..=i]
                .iter()
                .rev()
                .take(order_of(i, timesteps.len(), scheduler))
                .copied()
                .collect();
            DpmSolverStep::new(levels[i + 1], &known, algorithm_type, solver_type)
        };
        Ok(Self {
            alphas_cumprod: levels.iter().map(|level| level.alpha.powi(2)).collect(),
            steps: (0..timesteps.len()).map(step).collect(),
            timesteps,
            prediction_type: scheduler.prediction_type,
            limit: X0Limit::thresholding(scheduler)?,
            predictions: Vec::new(),
        })
    }
}

/// More than a time is off by rounding alone.
const TIME_ROUNDING: f64 = 1e-6;

fn check_order(config: &DpmSolverConfig) -> Result<(), SampleError> {
    let (order, algorithm) = (config.solver_order, config.algorithm_type);
    match (order, algorithm) {
        (1 | 2, _) | (3, SolverAlgorithm::Ode) => Ok(()),
        _ => Err(SampleError::SolverOrder { order }),
    }
}

/// How many of the training timesteps have a lambda of at least `lambda_min`; at least the first.
fn clipped_end(table: &SigmaTable, lambda_min: Option<f64>) -> usize {
    match lambda_min {
        None => table.sigmas().len(),
        Some(least) => table.sigmas().partition_point(|sigma| -sigma.ln() >= least).max(1),
    }
}

/// The order of step i of `steps`.
fn order_of(i: usize, steps: usize, scheduler: &SchedulerConfig) -> usize {
    let config = &scheduler.dpm_solver;
    let few = config.lower_order_final && steps < ENOUGH_STEPS;
    let to_no_noise = scheduler.final_sigmas_type == FinalSigmasType::Zero;
    let at_most = match steps - 1 - i {
        0 if config.euler_at_final || few || to_no_noise => 1,
        1 if few => 2,
        _ => 3,
    };
    config.solver_order.min(i + 1).min(at_most)
}

impl SamplingMethod for DpmSolver {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &mut self,
        index: usize,
        x_t: Tensor<4>,
        model_output: Tensor<4>,
        noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let rates = Rates::of(&[self.alphas_cumprod[index]], &x_t.device());
        let x_0 = self.limit.apply(self.prediction_type.x0(x_t.clone(), model_output, &rates));
        self.predictions.insert(0, x_0);
        self.predictions.truncate(3);
        dpm_solver_step(x_t, &self.predictions, &self.steps[index], noise)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn with_solver(dpm_solver: DpmSolverConfig) -> SchedulerConfig {
        SchedulerConfig { dpm_solver, ..Default::default() }
    }

    fn orders(scheduler: &SchedulerConfig, steps: usize) -> Vec<usize> {
        let solver = DpmSolver::new(scheduler, steps).unwrap();
        solver.steps.iter().map(|step| step.order).collect()
    }

    #[test]
    fn orders_rise_and_fall() {
        let of = |solver_order| DpmSolverConfig { solver_order, ..Default::default() };
        assert_eq!(orders(&with_solver(of(1)), 4), [1, 1, 1, 1]);
        assert_eq!(orders(&with_solver(of(2)), 4), [1, 2, 2, 1]);
        assert_eq!(orders(&with_solver(of(3)), 6), [1, 2, 3, 3, 2, 1]);
        let sigma_min = |dpm_solver| SchedulerConfig {
            final_sigmas_type: FinalSigmasType::SigmaMin,
            ..with_solver(dpm_solver)
        };
        assert_eq!(orders(&sigma_min(of(3)), 20)[17..], [3, 3, 3]);
        assert_eq!(orders(&sigma_min(of(3)), 6)[3..], [3, 2, 1]);
        let keep = DpmSolverConfig { lower_order_final: false, ..of(3) };
        assert_eq!(orders(&sigma_min(keep.clone()), 6)[3..], [3, 3, 3]);
        let euler = DpmSolverConfig { euler_at_final: true, ..keep };
        assert_eq!(orders(&sigma_min(euler), 6)[3..], [3, 3, 1]);
        assert_eq!(orders(&with_solver(of(3)), 20)[17..], [3, 3, 1]);
    }

    #[test]
    fn clipped_timesteps_are_not_visited() {
        let scheduler = SchedulerConfig {
            beta_schedule: BetaSchedule::SquaredcosCapV2,
            ..with_solver(DpmSolverConfig { lambda_min_clipped: Some(-5.1), ..Default::default() })
        };
        let table = SigmaTable::new(&scheduler).unwrap();
        let first = DpmSolver::new(&scheduler, 10).unwrap().timesteps[0] as usize;
        assert!(-table.sigmas()[first].ln() >= -5.1);
        assert!(-table.sigmas()[first + 1].ln() < -5.1);
    }

    #[test]
    fn an_order_without_a_solver_is_an_error() {
        for (solver_order, algorithm_type) in
            [(0, SolverAlgorithm::Ode), (4, SolverAlgorithm::Ode), (3, SolverAlgorithm::Sde)]
        {
            let config = DpmSolverConfig { solver_order, algorithm_type, ..Default::default() };
            let error = DpmSolver::new(&with_solver(config), 4).unwrap_err();
            assert!(matches!(error, SampleError::SolverOrder { order } if order == solver_order));
        }
    }

    #[test]
    fn two_steps_on_one_timestep_are_an_error() {
        let error = DpmSolver::new(&SchedulerConfig::default(), 1000).unwrap_err();
        assert!(matches!(error, SampleError::NoiseNotFalling { steps: 1000, .. }));
    }

    /// Largest distance of `steps` steps from where the flow of data N(0.3, 0.5^2) leads, between two noise
    /// levels, in steps of equal length in lambda.
    fn error(dpm_solver: DpmSolverConfig, steps: usize) -> f64 {
        const MU: f64 = 0.3;
        const S: f64 = 0.5;
        let (most, least) = (20.0_f64, 0.05_f64);
        let sigmas: Vec<f64> = (0..=steps)
            .map(|i| most.powf(1.0 - i as f64 / steps as f64) * least.powf(i as f64 / steps as f64))
            .collect();
        let scheduler = SchedulerConfig {
            final_sigmas_type: FinalSigmasType::SigmaMin,
            prediction_type: PredictionType::Sample,
            ..with_solver(DpmSolverConfig { lower_order_final: false, ..dpm_solver })
        };
        let mut solver = DpmSolver::over(vec![0.0; steps], &sigmas, &scheduler).unwrap();
        let z = [-2.0, -0.5, 1.0, 2.5];
        // Exact: x at a level is alpha MU + sqrt(alpha^2 S^2 + sigma^2) z.
        let exact = |sigma: f64| {
            let Level { alpha, sigma, .. } = Level::new(sigma);
            z.map(|z| alpha * MU + (alpha * alpha * S * S + sigma * sigma).sqrt() * z)
        };
        let data = TensorData::new(exact(most).map(|x| x as f32).to_vec(), [4, 1, 1, 1]);
        let mut x = Tensor::<4>::from_data(data, &Device::default());
        for (index, &level) in sigmas[..steps].iter().enumerate() {
            let Level { alpha, sigma, .. } = Level::new(level);
            let gain = alpha * S * S / (alpha * alpha * S * S + sigma * sigma);
            let x_0 = (x.clone() - alpha * MU) * gain + MU;
            x = solver.step(index, x, x_0, &mut || panic!("the flow adds no noise"));
        }
        let found = x.into_data().try_into_vec::<f32>().unwrap();
        let exact = exact(least);
        found.iter().zip(exact).map(|(x, exact)| (f64::from(*x) - exact).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn the_error_falls_with_the_order_of_the_solver() {
        let errors = |solver_order, solver_type| {
            let of = DpmSolverConfig { solver_order, solver_type, ..Default::default() };
            [20, 40, 80].map(|steps| error(of.clone(), steps))
        };
        for (order, solver_type) in
            [(1, SolverType::Midpoint), (2, SolverType::Midpoint), (2, SolverType::Heun)]
        {
            let [coarse, middle, fine] = errors(order, solver_type);
            let expected = 2.0_f64.powi(order as i32);
            for ratio in [coarse / middle, middle / fine] {
                assert!(
                    (0.75 * expected..1.33 * expected).contains(&ratio),
                    "order {order}, {solver_type:?}: {coarse} {middle} {fine}"
                );
            }
        }
        // Its first step, which is of first order, leaves the third order with an error of the second, but
        // with a smaller one.
        let (second, third) = (errors(2, SolverType::Heun), errors(3, SolverType::Heun));
        for (second, third) in second.into_iter().zip(third) {
            assert!(third < 0.5 * second, "{second} {third}");
        }
    }
}
