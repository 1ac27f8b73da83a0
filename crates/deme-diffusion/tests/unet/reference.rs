//! Where the reference numbers are.

use deme_diffusion::UNet2DConfig;
use deme_merge::StateDict;
use std::fs;
use std::path::{Path, PathBuf};

/// One folder of `unet2d/`.
pub struct Case {
    pub folder: PathBuf,
    pub config: UNet2DConfig,
    pub io: StateDict,
}

impl Case {
    pub fn name(&self) -> String {
        self.folder.file_name().unwrap().to_string_lossy().into_owned()
    }

    pub fn read(&self, name: &str) -> StateDict {
        StateDict::load(&self.folder.join(name)).unwrap()
    }

    pub fn timesteps(&self) -> Vec<usize> {
        let stored = self.io.get("timesteps").unwrap().to_i64().unwrap();
        stored.into_iter().map(|t| usize::try_from(t).unwrap()).collect()
    }
}

fn root() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var("DEME_FIXTURES").unwrap_or_else(|_| default.to_owned()).into()
}

/// All folders of `unet2d/`; at least one.
pub fn cases() -> Vec<Case> {
    let mut folders: Vec<PathBuf> = fs::read_dir(root().join("unet2d"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "there are reference networks");
    folders.into_iter().map(|folder| case(&folder)).collect()
}

fn case(folder: &Path) -> Case {
    let text = fs::read_to_string(folder.join("config.json")).unwrap();
    Case {
        folder: folder.to_owned(),
        config: UNet2DConfig::from_json(&text).unwrap(),
        io: StateDict::load(&folder.join("io.safetensors")).unwrap(),
    }
}
