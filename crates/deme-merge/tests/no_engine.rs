//! The wall: parameter space is plain CPU code. No tensor engine, and no other room of ours.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;

/// The packages that deme-merge is built of, by cargo's own account.
fn dependencies() -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--edges", "normal,build"])
        .args(["--prefix", "none", "--format", "{p}"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(String::from)
        .collect()
}

#[test]
fn no_engine_and_no_other_room_is_a_dependency() {
    let dependencies = dependencies();
    assert!(dependencies.contains("deme-merge") && dependencies.contains("safetensors"));
    for name in &dependencies {
        let engine = ["burn", "cubecl", "candle", "tch", "ndarray", "torch", "ort"]
            .iter()
            .any(|engine| name == engine || name.starts_with(&format!("{engine}-")));
        assert!(!engine, "{name} is a tensor engine");
        assert!(name == "deme-merge" || !name.starts_with("deme-"), "{name} is another room");
        assert!(name != "clap" && name != "indicatif", "{name} belongs to the command");
    }
}
