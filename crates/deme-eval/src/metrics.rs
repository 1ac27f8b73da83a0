//! The metrics: a table of their names, papers and what a number of each means.
//!
//! Each is computed in the file of its name; the table is what reports, comparisons and the command's
//! list read.

use serde::{Deserialize, Serialize};

/// What a metric is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Mean and covariance of the features of both sides; a file of statistics is enough.
    Statistics,
    /// The features themselves, of the generated pictures; statistics of the reference.
    FeaturesAndStatistics,
    /// The features themselves, of both sides.
    Features,
    /// Class logits of the generated pictures; no reference.
    Logits,
    /// Embeddings of the generated pictures and of their captions; no reference.
    ImageAndTextEmbeddings,
}

/// Which numbers are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Lower is better.
    Lower,
    /// Higher is better.
    Higher,
}

impl Direction {
    /// Whether `value` is better than `other`.
    pub fn better(self, value: f64, other: f64) -> bool {
        match self {
            Self::Lower => value < other,
            Self::Higher => value > other,
        }
    }
}

/// A row of the table of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricRow {
    /// Its name in protocols and reports. On features of another extractor than the paper's, the
    /// extractor's name follows: `kid_tiny_clip`.
    pub name: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// The extractor of the paper, by its name in protocols; none where any will do.
    pub extractor: Option<&'static str>,
    /// What it is computed from.
    pub needs: Needs,
    /// Which numbers are good.
    pub direction: Direction,
    /// The unit and range of a number.
    pub unit: &'static str,
}

/// All metrics.
pub const METRICS: [MetricRow; 12] = [
    MetricRow {
        name: "fid",
        paper: "Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash \
                Equilibrium, arXiv 1706.08500",
        extractor: Some("inception"),
        needs: Needs::Statistics,
        direction: Direction::Lower,
        unit: "squared distance between features, 0 or more",
    },
    MetricRow {
        name: "fd_dinov2",
        paper: "Stein et al., Exposing flaws of generative model evaluation metrics and their unfair \
                treatment of diffusion models, arXiv 2306.04675",
        extractor: Some("dinov2"),
        needs: Needs::Statistics,
        direction: Direction::Lower,
        unit: "squared distance between features, 0 or more",
    },
    MetricRow {
        name: "fd",
        paper: "Dowson and Landau, The Fréchet distance between multivariate normal distributions, \
                Journal of Multivariate Analysis 12, 1982",
        extractor: None,
        needs: Needs::Statistics,
        direction: Direction::Lower,
        unit: "squared distance between features, 0 or more",
    },
    MetricRow {
        name: "fd_infinity",
        paper: "Chong and Forsyth, Effectively Unbiased FID and Inception Score and where to find them, \
                arXiv 1911.07023",
        extractor: Some("inception"),
        needs: Needs::FeaturesAndStatistics,
        direction: Direction::Lower,
        unit: "squared distance between features, followed to infinitely many pictures",
    },
    MetricRow {
        name: "kid",
        paper: "Bińkowski et al., Demystifying MMD GANs, arXiv 1801.01401",
        extractor: Some("inception"),
        needs: Needs::Features,
        direction: Direction::Lower,
        unit: "squared mean discrepancy, about 0 or more",
    },
    MetricRow {
        name: "cmmd",
        paper: "Jayasumana et al., Rethinking FID: Towards a Better Evaluation Metric for Image \
                Generation, arXiv 2401.09603",
        extractor: Some("clip"),
        needs: Needs::Features,
        direction: Direction::Lower,
        unit: "thousandths of a squared mean discrepancy, 0 or more",
    },
    MetricRow {
        name: "precision",
        paper: "Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative \
                Models, arXiv 1904.06991",
        extractor: None,
        needs: Needs::Features,
        direction: Direction::Higher,
        unit: "share of the generated pictures, 0 to 1",
    },
    MetricRow {
        name: "recall",
        paper: "Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative \
                Models, arXiv 1904.06991",
        extractor: None,
        needs: Needs::Features,
        direction: Direction::Higher,
        unit: "share of the real pictures, 0 to 1",
    },
    MetricRow {
        name: "density",
        paper: "Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models, \
                arXiv 2002.09797",
        extractor: None,
        needs: Needs::Features,
        direction: Direction::Higher,
        unit: "neighbourhoods per generated picture over k, 0 or more",
    },
    MetricRow {
        name: "coverage",
        paper: "Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models, \
                arXiv 2002.09797",
        extractor: None,
        needs: Needs::Features,
        direction: Direction::Higher,
        unit: "share of the real pictures, 0 to 1",
    },
    MetricRow {
        name: "inception_score",
        paper: "Salimans et al., Improved Techniques for Training GANs, arXiv 1606.03498",
        extractor: Some("inception"),
        needs: Needs::Logits,
        direction: Direction::Higher,
        unit: "number of classes, 1 or more",
    },
    MetricRow {
        name: "clip_score",
        paper: "Hessel et al., CLIPScore: A Reference-free Evaluation Metric for Image Captioning, \
                arXiv 2104.08718",
        extractor: None,
        needs: Needs::ImageAndTextEmbeddings,
        direction: Direction::Higher,
        unit: "100 max(cosine, 0), 0 to 100",
    },
];

/// The row of a metric by its name in a protocol: the row's own name, or that with an extractor's name
/// behind it (`fd_tiny_clip`, `kid_dinov2`). The longest name counts.
pub fn metric_row(metric: &str) -> Option<&'static MetricRow> {
    let named = |row: &&MetricRow| {
        metric.strip_prefix(row.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    METRICS.iter().filter(named).max_by_key(|row| row.name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_row_is_complete() {
        for (i, row) in METRICS.iter().enumerate() {
            assert!(METRICS[..i].iter().all(|other| other.name != row.name), "{}", row.name);
            assert!(row.paper.len() > 30 && !row.unit.is_empty());
            assert_eq!(metric_row(row.name), Some(row));
        }
    }

    #[test]
    fn names_with_extractors_find_their_row() {
        let name = |metric| metric_row(metric).map(|row| row.name);
        assert_eq!(name("fd_tiny_clip"), Some("fd"));
        assert_eq!(name("fd_dinov2"), Some("fd_dinov2"));
        assert_eq!(name("fd_infinity_dinov2"), Some("fd_infinity"));
        assert_eq!(name("clip_score_tiny_clip"), Some("clip_score"));
        assert_eq!(name("kid_dinov2"), Some("kid"));
        assert_eq!(name("fdx"), None);
        assert_eq!(name("loss"), None);
    }

    #[test]
    fn directions_say_what_is_better() {
        assert!(Direction::Lower.better(1.0, 2.0) && !Direction::Lower.better(2.0, 2.0));
        assert!(Direction::Higher.better(3.0, 2.0) && !Direction::Higher.better(1.0, 2.0));
    }
}
