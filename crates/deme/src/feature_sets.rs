//! One side of a comparison: a folder of pictures, statistics, or cached features, and what is to be known
//! of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use deme_data::{PictureError, picture_files, read_picture};
use deme_eval::{
    EvalError, FeatureAccumulator, FeatureExtractor, FeatureStats, Measurement, StatsStamp,
    stream_features,
};
use sha2::{Digest, Sha256};

use crate::diagnostics::Problem;
use crate::progress::{Progress, Voice};

/// Where one side's features come from. Opening it reads no picture.
pub enum FeatureSource {
    /// A folder of pictures, in the order of their names.
    Pictures {
        /// The folder.
        folder: PathBuf,
        /// Its pictures.
        files: Vec<PathBuf>,
    },
    /// What was computed before: statistics, or features too.
    Computed(FeatureSet),
}

/// How pictures are read.
pub struct Reading {
    /// The first so many pictures.
    pub num_images: Option<usize>,
    /// Pictures at once.
    pub batch_size: usize,
    /// Leave out what cannot be read.
    pub skip_broken: bool,
    /// How much to say.
    pub voice: Voice,
}

/// What is known of one side.
pub struct FeatureSet {
    /// The file or folder.
    pub path: PathBuf,
    /// Mean and covariance, with their stamp where there is one.
    pub stats: FeatureStats,
    /// One feature per picture, where there are pictures or features.
    pub features: Option<Vec<Vec<f32>>>,
    /// Pictures that were left out, and why.
    pub skipped: Vec<(String, String)>,
}

impl FeatureSource {
    /// Finds out what lies at a path.
    ///
    /// # Errors
    /// [`Problem::Usage`] when it is nothing of the kind; what is wrong with statistics or features.
    pub fn open(path: &Path) -> Result<Self, Problem> {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if path.is_file() && ending.eq_ignore_ascii_case("npz") {
            let stats = FeatureStats::load_npz(path)?;
            let path = path.to_owned();
            return Ok(Self::Computed(FeatureSet { path, stats, features: None, skipped: vec![] }));
        }
        if path.is_file() {
            return Err(Problem::Usage {
                message: format!("{} is neither statistics nor features", path.display()),
                help: "give a folder of pictures, an .npz of statistics, or a .safetensors of features"
                    .into(),
            });
        }
        Ok(Self::Pictures { folder: path.to_owned(), files: picture_files(path)? })
    }

    /// Whether an extractor is needed.
    pub fn needs_extractor(&self) -> bool {
        matches!(self, Self::Pictures { .. })
    }

    /// The features and their statistics. `keep` keeps the features too.
    ///
    /// # Errors
    /// [`Problem::Usage`] when there are fewer pictures than are asked for; a picture that cannot be read.
    pub fn measure(
        self,
        extractor: Option<&dyn FeatureExtractor>,
        reading: &Reading,
        keep: bool,
    ) -> Result<FeatureSet, Problem> {
        let (folder, mut files) = match self {
            Self::Pictures { folder, files } => (folder, files),
            Self::Computed(set) => return Ok(set),
        };
        let extractor = extractor.expect("pictures are measured with an extractor");
        if let Some(wanted) = reading.num_images {
            if files.len() < wanted {
                return Err(Problem::Usage {
                    message: format!(
                        "{} holds {} pictures, not {wanted}",
                        folder.display(),
                        files.len()
                    ),
                    help: format!("ask for --num-images {} at most", files.len()),
                });
            }
            files.truncate(wanted);
        }
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        let mut progress = Progress::start(reading.voice, &name, files.len() as u64);
        let mut accumulator = FeatureAccumulator::new(extractor.dim());
        let mut hasher = Sha256::new();
        let mut features = keep.then(Vec::new);
        let mut skipped = Vec::new();
        let read = |index: usize| read_picture(&files[index]).map_err(|e| broken(&files[index], e));
        stream_features(extractor, files.len(), reading.batch_size, &read, &mut |index, found| {
            match found {
                Ok(found) => {
                    accumulator.push(&found.feature)?;
                    hasher.update(found.pixels_hash);
                    features.iter_mut().for_each(|kept| kept.push(found.feature.clone()));
                }
                Err(Problem::Eval(EvalError::Picture { path, source })) if reading.skip_broken => {
                    skipped.push((path.display().to_string(), source.to_string()));
                }
                Err(error) => return Err(error),
            }
            progress.at(index as u64 + 1, "");
            Ok(())
        })?;
        let count = accumulator.count();
        progress.finish(&format!("{count} pictures"));
        let digest = hasher.finalize();
        let stamp = StatsStamp {
            extractor: extractor.name().to_owned(),
            extractor_hash: extractor.weights_hash().to_owned(),
            resizing: extractor.resizing().to_owned(),
            image_format: format_of(files.iter().map(PathBuf::as_path)),
            count,
            reference_hash: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        let stats = accumulator.finish()?.with_stamp(stamp);
        Ok(FeatureSet { path: folder, stats, features, skipped })
    }
}

impl FeatureSet {
    /// Notes for a reader about pictures that were left out.
    pub fn notes(&self) -> Option<String> {
        if self.skipped.is_empty() {
            return None;
        }
        let listed = self.skipped.iter().map(|(name, why)| format!("{name} ({why})"));
        Some(format!(
            "{} pictures of {} were left out: {}",
            self.skipped.len(),
            self.path.display(),
            listed.collect::<Vec<_>>().join(", ")
        ))
    }
}

fn broken(path: &Path, source: PictureError) -> Problem {
    EvalError::Picture { path: path.to_owned(), source }.into()
}

/// The formats of picture files by their endings, as `jpeg, png`.
pub fn format_of<'a>(files: impl Iterator<Item = &'a Path>) -> String {
    let ending = |file: &Path| {
        let ending = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if ending == "jpg" { "jpeg".to_owned() } else { ending }
    };
    let formats: BTreeSet<String> = files.map(ending).collect();
    formats.into_iter().collect::<Vec<_>>().join(", ")
}

/// A measurement and how it was made, for people.
pub fn text_of(measurement: &Measurement) -> String {
    let Measurement { value, std_error, notes, protocol } = measurement;
    let mut text = match std_error {
        Some(error) => format!("{}  {value:.6} ± {error:.6}\n", protocol.metric),
        None => format!("{}  {value:.6}\n", protocol.metric),
    };
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text += &format!("  {name:<11} {value}\n");
        }
    };
    let side = |count: Option<u64>, format: &Option<String>| {
        let count = count.map_or("an unknown number of".to_owned(), |count| count.to_string());
        let format = format.as_ref().map_or(String::new(), |format| format!(" ({format})"));
        format!("{count} pictures{format}")
    };
    line("measured", Some(side(protocol.image_count, &protocol.image_format)));
    if protocol.reference_count.is_some() || protocol.reference_hash.is_some() {
        line("reference", Some(side(protocol.reference_count, &protocol.reference_format)));
    }
    let hash = protocol.extractor_hash.as_ref().map_or("", |hash| &hash[..hash.len().min(16)]);
    line("extractor", protocol.extractor.as_ref().map(|name| format!("{name} {hash}")));
    line("resizing", protocol.resizing.clone());
    for (name, value) in &protocol.settings {
        line(name, Some(value.to_string()));
    }
    for note in notes {
        line("note", Some(note.clone()));
    }
    text
}
