//! What goes wrong, said to the user: what, where, and the way out.
//!
//! Exit codes: 1 the work failed, 2 the input was bad.

use std::path::{Path, PathBuf};

use deme_clip::ClipError;
use deme_data::DataError;
use deme_decouple::loss_probe::LossProbeError;
use deme_decouple::{FinetuneError, ImpossibleValue, StepError, TrainStateError};
use deme_diffusion::ProjectionError;
use deme_diffusion::{CheckpointError, GuidanceError, SampleError, ScheduleError, UNetConfigError};
use deme_eval::EvalError;
use deme_merge::{MergeError, SearchError, StateDictError};
use miette::{Diagnostic, NamedSource, SourceSpan};

use crate::ablation::AblationError;
use crate::report::ReportError;

/// Every way a command ends other than well.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum Problem {
    /// The recipe does not parse.
    #[error("the recipe is wrong: {message}")]
    Recipe {
        /// What the parser says.
        message: String,
        /// The recipe's text, with the overrides applied.
        #[source_code]
        source_code: NamedSource<String>,
        /// Where in it.
        #[label("here")]
        span: Option<SourceSpan>,
        /// The way out.
        #[help]
        help: Option<String>,
    },
    /// The recipe parses, but cannot be carried out.
    #[error("the recipe cannot be carried out: {message}")]
    Impossible {
        /// Which key, and why.
        message: String,
        /// The way out.
        #[help]
        help: String,
    },
    /// Wrong arguments.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// The way out.
        #[help]
        help: String,
    },
    /// A file or folder that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file or folder that cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process works in the same run folder.
    #[error("another run is at work in {}", path.display())]
    #[diagnostic(help("wait for it to end, or give this run a folder of its own with --out"))]
    RunDirBusy {
        /// The run folder.
        path: PathBuf,
    },
    /// An artefact of an earlier stage that cannot be used.
    #[error("the artefact {} is broken: {reason}", path.display())]
    #[diagnostic(help(
        "delete the stage's folder and run the same command again; that stage is then done anew"
    ))]
    BrokenArtefact {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// From the data set.
    #[error(transparent)]
    Data(#[from] DataError),
    /// From reading or writing a model.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// From a file of tensors.
    #[error(transparent)]
    StateDict(#[from] StateDictError),
    /// From the network's configuration.
    #[error(transparent)]
    UNetConfig(#[from] UNetConfigError),
    /// From the noise schedule.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// From finetuning.
    #[error(transparent)]
    Finetune(#[from] FinetuneError),
    /// From sampling.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// From classifier-free guidance.
    #[error(transparent)]
    Guidance(#[from] GuidanceError),
    /// From channel projections.
    #[error(transparent)]
    Projection(#[from] ProjectionError),
    /// From merging.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// From the weight search, but for failures of the objective itself.
    #[error("{message}")]
    Search {
        /// What it says.
        message: String,
    },
    /// From the held-out loss.
    #[error(transparent)]
    LossProbe(#[from] LossProbeError),
    /// From a section of finetuning settings.
    #[error("the recipe cannot be carried out: in [{section}], {source}")]
    ImpossibleValue {
        /// The section of the recipe.
        section: &'static str,
        /// The key and its value.
        source: ImpossibleValue,
    },
    /// From writing the report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// From CLIP.
    #[error(transparent)]
    Clip(#[from] ClipError),
    /// From the metrics.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// From a plan of ablations.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Ablation(#[from] AblationError),
}

impl Problem {
    /// A failure to read `path`.
    pub fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    /// A failure to write `path`.
    pub fn write(path: &Path, source: std::io::Error) -> Self {
        Self::Write { path: path.to_owned(), source }
    }

    /// Whether a disk or quota was full, whoever was writing.
    pub fn is_out_of_room(&self) -> bool {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            if let Some(io) = error.downcast_ref::<std::io::Error>()
                && matches!(
                    io.kind(),
                    StorageFull | QuotaExceeded | FileTooLarge | ReadOnlyFilesystem
                )
            {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// 2 where the input was bad, 1 where the work failed.
    pub fn exit_code(&self) -> u8 {
        match self {
            _ if self.is_out_of_room() => 1,
            Self::Write { .. } | Self::RunDirBusy { .. } | Self::BrokenArtefact { .. } => 1,
            Self::Finetune(FinetuneError::Step(
                StepError::NonFiniteLoss { .. } | StepError::NonFiniteGradient { .. },
            ))
            | Self::Finetune(FinetuneError::State(TrainStateError::Folder { .. }))
            | Self::Sample(SampleError::NotFinite { .. })
            | Self::Clip(ClipError::NonFiniteLoss { .. })
            | Self::Search { .. }
            | Self::Report(_) => 1,
            Self::Ablation(error) if error.is_failure() => 1,
            _ => 2,
        }
    }
}

/// A failed objective is the problem itself; the rest concerns the search.
impl From<SearchError<Problem>> for Problem {
    fn from(error: SearchError<Problem>) -> Self {
        match error {
            SearchError::Objective { error, .. } => error,
            other => Self::Search { message: other.to_string() },
        }
    }
}

/// The known name nearest to a misspelt one, where one is near.
pub fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.into_iter().map(|name| (strsim::jaro_winkler(found, name), name));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 > 0.75).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered_only_when_near() {
        assert_eq!(nearest("itertions", ["iterations", "batch_size"]), Some("iterations"));
        assert_eq!(nearest("xyz", ["iterations", "batch_size"]), None);
    }
}
