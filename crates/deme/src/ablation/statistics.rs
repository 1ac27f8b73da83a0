//! Means, spreads, and differences paired by seed with their intervals.
//!
//! Two variants of one seed share data, splits, the pretrained model and the noise of their pictures, so their
//! difference varies less than either. Over K seeds the mean difference has Student's interval with K - 1
//! degrees of freedom (Student 1908). Seeds are the sample here, not pictures.

/// The level of all intervals.
pub const LEVEL: f64 = 0.95;

/// The mean of some numbers; none of none.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The standard deviation of a sample, `sqrt(sum (x - mean)^2 / (n - 1))`; none below two numbers.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() >= 2).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// Half the width of the mean's 95% interval, `t_{0.975, n-1} s / sqrt(n)`; none below two numbers.
pub fn half_width(values: &[f64]) -> Option<f64> {
    let deviation = standard_deviation(values)?;
    let n = values.len();
    Some(student_factor(n)? * deviation / (n as f64).sqrt())
}

/// How many standard errors the 95% interval of a mean of `n` numbers reaches to each side, `t_{0.975, n-1}`;
/// none below two numbers.
pub fn student_factor(n: usize) -> Option<f64> {
    (n >= 2).then(|| student_quantile(0.5 + LEVEL / 2.0, n as u64 - 1))
}

/// The value below which Student's distribution has the share `share`, which is at least 1/2.
fn student_quantile(share: f64, degrees: u64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while student_distribution(high, degrees) < share {
        high *= 2.0;
    }
    // Halving until the numbers have no more digits.
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if student_distribution(middle, degrees) < share {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// The share of Student's distribution below `t >= 0`, in closed form for whole degrees of freedom.
/// (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4, which give the share between -t and t)
fn student_distribution(t: f64, degrees: u64) -> f64 {
    let theta = (t / (degrees as f64).sqrt()).atan();
    let (sine, cosine) = theta.sin_cos();
    let even = degrees.is_multiple_of(2);
    // Terms of cos^0, cos^2, ... (even) or cos^1, cos^3, ... (odd), up to cos^(degrees - 2).
    let (mut term, mut power) = if even { (1.0, 0) } else { (cosine, 1) };
    let mut sum = 0.0;
    while power + 2 <= degrees {
        sum += term;
        term *= cosine * cosine * (power + 1) as f64 / (power + 2) as f64;
        power += 2;
    }
    let between = match even {
        true => sine * sum,
        false => std::f64::consts::FRAC_2_PI * (theta + sine * sum),
    };
    0.5 + 0.5 * between
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // Abramowitz and Stegun 1964, table 26.10: the column of 0.95 between -t and t.
        for (degrees, expected) in [
            (1, 12.706),
            (2, 4.303),
            (3, 3.182),
            (4, 2.776),
            (9, 2.262),
            (10, 2.228),
            (30, 2.042),
            (120, 1.980),
        ] {
            let found = student_quantile(0.975, degrees);
            assert!((found - expected).abs() < 5e-4, "{degrees}: {found}");
        }
    }

    #[test]
    fn an_interval_covers_what_it_says() {
        // Three normal numbers with mean 0: the interval holds 0 in 95% of the cases.
        use rand::SeedableRng;
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        let mut normal = || {
            use rand::RngExt;
            let (u, v): (f64, f64) = (rng.random(), rng.random());
            (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
        };
        let cases = 20_000;
        let covered = (0..cases).filter(|_| {
            let values = [normal(), normal(), normal()];
            mean(&values).unwrap().abs() <= half_width(&values).unwrap()
        });
        let share = covered.count() as f64 / f64::from(cases);
        assert!((share - 0.95).abs() < 0.006, "{share}");
    }

    #[test]
    fn few_seeds_need_large_differences() {
        let factors = [2, 3, 5].map(|n| student_factor(n).unwrap());
        for (found, expected) in factors.iter().zip([12.706, 4.303, 2.776]) {
            assert!((found - expected).abs() < 5e-4, "{factors:?}");
        }
        assert_eq!((student_factor(0), student_factor(1)), (None, None));
    }

    #[test]
    fn one_number_has_no_spread() {
        assert_eq!(
            (mean(&[3.0]), standard_deviation(&[3.0]), half_width(&[3.0])),
            (Some(3.0), None, None)
        );
        assert_eq!(mean(&[]), None);
        assert_eq!(standard_deviation(&[1.0, 3.0]), Some(2f64.sqrt()));
    }
}
