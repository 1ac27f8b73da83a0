//! A run's folder: one artefact folder per stage, named by the stage's key.
//!
//! A stage's key is a hash of its own part of the recipe and of its inputs' keys, so a stage is
//! done exactly when the folder with its key is there. Work happens in `<name>-<key>.partial`,
//! which survives an interruption; a finished stage gets its provenance and is renamed.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::diagnostics::Problem;

/// Changes whenever stages compute something else from the same recipe.
const FORMAT: u32 = 1;

/// Identifies what a stage computes: a hash of its recipe part and its inputs' keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageKey(String);

impl StageKey {
    /// The key of stage `name` with this part of the recipe and these inputs.
    pub fn new(name: &str, part: &impl Serialize, inputs: &[&StageKey]) -> Self {
        let part = serde_json::to_string(part).expect("recipe parts are plain data");
        let inputs: Vec<&str> = inputs.iter().map(|key| key.0.as_str()).collect();
        let text = serde_json::to_string(&(FORMAT, name, part, inputs));
        Self(hex(&Sha256::digest(text.expect("strings and numbers"))))
    }

    /// The first characters, enough for a folder's name.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl std::fmt::Display for StageKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The seed of one purpose, drawn from the recipe's seed.
pub fn seed_for(seed: u64, purpose: &str) -> u64 {
    let digest = Sha256::digest(format!("{seed}/{purpose}"));
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first)
}

/// Where an artefact comes from; written last into every finished stage.
#[derive(Debug, Serialize, Deserialize)]
pub struct Provenance {
    /// Stage name.
    pub stage: String,
    /// Its key.
    pub key: StageKey,
    /// The stage's part of the recipe.
    pub recipe_part: serde_json::Value,
    /// The keys of its inputs.
    pub inputs: Vec<StageKey>,
    /// Version of this program.
    pub deme_version: String,
    /// Wall-clock seconds of the process that finished it.
    pub elapsed_secs: f64,
}

/// A locked run folder.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Creates the folder where needed and takes its lock.
    ///
    /// # Errors
    /// When the folder cannot be written, or another process works in it.
    pub fn open(root: &Path) -> Result<Self, Problem> {
        fs::create_dir_all(root.join("stages")).map_err(|e| Problem::write(root, e))?;
        let path = root.join(".lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|e| Problem::write(&path, e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { root: root.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Problem::RunDirBusy { path: root.to_owned() }),
            Err(TryLockError::Error(error)) => Err(Problem::write(&path, error)),
        }
    }

    /// The run's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// The place of one stage's artefact.
#[derive(Debug, Clone)]
pub struct StageSlot {
    /// Stage name, as in `expert-2`.
    pub name: String,
    /// The stage's key.
    pub key: StageKey,
    recipe_part: serde_json::Value,
    inputs: Vec<StageKey>,
    folder: PathBuf,
}

impl StageSlot {
    /// The place of a stage below a run folder, which need not exist.
    pub fn new(root: &Path, name: &str, part: &impl Serialize, inputs: &[&StageKey]) -> Self {
        let key = StageKey::new(name, part, inputs);
        let folder = root.join("stages").join(format!("{name}-{}", key.short()));
        Self {
            name: name.to_owned(),
            recipe_part: serde_json::to_value(part).expect("recipe parts are plain data"),
            inputs: inputs.iter().map(|&key| key.clone()).collect(),
            key,
            folder,
        }
    }

    /// The finished artefact's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The keys of the stages it reads.
    pub fn inputs(&self) -> &[StageKey] {
        &self.inputs
    }

    /// Whether the artefact is finished.
    pub fn is_done(&self) -> bool {
        self.folder.join("provenance.json").is_file()
    }

    /// Whether an interrupted attempt left something to resume from.
    pub fn is_started(&self) -> bool {
        self.partial().is_dir()
    }

    /// How long the finished stage took, in seconds.
    pub fn elapsed_secs(&self) -> Option<f64> {
        let text = fs::read(self.folder.join("provenance.json")).ok()?;
        serde_json::from_slice::<Provenance>(&text).ok().map(|p| p.elapsed_secs)
    }

    /// Does the work unless it is done; returns whether anything was done. `work` gets the
    /// scratch folder of this and earlier interrupted attempts; what it leaves there under
    /// `resume/` is for resuming only and goes when it returns.
    ///
    /// # Errors
    /// Those of `work`, and failures to write.
    pub fn run(&self, work: impl FnOnce(&Path) -> Result<(), Problem>) -> Result<bool, Problem> {
        if self.is_done() {
            return Ok(false);
        }
        let start = Instant::now();
        let partial = self.partial();
        fs::create_dir_all(&partial).map_err(|e| Problem::write(&partial, e))?;
        // What a killed process was about to write.
        deme_merge::atomic_file::remove_leftovers(&partial)
            .map_err(|e| Problem::write(&partial, e))?;
        work(&partial)?;
        let resume = resume_folder(&partial)?;
        fs::remove_dir_all(&resume).map_err(|e| Problem::write(&resume, e))?;
        let provenance = Provenance {
            stage: self.name.clone(),
            key: self.key.clone(),
            recipe_part: self.recipe_part.clone(),
            inputs: self.inputs.clone(),
            deme_version: env!("CARGO_PKG_VERSION").to_owned(),
            elapsed_secs: start.elapsed().as_secs_f64(),
        };
        write_json(&partial.join("provenance.json"), &provenance)?;
        if self.folder.exists() {
            // A folder without provenance is nobody's artefact.
            fs::remove_dir_all(&self.folder).map_err(|e| Problem::write(&self.folder, e))?;
        }
        fs::rename(&partial, &self.folder).map_err(|e| Problem::write(&self.folder, e))?;
        Ok(true)
    }

    fn partial(&self) -> PathBuf {
        self.folder.with_extension("partial")
    }
}

/// The part of a stage's scratch folder that is for resuming only.
pub fn resume_folder(scratch: &Path) -> Result<PathBuf, Problem> {
    let folder = scratch.join("resume");
    fs::create_dir_all(&folder).map_err(|e| Problem::write(&folder, e))?;
    Ok(folder)
}

/// Writes a value as indented JSON, atomically.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Problem> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain data");
    text.push(b'\n');
    write_bytes(path, &text)
}

/// Writes bytes atomically.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), Problem> {
    use std::io::Write;
    deme_merge::write_atomically(path, |file| file.write_all(bytes))
        .map_err(|e| Problem::write(path, e))
}

/// Reads a JSON artefact of an earlier stage.
pub fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, Problem> {
    let bytes = fs::read(path).map_err(|e| Problem::read(path, e))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Problem::BrokenArtefact { path: path.to_owned(), reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_depends_on_name_part_and_inputs() {
        let a = StageKey::new("data", &1, &[]);
        assert_eq!(a, StageKey::new("data", &1, &[]));
        assert_ne!(a, StageKey::new("data", &2, &[]));
        assert_ne!(a, StageKey::new("date", &1, &[]));
        assert_ne!(StageKey::new("x", &1, &[&a]), StageKey::new("x", &1, &[]));
    }

    #[test]
    fn a_finished_stage_is_not_run_again_and_a_failed_one_keeps_its_scratch_folder() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::open(folder.path()).unwrap();
        let stage = StageSlot::new(run.root(), "one", &0, &[]);
        let failed = stage.run(|scratch| {
            write_bytes(&scratch.join("half"), b"x")?;
            Err(Problem::Usage { message: "interrupted".into(), help: String::new() })
        });
        assert!(failed.is_err() && !stage.is_done() && stage.is_started());
        let done = stage.run(|scratch| {
            assert!(scratch.join("half").is_file());
            fs::create_dir(scratch.join("resume")).unwrap();
            Ok(())
        });
        assert!(done.unwrap() && stage.is_done() && !stage.folder().join("resume").exists());
        assert!(!stage.run(|_| panic!("done already")).unwrap());
    }

    #[test]
    fn a_second_process_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _first = RunDir::open(folder.path()).unwrap();
        let second = RunDir::open(folder.path());
        assert!(matches!(second, Err(Problem::RunDirBusy { .. })));
    }
}
