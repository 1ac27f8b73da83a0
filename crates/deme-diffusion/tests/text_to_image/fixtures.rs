//! Where the reference numbers are.

use deme_merge::StateDict;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var("DEME_FIXTURES").unwrap_or_else(|_| default.to_owned()).into()
}

/// The tiny Stable Diffusion.
pub fn sd_tiny() -> PathBuf {
    root().join("sd_tiny")
}

/// Further networks in all variations; a set of fixtures from elsewhere may lack them.
pub fn sd_more(part: &str) -> Option<PathBuf> {
    let folder = root().join("sd_more").join(part);
    if std::env::var_os("DEME_FIXTURES").is_some() && !folder.is_dir() {
        eprintln!("skipped: {} is not there", folder.display());
        return None;
    }
    Some(folder)
}

pub fn read(folder: &Path, name: &str) -> StateDict {
    StateDict::load(&folder.join(name)).unwrap()
}
