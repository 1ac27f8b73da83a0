//! CLIP's byte-pair tokens against the reference ids: whatever `tokenizer` and `open_clip_tiny` hold.
#![allow(clippy::unwrap_used)]

use deme_clip::{CaptionCleaning, CaptionTokenizer, ClipError};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    std::env::var_os("DEME_FIXTURES").map_or(default.into(), PathBuf::from)
}

/// Texts and their ids.
fn cases(path: &Path) -> Vec<(String, Vec<u32>)> {
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(!cases.is_empty());
    let ids = |case: &Value| serde_json::from_value(case["ids"].clone()).unwrap();
    cases.iter().map(|case| (case["text"].as_str().unwrap().to_owned(), ids(case))).collect()
}

#[track_caller]
fn all_hold(tokenizer: &CaptionTokenizer, cases: &[(String, Vec<u32>)]) {
    let texts: Vec<&str> = cases.iter().map(|(text, _)| text.as_str()).collect();
    let encoded = tokenizer.encode(&texts).unwrap();
    for ((text, expected), ids) in cases.iter().zip(&encoded.ids) {
        assert_eq!(ids, expected, "{text:?}");
    }
}

#[test]
fn ids_are_clips_from_every_source() {
    let cases = cases(&fixtures().join("tokenizer/clip_cases.json"));
    let len = cases[0].1.len();
    let published = CaptionTokenizer::published(CaptionCleaning::HuggingFace, len).unwrap();
    assert_eq!(published.special_ids(), [49_406, 49_407, 0]);
    assert_eq!(published.vocab_size(), 49_408);
    all_hold(&published, &cases);
    all_hold(&CaptionTokenizer::published(CaptionCleaning::OpenClip, len).unwrap(), &cases);

    let folder = tempfile::tempdir().unwrap();
    assert!(CaptionTokenizer::load_folder(folder.path(), len).unwrap().is_none());
    let json = folder.path().join("tokenizer.json");
    published.save(&json).unwrap();
    all_hold(&CaptionTokenizer::load_folder(folder.path(), len).unwrap().unwrap(), &cases);

    let saved: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let merges = saved["model"]["merges"].as_array().unwrap();
    let merge =
        |merge: &Value| format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap());
    let merges: Vec<String> = merges.iter().map(merge).collect();
    std::fs::remove_file(&json).unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("vocab.json", saved["model"]["vocab"].to_string());
    let error = CaptionTokenizer::load_folder(folder.path(), len).unwrap_err();
    assert!(matches!(&error, ClipError::Io { path, .. } if path.ends_with("merges.txt")));
    write("merges.txt", format!("#version: 0.2\n{}\n", merges.join("\n")));
    all_hold(&CaptionTokenizer::load_folder(folder.path(), len).unwrap().unwrap(), &cases);
}

#[test]
fn open_clips_rules_are_its_own() {
    let folder = fixtures().join("open_clip_tiny");
    if std::env::var_os("DEME_FIXTURES").is_some() && !folder.exists() {
        eprintln!("skipped: these fixtures have no open_clip_tiny");
        return;
    }
    let cases = cases(&folder.join("captions.json"));
    let len = cases[0].1.len();
    let tokenizer = CaptionTokenizer::published(CaptionCleaning::OpenClip, len).unwrap();
    assert_eq!(tokenizer.cleaning(), CaptionCleaning::OpenClip);
    all_hold(&tokenizer, &cases);
    // Some of these texts are others to Hugging Face, or the two would need no name.
    let other = CaptionTokenizer::published(CaptionCleaning::HuggingFace, len).unwrap();
    let texts: Vec<&str> = cases.iter().map(|(text, _)| text.as_str()).collect();
    assert_ne!(other.encode(&texts).unwrap(), tokenizer.encode(&texts).unwrap());
    let error = tokenizer.save(&std::env::temp_dir().join("never.json")).unwrap_err();
    assert!(matches!(error, ClipError::Tokenizer { .. }));
}

#[test]
fn captions_that_are_too_long_keep_the_end_and_are_counted() {
    for cleaning in [CaptionCleaning::HuggingFace, CaptionCleaning::OpenClip] {
        let tokenizer = CaptionTokenizer::published(cleaning, 77).unwrap();
        let fits = ["dog "; 75].concat();
        let encoded = tokenizer.encode(&[fits.as_str(), &format!("{fits} cat"), "a"]).unwrap();
        assert_eq!(encoded.truncated, [false, true, false]);
        assert_eq!(encoded.ids[0], encoded.ids[1]);
        assert_eq!(encoded.ids[1].len(), 77);
        assert_eq!([encoded.ids[1][0], encoded.ids[1][76]], [49_406, 49_407]);
    }
}
