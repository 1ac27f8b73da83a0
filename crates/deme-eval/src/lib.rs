//! Images in, numbers out: feature statistics, the Fréchet distance, the CLIP score, and the stamp
//! that says how a number was made.
//!
//! [`FeatureExtractor`] turns pictures into features, [`FeatureStats`] is their mean and covariance,
//! [`frechet_distance`] compares two of them. [`Protocol`] keeps numbers that were made differently
//! out of one table.
//!
//! Not here: diffusion, schedules, resizing pictures. Nothing in this crate knows where a picture
//! came from.

pub mod bootstrap;
mod clip_preparation;
pub mod clip_score;
mod covariance_factor;
pub mod dinov2;
mod error;
pub mod extractor;
pub mod extractor_config;
pub mod feature_stats;
pub mod feature_stream;
pub mod frechet;
pub mod inception;
mod named_weights;
mod npz;
pub mod protocol;
mod singular_values;
pub mod stats_stamp;
mod tiles;

pub use bootstrap::bootstrap_spread;
pub use clip_preparation::prepare_for_clip;
pub use clip_score::{ClipScore, PairScores, clip_score, clip_scores, score_pairs};
pub use dinov2::{Dinov2, Dinov2Config, Dinov2Extractor, PositionInterpolation};
pub use error::EvalError;
pub use extractor::{ClipExtractor, FeatureExtractor, ImageFeatures, feature_stats};
pub use extractor_config::ExtractorConfig;
pub use feature_stats::{FeatureAccumulator, FeatureStats, StatsArrays};
pub use feature_stream::{PictureFeature, stream_features};
pub use frechet::{FrechetDistance, FrechetReference, frechet_distance};
pub use inception::{Inception, InceptionBlock, InceptionExtractor, InceptionProtocol, LogitBias};
pub use protocol::{Measurement, MeasurementTable, Pair, Protocol, SOFTWARE, pair};
pub use stats_stamp::StatsStamp;
