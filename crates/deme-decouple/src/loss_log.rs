//! The course of a run's losses, averaged over intervals: what loss curves are drawn from.

use serde::{Deserialize, Serialize};

use crate::finetuner::StepReport;

/// Means over an interval of iterations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossPoint {
    /// Iterations done at the interval's end.
    pub iteration: u64,
    /// Mean diffusion loss.
    pub diffusion_loss: f64,
    /// Mean consistency loss; none without a teacher.
    pub consistency_loss: Option<f64>,
    /// Mean norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// The losses of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossLog {
    /// One point for each finished interval.
    pub points: Vec<LossPoint>,
    /// The interval that is not finished.
    #[serde(default, skip_serializing_if = "Sums::is_empty")]
    pending: Sums,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sums {
    iterations: u64,
    diffusion_loss: f64,
    consistency_loss: Option<f64>,
    grad_norm: f64,
}

impl Sums {
    fn is_empty(&self) -> bool {
        self.iterations == 0
    }
}

impl LossLog {
    /// Adds what iteration number `iteration` (from 1) reported; closes the interval after `interval`
    /// iterations.
    pub fn add(&mut self, iteration: u64, report: &StepReport, interval: u64) {
        let sums = &mut self.pending;
        sums.iterations += 1;
        sums.diffusion_loss += report.diffusion_loss;
        sums.grad_norm += report.grad_norm;
        if let Some(loss) = report.consistency_loss {
            *sums.consistency_loss.get_or_insert(0.0) += loss;
        }
        if sums.iterations >= interval {
            self.close(iteration);
        }
    }

    /// Closes an interval that the run's end cut short, if there is one.
    pub fn close(&mut self, iteration: u64) {
        let sums = std::mem::take(&mut self.pending);
        if !sums.is_empty() {
            let count = sums.iterations as f64;
            self.points.push(LossPoint {
                iteration,
                diffusion_loss: sums.diffusion_loss / count,
                consistency_loss: sums.consistency_loss.map(|loss| loss / count),
                grad_norm: sums.grad_norm / count,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn report(loss: f64) -> StepReport {
        StepReport {
            diffusion_loss: loss,
            consistency_loss: Some(2.0 * loss),
            grad_norm: 3.0 * loss,
            learning_rate: 1.0,
            ema_decay: None,
        }
    }

    #[test]
    fn intervals_are_averaged_and_the_last_may_be_short() {
        let mut log = LossLog::default();
        for (i, loss) in [1.0, 3.0, 5.0, 7.0, 9.0].into_iter().enumerate() {
            log.add(i as u64 + 1, &report(loss), 2);
            let text = serde_json::to_string(&log).unwrap();
            log = serde_json::from_str(&text).unwrap();
        }
        log.close(5);
        log.close(5);
        let losses: Vec<_> = log.points.iter().map(|p| (p.iteration, p.diffusion_loss)).collect();
        assert_eq!(losses, [(2, 2.0), (4, 6.0), (5, 9.0)]);
        assert_eq!(log.points[1].consistency_loss, Some(12.0));
        assert_eq!(log.points[1].grad_norm, 18.0);
    }
}
