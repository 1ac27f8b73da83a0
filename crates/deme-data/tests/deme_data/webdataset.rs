//! Tars of pictures and captions.

use std::fs;
use std::path::Path;

use deme_data::{DataConfig, DataError, DataSet, Preparation};
use image::ImageFormat;

use crate::files::{encode, one_colour, png};

fn header(entry_type: tar::EntryType, bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(entry_type);
    header.set_mode(0o644);
    header.set_size(bytes);
    header
}

/// The bytes of a tar of plain files, in this order.
fn tar_of(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = header(tar::EntryType::Regular, bytes.len() as u64);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn colour(index: u8) -> Vec<u8> {
    png(one_colour(3, 2, [index, 7, 9]))
}

fn text(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn open(path: &Path, caption_field: Option<&str>) -> Result<DataSet, DataError> {
    let caption_field = caption_field.map(str::to_owned);
    DataSet::open(&DataConfig::Webdataset { path: path.to_path_buf(), caption_field })
}

/// Opens a single tar of these entries.
fn open_tar(entries: &[(&str, Vec<u8>)], field: Option<&str>) -> Result<DataSet, DataError> {
    open_bytes(&tar_of(entries), field)
}

fn open_bytes(bytes: &[u8], field: Option<&str>) -> Result<DataSet, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("000.tar");
    fs::write(&path, bytes).unwrap();
    open(&path, field)
}

fn names_and_captions(data: &DataSet) -> Vec<(&str, Option<&str>)> {
    let examples = data.examples().iter();
    examples.map(|example| (example.name.as_str(), example.caption.as_deref())).collect()
}

#[test]
fn pictures_are_ordered_by_key_within_tars_ordered_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let shards = [
        (
            "001.tar",
            tar_of(&[
                ("a.txt", text("first of the second")),
                ("a.jpg", encode(one_colour(3, 2, [40, 40, 40]), ImageFormat::Jpeg)),
            ]),
        ),
        (
            "000.tar",
            tar_of(&[
                ("b.png", colour(2)),
                ("dir/c.cls", text("3")),
                ("a.json", text(r#"{"caption": "unused"}"#)),
                ("dir/c.webp", encode(one_colour(3, 2, [3, 7, 9]), ImageFormat::WebP)),
                ("./b.txt", text("second\n")),
                ("a.txt", text("  first, two lines\r\nof it\r\n")),
                ("a.PNG", colour(1)),
                ("dir/c.txt", text("")),
                ("._a.png", text("what another system left")),
                ("README", text("no extension")),
            ]),
        ),
        ("notes.txt", text("no tar")),
    ];
    for (name, bytes) in shards {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let data = open(folder.path(), None).unwrap();
    assert_eq!(
        names_and_captions(&data),
        [
            ("000.tar/a.PNG", Some("  first, two lines\r\nof it")),
            ("000.tar/b.png", Some("second")),
            ("000.tar/dir/c.webp", Some("")),
            ("001.tar/a.jpg", Some("first of the second")),
        ]
    );
    assert!(data.has_captions());
    let prepared = data.load(&Preparation::new(1)).unwrap();
    for (index, red) in [1, 2, 3, 40].into_iter().enumerate() {
        assert_eq!(prepared.image_bytes(index)[0], red);
    }
    assert_eq!(data.picture(1).unwrap().pixels[..3], [2, 7, 9]);
    assert_eq!(open(&folder.path().join("001.tar"), None).unwrap().len(), 1);
}

#[test]
fn captions_of_json_files() {
    let entries = [
        ("a.jpg.png", colour(9)),
        ("a.png", colour(1)),
        ("a.json", text(r#"{"caption": "one", "width": 3}"#)),
        ("a.txt", text("not this")),
        ("b.png", colour(2)),
        ("b.json", text(r#"{"width": 3, "caption": "two"}"#)),
    ];
    let data = open_tar(&entries, Some("caption")).unwrap();
    assert_eq!(
        names_and_captions(&data),
        [("000.tar/a.png", Some("one")), ("000.tar/b.png", Some("two"))]
    );
}

#[test]
fn pictures_alone_have_no_captions() {
    let entries = [("a.png", colour(1)), ("a.cls", text("0")), ("b.png", colour(2))];
    let data = open_tar(&entries, None).unwrap();
    assert_eq!(names_and_captions(&data), [("000.tar/a.png", None), ("000.tar/b.png", None)]);
}

#[test]
fn long_names_and_folders_are_read() {
    let long = format!("{}/{}.png", "f".repeat(90), "k".repeat(150));
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header(tar::EntryType::Directory, 0), "folder.png/", &[][..]).unwrap();
    let picture = colour(5);
    let mut plain = header(tar::EntryType::Regular, picture.len() as u64);
    builder.append_data(&mut plain, &long, &picture[..]).unwrap();
    let bytes = builder.into_inner().unwrap();
    let data = open_bytes(&bytes, None).unwrap();
    assert_eq!(names_and_captions(&data), [(format!("000.tar/{long}").as_str(), None)]);
}

#[test]
fn order_within_the_tar_changes_nothing() {
    let mut entries = vec![
        ("a.png", colour(1)),
        ("a.txt", text("x")),
        ("b.png", colour(2)),
        ("b.txt", text("y")),
    ];
    let folder = tempfile::tempdir().unwrap();
    let hashes: Vec<String> = (0..2)
        .map(|_| {
            entries.reverse();
            let path = folder.path().join("000.tar");
            fs::write(&path, tar_of(&entries)).unwrap();
            open(&path, None).unwrap().content_hash().unwrap()
        })
        .collect();
    assert_eq!(hashes[0], hashes[1]);
}

#[test]
fn settings_in_text() {
    let parse = serde_json::from_str::<DataConfig>;
    let found =
        parse(r#"{"kind": "webdataset", "path": "x", "caption_field": "caption"}"#).unwrap();
    let DataConfig::Webdataset { caption_field, .. } = found else { panic!("{found:?}") };
    assert_eq!(caption_field.as_deref(), Some("caption"));
    assert!(parse(r#"{"kind": "webdataset", "path": "x"}"#).is_ok());
    assert!(parse(r#"{"kind": "webdataset", "path": "x", "field": "y"}"#).is_err());
}

#[test]
fn a_missing_path_is_named() {
    let error = open(Path::new("/nowhere/shards"), None).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }), "{error}");
}

#[test]
fn nothing_to_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = open(folder.path(), None).unwrap_err();
    assert!(matches!(error, DataError::Empty { .. }), "{error}");
    let error = open_tar(&[("a.cls", text("1"))], None).unwrap_err();
    assert!(matches!(error, DataError::Empty { .. }), "{error}");
}

#[test]
fn what_is_no_tar_is_refused() {
    for bytes in [text(""), vec![7; 2048], vec![0; 100]] {
        let error = open_bytes(&bytes, None).unwrap_err();
        assert!(matches!(error, DataError::BadTar { behind: None, .. }), "{error}");
    }
    // A header that was damaged names the entry before it.
    let mut bytes = tar_of(&[("a.png", colour(1)), ("b.png", colour(2))]);
    let second = bytes.windows(5).position(|bytes| bytes == b"b.png").unwrap();
    bytes[second] = b'c';
    let error = open_bytes(&bytes, None).unwrap_err();
    assert!(
        matches!(&error, DataError::BadTar { behind: Some(behind), .. } if behind == "a.png"),
        "{error}"
    );
}

#[test]
fn tars_that_were_joined_are_refused() {
    let mut bytes = tar_of(&[("a.png", colour(1))]);
    bytes.extend(tar_of(&[("b.png", colour(2))]));
    let error = open_bytes(&bytes, None).unwrap_err();
    assert!(matches!(error, DataError::BadTar { .. }), "{error}");
    assert!(error.to_string().contains("several tars"), "{error}");
}

#[test]
fn a_tar_that_is_cut_off_names_the_entry_wherever_it_is_cut() {
    let bytes = tar_of(&[("a.png", colour(1)), ("a.txt", text("a")), ("b.png", colour(2))]);
    let end = bytes.len() - 1024;
    assert!(bytes[end..].iter().all(|&byte| byte == 0), "two blocks of zeros end a tar");
    let (odd, whole) = ((1..end + 512).step_by(37), (512..=end).step_by(512));
    for length in odd.chain(whole) {
        let error = open_bytes(&bytes[..length], None).map(|_| ()).unwrap_err();
        match &error {
            DataError::TruncatedTar { entry, .. } if length >= 512 => {
                // Each entry is a block of header and one of content.
                let names = ["a.png", "a.txt", "b.png"];
                let reached = names.iter().position(|name| name == entry).unwrap();
                let begun = (length / 1024).min(2);
                let before = begun.saturating_sub(1);
                assert!((before..=begun).contains(&reached), "{length}: {error}");
            }
            DataError::BadTar { behind: None, .. } if length < 512 => {}
            error => panic!("{length}: {error}"),
        }
    }
    let within = open_bytes(&bytes[..520], None).unwrap_err();
    assert!(
        matches!(&within, DataError::TruncatedTar { entry, within: true, .. } if entry == "a.png"),
        "{within}"
    );
    let behind = open_bytes(&bytes[..end], None).unwrap_err();
    assert!(
        matches!(&behind, DataError::TruncatedTar { entry, within: false, .. } if entry == "b.png"),
        "{behind}"
    );
}

/// Opens entries of which one cannot be used, and gives its name and the reason.
fn bad_entry(entries: &[(&str, Vec<u8>)], field: Option<&str>) -> (String, String) {
    match open_tar(entries, field).unwrap_err() {
        DataError::BadTarEntry { entry, reason, .. } => (entry, reason),
        error => panic!("{error}"),
    }
}

#[test]
fn broken_text_is_named() {
    let (entry, reason) = bad_entry(&[("a.png", colour(1)), ("a.txt", vec![b'a', 0xff])], None);
    assert_eq!(entry, "a.txt");
    assert!(reason.contains("UTF-8"), "{reason}");
    for json in ["{", "[1]"] {
        let entries = [("a.png", colour(1)), ("a.json", text(json))];
        let (entry, reason) = bad_entry(&entries, Some("caption"));
        assert_eq!(entry, "a.json");
        assert!(reason.contains("JSON"), "{reason}");
    }
    let entries = [("a.png", colour(1)), ("a.json", text(r#"{"caption": ["x"]}"#))];
    let (entry, reason) = bad_entry(&entries, Some("caption"));
    assert_eq!(entry, "a.json");
    assert!(reason.contains("not a string"), "{reason}");
}

#[test]
fn two_of_a_kind_under_one_key_are_named() {
    let (entry, reason) = bad_entry(&[("a.png", colour(1)), ("a.jpg", colour(1))], None);
    assert_eq!(entry, "a.jpg");
    assert!(reason.contains("a.png"), "{reason}");
    let entries = [("a.png", colour(1)), ("a.txt", text("x")), ("a.TXT", text("y"))];
    assert_eq!(bad_entry(&entries, None).0, "a.TXT");
}

#[test]
fn links_are_named() {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_link(&mut header(tar::EntryType::Symlink, 0), "a.png", "elsewhere.png").unwrap();
    let error = open_bytes(&builder.into_inner().unwrap(), None).unwrap_err();
    assert!(matches!(&error, DataError::BadTarEntry { entry, .. } if entry == "a.png"), "{error}");
}

#[test]
fn a_name_that_is_not_unicode_is_named() {
    let picture = colour(1);
    let mut header = header(tar::EntryType::Regular, picture.len() as u64);
    header.as_old_mut().name[..5].copy_from_slice(b"\xff.png");
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, &picture[..]).unwrap();
    let error = open_bytes(&builder.into_inner().unwrap(), None).unwrap_err();
    assert!(matches!(&error, DataError::BadTarEntry { .. }), "{error}");
    assert!(error.to_string().contains("UTF-8"), "{error}");
}

#[test]
fn a_caption_without_a_picture_is_named() {
    let entries = [("a.png", colour(1)), ("a.txt", text("x")), ("b.txt", text("y"))];
    let error = open_tar(&entries, None).unwrap_err();
    assert!(
        matches!(&error, DataError::NoPictureInTar { entry, key, .. } if entry == "b.txt" && key == "b"),
        "{error}"
    );
}

#[test]
fn a_picture_without_a_caption_is_named() {
    let entries = [("a.png", colour(1)), ("a.txt", text("x")), ("b.png", colour(2))];
    let error = open_tar(&entries, None).unwrap_err();
    assert!(
        matches!(&error, DataError::NoCaptionInTar { entry, fields, .. }
            if entry == "b.png" && fields.is_empty()),
        "{error}"
    );
    // Where the captions are elsewhere, the message says where.
    let json = text(r#"{"TEXT": "x", "width": 3, "url": "y"}"#);
    for field in [None, Some("caption")] {
        let error = open_tar(&[("a.png", colour(1)), ("a.json", json.clone())], field).unwrap_err();
        assert!(
            matches!(&error, DataError::NoCaptionInTar { fields, .. } if *fields == ["TEXT", "url"]),
            "{error}"
        );
    }
    let json = text(r#"{"caption": null}"#);
    let error = open_tar(&[("a.png", colour(1)), ("a.json", json)], Some("caption")).unwrap_err();
    assert!(matches!(error, DataError::NoCaptionInTar { .. }), "{error}");
}

#[test]
fn a_damaged_picture_is_named_when_it_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("000.tar");
    fs::write(&path, tar_of(&[("a.png", colour(1)), ("b.png", text("no picture"))])).unwrap();
    let error = open(&path, None).unwrap().load(&Preparation::new(1)).unwrap_err();
    match error {
        DataError::BrokenPictures { count: 1, total: 2, broken } => {
            assert_eq!(broken[0].name, "000.tar/b.png");
        }
        error => panic!("{error}"),
    }
}

#[test]
fn a_tar_that_changed_since_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("000.tar");
    fs::write(&path, tar_of(&[("a.png", colour(1)), ("b.png", colour(2))])).unwrap();
    let data = open(&path, None).unwrap();
    fs::write(&path, tar_of(&[("a.png", colour(1))])).unwrap();
    let error = data.load(&Preparation::new(1)).unwrap_err();
    assert!(matches!(error, DataError::BrokenPictures { .. }), "{error}");
}
