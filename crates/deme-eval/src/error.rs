//! What can be wrong with features, statistics and measurements.

use deme_clip::ClipError;
use deme_data::PictureError;
use deme_merge::StateDictError;
use std::path::{Path, PathBuf};

/// Why a number could not be computed, read or compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A picture that cannot be used.
    #[error("{} {source}", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: PictureError,
    },
    /// A file that is no `.npz`.
    #[error("{} is no readable .npz file: {reason}", path.display())]
    Npz {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An `.npz` without one of the arrays.
    #[error("{} has no array `{array}`; statistics need `mu` and `sigma`", path.display())]
    MissingArray {
        /// The file.
        path: PathBuf,
        /// The array.
        array: &'static str,
    },
    /// An `.npz` with pictures instead of statistics.
    #[error(
        "{} holds pictures (`arr_0`) but no statistics (`mu` and `sigma`): take the pictures out and \
         compute their features",
        path.display()
    )]
    PicturesNotStatistics {
        /// The file.
        path: PathBuf,
    },
    /// A stamp that cannot be read.
    #[error("the stamp `deme_stamp` of {} is not understood: {reason}", path.display())]
    Stamp {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A stamp that names another number of pictures than the statistics beside it.
    #[error("the stamp says {stamp} pictures, the statistics are of {count}")]
    StampCount {
        /// The stamp's number.
        stamp: u64,
        /// The statistics' number.
        count: u64,
    },
    /// An array of a type that cannot be read.
    #[error(
        "array `{array}` of {} is {found}, expected {expected}",
        path.display()
    )]
    ArrayType {
        /// The file.
        path: PathBuf,
        /// The array.
        array: &'static str,
        /// What it is.
        found: String,
        /// What can be read.
        expected: &'static str,
    },
    /// An array of another shape.
    #[error("array `{array}` of {} has shape {found:?}, expected {expected}", path.display())]
    ArrayShape {
        /// The file.
        path: PathBuf,
        /// The array.
        array: &'static str,
        /// Its shape.
        found: Vec<u64>,
        /// What it must be.
        expected: String,
    },
    /// An array whose data end too early or go on too long.
    #[error(
        "array `{array}` of {} should have {expected} bytes of data, found {found}",
        path.display()
    )]
    ArrayLength {
        /// The file.
        path: PathBuf,
        /// The array.
        array: &'static str,
        /// Bytes that dtype and shape need.
        expected: u64,
        /// Bytes found; reading stops one behind the expected number.
        found: u64,
    },
    /// A NaN or an infinity in statistics.
    #[error("`{array}` holds {value} at position {index}: the features are not usable")]
    NonFiniteStats {
        /// `mu` or `sigma`.
        array: &'static str,
        /// Position in the flattened array.
        index: usize,
        /// NaN or an infinity.
        value: f64,
    },
    /// A covariance that is not symmetric.
    #[error(
        "sigma[{row}][{column}] is {upper} but sigma[{column}][{row}] is {lower}: this is no covariance"
    )]
    NotSymmetric {
        /// Row of the first entry.
        row: usize,
        /// Column of the first entry.
        column: usize,
        /// The first entry.
        upper: f64,
        /// Its mirror image.
        lower: f64,
    },
    /// A covariance with a negative eigenvalue beyond rounding.
    #[error(
        "sigma has the eigenvalue {eigenvalue} (its largest is {largest}): this is no covariance"
    )]
    NotPositive {
        /// The negative eigenvalue.
        eigenvalue: f64,
        /// The largest one.
        largest: f64,
    },
    /// The eigenvalue iteration did not converge.
    #[error("the eigenvalues of a {dim} x {dim} covariance could not be found")]
    NoConvergence {
        /// Its size.
        dim: usize,
    },
    /// Statistics of different features.
    #[error(
        "the statistics have {left} and {right} dimensions: they were made by different extractors"
    )]
    Dimensions {
        /// Of the first.
        left: usize,
        /// Of the second.
        right: usize,
    },
    /// Features of two extractors, by their stamps.
    #[error("features of {left} and of {right} cannot be compared: they are of two extractors")]
    UnlikeExtractors {
        /// Name and hash of the first.
        left: String,
        /// Name and hash of the second.
        right: String,
    },
    /// A feature vector of another length than its neighbours.
    #[error("feature {index} has {found} entries, expected {expected}")]
    FeatureLength {
        /// Which picture's.
        index: u64,
        /// Its length.
        found: usize,
        /// What it must be.
        expected: usize,
    },
    /// A NaN or an infinity in a feature vector.
    #[error("the feature of picture {index} holds {value}: check the picture and the extractor")]
    NonFiniteFeature {
        /// Which picture's.
        index: u64,
        /// NaN or an infinity.
        value: f64,
    },
    /// Too few pictures for a covariance.
    #[error("a covariance needs at least 2 pictures, found {count}")]
    TooFew {
        /// Pictures found.
        count: u64,
    },
    /// A file that holds no features, or damaged ones.
    #[error("{} is no file of features: {reason}", path.display())]
    FeatureFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another number of features than was announced.
    #[error("{expected} features were to be written, {found} came")]
    PartCount {
        /// Features announced.
        expected: u64,
        /// Features that came.
        found: u64,
    },
    /// Parts of two sets of pictures, or of one set by two extractors.
    #[error(
        "{} and {} are no parts of one set: {first_stamp} and {other_stamp}",
        first.display(), other.display()
    )]
    UnlikeParts {
        /// The first file.
        first: PathBuf,
        /// Another file.
        other: PathBuf,
        /// How the first's features were made.
        first_stamp: String,
        /// How the other's were made.
        other_stamp: String,
    },
    /// Pictures that are in two parts.
    #[error("pictures {from} to {to} (exclusive) are in {} and in another part", path.display())]
    OverlappingParts {
        /// The later file.
        path: PathBuf,
        /// First picture in both.
        from: u64,
        /// One behind the last.
        to: u64,
    },
    /// A part that goes on behind the end of its set.
    #[error("{} goes on to picture {end} of a set of {total}", path.display())]
    BeyondTheSet {
        /// The file.
        path: PathBuf,
        /// One behind its last picture.
        end: u64,
        /// Pictures of the set.
        total: u64,
    },
    /// Pictures that are in no part.
    #[error("the features of pictures {from} to {to} (exclusive) are in none of the files")]
    MissingFeatures {
        /// First picture missing.
        from: u64,
        /// One behind the last.
        to: u64,
    },
    /// No k-th nearest neighbour among so few pictures.
    #[error("neighbour {k} of a picture is wanted where there are {count} pictures")]
    Neighbours {
        /// Which neighbour.
        k: usize,
        /// Pictures of the side.
        count: usize,
    },
    /// More splits than pictures, or none.
    #[error("{count} pictures cannot be scored in {splits} splits")]
    Splits {
        /// Splits wanted.
        splits: usize,
        /// Pictures found.
        count: usize,
    },
    /// No line through distances at several numbers of pictures.
    #[error(
        "a distance at infinity needs 3 points or more between {least} pictures and all, found \
         {points} points and {count} pictures"
    )]
    Points {
        /// Points wanted or found.
        points: usize,
        /// The smallest number of pictures; 2 or more.
        least: usize,
        /// Pictures found.
        count: usize,
    },
    /// Pictures and captions do not pair up.
    #[error("there are {images} picture embeddings but {texts} caption embeddings")]
    Pairs {
        /// Picture embeddings.
        images: usize,
        /// Caption embeddings.
        texts: usize,
    },
    /// An embedding of length zero or without a finite length, which has no direction.
    #[error("the {what} embedding {index} has length {length}, so it has no direction")]
    NoDirection {
        /// `picture` or `caption`.
        what: &'static str,
        /// Its position.
        index: usize,
        /// Its length.
        length: f64,
    },
    /// Measurements that were made differently.
    #[error(
        "`{first}` and `{other}` were measured differently and cannot share a table: {}",
        fields.join("; ")
    )]
    UnlikeProtocols {
        /// Model of the first measurement.
        first: String,
        /// Model of the other one.
        other: String,
        /// Each field that differs, with both values.
        fields: Vec<String>,
    },
    /// A picture of another size than the extractor takes.
    #[error(
        "picture {index} has {found} values, expected {} ({shape:?}): prepare it first",
        shape.iter().product::<usize>()
    )]
    ImageShape {
        /// Position in the list.
        index: usize,
        /// Values found.
        found: usize,
        /// Channels, height and width that the extractor takes.
        shape: [usize; 3],
    },
    /// A NaN or an infinity in a picture.
    #[error("picture {index} holds {value}: check what made it")]
    NonFiniteImage {
        /// Position in the list.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// Weights of another network.
    #[error(
        "{} does not fit {network}: {applied} tensors fit{}",
        path.display(),
        listed(missing, unused, wrong_shape)
    )]
    Weights {
        /// The file or folder.
        path: Box<Path>,
        /// What they should be weights of.
        network: &'static str,
        /// Number of tensors that fit.
        applied: usize,
        /// Tensors the network has and the checkpoint lacks.
        missing: Vec<String>,
        /// Tensors the checkpoint has and the network lacks.
        unused: Vec<String>,
        /// Tensors of another shape or kind: name, what was expected, what was found.
        wrong_shape: Vec<String>,
    },
    /// A JSON file that is damaged or has a field of another kind.
    #[error("{} cannot be used: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A config no network can be built from.
    #[error("{}: {field} is {found}, expected {expected}", path.display())]
    Config {
        /// The config, or the weights it was read off from.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// A DINOv2 with registers.
    #[error(
        "{} is a DINOv2 with registers, whose features are others: use the one without",
        path.display()
    )]
    Registers {
        /// The config or the weights.
        path: PathBuf,
    },
    /// A checkpoint that could not be read, or holds values that are not finite.
    #[error(transparent)]
    State(#[from] StateDictError),
    /// Two sets of measurements without a metric in common.
    #[error("nothing can be compared: one side has {left}, the other {right}")]
    NothingInCommon {
        /// Metrics and models of the first.
        left: String,
        /// Of the second.
        right: String,
    },
    /// CLIP failed.
    #[error(transparent)]
    Clip(Box<ClipError>),
}

impl From<ClipError> for EvalError {
    fn from(error: ClipError) -> Self {
        Self::Clip(Box::new(error))
    }
}

impl EvalError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
    pub(crate) fn config(
        path: &Path,
        field: &'static str,
        found: impl ToString,
        expected: impl ToString,
    ) -> Self {
        let (found, expected) = (found.to_string(), expected.to_string());
        Self::Config { path: path.to_owned(), field, found, expected }
    }

    /// Checks that pictures have as many values as `shape` says, all finite: a network may well make
    /// a finite feature of a NaN.
    pub(crate) fn check_images(images: &[&[f32]], shape: [usize; 3]) -> Result<(), Self> {
        let expected: usize = shape.iter().product();
        for (index, image) in images.iter().enumerate() {
            if image.len() != expected {
                return Err(Self::ImageShape { index, found: image.len(), shape });
            }
            if let Some(&value) = image.iter().find(|value| !value.is_finite()) {
                return Err(Self::NonFiniteImage { index, value });
            }
        }
        Ok(())
    }

    /// Checks that features are finite.
    pub(crate) fn check_features(features: &[Vec<f32>]) -> Result<(), Self> {
        for (index, feature) in (0..).zip(features) {
            if let Some(value) = feature.iter().find(|value| !value.is_finite()) {
                return Err(Self::NonFiniteFeature { index, value: f64::from(*value) });
            }
        }
        Ok(())
    }
}

/// Names of tensors, each list under its heading.
fn listed(missing: &[String], unused: &[String], wrong_shape: &[String]) -> String {
    let lists = [
        ("missing in the checkpoint", missing),
        ("in the checkpoint but not in the network", unused),
        ("of another shape", wrong_shape),
    ];
    let mut text = String::new();
    for (heading, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
        text.push_str(&format!("\n  {} {heading}:", names.len()));
        names.iter().for_each(|name| text.push_str(&format!("\n    {name}")));
    }
    text
}
