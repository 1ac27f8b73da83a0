//! Images in, numbers out: feature statistics, the Fréchet distance, the CLIP score and other metrics,
//! and the stamp that says how a number was made.
//!
//! [`FeatureExtractor`] turns pictures into features, a [`FeatureSet`] of which metrics such as
//! [`kernel_distance`] compare; [`FeatureStats`] is their mean and covariance, [`frechet_distance`]
//! compares two of them. [`METRICS`] lists all. [`Protocol`] keeps numbers that were made differently
//! out of one table.
//!
//! Not here: diffusion, schedules, resizing pictures. Nothing in this crate knows where a picture
//! came from.

pub mod bootstrap;
mod clip_preparation;
pub mod clip_score;
pub mod cmmd;
mod covariance_factor;
pub mod dinov2;
mod error;
pub mod extractor;
pub mod extractor_config;
pub mod fd_infinity;
pub mod feature_file;
pub mod feature_set;
pub mod feature_stats;
pub mod feature_stream;
pub mod frechet;
pub mod inception;
pub mod inception_score;
pub mod kid;
pub mod metrics;
mod named_weights;
pub mod neighbourhoods;
mod npz;
mod pairwise;
pub mod protocol;
mod random_subset;
mod singular_values;
pub mod stats_stamp;
mod tiles;

pub use bootstrap::bootstrap_spread;
pub use clip_preparation::prepare_for_clip;
pub use clip_score::{ClipScore, PairScores, clip_score, clip_scores, score_pairs};
pub use cmmd::cmmd;
pub use dinov2::{Dinov2, Dinov2Config, Dinov2Extractor, PositionInterpolation};
pub use error::EvalError;
pub use extractor::{
    ClipExtractor, FeatureExtractor, ImageFeatures, feature_stats, frechet_metric,
};
pub use extractor_config::ExtractorConfig;
pub use fd_infinity::{FdInfinity, FdInfinityConfig, fd_infinity, fit_fd_infinity};
pub use feature_file::{FeatureFile, FeaturePart, FeatureParts, names_hash, write_feature_file};
pub use feature_set::FeatureSet;
pub use feature_stats::{FeatureAccumulator, FeatureStats, StatsArrays};
pub use feature_stream::{PictureFeature, stream_features};
pub use frechet::{FrechetDistance, FrechetReference, frechet_distance};
pub use inception::{Inception, InceptionBlock, InceptionExtractor, InceptionProtocol, LogitBias};
pub use inception_score::{InceptionScore, InceptionScoreConfig, inception_score};
pub use kid::{KernelDistance, KidConfig, SubsetPair, kernel_distance, kernel_distance_on};
pub use metrics::{Direction, METRICS, MetricRow, Needs, metric_row};
pub use neighbourhoods::{NeighbourConfig, NeighbourMetrics, neighbour_metrics};
pub use protocol::{Measurement, MeasurementTable, Pair, Protocol, SOFTWARE, pair};
pub use stats_stamp::{SamplingStamp, StatsStamp};
