//! One side of a comparison: a folder of pictures, statistics, or cached features, and what is to be known
//! of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use deme_data::{PictureError, picture_files, read_picture};
use deme_eval::{
    EvalError, FeatureAccumulator, FeatureExtractor, FeatureFile, FeaturePart, FeatureParts,
    FeatureSet, FeatureStats, Measurement, PictureFeature, SamplingStamp, StatsStamp, names_hash,
    stream_features, write_feature_file,
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
        /// How they were drawn, where `deme sample` left word of it.
        sampling: Option<SamplingStamp>,
    },
    /// An `.npz`.
    Statistics {
        /// The file.
        path: PathBuf,
        /// What it holds.
        stats: FeatureStats,
    },
    /// Feature files, the parts of one set.
    Features {
        /// The file or folder.
        path: PathBuf,
        /// What they hold.
        parts: FeatureParts,
    },
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
pub struct Measured {
    /// The file or folder.
    pub path: PathBuf,
    /// Mean and covariance, with their stamp where there is one.
    pub stats: FeatureStats,
    /// Pictures that were left out, and why.
    pub skipped: Vec<(String, String)>,
    /// Names of the pictures, where there were any.
    pub names: Vec<String>,
    features: Kept,
}

/// Features of single pictures.
enum Kept {
    Nothing,
    Rows(Vec<Vec<f32>>),
    Parts(FeatureParts),
}

impl FeatureSource {
    /// Finds out what lies at a path.
    ///
    /// # Errors
    /// [`Problem::Usage`] when it is nothing of the kind; what is wrong with statistics or features.
    pub fn open(path: &Path) -> Result<Self, Problem> {
        let path = path.to_owned();
        if path.is_file() && has_ending(&path, "npz") {
            let stats = FeatureStats::load_npz(&path)?;
            return Ok(Self::Statistics { path, stats });
        }
        if path.is_file() && has_ending(&path, "safetensors") {
            let parts = FeatureParts::join(vec![FeatureFile::open(&path)?])?;
            return Ok(Self::Features { path, parts });
        }
        if path.is_file() {
            return Err(Problem::Usage {
                message: format!("{} is neither statistics nor features", path.display()),
                help:
                    "give a folder of pictures, an .npz of statistics, a .safetensors of features, \
                       or a folder of such parts"
                        .into(),
            });
        }
        let parts = feature_files(&path);
        if !parts.is_empty() {
            let files = parts.iter().map(|part| FeatureFile::open(part));
            let parts = FeatureParts::join(files.collect::<Result<_, _>>()?)?;
            return Ok(Self::Features { path, parts });
        }
        let files = picture_files(&path)?;
        let sampling = match std::fs::read(path.join(SAMPLES_FILE)) {
            Ok(bytes) => serde_json::from_slice::<SamplingStamp>(&bytes)
                .ok()
                .filter(|stamp| stamp.count == files.len() as u64),
            Err(_) => None,
        };
        Ok(Self::Pictures { folder: path, files, sampling })
    }

    /// Whether an extractor is needed.
    pub fn needs_extractor(&self) -> bool {
        matches!(self, Self::Pictures { .. })
    }

    /// The file or folder, when nothing but statistics is known of it.
    pub fn statistics_alone(&self) -> Option<&Path> {
        match self {
            Self::Statistics { path, .. } => Some(path),
            _ => None,
        }
    }

    /// How its features were made, where that is known already.
    pub fn stamp(&self) -> Option<&StatsStamp> {
        match self {
            Self::Pictures { .. } => None,
            Self::Statistics { stats, .. } => stats.stamp(),
            Self::Features { parts, .. } => Some(parts.stamp()),
        }
    }

    /// The features and their statistics. `keep` keeps the features of single pictures too.
    ///
    /// # Errors
    /// [`Problem::Usage`] when there are fewer pictures than are asked for; a picture that cannot be read.
    pub fn measure(
        self,
        extractor: Option<&dyn FeatureExtractor>,
        reading: &Reading,
        keep: bool,
    ) -> Result<Measured, Problem> {
        let (folder, mut files, mut sampling) = match self {
            Self::Pictures { folder, files, sampling } => (folder, files, sampling),
            Self::Statistics { path, stats } => {
                return Ok(Measured {
                    path,
                    stats,
                    skipped: vec![],
                    names: vec![],
                    features: Kept::Nothing,
                });
            }
            Self::Features { path, parts } => {
                let stats = parts.stats()?;
                let features = Kept::Parts(parts);
                return Ok(Measured { path, stats, skipped: vec![], names: vec![], features });
            }
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
            if wanted < files.len() {
                sampling = None;
            }
            files.truncate(wanted);
        }
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        let mut progress = Progress::start(reading.voice, &name, files.len() as u64);
        let mut collected = Collector::new(extractor, keep);
        let (mut skipped, mut names) = (Vec::new(), Vec::new());
        let read = |index: usize| read_picture(&files[index]).map_err(|e| broken(&files[index], e));
        stream_features(extractor, files.len(), reading.batch_size, &read, &mut |index, found| {
            match found {
                Ok(found) => {
                    collected.push(found)?;
                    names.push(files[index].display().to_string());
                }
                Err(Problem::Eval(EvalError::Picture { path, source })) if reading.skip_broken => {
                    skipped.push((path.display().to_string(), source.to_string()));
                }
                Err(error) => return Err(error),
            }
            progress.at(index as u64 + 1, "");
            Ok(())
        })?;
        progress.finish(&format!("{} pictures", names.len()));
        let format = format_of(names.iter().map(Path::new));
        collected.finish(folder, format, sampling, skipped, names)
    }
}

/// Takes in the features of one side, picture after picture.
pub struct Collector<'a> {
    extractor: &'a dyn FeatureExtractor,
    accumulator: FeatureAccumulator,
    hasher: Sha256,
    rows: Option<Vec<Vec<f32>>>,
}

impl<'a> Collector<'a> {
    /// `keep` keeps the features of single pictures.
    pub fn new(extractor: &'a dyn FeatureExtractor, keep: bool) -> Self {
        Self {
            extractor,
            accumulator: FeatureAccumulator::new(extractor.dim()),
            hasher: Sha256::new(),
            rows: keep.then(Vec::new),
        }
    }

    /// Takes the next picture's feature.
    pub fn push(&mut self, found: PictureFeature) -> Result<(), EvalError> {
        self.accumulator.push(&found.feature)?;
        self.hasher.update(found.pixels_hash);
        if let Some(rows) = &mut self.rows {
            rows.push(found.feature);
        }
        Ok(())
    }

    /// Everything about the side.
    pub fn finish(
        self,
        path: PathBuf,
        image_format: String,
        sampling: Option<SamplingStamp>,
        skipped: Vec<(String, String)>,
        names: Vec<String>,
    ) -> Result<Measured, Problem> {
        let stamp = StatsStamp {
            extractor: self.extractor.name().to_owned(),
            extractor_hash: self.extractor.weights_hash().to_owned(),
            resizing: self.extractor.resizing().to_owned(),
            image_format,
            count: self.accumulator.count(),
            reference_hash: hex(&self.hasher.finalize()),
            sampling,
        };
        let stats = self.accumulator.finish()?.with_stamp(stamp)?;
        let features = self.rows.map_or(Kept::Nothing, Kept::Rows);
        Ok(Measured { path, stats, skipped, names, features })
    }
}

impl Collector<'_> {
    /// The stamp of a whole set that is drawn from a model: what it is drawn from stands for its pictures.
    pub fn stamp_of_drawn(&self, sampling: &SamplingStamp) -> StatsStamp {
        let nameless = SamplingStamp { model: String::new(), ..sampling.clone() };
        let drawn_from = serde_json::to_vec(&nameless).expect("numbers and strings are JSON");
        StatsStamp {
            extractor: self.extractor.name().to_owned(),
            extractor_hash: self.extractor.weights_hash().to_owned(),
            resizing: self.extractor.resizing().to_owned(),
            image_format: IN_MEMORY.to_owned(),
            count: sampling.count,
            reference_hash: hex(&Sha256::digest(drawn_from)),
            sampling: Some(sampling.clone()),
        }
    }

    /// The features, where they are kept.
    pub fn rows(&self) -> &[Vec<f32>] {
        self.rows.as_deref().unwrap_or_default()
    }

    /// Entries of a feature.
    pub fn dim(&self) -> usize {
        self.extractor.dim()
    }

    /// The statistics under this stamp.
    ///
    /// # Errors
    /// As [`FeatureAccumulator::finish`] and [`FeatureStats::with_stamp`].
    pub fn finish_with(self, stamp: StatsStamp) -> Result<FeatureStats, EvalError> {
        self.accumulator.finish()?.with_stamp(stamp)
    }
}

/// The format of pictures that were never in a file, or were prepared before they were measured.
pub const IN_MEMORY: &str = "memory";

impl Measured {
    /// The features of single pictures, where they were kept.
    ///
    /// # Errors
    /// As [`FeatureSet::of_rows`].
    pub fn features(&self) -> Result<Option<FeatureSet<'_>>, EvalError> {
        Ok(match &self.features {
            Kept::Nothing => None,
            Kept::Rows(rows) => Some(FeatureSet::of_rows(rows)?),
            Kept::Parts(parts) => Some(parts.set()?),
        })
    }

    /// Notes for a reader about pictures that were left out.
    pub fn note(&self) -> Option<String> {
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

    /// Writes the features of all pictures, as one part.
    pub fn save_features(&self, path: &Path) -> Result<(), Problem> {
        let (Some(set), Some(stamp)) = (self.features()?, self.stats.stamp()) else {
            return Err(Problem::Usage {
                message: format!("{} holds no features of single pictures", self.path.display()),
                help: "give the pictures themselves".into(),
            });
        };
        let part = FeaturePart {
            stamp: stamp.clone(),
            first_index: 0,
            count: set.len() as u64,
            names_hash: names_hash(&self.names),
        };
        let rows = (0..set.len()).map(|i| Ok(set.row(i).to_vec()));
        Ok(write_feature_file(path, &part, set.dim(), rows)?)
    }
}

/// What `deme sample` leaves beside its pictures.
pub const SAMPLES_FILE: &str = "samples.json";

/// Feature files in a folder, in the order of their names; none when there is no such folder.
fn feature_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| has_ending(path, "safetensors")).collect();
    files.sort();
    files
}

fn has_ending(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(wanted))
}

/// A hash as text.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
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
