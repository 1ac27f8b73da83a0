//! Features kept in files: safetensors with `features`, f32 `[N, d]`, and how they were made. No tensor
//! engine.
//!
//! A set of pictures may be shared out to several processes, each writing the part of the pictures from
//! some index on. Joined in the order of the indices, the parts give the same bits as one process.
//! Files are mapped, so a set need not fit into memory for its statistics.

use crate::{EvalError, FeatureAccumulator, FeatureSet, FeatureStats, StatsStamp};
use deme_merge::{Dtype, StateDict, StoredTensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

const TENSOR: &str = "features";

/// Key of the header's metadata under which the part is described, in JSON.
const METADATA: &str = "deme_features";

/// Which pictures of which set a file holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeaturePart {
    /// How the features of the whole set were made; its count is the whole set's.
    pub stamp: StatsStamp,
    /// Index of the file's first picture in the set.
    pub first_index: u64,
    /// Pictures in the file.
    pub count: u64,
    /// [`names_hash`] of the names of the file's pictures.
    pub names_hash: String,
}

/// SHA-256, in hex, of names in their order.
pub fn names_hash<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let mut hash = Sha256::new();
    for name in names {
        // With its length in front no two lists of names look alike.
        let name = name.as_ref().as_bytes();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes features of `dim` entries as they come, atomically.
///
/// # Errors
/// Whatever error comes in place of a feature; [`EvalError::FeatureLength`],
/// [`EvalError::NonFiniteFeature`] (both with the picture's index in the set); [`EvalError::PartCount`]
/// when there are not `part.count`; [`EvalError::Io`].
pub fn write_feature_file(
    path: &Path,
    part: &FeaturePart,
    dim: usize,
    features: impl IntoIterator<Item = Result<Vec<f32>, EvalError>>,
) -> Result<(), EvalError> {
    let bytes = part.count * dim as u64 * 4;
    let description = serde_json::to_string(part).expect("strings and numbers are JSON");
    let header = serde_json::json!({
        "__metadata__": { METADATA: description, "format": "pt" },
        TENSOR: { "dtype": "F32", "shape": [part.count, dim], "data_offsets": [0, bytes] },
    });
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    // An error of a feature passes through the writer, which then leaves no file.
    let mut refused = None;
    let written = deme_merge::write_atomically(path, |writer| {
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        let mut count = 0;
        for feature in features {
            let checked = feature.and_then(|feature| {
                check(&feature, part.first_index + count, dim)?;
                Ok(feature)
            });
            match checked {
                Ok(feature) => {
                    for value in feature {
                        writer.write_all(&value.to_le_bytes())?;
                    }
                }
                Err(error) => {
                    refused = Some(error);
                    return Err(std::io::Error::other("a feature was refused"));
                }
            }
            count += 1;
        }
        if count == part.count {
            return Ok(());
        }
        refused = Some(EvalError::PartCount { expected: part.count, found: count });
        Err(std::io::Error::other("another number of features"))
    });
    match refused {
        Some(error) => Err(error),
        None => written.map_err(|source| EvalError::io(path, source)),
    }
}

fn check(feature: &[f32], index: u64, dim: usize) -> Result<(), EvalError> {
    if feature.len() != dim || dim == 0 {
        return Err(EvalError::FeatureLength { index, found: feature.len(), expected: dim });
    }
    match feature.iter().find(|value| !value.is_finite()) {
        Some(&value) => Err(EvalError::NonFiniteFeature { index, value: value.into() }),
        None => Ok(()),
    }
}

/// A mapped file of features.
#[derive(Debug)]
pub struct FeatureFile {
    path: PathBuf,
    part: FeaturePart,
    dim: usize,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Mapped(StoredTensor),
    /// Of a file whose writer did not align its tensors.
    Copied(Vec<f32>),
}

impl FeatureFile {
    /// Opens a `.safetensors` file that [`write_feature_file`] wrote.
    ///
    /// # Errors
    /// [`EvalError::FeatureFile`] when it is damaged or no such file.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        let wrong = |reason: String| EvalError::FeatureFile { path: path.to_owned(), reason };
        let state = StateDict::load(path).map_err(|error| wrong(error.to_string()))?;
        let description = state.metadata().get(METADATA);
        let description =
            description.ok_or_else(|| wrong(format!("its metadata have no `{METADATA}`")))?;
        let part: FeaturePart = serde_json::from_str(description)
            .map_err(|error| wrong(format!("`{METADATA}`: {error}")))?;
        let tensor = state.get(TENSOR);
        let tensor = tensor.ok_or_else(|| wrong(format!("it has no tensor `{TENSOR}`")))?;
        let &[count, dim] = tensor.shape() else {
            return Err(wrong(format!("`{TENSOR}` has shape {:?}, not [N, d]", tensor.shape())));
        };
        if tensor.dtype() != Dtype::F32 || dim == 0 {
            let dtype = tensor.dtype();
            return Err(wrong(format!("`{TENSOR}` is {dtype:?} [{count}, {dim}], not F32")));
        }
        if count as u64 != part.count {
            let said = part.count;
            return Err(wrong(format!("it holds {count} features and says {said}")));
        }
        let values = match bytemuck::try_cast_slice::<u8, f32>(tensor.bytes()) {
            Ok(_) => Values::Mapped(tensor.clone()),
            Err(_) => {
                let chunks = tensor.bytes().as_chunks::<4>().0;
                Values::Copied(chunks.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
            }
        };
        Ok(Self { path: path.to_owned(), part, dim, values })
    }

    /// Which pictures it holds.
    pub fn part(&self) -> &FeaturePart {
        &self.part
    }

    /// Entries of a feature.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// `[N, d]` values, row by row, as they lie in the file.
    pub fn values(&self) -> &[f32] {
        match &self.values {
            Values::Mapped(tensor) => bytemuck::cast_slice(tensor.bytes()),
            Values::Copied(values) => values,
        }
    }

    fn end(&self) -> u64 {
        self.part.first_index.saturating_add(self.part.count)
    }
}

/// The files of one set of pictures, in the order of the pictures.
#[derive(Debug)]
pub struct FeatureParts {
    files: Vec<FeatureFile>,
}

impl FeatureParts {
    /// Puts parts, given in any order, together.
    ///
    /// # Errors
    /// [`EvalError::TooFew`] without any; [`EvalError::UnlikeParts`] when they are not of one set and one
    /// extractor; [`EvalError::OverlappingParts`]; [`EvalError::BeyondTheSet`]; [`EvalError::MissingFeatures`] when
    /// a picture of the set is in no part.
    pub fn join(mut files: Vec<FeatureFile>) -> Result<Self, EvalError> {
        files.sort_by_key(|file| (file.part.first_index, file.part.count));
        let Some(first) = files.first() else { return Err(EvalError::TooFew { count: 0 }) };
        for file in &files[1..] {
            if file.part.stamp != first.part.stamp || file.dim != first.dim {
                let describe = |file: &FeatureFile| {
                    format!("{} of {} entries", file.part.stamp.to_json(), file.dim)
                };
                return Err(EvalError::UnlikeParts {
                    first: first.path.clone(),
                    other: file.path.clone(),
                    first_stamp: describe(first),
                    other_stamp: describe(file),
                });
            }
        }
        let mut end = 0;
        let total = first.part.stamp.count;
        for file in files.iter().filter(|file| file.part.count > 0) {
            let start = file.part.first_index;
            if start > end {
                return Err(EvalError::MissingFeatures { from: end, to: start });
            }
            let path = || file.path.clone();
            if start < end {
                let to = end.min(file.end());
                return Err(EvalError::OverlappingParts { path: path(), from: start, to });
            }
            end = file.end();
            if end > total {
                return Err(EvalError::BeyondTheSet { path: path(), end, total });
            }
        }
        if end < total {
            return Err(EvalError::MissingFeatures { from: end, to: total });
        }
        Ok(Self { files })
    }

    /// How the features were made.
    pub fn stamp(&self) -> &StatsStamp {
        &self.files[0].part.stamp
    }

    /// All features, without a copy.
    ///
    /// # Errors
    /// As [`FeatureSet::of_rows`].
    pub fn set(&self) -> Result<FeatureSet<'_>, EvalError> {
        FeatureSet::of_blocks(self.blocks())
    }

    /// Mean and covariance, stamped: those of the same features in one process, bit for bit.
    ///
    /// # Errors
    /// As [`FeatureAccumulator::push`] and [`FeatureAccumulator::finish`].
    pub fn stats(&self) -> Result<FeatureStats, EvalError> {
        let mut accumulator = FeatureAccumulator::new(self.files[0].dim);
        for (values, dim) in self.blocks() {
            values.chunks(dim).try_for_each(|feature| accumulator.push(feature))?;
        }
        accumulator.finish()?.with_stamp(self.stamp().clone())
    }

    fn blocks(&self) -> impl Iterator<Item = (&[f32], usize)> {
        self.files.iter().map(|file| (file.values(), file.dim))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stats_stamp::stamp_of;

    const DIM: usize = 3;

    fn feature(index: u64) -> Vec<f32> {
        (0..DIM as u64).map(|j| ((index * 31 + j * 7 + index * j) % 101) as f32 / 7.0).collect()
    }

    fn part(first_index: u64, count: u64, total: u64) -> FeaturePart {
        let names = (first_index..first_index + count).map(|i| format!("{i}.png"));
        let names_hash = names_hash(names);
        FeaturePart { stamp: stamp_of("inception", total), first_index, count, names_hash }
    }

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(format!("{name}.safetensors"))
        }

        fn written(&self, name: &str, part: &FeaturePart) -> FeatureFile {
            let features =
                (part.first_index..part.first_index + part.count).map(|i| Ok(feature(i)));
            write_feature_file(&self.path(name), part, DIM, features).unwrap();
            FeatureFile::open(&self.path(name)).unwrap()
        }
    }

    #[test]
    fn written_and_opened_is_the_same() {
        let folder = Folder::new();
        let file = folder.written("a", &part(4, 5, 20));
        assert_eq!((file.part(), file.dim()), (&part(4, 5, 20), DIM));
        assert_eq!(file.values(), (4..9).flat_map(feature).collect::<Vec<f32>>());
        // Any reader of safetensors finds it.
        let state = StateDict::load(&folder.path("a")).unwrap();
        assert_eq!(state.get("features").unwrap().shape(), [5, DIM]);
    }

    #[test]
    fn parts_of_several_processes_give_the_bits_of_one() {
        let folder = Folder::new();
        let whole = FeatureParts::join(vec![folder.written("whole", &part(0, 700, 700))]).unwrap();
        // None of them ends where a block of the statistics does.
        let pieces = [("c", 433, 267), ("a", 0, 100), ("e", 100, 0), ("b", 100, 333)];
        let files =
            pieces.map(|(name, first, count)| folder.written(name, &part(first, count, 700)));
        let parts = FeatureParts::join(files.into()).unwrap();
        let (joined, expected) = (parts.stats().unwrap(), whole.stats().unwrap());
        assert_eq!(joined, expected);
        let features: Vec<Vec<f32>> = (0..700).map(feature).collect();
        let plain = FeatureStats::of(&features).unwrap();
        assert_eq!((joined.mu(), joined.sigma()), (plain.mu(), plain.sigma()));
        assert_eq!(joined.stamp(), Some(parts.stamp()));
        let set = parts.set().unwrap();
        assert_eq!(set.len(), 700);
        assert!((0..700).all(|i| set.row(i) == features[i]));
    }

    #[test]
    fn missing_and_overlapping_parts_are_refused() {
        let folder = Folder::new();
        let joined = |ranges: &[(u64, u64)]| {
            let files = ranges.iter().enumerate().map(|(i, &(first, count))| {
                folder.written(&i.to_string(), &part(first, count, 30))
            });
            FeatureParts::join(files.collect()).map(|_| ())
        };
        assert!(joined(&[(10, 20), (0, 10)]).is_ok());
        for (ranges, gap) in [
            (&[(0, 10), (12, 18)][..], (10, 12)),
            (&[(3, 27)], (0, 3)),
            (&[(0, 10), (10, 15)], (25, 30)),
        ] {
            let error = joined(ranges).unwrap_err();
            let EvalError::MissingFeatures { from, to } = error else { panic!("{error}") };
            assert_eq!((from, to), gap);
        }
        for (ranges, shared) in [
            (&[(0, 10), (8, 22)][..], (8, 10)),
            (&[(0, 30), (5, 5)], (5, 10)),
            (&[(0, 30), (0, 30)], (0, 30)),
        ] {
            let error = joined(ranges).unwrap_err();
            let EvalError::OverlappingParts { from, to, .. } = error else { panic!("{error}") };
            assert_eq!((from, to), shared);
        }
        assert!(matches!(FeatureParts::join(vec![]), Err(EvalError::TooFew { count: 0 })));
    }

    #[test]
    fn more_pictures_than_the_set_has_are_refused() {
        let folder = Folder::new();
        let files = vec![folder.written("a", &part(0, 31, 30))];
        let error = FeatureParts::join(files).unwrap_err();
        assert!(matches!(error, EvalError::BeyondTheSet { end: 31, total: 30, .. }), "{error}");
    }

    #[test]
    fn parts_of_two_sets_or_extractors_are_refused() {
        let folder = Folder::new();
        let mut other = part(10, 10, 20);
        other.stamp.extractor = "dinov2".to_owned();
        let files = vec![folder.written("a", &part(0, 10, 20)), folder.written("b", &other)];
        let error = FeatureParts::join(files).unwrap_err();
        assert!(matches!(error, EvalError::UnlikeParts { .. }));
        let text = error.to_string();
        assert!(text.contains("dinov2") && text.contains("b.safetensors"), "{text}");
    }

    #[test]
    fn what_is_refused_leaves_no_file() {
        let folder = Folder::new();
        let path = folder.path("a");
        let write = |features: Vec<Result<Vec<f32>, EvalError>>| {
            write_feature_file(&path, &part(5, 2, 20), DIM, features).unwrap_err()
        };
        let error = write(vec![Ok(feature(5))]);
        assert!(matches!(error, EvalError::PartCount { expected: 2, found: 1 }));
        let error = write(vec![Ok(feature(5)), Ok(vec![0.0; 2])]);
        assert!(matches!(error, EvalError::FeatureLength { index: 6, found: 2, expected: 3 }));
        let error = write(vec![Ok(vec![0.0, f32::NAN, 0.0])]);
        assert!(matches!(error, EvalError::NonFiniteFeature { index: 5, .. }));
        let error = write(vec![Err(EvalError::TooFew { count: 77 })]);
        assert!(matches!(error, EvalError::TooFew { count: 77 }));
        assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 0);
        let nowhere = folder.0.path().join("missing/a.safetensors");
        let error = write_feature_file(&nowhere, &part(0, 0, 0), DIM, vec![]).unwrap_err();
        assert!(matches!(error, EvalError::Io { .. }));
    }

    #[test]
    fn files_that_hold_no_features_are_refused() {
        let folder = Folder::new();
        let path = folder.path("a");
        let reason = |state: &StateDict| {
            state.save(&path).unwrap();
            let error = FeatureFile::open(&path).unwrap_err();
            let EvalError::FeatureFile { reason, .. } = error else { panic!("{error}") };
            reason
        };
        let description = |count| serde_json::to_string(&part(0, count, 9)).unwrap();
        let of = |name: &str, tensor: StoredTensor, description: String| {
            let mut state = StateDict::new();
            state.insert(name.to_owned(), tensor);
            state.set_metadata("deme_features", description);
            state
        };
        let good = || StoredTensor::from_f32(vec![2, 3], vec![0.0; 6]);
        let mut plain = StateDict::new();
        plain.insert("features".to_owned(), good());
        assert!(reason(&plain).contains("deme_features"));
        assert!(reason(&of("features", good(), "{}".to_owned())).contains("stamp"));
        assert!(reason(&of("weights", good(), description(2))).contains("no tensor"));
        assert!(reason(&of("features", good(), description(3))).contains("says 3"));
        let flat = StoredTensor::from_f32(vec![6], vec![0.0; 6]);
        assert!(reason(&of("features", flat, description(6))).contains("[6]"));
        let half = StoredTensor::from_f32_as(Dtype::F16, vec![2, 3], &[0.0; 6]).unwrap();
        assert!(reason(&of("features", half, description(2))).contains("F16"));
        std::fs::write(&path, b"no safetensors").unwrap();
        assert!(matches!(FeatureFile::open(&path), Err(EvalError::FeatureFile { .. })));
        assert!(FeatureFile::open(Path::new("/nowhere/a.safetensors")).is_err());
    }

    #[test]
    fn tensors_that_are_not_aligned_are_copied() {
        let folder = Folder::new();
        let file = folder.written("a", &part(0, 4, 4));
        let aligned = std::fs::read(folder.path("a")).unwrap();
        let length = u64::from_le_bytes(aligned[..8].try_into().unwrap());
        let mut odd = (length + 1).to_le_bytes().to_vec();
        odd.extend(&aligned[8..8 + length as usize]);
        odd.push(b' ');
        odd.extend(&aligned[8 + length as usize..]);
        std::fs::write(folder.path("b"), odd).unwrap();
        let copied = FeatureFile::open(&folder.path("b")).unwrap();
        assert!(matches!(copied.values, Values::Copied(_)));
        assert!(matches!(file.values, Values::Mapped(_)));
        assert_eq!(copied.values(), file.values());
    }

    #[test]
    fn names_are_told_apart_wherever_they_end() {
        let hashes = [names_hash(["a", "b"]), names_hash(["ab"]), names_hash(["b", "a"])];
        assert!(hashes[0] != hashes[1] && hashes[0] != hashes[2] && hashes[1] != hashes[2]);
        assert_eq!(hashes[0], names_hash(["a".to_owned(), "b".to_owned()]));
        assert_eq!(hashes[0].len(), 64);
    }
}
