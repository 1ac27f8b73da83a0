//! The log of a search: JSON lines, the settings first, then one evaluation each.
//!
//! A line counts once it ends in a newline. A crash can only tear the last one, which is then dropped.

use std::fmt::{Debug, Display};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Evaluation, SearchConfig, SearchError, SearchTask};
use crate::atomic_file::write_atomically;

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    settings_hash: String,
    config: SearchConfig,
    num_experts: usize,
    #[serde(default)]
    num_groups: usize,
    objective: String,
}

pub(super) struct SearchLog {
    path: PathBuf,
    file: File,
}

impl SearchLog {
    /// Opens or makes the log and returns the evaluations it holds.
    pub(super) fn open<E: Debug + Display>(
        config: &SearchConfig,
        task: &SearchTask<'_>,
    ) -> Result<(Self, Vec<Evaluation>), SearchError<E>> {
        let path = task.log_path;
        let settings = Settings {
            settings_hash: settings_hash(config, task),
            config: config.clone(),
            num_experts: task.num_experts,
            num_groups: task.num_groups,
            objective: task.objective.to_owned(),
        };
        let io_error = |source| SearchError::LogIo { path: path.to_owned(), source };
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io_error(error)),
        };
        let (known, whole_lines) = parse(path, &text, &settings.settings_hash)?;
        for (index, evaluation) in known.iter().enumerate() {
            if let Some(reason) = misfit(evaluation, config, task.num_weights()) {
                let path = path.to_owned();
                return Err(SearchError::DamagedLog { path, line: index + 2, reason });
            }
        }

        if whole_lines == 0 {
            let line = json_line(&settings);
            write_atomically(path, |writer| writer.write_all(&line)).map_err(io_error)?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(io_error)?;
        if whole_lines > 0 && whole_lines < text.len() {
            file.set_len(whole_lines as u64).map_err(io_error)?;
        }
        let log = Self { path: path.to_owned(), file };
        Ok((log, known))
    }

    /// Adds one evaluation; it is on the disk when this returns.
    pub(super) fn append<E: Debug + Display>(
        &mut self,
        evaluation: &Evaluation,
    ) -> Result<(), SearchError<E>> {
        self.file
            .write_all(&json_line(evaluation))
            .and_then(|()| self.file.sync_data())
            .map_err(|source| SearchError::LogIo { path: self.path.clone(), source })
    }
}

/// The evaluations, and how many bytes of the text to keep (0: not even the settings were written).
fn parse<E: Debug + Display>(
    path: &Path,
    text: &[u8],
    settings_hash: &str,
) -> Result<(Vec<Evaluation>, usize), SearchError<E>> {
    let mut evaluations = Vec::new();
    let mut position = 0;
    for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let end = position + line.len();
        if !line.ends_with(b"\n") {
            break;
        }
        let damaged = |error: serde_json::Error| SearchError::DamagedLog {
            path: path.to_owned(),
            line: index + 1,
            reason: error.to_string(),
        };
        if index == 0 {
            let settings: Settings = serde_json::from_slice(line).map_err(damaged)?;
            if settings.settings_hash != settings_hash {
                return Err(SearchError::OtherSettings {
                    path: path.to_owned(),
                    expected: settings_hash.to_owned(),
                    found: settings.settings_hash,
                });
            }
        } else {
            match serde_json::from_slice(line) {
                Ok(evaluation) => evaluations.push(evaluation),
                // A power cut can leave rubbish with a newline in it, but only at the end.
                Err(_) if end == text.len() => break,
                Err(error) => return Err(damaged(error)),
            }
        }
        position = end;
    }
    Ok((evaluations, position))
}

/// Why an evaluation cannot be one of this search.
fn misfit(evaluation: &Evaluation, config: &SearchConfig, num_weights: usize) -> Option<String> {
    let weights = evaluation.weights.len();
    let derivatives = evaluation.gradient.as_ref().map_or(0, Vec::len);
    let expected = if config.needs_gradient() { num_weights } else { 0 };
    if weights != num_weights {
        Some(format!("{weights} weights, expected {num_weights}"))
    } else if derivatives != expected {
        Some(format!("{derivatives} derivatives, expected {expected}"))
    } else {
        let impossible = evaluation.seconds.filter(|&seconds| seconds < 0.0);
        impossible.map(|seconds| format!("{seconds} seconds, expected 0 or more"))
    }
}

/// SHA-256, in hex, of what the evaluations depend on.
fn settings_hash(config: &SearchConfig, task: &SearchTask<'_>) -> String {
    let settings = (config.deciding(), task.num_experts, task.num_groups, task.objective);
    let digest: [u8; 32] = Sha256::digest(json_line(&settings)).into();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("numbers and text make valid JSON");
    line.push(b'\n');
    line
}
