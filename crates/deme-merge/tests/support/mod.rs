//! Functions of weights whose minimum is known, for the searches to find.
#![allow(dead_code, clippy::unwrap_used)]

/// A convex basin with its lowest value `floor` at `minimum`.
pub struct Basin {
    pub minimum: Vec<f64>,
    pub floor: f64,
    /// Unit vectors, each with its curvature.
    axes: Vec<(Vec<f64>, f64)>,
    /// 0: a quadratic. Else how much the walls bend, lean and flatten.
    bent: f64,
}

impl Basin {
    /// A quadratic, shifted and rotated by the seed, with curvatures between 1 and `condition`.
    pub fn quadratic(seed: u64, dimensions: usize, condition: f64) -> Self {
        let mut draws = Draws(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut axes: Vec<(Vec<f64>, f64)> = Vec::new();
        while axes.len() < dimensions {
            let mut axis: Vec<f64> = (0..dimensions).map(|_| draws.between(-1.0, 1.0)).collect();
            for (other, _) in &axes {
                let along: f64 = axis.iter().zip(other).map(|(a, b)| a * b).sum();
                axis.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
            let length = axis.iter().map(|a| a * a).sum::<f64>().sqrt();
            if length > 0.1 {
                axis.iter_mut().for_each(|a| *a /= length);
                let share = axes.len() as f64 / (dimensions - 1).max(1) as f64;
                axes.push((axis, condition.powf(share)));
            }
        }
        let minimum = (0..dimensions).map(|_| draws.between(0.05, 0.75)).collect();
        Self { minimum, floor: 0.02, axes, bent: 0.0 }
    }

    /// As a diffusion loss over merging weights: quadratic at the bottom, steeper on one side than on the
    /// other, flatter than a quadratic far out.
    pub fn like_a_loss(seed: u64, dimensions: usize) -> Self {
        Self { bent: 1.0, ..Self::quadratic(seed, dimensions, 10.0) }
    }

    pub fn value(&self, weights: &[f64]) -> f64 {
        self.value_and_gradient(weights).0
    }

    pub fn value_and_gradient(&self, weights: &[f64]) -> (f64, Vec<f64>) {
        let offset: Vec<f64> = weights.iter().zip(&self.minimum).map(|(w, m)| w - m).collect();
        let mut bowl = 0.0;
        let mut slope = vec![0.0; weights.len()];
        for (axis, curvature) in &self.axes {
            let z: f64 = axis.iter().zip(&offset).map(|(a, o)| a * o).sum();
            // exp(cz) - 1 - cz leans: z^2 c^2 / 2 at the bottom.
            let lean = 0.7 * self.bent;
            let (part, derivative) = if lean == 0.0 {
                (z * z / 2.0, z)
            } else {
                let e = (lean * z).exp();
                ((e - 1.0 - lean * z) / (lean * lean), (e - 1.0) / lean)
            };
            bowl += curvature * part;
            slope.iter_mut().zip(axis).for_each(|(s, a)| *s += curvature * derivative * a);
        }
        // sqrt(1 + 2b) - 1 = b at the bottom, and grows like the distance far out.
        let (value, factor) = if self.bent == 0.0 {
            (bowl, 1.0)
        } else {
            let root = (1.0 + 2.0 * self.bent * bowl).sqrt();
            ((root - 1.0) / self.bent, 1.0 / root)
        };
        let scale = 0.01;
        slope.iter_mut().for_each(|s| *s *= scale * factor);
        (self.floor + scale * value, slope)
    }
}

/// Xorshift: enough to shake a basin.
struct Draws(u64);

impl Draws {
    fn between(&mut self, low: f64, high: f64) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        low + (high - low) * (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A search's log, or a part of it, without the durations of its evaluations: those of two runs differ.
pub fn without_seconds(log: &str) -> String {
    let mut text = String::new();
    for line in log.split_inclusive('\n') {
        match line.split_once(",\"seconds\":") {
            Some((before, after)) => {
                let end = after.find(['}', ',']).unwrap();
                text.extend([before, &after[end..]]);
            }
            None => text.push_str(line),
        }
    }
    text
}

/// Searches, with the settings given as a recipe gives them.
pub fn config(settings: serde_json::Value) -> deme_merge::SearchConfig {
    serde_json::from_value(settings).unwrap()
}

/// Every strategy that decides by what it has seen, and random search, with a budget.
pub fn every_strategy(max_evaluations: u64) -> Vec<deme_merge::SearchConfig> {
    use serde_json::json;
    let searches = [
        json!({"strategy": "random", "bounds": [-0.5, 1.5], "seed": 3}),
        json!({"strategy": "cma_es", "seed": 3}),
        json!({"strategy": "cma_es", "seed": 3, "surrogate": false, "bounds": [0.1, 0.6]}),
        json!({"strategy": "quadratic_model"}),
        json!({"strategy": "quadratic_model", "bounds": [0.1, 0.6]}),
        json!({"strategy": "gradient"}),
        json!({"strategy": "gradient", "bounds": [0.1, 0.6]}),
    ];
    let with_budget = |mut settings: serde_json::Value| {
        settings["max_evaluations"] = json!(max_evaluations);
        config(settings)
    };
    searches.into_iter().map(with_budget).collect()
}

/// An objective that must not be asked for the same weights twice, and counts how often it is asked.
pub struct Once<'a> {
    basin: &'a Basin,
    pub asked: std::rc::Rc<std::cell::RefCell<Vec<Vec<f64>>>>,
}

impl<'a> Once<'a> {
    pub fn new(basin: &'a Basin) -> Self {
        Self { basin, asked: Default::default() }
    }

    fn ask(&self, weights: &[f64]) {
        let mut asked = self.asked.borrow_mut();
        assert!(!asked.iter().any(|earlier| earlier == weights), "{weights:?} asked for twice");
        asked.push(weights.to_vec());
    }
}

impl deme_merge::weight_search::Objective for Once<'_> {
    type Error = std::convert::Infallible;

    fn value(&mut self, weights: &[f64]) -> Result<f64, Self::Error> {
        self.ask(weights);
        Ok(self.basin.value(weights))
    }

    fn value_and_gradient(
        &mut self,
        weights: &[f64],
    ) -> Option<Result<(f64, Vec<f64>), Self::Error>> {
        self.ask(weights);
        Some(Ok(self.basin.value_and_gradient(weights)))
    }
}
