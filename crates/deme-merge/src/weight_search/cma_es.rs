//! CMA-ES: weights are drawn from a normal distribution whose mean, covariance and size follow the better
//! draws.   (Hansen 2016, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772, figure 6)
//!
//! Plain CMA-ES uses only which draws are better, not by how much, so a rough objective does not lead it
//! astray as it may a fitted model. By default a quadratic fitted to the evaluations so far stands in for
//! the objective at part of the draws, as long as it ranks the latest evaluations rightly: a smooth
//! objective then needs about a third of the evaluations.   (Hansen 2019, "A Global Surrogate Assisted
//! CMA-ES", GECCO 2019)
//!
//! Departures from the tutorial: the start itself is evaluated first, and draws outside of the bounds are
//! evaluated at the nearest point inside and ranked with a penalty (as in its section B.5). From the
//! surrogate paper: evaluations count by their distance in the fit, not by their rank, and the minimum of
//! the quadratic is not itself tried.
//!
//! Written out here because the searches of this crate pause, fail and end in the middle of a generation,
//! and the libraries at hand evaluate whole generations of a function that cannot fail.

use std::fmt::{Debug, Display};

use serde::{Deserialize, Serialize};

use super::evaluation::{Evaluation, Search, Stop};
use super::quadratic_fit::{Quadratic, Shape};
use super::region::Region;
use super::{SearchError, check_length};
use crate::linear_algebra::{Eigen, Matrix, dot, identity, norm, symmetric_eigen};
use crate::random_draws::RandomDraws;

/// A normal distribution that adapts: after the start, generations of `population` draws each. Ends before
/// the budget is spent when the distribution is smaller than `smallest_step`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CmaEsConfig {
    /// Where to start; `1 / experts` for each expert when not given.
    #[serde(default)]
    pub start: Option<Vec<f64>>,
    /// The standard deviation of each weight at first: about a third of the distance at which the best
    /// weights may lie.
    #[serde(default = "default_step")]
    pub step: f64,
    /// Draws per generation, at least 3; `4 + 3 ln(weights)`, rounded down, when not given.
    #[serde(default)]
    pub population: Option<usize>,
    /// The lowest and the highest weight of an expert; none when not given.
    #[serde(default)]
    pub bounds: Option<[f64; 2]>,
    /// The end, as a standard deviation.
    #[serde(default = "default_smallest_step")]
    pub smallest_step: f64,
    /// Let a fitted quadratic stand in for the objective where it ranks rightly.
    #[serde(default = "default_surrogate")]
    pub surrogate: bool,
    /// Other seeds draw other weights.
    #[serde(default)]
    pub seed: u64,
    /// The most evaluations; the search ends with the last of them, in the middle of a generation too.
    pub max_evaluations: u64,
}

fn default_step() -> f64 {
    0.2
}

fn default_smallest_step() -> f64 {
    1e-3
}

fn default_surrogate() -> bool {
    true
}

impl CmaEsConfig {
    pub(super) fn check<E: Debug + Display>(
        &self,
        num_weights: usize,
    ) -> Result<(), SearchError<E>> {
        check_length("step", self.step)?;
        check_length("smallest_step", self.smallest_step)?;
        if let Some(population) = self.population.filter(|&population| population < 3) {
            return Err(SearchError::Setting {
                setting: "population",
                expected: "3 or more",
                found: population as f64,
            });
        }
        let region = Region::new(self.bounds)?;
        region.start(self.start.as_deref(), &vec![0.0; num_weights]).map(|_| ())
    }

    pub(super) fn search<E: Debug + Display>(
        &self,
        search: &mut Search<'_, E>,
    ) -> Result<(), Stop<E>> {
        let region = Region::new(self.bounds)?;
        let mean = region.start(self.start.as_deref(), &search.uniform_weights())?;
        search.value_at(&mean)?;

        let default_population = 4 + (3.0 * (mean.len() as f64).ln()) as usize;
        let constants = Constants::new(mean.len(), self.population.unwrap_or(default_population));
        let mut cloud = Cloud::new(mean, self.step);
        let mut draws = RandomDraws::new(self.seed, 0);
        loop {
            let before = search.done();
            let drawn: Vec<Draw> =
                (0..constants.population).map(|_| cloud.draw(&mut draws)).collect();
            let inside: Vec<Vec<f64>> =
                drawn.iter().map(|draw| region.nearest(&draw.weights)).collect();
            let values = match self.surrogate {
                true => values_with_surrogate(search, &cloud, &inside)?,
                false => inside.iter().map(|w| search.value_at(w)).collect::<Result<_, _>>()?,
            };
            let order = ranking(&drawn, &values, &region, &cloud);
            let ranked: Vec<&Draw> = order.into_iter().map(|place| &drawn[place]).collect();
            cloud.follow(&ranked, &constants);

            let size = cloud.largest_deviation();
            // A flat objective lets the distribution grow without end.
            let lost = !size.is_finite() || size > 1e4 * self.step;
            if size < self.smallest_step || lost || search.done() == before {
                return Ok(());
            }
        }
    }
}

/// The objective at some of the points and a quadratic at the others: the objective first at those that
/// the quadratic finds best, then at half as many more, and so on until the quadratic ranks rightly.
fn values_with_surrogate<E: Debug + Display>(
    search: &mut Search<'_, E>,
    cloud: &Cloud,
    points: &[Vec<f64>],
) -> Result<Vec<f64>, Stop<E>> {
    let mut values: Vec<Option<f64>> = vec![None; points.len()];
    let mut wanted = 2;
    loop {
        let surrogate = Surrogate::fitted(search.evaluations(), cloud);
        let Some(surrogate) = surrogate else {
            return points.iter().map(|point| search.value_at(point)).collect();
        };
        let guesses: Vec<f64> = points.iter().map(|point| surrogate.guess(point)).collect();
        let (mut open, done): (Vec<usize>, Vec<usize>) =
            (0..points.len()).partition(|&place| values[place].is_none());
        open.sort_by(|&a, &b| guesses[a].total_cmp(&guesses[b]));
        for &place in &open[..wanted - done.len()] {
            values[place] = Some(search.value_at(&points[place])?);
        }
        let surrogate = Surrogate::fitted(search.evaluations(), cloud)
            .expect("more evaluations fix a quadratic as well");
        if wanted == points.len() || surrogate.ranks_rightly(search.evaluations()) {
            let both = values.into_iter().zip(points);
            return Ok(both
                .map(|(v, point)| v.unwrap_or_else(|| surrogate.guess(point)))
                .collect());
        }
        wanted = (wanted + wanted.div_ceil(2)).min(points.len());
    }
}

/// A quadratic in the coordinates in which the cloud is round.
struct Surrogate<'a> {
    cloud: &'a Cloud,
    quadratic: Quadratic,
}

impl<'a> Surrogate<'a> {
    /// Fits the latest evaluations, with as many coefficients as they support; none when they support
    /// not even a quadratic without mixed terms.
    fn fitted(evaluations: &[Evaluation], cloud: &'a Cloud) -> Option<Self> {
        let n = cloud.mean.len();
        let supported = |shape: &Shape| {
            let coefficients = shape.coefficients(n);
            let affordable = *shape == Shape::Diagonal || coefficients <= LARGEST_SURROGATE;
            10 * evaluations.len() >= 11 * coefficients && affordable
        };
        let shape = [Shape::Full, Shape::Diagonal].into_iter().find(supported)?;
        let used = evaluations.len().min(3 * shape.coefficients(n));
        let latest = &evaluations[evaluations.len() - used..];
        let steps: Vec<Vec<f64>> = latest.iter().map(|e| cloud.round_step(&e.weights)).collect();
        let values: Vec<f64> = latest.iter().map(|e| e.value).collect();
        // Draws lie at about sqrt(n) in these coordinates.
        let quadratic = Quadratic::fitted(&steps, &values, 2.0 * (n as f64).sqrt(), shape);
        Some(Self { cloud, quadratic })
    }

    fn guess(&self, weights: &[f64]) -> f64 {
        self.quadratic.at(&self.cloud.round_step(weights))
    }

    /// Whether Kendall's tau over the latest evaluations is at least 0.85.
    fn ranks_rightly(&self, evaluations: &[Evaluation]) -> bool {
        let latest = &evaluations[evaluations.len().saturating_sub(15)..];
        let pairs: Vec<(f64, f64)> =
            latest.iter().map(|e| (e.value, self.guess(&e.weights))).collect();
        let mut agreement = 0.0;
        let mut count = 0.0;
        for (place, a) in pairs.iter().enumerate() {
            for b in &pairs[..place] {
                let product = (a.0 - b.0) * (a.1 - b.1);
                agreement += if product == 0.0 { 0.0 } else { product.signum() };
                count += 1.0;
            }
        }
        agreement >= 0.85 * count
    }
}

/// More coefficients take longer to fit than they save.
const LARGEST_SURROGATE: usize = 300;

/// Which draws are best: by their values and, where they lie outside of the bounds, how far. The penalty
/// is such that a typical step outside costs about as much as the values of the generation differ.
fn ranking(drawn: &[Draw], values: &[f64], region: &Region, cloud: &Cloud) -> Vec<usize> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quartile = |quarters: usize| sorted[quarters * (sorted.len() - 1) / 4];
    let variance = cloud.covariance.iter().enumerate().map(|(i, row)| row[i]).sum::<f64>();
    let mean_square_step = cloud.sigma.powi(2) * variance / cloud.mean.len() as f64;
    let factor = 2.0 * (quartile(3) - quartile(0)) / mean_square_step;

    let penalised = |place: usize| {
        let inside = region.nearest(&drawn[place].weights);
        let outside = drawn[place].weights.iter().zip(&inside).map(|(w, i)| (w - i).powi(2));
        let outside: f64 = outside.sum();
        values[place] + if outside > 0.0 { factor * outside } else { 0.0 }
    };
    let mut order: Vec<usize> = (0..drawn.len()).collect();
    order.sort_by(|&a, &b| penalised(a).total_cmp(&penalised(b)));
    order
}

/// The constants of the tutorial's table 1.
struct Constants {
    population: usize,
    /// One per draw, best first; those of the worse half are negative.
    weights: Vec<f64>,
    /// How many draws move the mean.
    parents: usize,
    mu_eff: f64,
    c_sigma: f64,
    d_sigma: f64,
    c_c: f64,
    c_1: f64,
    c_mu: f64,
    /// The expected length of a standard normal vector.
    chi: f64,
}

impl Constants {
    fn new(num_weights: usize, population: usize) -> Self {
        let n = num_weights as f64;
        let parents = population / 2;
        let middle = ((population as f64 + 1.0) / 2.0).ln();
        let raw: Vec<f64> = (1..=population).map(|rank| middle - (rank as f64).ln()).collect();
        let effective = |raw: &[f64]| {
            let squares: f64 = raw.iter().map(|w| w * w).sum();
            raw.iter().sum::<f64>().powi(2) / squares
        };
        let mu_eff = effective(&raw[..parents]);
        let mu_eff_minus = effective(&raw[parents..]);

        let c_c = (4.0 + mu_eff / n) / (n + 4.0 + 2.0 * mu_eff / n);
        let c_sigma = (mu_eff + 2.0) / (n + mu_eff + 5.0);
        let d_sigma = 1.0 + 2.0 * (((mu_eff - 1.0) / (n + 1.0)).sqrt() - 1.0).max(0.0) + c_sigma;
        let c_1 = 2.0 / ((n + 1.3).powi(2) + mu_eff);
        let c_mu = 2.0 * (0.25 + mu_eff + 1.0 / mu_eff - 2.0) / ((n + 2.0).powi(2) + mu_eff);
        let c_mu = c_mu.min(1.0 - c_1);

        let negative = (1.0 + c_1 / c_mu)
            .min(1.0 + 2.0 * mu_eff_minus / (mu_eff + 2.0))
            .min((1.0 - c_1 - c_mu) / (n * c_mu));
        let sum_of = |sign: f64| raw.iter().map(|w| (sign * w).max(0.0)).sum::<f64>();
        let (positive_sum, negative_sum) = (sum_of(1.0), sum_of(-1.0));
        let scaled =
            |&w: &f64| if w > 0.0 { w / positive_sum } else { w * negative / negative_sum };
        Self {
            population,
            weights: raw.iter().map(scaled).collect(),
            parents,
            mu_eff,
            c_sigma,
            d_sigma,
            c_c,
            c_1,
            c_mu,
            chi: n.sqrt() * (1.0 - 1.0 / (4.0 * n) + 1.0 / (21.0 * n * n)),
        }
    }
}

/// The distribution: N(mean, sigma^2 covariance), with the paths its mean has gone.
struct Cloud {
    mean: Vec<f64>,
    sigma: f64,
    covariance: Matrix,
    eigen: Eigen,
    path_sigma: Vec<f64>,
    path_c: Vec<f64>,
    generation: i32,
}

/// One draw.
struct Draw {
    weights: Vec<f64>,
    /// `(weights - mean) / sigma`, distributed as N(0, covariance).
    step: Vec<f64>,
}

impl Cloud {
    fn new(mean: Vec<f64>, sigma: f64) -> Self {
        let n = mean.len();
        Self {
            mean,
            sigma,
            covariance: identity(n),
            eigen: symmetric_eigen(&identity(n)),
            path_sigma: vec![0.0; n],
            path_c: vec![0.0; n],
            generation: 0,
        }
    }

    fn draw(&self, draws: &mut RandomDraws) -> Draw {
        let deviations = self.eigen.values.iter().map(|value| value.max(0.0).sqrt());
        let coordinates: Vec<f64> =
            deviations.map(|deviation| deviation * draws.normal()).collect();
        let step = self.eigen.combination(&coordinates);
        let weights = self.mean.iter().zip(&step).map(|(m, y)| m + self.sigma * y).collect();
        Draw { weights, step }
    }

    /// The largest standard deviation along any direction.
    fn largest_deviation(&self) -> f64 {
        let largest = self.eigen.values.last().expect("a search has a weight");
        self.sigma * largest.max(0.0).sqrt()
    }

    /// The weights in coordinates in which the distribution is standard normal.
    fn round_step(&self, weights: &[f64]) -> Vec<f64> {
        let step = weights.iter().zip(&self.mean).map(|(w, m)| (w - m) / self.sigma);
        self.whitened(&step.collect::<Vec<f64>>())
    }

    /// covariance^(-1/2) times a step.
    fn whitened(&self, step: &[f64]) -> Vec<f64> {
        let mut coordinates = self.eigen.coordinates(step);
        for (coordinate, &value) in coordinates.iter_mut().zip(&self.eigen.values) {
            *coordinate /= value.max(f64::MIN_POSITIVE).sqrt();
        }
        self.eigen.combination(&coordinates)
    }

    /// The update of a generation, best draw first.   (equations 41 to 47)
    fn follow(&mut self, ranked: &[&Draw], constants: &Constants) {
        let &Constants { mu_eff, c_sigma, d_sigma, c_c, c_1, c_mu, chi, .. } = constants;
        let n = self.mean.len();
        self.generation = self.generation.saturating_add(1);

        let mut mean_step = vec![0.0; n];
        for (draw, &weight) in ranked.iter().zip(&constants.weights[..constants.parents]) {
            for (sum, y) in mean_step.iter_mut().zip(&draw.step) {
                *sum += weight * y;
            }
        }
        for (mean, y) in self.mean.iter_mut().zip(&mean_step) {
            *mean += self.sigma * y;
        }

        // The size grows when the mean keeps its direction, and shrinks when it goes back and forth.
        let gain = (c_sigma * (2.0 - c_sigma) * mu_eff).sqrt();
        let whitened = self.whitened(&mean_step);
        for (path, y) in self.path_sigma.iter_mut().zip(&whitened) {
            *path = (1.0 - c_sigma) * *path + gain * y;
        }
        let path_length = norm(&self.path_sigma);

        // A path that is still long from fast growth would stretch the covariance.
        let begun = (1.0 - (1.0 - c_sigma).powi(2 * self.generation)).sqrt();
        let h_sigma = path_length / begun < (1.4 + 2.0 / (n as f64 + 1.0)) * chi;
        let gain = if h_sigma { (c_c * (2.0 - c_c) * mu_eff).sqrt() } else { 0.0 };
        for (path, y) in self.path_c.iter_mut().zip(&mean_step) {
            *path = (1.0 - c_c) * *path + gain * y;
        }

        let lost = if h_sigma { 0.0 } else { c_1 * c_c * (2.0 - c_c) };
        let kept = 1.0 + lost - c_1 - c_mu * constants.weights.iter().sum::<f64>();
        let weights: Vec<f64> = ranked
            .iter()
            .zip(&constants.weights)
            .map(|(draw, &weight)| {
                let whitened = self.whitened(&draw.step);
                let length = dot(&whitened, &whitened).max(f64::MIN_POSITIVE);
                // Keeps the covariance positive whatever the worse draws are.
                if weight < 0.0 { weight * n as f64 / length } else { weight }
            })
            .collect();
        for i in 0..n {
            for j in 0..=i {
                let draws = ranked.iter().zip(&weights);
                let outer: f64 = draws.map(|(draw, w)| w * draw.step[i] * draw.step[j]).sum();
                let updated = kept * self.covariance[i][j]
                    + c_1 * self.path_c[i] * self.path_c[j]
                    + c_mu * outer;
                self.covariance[i][j] = updated;
                self.covariance[j][i] = updated;
            }
        }
        self.sigma *= (c_sigma / d_sigma * (path_length / chi - 1.0)).exp();
        self.eigen = symmetric_eigen(&self.covariance);
    }
}
