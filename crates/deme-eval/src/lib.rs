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
pub mod clip_score;
mod covariance_factor;
mod error;
pub mod extractor;
pub mod feature_stats;
pub mod frechet;
mod npz;
pub mod protocol;
mod singular_values;
pub mod stats_stamp;
mod tiles;

pub use bootstrap::bootstrap_spread;
pub use clip_score::{ClipScore, clip_score};
pub use error::EvalError;
pub use extractor::{ClipExtractor, FeatureExtractor, ImageFeatures, feature_stats};
pub use feature_stats::{FeatureAccumulator, FeatureStats, StatsArrays};
pub use frechet::{FrechetDistance, FrechetReference, frechet_distance};
pub use protocol::{Measurement, MeasurementTable, Protocol};
pub use stats_stamp::StatsStamp;
