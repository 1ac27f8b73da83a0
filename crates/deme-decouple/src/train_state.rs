//! Checkpoints: all that a run needs to go on as if it had never stopped, in one file.
//!
//! Weights, moving average, optimiser moments, iteration and loss log. Random draws and the data order have
//! no state of their own (see [`micro_batch`](crate::micro_batch)): the iteration is their position. The
//! file is replaced by a rename, so at any moment it is the latest complete checkpoint or absent.

use std::io;
use std::path::{Path, PathBuf};

use deme_merge::{StateDict, StateDictError, StoredTensor, atomic_file};
use serde_json::Value;

use crate::loss_log::LossLog;

const FILE_NAME: &str = "train_state.safetensors";
const STUDENT: &str = "student.";
const EMA: &str = "ema.";
const OPTIMIZER: &str = "optimizer.";

/// A run at one iteration.
#[derive(Debug, Clone)]
pub(crate) struct TrainState {
    /// Optimiser steps taken.
    pub iteration: u64,
    /// Parameters in training.
    pub student: StateDict,
    /// Their moving average, where there is one.
    pub ema: Option<StateDict>,
    /// The optimiser's own state dict.
    pub optimizer: StateDict,
    /// Losses so far.
    pub log: LossLog,
    /// Everything the result depends on, as JSON.
    pub made_with: Value,
}

/// Why a checkpoint cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum TrainStateError {
    /// The checkpoint belongs to a run with other settings or inputs.
    #[error(
        "{} was written by a run with other settings or inputs:\n  {}\nGo on with those, or remove that \
         file to train anew with these",
        path.display(), differences.join("\n  ")
    )]
    MadeDifferently {
        /// The checkpoint.
        path: PathBuf,
        /// `key: then -> now`, one for each setting that differs.
        differences: Vec<String>,
    },
    /// The checkpoint lacks something or holds something that is no part of it.
    #[error("{} is no checkpoint of a run: {reason}. Remove it to train anew", path.display())]
    Malformed {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] StateDictError),
    /// The folder cannot be made, or a file in it not be removed.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Removes a run's checkpoint, once its result is safe elsewhere. Nothing to remove is no error.
///
/// # Errors
/// [`TrainStateError::Folder`] when the operating system refuses.
pub fn remove_train_state(state_dir: &Path) -> Result<(), TrainStateError> {
    let path = state_dir.join(FILE_NAME);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(TrainStateError::Folder { path, source })
        }
        _ => Ok(()),
    }
}

impl TrainState {
    /// Replaces the checkpoint in `state_dir`.
    pub(crate) fn save(&self, state_dir: &Path) -> Result<(), TrainStateError> {
        let mut file = StateDict::new();
        let parts = [
            (STUDENT, Some(&self.student)),
            (EMA, self.ema.as_ref()),
            (OPTIMIZER, Some(&self.optimizer)),
        ];
        for (prefix, part) in parts {
            for (name, tensor) in part.into_iter().flat_map(StateDict::iter) {
                file.insert(format!("{prefix}{name}"), tensor.clone());
            }
        }
        file.check_finite()?;
        for (key, value) in self.optimizer.metadata() {
            file.set_metadata(format!("{OPTIMIZER}{key}"), value);
        }
        file.set_metadata("iteration", self.iteration.to_string());
        let log = serde_json::to_string(&self.log).expect("finite numbers make valid JSON");
        file.set_metadata("log", log);
        file.set_metadata("made_with", self.made_with.to_string());
        Ok(file.save(&state_dir.join(FILE_NAME))?)
    }

    /// The checkpoint in `state_dir` (which is made when missing), if there is one; files that a killed run
    /// left half written are removed. `made_with` is what the present run is made with.
    pub(crate) fn load(
        state_dir: &Path,
        made_with: &Value,
    ) -> Result<Option<Self>, TrainStateError> {
        std::fs::create_dir_all(state_dir)
            .and_then(|()| atomic_file::remove_leftovers(state_dir))
            .map_err(|source| TrainStateError::Folder { path: state_dir.to_owned(), source })?;
        let path = state_dir.join(FILE_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let state = Self::from_file(StateDict::load(&path)?)
            .map_err(|reason| TrainStateError::Malformed { path: path.clone(), reason })?;
        let mut differences = Vec::new();
        list_differences("", &state.made_with, made_with, &mut differences);
        if differences.is_empty() {
            Ok(Some(state))
        } else {
            Err(TrainStateError::MadeDifferently { path, differences })
        }
    }

    fn from_file(file: StateDict) -> Result<Self, String> {
        let metadata = |key: &str| {
            let entry = file.metadata().get(key);
            entry.ok_or_else(|| format!("it has no metadata entry `{key}`"))
        };
        let invalid = |key: &str, error: &dyn std::fmt::Display| {
            format!("its metadata entry `{key}` is invalid ({error})")
        };
        let iteration = metadata("iteration")?.parse().map_err(|e| invalid("iteration", &e))?;
        let log = serde_json::from_str(metadata("log")?).map_err(|e| invalid("log", &e))?;
        let made_with =
            serde_json::from_str(metadata("made_with")?).map_err(|e| invalid("made_with", &e))?;

        let mut parts = [STUDENT, EMA, OPTIMIZER].map(|prefix| (prefix, StateDict::new()));
        for (name, tensor) in file.iter() {
            let Some((rest, part)) = parts
                .iter_mut()
                .find_map(|(prefix, part)| Some((name.strip_prefix(*prefix)?, part)))
            else {
                return Err(format!("it holds `{name}`"));
            };
            let tensor: StoredTensor = tensor.clone();
            part.insert(rest.to_owned(), tensor);
        }
        let [(_, student), (_, ema), (_, mut optimizer)] = parts;
        for (key, value) in file.metadata() {
            if let Some(key) = key.strip_prefix(OPTIMIZER) {
                optimizer.set_metadata(key, value);
            }
        }
        // AdamW has two moments per parameter once it has taken a step.
        if optimizer.len() != 2 * student.len() {
            let (found, wanted) = (optimizer.len(), 2 * student.len());
            return Err(format!("it holds {found} optimiser moments instead of {wanted}"));
        }
        let ema = (!ema.is_empty()).then_some(ema);
        Ok(Self { iteration, student, ema, optimizer, log, made_with })
    }
}

/// Adds `key: then -> now` for every leaf in which two JSON values differ.
fn list_differences(key: &str, then: &Value, now: &Value, differences: &mut Vec<String>) {
    let (Value::Object(old), Value::Object(new)) = (then, now) else {
        if then != now {
            differences.push(format!("{key}: {then} -> {now}"));
        }
        return;
    };
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    for name in keys {
        let (then, now) = (old.get(name), new.get(name));
        let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
        let nothing = &Value::Null;
        list_differences(&path, then.unwrap_or(nothing), now.unwrap_or(nothing), differences);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn tensor(value: f32) -> StateDict {
        [("a.weight".to_owned(), StoredTensor::from_f32(vec![2], vec![value, 1.0]))]
            .into_iter()
            .collect()
    }

    fn state(iteration: u64, ema: bool) -> TrainState {
        let moment = |kind: &str| {
            (format!("{kind}_moment.a.weight"), StoredTensor::from_f32(vec![2], vec![3.0, 1.0]))
        };
        let mut optimizer: StateDict = [moment("first"), moment("second")].into_iter().collect();
        optimizer.set_metadata("steps", iteration.to_string());
        TrainState {
            iteration,
            student: tensor(1.0),
            ema: ema.then(|| tensor(2.0)),
            optimizer,
            log: LossLog::default(),
            made_with: json!({"config": {"learning_rate": 0.1}, "seed": 3}),
        }
    }

    #[test]
    fn a_checkpoint_comes_back_whole_and_the_newest_wins() {
        for ema in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let dir = folder.path().join("state");
            let made_with = state(0, ema).made_with;
            assert!(TrainState::load(&dir, &made_with).unwrap().is_none());
            state(1, ema).save(&dir).unwrap();
            state(2, ema).save(&dir).unwrap();
            let found = TrainState::load(&dir, &made_with).unwrap().unwrap();
            let expected = state(2, ema);
            assert_eq!(found.iteration, 2);
            assert_eq!(found.log, expected.log);
            assert_eq!(found.student.content_hash(), expected.student.content_hash());
            let hash = |ema: &Option<StateDict>| ema.as_ref().map(StateDict::content_hash);
            assert_eq!(hash(&found.ema), hash(&expected.ema));
            assert_eq!(found.optimizer.content_hash(), expected.optimizer.content_hash());
            assert_eq!(found.optimizer.metadata()["steps"], "2");
            remove_train_state(&dir).unwrap();
            remove_train_state(&dir).unwrap();
            assert!(TrainState::load(&dir, &made_with).unwrap().is_none());
        }
    }

    #[test]
    fn another_runs_checkpoint_is_refused_by_what_differs() {
        let folder = tempfile::tempdir().unwrap();
        state(1, true).save(folder.path()).unwrap();
        let now = json!({"config": {"learning_rate": 0.2}, "seed": 3, "teacher": "abc"});
        let error = TrainState::load(folder.path(), &now).unwrap_err();
        let TrainStateError::MadeDifferently { differences, .. } = &error else {
            panic!("{error}")
        };
        let expected = ["config.learning_rate: 0.1 -> 0.2", "teacher: null -> \"abc\""];
        assert_eq!(differences, &expected);
        assert!(error.to_string().contains("remove that file"));
    }

    #[test]
    fn a_file_that_is_no_checkpoint_is_refused() {
        let refused = |change: fn(&mut StateDict)| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(FILE_NAME);
            state(1, true).save(folder.path()).unwrap();
            let mut file = StateDict::load(&path).unwrap();
            change(&mut file);
            file.save(&path).unwrap();
            let error = TrainState::load(folder.path(), &state(1, true).made_with).unwrap_err();
            assert!(matches!(error, TrainStateError::Malformed { .. }), "{error}");
            error.to_string()
        };
        let add = |file: &mut StateDict| {
            file.insert("other".into(), StoredTensor::from_f32(vec![1], vec![0.0]));
        };
        assert!(refused(add).contains("holds `other`"));
        let forget = |file: &mut StateDict| drop(file.remove("optimizer.first_moment.a.weight"));
        assert!(refused(forget).contains("1 optimiser moments instead of 2"));
        assert!(refused(|file| file.set_metadata("iteration", "two")).contains("`iteration`"));
        assert!(refused(|file| file.set_metadata("log", "{")).contains("`log`"));
        assert!(refused(|file| *file = tensor(0.0)).contains("no metadata entry"));
    }

    #[test]
    fn a_damaged_file_and_a_folder_that_cannot_be_made_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), b"half a checkp").unwrap();
        let error = TrainState::load(folder.path(), &Value::Null).unwrap_err();
        assert!(matches!(error, TrainStateError::File(_)), "{error}");

        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let error = TrainState::load(&file.join("state"), &Value::Null).unwrap_err();
        assert!(matches!(error, TrainStateError::Folder { .. }), "{error}");
    }

    #[test]
    fn weights_that_are_not_finite_never_reach_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let broken = TrainState { student: tensor(f32::NAN), ..state(1, true) };
        let error = broken.save(folder.path()).unwrap_err();
        assert!(error.to_string().contains("student.a.weight"), "{error}");
        assert!(TrainState::load(folder.path(), &broken.made_with).unwrap().is_none());
    }

    #[test]
    fn what_a_killed_writer_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(format!(".{FILE_NAME}.1-0.deme.tmp"));
        std::fs::write(&left, b"half").unwrap();
        state(1, true).save(folder.path()).unwrap();
        let found = TrainState::load(folder.path(), &state(1, true).made_with).unwrap().unwrap();
        assert_eq!(found.iteration, 1);
        assert!(!left.exists());
    }
}
