//! FID and its kin from the command line: from pictures, statistics, features and models; wrong input.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use deme_data::{shapes_picture, write_png};
use deme_eval::{FeatureStats, Measurement};
use serde_json::Value;
use support::{deme, fail_with, small_clip, succeed};

/// A folder with two sets of pictures and a small CLIP to look at them.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        for (name, seed) in [("a", 0), ("b", 1)] {
            std::fs::create_dir(place.path(name)).unwrap();
            for i in 0..12 {
                // Of two sizes: each picture is brought to the extractor's by itself.
                let picture = shapes_picture(seed, i, 12 + 4 * (i as u32 % 2));
                write_png(&place.path(name).join(format!("{i:02}.png")), &picture).unwrap();
            }
        }
        small_clip(0).save(&place.path("clip")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `deme fid` with the small CLIP.
    fn fid(&self, words: &[&str]) -> Command {
        let mut command = deme();
        command.current_dir(self.folder.path()).arg("fid").args(words);
        command.args(["--extractor", "clip", "--weights", "clip"]);
        command
    }

    /// What `--json` prints.
    fn measured(&self, words: &[&str]) -> Vec<Measurement> {
        let output = succeed(self.fid(words).arg("--json"));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        serde_json::from_value(json["measurements"].clone()).unwrap()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }
}

fn unet() -> PathBuf {
    support::fixtures().join("unet2d/cifar10_like")
}

#[test]
fn pictures_statistics_and_features_give_the_same_number() {
    let place = Place::new();
    succeed(&mut place.fid(&["a", "--save-stats", "a.npz", "--save-features", "a.safetensors"]));
    let from = |a: &str, b: &str| place.measured(&[a, b])[0].clone();
    let pictures = from("a", "b");
    assert!(pictures.value > 0.0);
    assert_eq!(pictures.protocol.metric, "fd_clip");
    for other in ["a.npz", "a.safetensors"] {
        let other = from(other, "b");
        assert_eq!(other.value, pictures.value);
        assert_eq!(other.protocol.extractor_hash, pictures.protocol.extractor_hash);
        assert_eq!(other.protocol.model_hash, pictures.protocol.model_hash);
    }
    let back = from("b", "a.npz");
    assert!((back.value - pictures.value).abs() < 1e-9 * pictures.value);
    assert_eq!(back.protocol.reference_hash, pictures.protocol.model_hash);
    // Neither the batch nor the order of reading matters.
    assert_eq!(place.measured(&["a", "b", "--batch-size", "5"])[0].value, pictures.value);
}

#[test]
fn every_metric_comes_with_its_settings() {
    let place = Place::new();
    let found = place.measured(&["a", "b", "--metrics", "fd,kid,prdc,cmmd,fd_infinity"]);
    let names: Vec<&str> = found.iter().map(|m| m.protocol.metric.as_str()).collect();
    assert_eq!(
        names,
        [
            "fd_clip",
            "kid_clip",
            "precision_clip",
            "recall_clip",
            "density_clip",
            "coverage_clip",
            "cmmd_clip",
            "fd_infinity_clip"
        ]
    );
    assert_eq!(found[1].protocol.settings["subset_size"], 12);
    assert_eq!(found[2].protocol.settings["k"], 3);
    assert!(found.iter().all(|m| m.value.is_finite() && m.protocol.image_count == Some(12)));
    let said = fail_with(&mut place.fid(&["a", "b", "--metrics", "kids"]), 2);
    assert!(said.contains("did you mean `kid`"), "{said}");
    succeed(&mut place.fid(&["a", "--save-stats", "a.npz"]));
    let said = fail_with(&mut place.fid(&["a.npz", "b", "--metrics", "kid"]), 2);
    assert!(said.contains("kid needs the features") && said.contains("a.npz"), "{said}");
    let said = fail_with(&mut place.fid(&["a", "b", "--metrics", "inception_score"]), 2);
    assert!(said.contains("class logits"), "{said}");
}

#[test]
fn a_model_streams_into_statistics_bit_for_bit_however_it_is_split() {
    let place = Place::new();
    let sample = |words: &[&str]| {
        let mut command = deme();
        command.current_dir(place.folder.path()).args(["sample", "--steps", "2", "--num", "7"]);
        command.arg("--model").arg(unet()).args(words);
        command.args(["--extractor", "clip", "--weights", "clip"]);
        succeed(&mut command);
    };
    sample(&["--save-stats", "whole.npz", "--batch-size", "3"]);
    std::fs::create_dir(place.path("parts")).unwrap();
    for (part, batch) in [("2/2", "2"), ("1/2", "4")] {
        let file = format!("parts/{}.safetensors", &part[..1]);
        sample(&["--save-features", &file, "--part", part, "--batch-size", batch]);
    }
    sample(&["--out", "pictures"]);
    succeed(&mut place.fid(&["parts", "--save-stats", "joined.npz"]));
    succeed(&mut place.fid(&["pictures", "--save-stats", "pictures.npz"]));
    let stats = |name: &str| FeatureStats::load_npz(&place.path(name)).unwrap();
    let whole = stats("whole.npz");
    assert_eq!(whole, stats("joined.npz"));
    let pictures = stats("pictures.npz");
    assert_eq!((whole.mu(), whole.sigma()), (pictures.mu(), pictures.sigma()));
    // Both know how they were drawn; what was read from files says so besides.
    let sampling = |stats: &FeatureStats| stats.stamp().unwrap().sampling.clone().unwrap();
    assert_eq!(sampling(&whole), sampling(&pictures));
    assert_eq!((sampling(&whole).steps, sampling(&whole).count), (2, 7));
    assert_eq!(pictures.stamp().unwrap().image_format, "png");
    assert_eq!(whole.stamp().unwrap().image_format, "memory");
    // A part that is missing is not silently a smaller set.
    std::fs::remove_file(place.path("parts/2.safetensors")).unwrap();
    let said = fail_with(&mut place.fid(&["parts", "b"]), 2);
    assert!(said.contains("3") && said.contains("7"), "{said}");
}

#[test]
fn pictures_that_cannot_be_read_stop_it_or_are_named() {
    let place = Place::new();
    let whole = std::fs::read(place.path("a/00.png")).unwrap();
    place.write("a/cut.png", &whole[..whole.len() / 2]);
    place.write("a/huge.png", &huge_png());
    place.write("a/text.jpg", b"this is no picture");
    let said = fail_with(&mut place.fid(&["a", "b"]), 2);
    assert!(said.contains("cut.png"), "{said}");
    let found = place.measured(&["a", "b", "--skip-broken"]);
    assert_eq!(found[0].protocol.image_count, Some(12));
    let notes = found[0].notes.join("\n");
    for name in ["3 pictures", "cut.png", "huge.png", "text.jpg", "100000x100000"] {
        assert!(notes.contains(name), "{notes}");
    }
    let said = fail_with(&mut place.fid(&["a", "b", "--num-images", "50"]), 2);
    assert!(said.contains("15 pictures, not 50"), "{said}");
    let fewer = place.measured(&["b", "a", "--num-images", "5"]);
    assert_eq!(fewer[0].protocol.image_count, Some(5));
    assert!(fewer[0].notes.iter().any(|note| note.contains("singular")), "{:?}", fewer[0].notes);
}

/// A PNG whose header claims 100,000 x 100,000 pixels, and that holds next to nothing.
fn huge_png() -> Vec<u8> {
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let mut crc = !0u32;
        for byte in kind.iter().chain(data) {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
            }
        }
        let length = (data.len() as u32).to_be_bytes();
        [&length[..], kind, data, &(!crc).to_be_bytes()].concat()
    };
    let side = 100_000u32.to_be_bytes();
    let header = [&side[..], &side, &[8, 2, 0, 0, 0]].concat();
    let nothing = [0x78, 0x9c, 0x03, 0, 0, 0, 0, 1];
    let chunks = [chunk(b"IHDR", &header), chunk(b"IDAT", &nothing), chunk(b"IEND", &[])];
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunks.concat()].concat()
}

#[test]
fn what_is_no_set_of_pictures_is_refused() {
    let place = Place::new();
    std::fs::create_dir(place.path("empty")).unwrap();
    place.write("notes.txt", b"not pictures");
    place.write("broken.npz", b"PK not a zip at all");
    for (side, words) in [
        ("empty", "no picture"),
        ("nowhere", "nowhere"),
        ("notes.txt", "neither statistics nor features"),
        ("broken.npz", "broken.npz"),
    ] {
        let said = fail_with(&mut place.fid(&[side, "b"]), 2);
        assert!(said.contains(words), "{side}: {said}");
    }
}

#[test]
fn statistics_of_another_extractor_are_refused_by_name() {
    let place = Place::new();
    small_clip(7).save(&place.path("other")).unwrap();
    succeed(&mut place.fid(&["b", "--save-stats", "b.npz"]));
    let mut command = deme();
    command.current_dir(place.folder.path()).args(["fid", "a", "b.npz", "--extractor", "clip"]);
    let said = fail_with(command.args(["--weights", "other"]), 2);
    assert!(said.contains("clip ("), "{said}");
}

#[test]
fn inceptions_weights_are_looked_for_where_torch_keeps_them() {
    let place = Place::new();
    let mut command = deme();
    command.current_dir(place.folder.path()).env("TORCH_HOME", place.path("torch"));
    let said = fail_with(command.args(["fid", "a", "b"]), 2);
    for word in ["hub/checkpoints/pt_inception-2015-12-05-6726825d.pth", "--weights"] {
        assert!(said.replace(' ', "").contains(word), "{said}");
    }
}

#[test]
fn numbers_that_were_made_differently_are_not_compared() {
    let place = Place::new();
    let json = |name: &str, words: &[&str]| {
        let output = succeed(place.fid(words).arg("--json"));
        std::fs::write(place.path(name), output.stdout).unwrap();
    };
    json("one.json", &["a", "b"]);
    json("same.json", &["b", "b"]);
    json("fewer.json", &["a", "b", "--num-images", "8"]);
    let compare = |words: &[&str]| {
        let mut command = deme();
        command.current_dir(place.folder.path()).arg("compare").args(words);
        command
    };
    let text = succeed(&mut compare(&["one.json", "same.json"])).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("fd_clip") && text.contains("difference"), "{text}");
    assert!(text.contains("not known of either side"), "{text}");
    let said = fail_with(&mut compare(&["one.json", "fewer.json"]), 2);
    for word in ["image_count is 12 and 8", "reference_count is 12 and 8", "--force"] {
        assert!(said.contains(word), "{said}");
    }
    let forced = succeed(&mut compare(&["one.json", "fewer.json", "--force"])).stdout;
    let forced = String::from_utf8(forced).unwrap();
    assert!(forced.contains("WARNING     image_count is 12 and 8"), "{forced}");
    place.write("other.json", b"{}");
    let said = fail_with(&mut compare(&["one.json", "other.json"]), 2);
    assert!(said.contains("other.json holds no measurements"), "{said}");
}

#[test]
fn pictures_are_scored_with_their_captions() {
    let place = Place::new();
    let captions: Vec<String> = (0..12).map(|i| format!("a shape with number {i}")).collect();
    place.write("captions.txt", (captions.join("\n") + "\n").as_bytes());
    let score = |captions: &str| {
        let mut command = deme();
        command.current_dir(place.folder.path()).args(["clip-score", "--images", "a"]);
        command.args(["--captions", captions, "--model", "clip", "--json", "--per-pair"]);
        command
    };
    let output = succeed(&mut score("captions.txt"));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let pairs = json["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 12);
    assert_eq!(
        (&pairs[3]["file"], &pairs[3]["caption"]),
        (&"03.png".into(), &captions[3].clone().into())
    );
    let scores = pairs.iter().map(|pair| pair["score"].as_f64().unwrap());
    let mean = scores.sum::<f64>() / 12.0;
    assert!((json["value"].as_f64().unwrap() - mean).abs() < 1e-9);
    assert_eq!(json["truncated"], 0);

    place.write("long.txt", (vec!["word ".repeat(100); 12].join("\n")).as_bytes());
    let json: Value = serde_json::from_slice(&succeed(&mut score("long.txt")).stdout).unwrap();
    assert_eq!(json["truncated"], 12);
    assert!(json["measurements"][0]["notes"][0].as_str().unwrap().contains("77 tokens"));

    place.write("few.txt", b"one caption\n");
    let said = fail_with(&mut score("few.txt"), 2);
    assert!(said.contains("few.txt") && said.contains("12"), "{said}");
    place.write("bad.txt", b"good\n\xff\xfe\n");
    let said = fail_with(&mut score("bad.txt"), 2);
    assert!(said.contains("bad.txt") && said.contains('2'), "{said}");
}

#[test]
fn a_grey_picture_counts_as_its_three_equal_channels() {
    let place = Place::new();
    let grey = |folder: &Path, image: image::DynamicImage| {
        std::fs::create_dir_all(folder).unwrap();
        for i in 0..3u8 {
            let shifted = image.brighten(20 * i32::from(i));
            shifted.save(folder.join(format!("{i}.png"))).unwrap();
        }
    };
    let luma = image::GrayImage::from_fn(16, 16, |x, y| image::Luma([(x * 9 + y * 5) as u8]));
    let luma = image::DynamicImage::ImageLuma8(luma);
    grey(&place.path("rgb"), luma.to_rgb8().into());
    grey(&place.path("grey"), luma);
    let found = place.measured(&["grey", "rgb"]);
    assert!(found[0].value.abs() < 1e-9, "{}", found[0].value);
}
