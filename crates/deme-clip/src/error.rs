//! What can be wrong with a CLIP folder, its inputs or its training.

use deme_merge::StateDictError;
use deme_nn::{LoadError, OptimizerStateError};
use std::path::{Path, PathBuf};

/// Why CLIP could not be loaded, saved, used or trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClipError {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A JSON file that is damaged or has a field of another kind.
    #[error("{} cannot be used: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder holds another kind of model.
    #[error("{} describes a model of type `{found}`, expected `clip`", path.display())]
    NotClip {
        /// The config file.
        path: PathBuf,
        /// Its `model_type`.
        found: String,
    },
    /// The folder holds something else than CLIP's text tower.
    #[error(
        "{} describes a model of type `{found}`, expected `clip_text_model`: the text encoder of Stable \
         Diffusion 1 and 2",
        path.display()
    )]
    NotClipText {
        /// The config file.
        path: PathBuf,
        /// Its `model_type`.
        found: String,
    },
    /// More layers skipped than there are.
    #[error("{skipped} layers cannot be skipped: the text tower has {layers}")]
    SkippedLayers {
        /// Layers to be skipped.
        skipped: usize,
        /// Layers of the tower.
        layers: usize,
    },
    /// A config no network can be built from.
    #[error("{field} is {found}: {expected}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// A setting that asks for something that is not computed here.
    #[error("{}: {field} is {found}, which is not supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The setting, with the object it stands in.
        field: String,
        /// Its value.
        found: String,
    },
    /// Weights with tensors of another kind of model.
    #[error("{} has the tensor `{tensor}`, which belongs to {what}: not supported", path.display())]
    ForeignWeights {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it belongs to.
        what: &'static str,
    },
    /// Weights that are not in open_clip's layout.
    #[error(
        "{} holds no CLIP in open_clip's layout: `{tensor}` {}",
        path.display(),
        found.as_ref().map_or("is missing".to_owned(), |shape| format!("has the shape {shape:?}"))
    )]
    NotOpenClip {
        /// The file.
        path: PathBuf,
        /// The first tensor that does not fit.
        tensor: String,
        /// Its shape, if it is there.
        found: Option<Vec<usize>>,
    },
    /// An archive of a program (`torch.jit.save`), as OpenAI publishes its weights.
    #[error(
        "{} is a TorchScript archive; save its tensors alone: \
         torch.save(torch.jit.load(path, map_location=\"cpu\").state_dict(), other_path)",
        path.display()
    )]
    TorchScript {
        /// The file.
        path: PathBuf,
    },
    /// A name that no architecture has.
    #[error("there is no architecture `{name}`; known are {}", known.join(", "))]
    UnknownArchitecture {
        /// The name.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// Weights alone, which do not tell their activation.
    #[error(
        "{} does not say which architecture it is: name one{}. Its shapes: {found}. Known are {}",
        path.display(),
        fit(fitting, "; its shapes fit", ""),
        known.join(", ")
    )]
    NoArchitecture {
        /// The file.
        path: PathBuf,
        /// Its shapes.
        found: String,
        /// Architectures of these shapes.
        fitting: Vec<String>,
        /// All architectures.
        known: Vec<String>,
    },
    /// Weights of other shapes than the named architecture.
    #[error(
        "{} is no `{name}`{}. Its shapes: {found}",
        path.display(),
        fit(fitting, "; its shapes fit", ", nor any other known architecture")
    )]
    OtherArchitecture {
        /// The file.
        path: PathBuf,
        /// The architecture that was named.
        name: String,
        /// The weights' shapes.
        found: String,
        /// Architectures of these shapes.
        fitting: Vec<String>,
    },
    /// An architecture was named for a folder that says itself what it is.
    #[error("{} says itself what it is: name no architecture for it", path.display())]
    ArchitectureGiven {
        /// The folder.
        path: PathBuf,
    },
    /// A folder without weights, or with several.
    #[error(
        "{} {}: name the file itself",
        folder.display(),
        if found.is_empty() { "holds no weights".to_owned() }
        else { format!("holds several weights ({})", found.join(", ")) }
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// The candidates.
        found: Vec<String>,
    },
    /// The weights do not fit the config.
    #[error("{}: {source}", path.display())]
    Weights {
        /// The folder.
        path: PathBuf,
        /// Missing, unused and wrongly shaped tensors.
        source: Box<LoadError>,
    },
    /// The weights could not be read or written.
    #[error(transparent)]
    State(#[from] StateDictError),
    /// Pictures of another shape than the image tower takes.
    #[error(
        "picture {index} has {found} values, expected {expected} ({channels} x {size} x {size}): resize the pictures first"
    )]
    ImageShape {
        /// Position in the list.
        index: usize,
        /// Values found.
        found: usize,
        /// Values expected.
        expected: usize,
        /// Channels of the image tower.
        channels: usize,
        /// Side of the image tower.
        size: usize,
    },
    /// A batch of another shape than the image tower takes.
    #[error("pixels have shape {found:?}, expected [B, {channels}, {size}, {size}] with B > 0")]
    PixelShape {
        /// Shape found.
        found: [usize; 4],
        /// Channels of the image tower.
        channels: usize,
        /// Side of the image tower.
        size: usize,
    },
    /// A caption of another length than its neighbours, empty, or longer than the text tower takes.
    #[error("token row {row} has {found} ids, expected {expected}")]
    TokenCount {
        /// The row.
        row: usize,
        /// Its length.
        found: usize,
        /// What it must be.
        expected: String,
    },
    /// A token id outside the vocabulary.
    #[error(
        "token row {row} holds id {id} at position {position}, the vocabulary has {vocab_size} entries: use the tokenizer that belongs to this model"
    )]
    TokenOutOfRange {
        /// The row.
        row: usize,
        /// Position in the row.
        position: usize,
        /// The id.
        id: u32,
        /// Entries of the vocabulary.
        vocab_size: usize,
    },
    /// A tokenizer file that cannot be read, or a caption it refuses.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// What the tokenizer library said.
        reason: String,
    },
    /// A tokenizer without a token CLIP needs.
    #[error("the tokenizer has no token `{token}`: this is no tokenizer of a CLIP")]
    MissingToken {
        /// The token.
        token: &'static str,
    },
    /// A folder without a tokenizer, where captions are to be encoded.
    #[error(
        "this CLIP has no tokenizer.json (nor vocab.json and merges.txt): captions cannot be encoded"
    )]
    NoTokenizer,
    /// A training set CLIP cannot be trained on.
    #[error("cannot train a CLIP: {reason}")]
    TrainingSet {
        /// What is wrong with it.
        reason: String,
    },
    /// A loss that is NaN or infinite.
    #[error(
        "the contrastive loss is {loss} at step {step}: lower the learning rate (now {learning_rate})"
    )]
    NonFiniteLoss {
        /// 0-based step.
        step: usize,
        /// The loss.
        loss: f64,
        /// Learning rate of that step.
        learning_rate: f64,
    },
    /// A checkpoint that was made with another config, seed or data.
    #[error(
        "{} was written by a training with another config, seed or data: delete it to start anew",
        path.display()
    )]
    OtherTraining {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A checkpoint that cannot be continued from.
    #[error("{} is damaged ({reason}): delete it to start anew", path.display())]
    DamagedCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The optimiser's part of a checkpoint is damaged.
    #[error(transparent)]
    Optimizer(#[from] OptimizerStateError),
    /// An embedding that is NaN or infinite.
    #[error("the embedding of {what} {index} is not finite: check the weights and the input")]
    NonFiniteEmbedding {
        /// `picture` or `caption`.
        what: &'static str,
        /// Position in the list.
        index: usize,
    },
}

impl ClipError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn unsupported(path: &Path, field: &str, found: impl ToString) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            field: field.to_owned(),
            found: found.to_string(),
        }
    }

    pub(crate) fn config(field: &'static str, found: impl ToString, expected: &str) -> Self {
        Self::Config { field, found: found.to_string(), expected: expected.to_owned() }
    }
}

/// The names behind some words, or others without any.
fn fit(names: &[String], words: &str, without: &str) -> String {
    if names.is_empty() { without.to_owned() } else { format!("{words} {}", names.join(", ")) }
}
