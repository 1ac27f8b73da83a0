//! This room sees pictures and captions, never a model of diffusion; its statistics need no engine.
#![allow(clippy::unwrap_used)]

use std::path::Path;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn no_diffusion_model_is_known_here() {
    let manifest = read("Cargo.toml");
    assert!(manifest.contains("deme-clip"));
    for room in ["deme-diffusion", "deme-decouple"] {
        assert!(!manifest.contains(room), "{room}");
    }
}

#[test]
fn statistics_and_distance_have_no_engine() {
    let files = [
        "bootstrap",
        "cmmd",
        "covariance_factor",
        "fd_infinity",
        "feature_file",
        "feature_set",
        "feature_stats",
        "frechet",
        "inception_score",
        "kid",
        "metrics",
        "neighbourhoods",
        "npz",
        "pairwise",
        "protocol",
        "random_subset",
        "singular_values",
        "stats_stamp",
        "tiles",
    ];
    for file in files {
        let text = read(&format!("src/{file}.rs"));
        assert!(!text.is_empty());
        for engine in ["burn", "deme_nn", "deme_kernels", "deme_clip"] {
            assert!(!text.contains(engine), "{file} mentions {engine}");
        }
    }
}
