//! Folders of pictures, and everything that can be wrong with one.

use std::path::Path;

use deme_data::{DataConfig, DataError, DataSet, PictureError, Preparation, picture_files};
use tempfile::TempDir;

use crate::files::{gradient, one_colour, png, png_claiming, write};

fn config(folder: &Path) -> DataConfig {
    DataConfig::Imagefolder { path: folder.to_path_buf(), caption_field: "text".to_owned() }
}

fn open(folder: &Path) -> Result<DataSet, DataError> {
    DataSet::open(&config(folder))
}

/// A folder of `a.png` and `b/c.png` with this metadata.
fn folder_with(metadata: impl AsRef<[u8]>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.png", png(gradient(8, 6)));
    write(folder.path(), "b/c.png", png(gradient(5, 9)));
    write(folder.path(), "metadata.jsonl", metadata);
    folder
}

fn open_error(folder: &TempDir) -> DataError {
    open(folder.path()).unwrap_err()
}

const BOTH: &str = "{\"file_name\": \"b/c.png\", \"text\": \"the second\"}\n\
                    {\"file_name\": \"./a.png\", \"text\": \"the first\"}\n";

#[test]
fn pictures_are_ordered_by_relative_path() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b.PNG", "a/z.bmp", "c.jpeg", "a.png", ".hidden.png", "notes.txt"] {
        write(folder.path(), name, png(gradient(2, 2)));
    }
    let data = open(folder.path()).unwrap();
    let names: Vec<&str> = data.examples().iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["a.png", "a/z.bmp", "b.PNG", "c.jpeg"]);
    assert!(!data.has_captions());
}

#[test]
fn pictures_alone_are_found_beside_any_captions() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b.PNG", "a/z.bmp", "a.png", "metadata.csv", "a/metadata.jsonl"] {
        write(folder.path(), name, "");
    }
    assert!(matches!(open(folder.path()), Err(DataError::UnsupportedMetadata { .. })));
    let expected = ["a.png", "a/z.bmp", "b.PNG"].map(|name| folder.path().join(name));
    assert_eq!(picture_files(folder.path()).unwrap(), expected);
    let error = picture_files(&folder.path().join("nothing")).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }));
    let error = picture_files(&folder.path().join("a.png")).unwrap_err();
    assert!(matches!(error, DataError::NotAFolder { .. }));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(picture_files(empty.path()), Err(DataError::NoPictures { .. })));
}

#[cfg(unix)]
#[test]
fn pictures_alone_may_be_links() {
    let elsewhere = tempfile::tempdir().unwrap();
    write(elsewhere.path(), "far.png", png(gradient(4, 4)));
    let folder = folder_with("no JSON at all");
    let link = folder.path().join("z.png");
    std::os::unix::fs::symlink(elsewhere.path().join("far.png"), &link).unwrap();
    assert!(open(folder.path()).is_err());
    assert_eq!(picture_files(folder.path()).unwrap().last(), Some(&link));
}

#[test]
fn captions_come_from_metadata() {
    let folder = folder_with(BOTH);
    let data = open(folder.path()).unwrap();
    assert_eq!(data.len(), 2);
    assert_eq!(data.example(0).caption.as_deref(), Some("the first"));
    assert_eq!(data.example(1).caption.as_deref(), Some("the second"));
    assert!(data.has_captions());
    let prepared = data.load(&Preparation::new(4)).unwrap();
    assert_eq!(prepared.names, ["a.png", "b/c.png"]);
    assert_eq!(prepared.captions[1].as_deref(), Some("the second"));
    assert_eq!(prepared.images.len(), 2 * 4 * 4 * 3);
}

#[test]
fn another_field_can_hold_the_caption() {
    let folder = folder_with(BOTH.replace("text", "caption"));
    let data = DataSet::open(&DataConfig::Imagefolder {
        path: folder.path().to_path_buf(),
        caption_field: "caption".to_owned(),
    })
    .unwrap();
    assert!(data.has_captions());
}

#[test]
fn a_line_without_caption_gives_a_picture_without() {
    let folder = folder_with(BOTH.replace("\"the first\"", "null"));
    let data = open(folder.path()).unwrap();
    assert_eq!(data.example(0).caption, None);
    assert!(!data.has_captions());
}

#[test]
fn windows_line_ends_blank_lines_and_a_byte_order_mark_are_fine() {
    let folder = folder_with(format!("\u{feff}{}\r\n\r\n", BOTH.replace('\n', "\r\n")));
    assert!(open(folder.path()).unwrap().has_captions());
}

#[test]
fn a_missing_folder_is_named() {
    let error = open(Path::new("/nowhere/pictures")).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }), "{error}");
    assert!(error.to_string().contains("/nowhere/pictures"));
}

#[test]
fn a_file_is_not_a_folder() {
    let folder = folder_with(BOTH);
    let error = open(&folder.path().join("a.png")).unwrap_err();
    assert!(matches!(error, DataError::NotAFolder { .. }), "{error}");
}

#[test]
fn a_folder_without_pictures_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "notes.txt", "nothing");
    let error = open_error(&folder);
    assert!(matches!(error, DataError::NoPictures { .. }), "{error}");
}

#[test]
fn a_line_naming_no_picture_is_refused() {
    let folder = folder_with(format!("{BOTH}{{\"file_name\": \"d.png\", \"text\": \"\"}}"));
    let error = open_error(&folder);
    assert!(
        matches!(&error, DataError::NoSuchPicture { line: 3, file_name, .. } if file_name == "d.png"),
        "{error}"
    );
    let message = error.to_string();
    assert!(message.contains("metadata.jsonl, line 3") && message.contains("d.png"));
}

#[test]
fn names_leaving_the_folder_are_refused() {
    for name in ["../a.png", "/etc/a.png", "b/../../a.png"] {
        let folder = folder_with(format!("{{\"file_name\": \"{name}\", \"text\": \"\"}}\n{BOTH}"));
        let error = open_error(&folder);
        assert!(
            matches!(&error, DataError::OutsideFolder { file_name, .. } if file_name == name),
            "{error}"
        );
        assert!(error.to_string().contains("line 1"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn links_leaving_the_folder_are_refused() {
    let elsewhere = folder_with(BOTH);
    // A picture that is a link.
    let folder = folder_with(BOTH);
    std::os::unix::fs::symlink(elsewhere.path().join("a.png"), folder.path().join("link.png"))
        .unwrap();
    let error = open_error(&folder);
    assert!(matches!(error, DataError::OutsideFolder { .. }), "{error}");
    // A picture behind a folder that is a link.
    let line = "{\"file_name\": \"linked/a.png\", \"text\": \"\"}";
    let folder = folder_with(format!("{BOTH}{line}"));
    std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("linked")).unwrap();
    let error = open_error(&folder);
    assert!(matches!(error, DataError::OutsideFolder { .. }), "{error}");
    assert!(error.to_string().contains("line 3"), "{error}");
}

#[cfg(unix)]
#[test]
fn links_within_the_folder_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "a.png", png(gradient(3, 3)));
    std::os::unix::fs::symlink("a.png", folder.path().join("b.png")).unwrap();
    assert_eq!(open(folder.path()).unwrap().len(), 2);
}

#[cfg(target_os = "linux")]
#[test]
fn names_must_be_unicode() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"\xff.png");
    std::fs::write(folder.path().join(name), png(gradient(2, 2))).unwrap();
    let error = open_error(&folder);
    assert!(matches!(error, DataError::NameNotUnicode { .. }), "{error}");
}

#[test]
fn naming_a_picture_twice_is_refused() {
    let folder = folder_with(format!("{BOTH}{{\"file_name\": \"a.png\", \"text\": \"again\"}}"));
    let error = open_error(&folder);
    assert!(
        matches!(error, DataError::DuplicateFileName { line: 3, first_line: 2, .. }),
        "{error}"
    );
}

#[test]
fn broken_lines_are_refused() {
    for (line, expected) in [
        (&b"{\"file_name\": \"a.png\", \"text\": \"\xff\"}"[..], "UTF-8"),
        (b"{\"file_name\": \"a.png\"", "JSON"),
        (b"[\"a.png\"]", "object"),
        (b"{\"text\": \"a red circle\"}", "`file_name` is missing"),
        (b"{\"file_name\": 7, \"text\": \"\"}", "`file_name` is 7"),
        (b"{\"file_name\": \"a.png\", \"text\": [\"x\"]}", "`text` is"),
    ] {
        let folder = folder_with([b"\n", line, b"\n"].concat());
        let error = open_error(&folder);
        assert!(matches!(error, DataError::BadMetadataLine { line: 2, .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains("line 2") && message.contains(expected), "{message}");
    }
}

#[test]
fn a_misnamed_caption_field_is_not_overlooked() {
    let folder = folder_with(BOTH.replace("text", "caption"));
    let error = open_error(&folder);
    assert!(
        matches!(&error, DataError::NoCaptionField { field, found, .. }
            if field == "text" && found == "caption"),
        "{error}"
    );
}

#[test]
fn pictures_without_a_line_are_refused() {
    let folder = folder_with(BOTH);
    write(folder.path(), "extra.png", png(gradient(2, 2)));
    let error = open_error(&folder);
    assert!(
        matches!(&error, DataError::UnnamedPictures { count: 1, total: 3, examples, .. }
            if examples == "extra.png"),
        "{error}"
    );
}

#[test]
fn metadata_that_would_be_ignored_is_refused() {
    for name in ["metadata.csv", "b/metadata.jsonl", "b/metadata.csv"] {
        let folder = folder_with(BOTH);
        write(folder.path(), name, "");
        let error = open_error(&folder);
        assert!(
            matches!(&error, DataError::UnsupportedMetadata { path } if path.ends_with(name)),
            "{error}"
        );
    }
}

#[test]
fn all_broken_pictures_are_told_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let whole = png(gradient(20, 20));
    write(folder.path(), "a.png", &whole);
    write(folder.path(), "b.png", &whole[..whole.len() / 2]);
    write(folder.path(), "c.png", png_claiming(90_000, 90_000));
    for index in 0..9 {
        write(folder.path(), &format!("d{index}.png"), "text");
    }
    let data = open(folder.path()).unwrap();
    let error = data.load(&Preparation::new(8)).unwrap_err();
    let message = error.to_string();
    let DataError::BrokenPictures { count, total, broken } = error else {
        panic!("{message}");
    };
    assert_eq!((count, total), (11, 12));
    assert_eq!(broken[0].name, "b.png");
    assert!(matches!(broken[0].source, PictureError::Damaged { .. }));
    assert!(matches!(broken[1].source, PictureError::TooManyPixels { width: 90_000, .. }));
    assert!(message.contains("b.png: is damaged"), "{message}");
    assert!(message.contains("and 3 more"), "{message}");
    // One of them alone.
    let error = data.picture(1).unwrap_err();
    assert!(matches!(error, DataError::BrokenPictures { count: 1, .. }));
    assert_eq!(data.picture(0).unwrap().width, 20);
}

#[test]
fn a_picture_that_vanished_is_told() {
    let folder = folder_with(BOTH);
    let data = open(folder.path()).unwrap();
    std::fs::remove_file(folder.path().join("b/c.png")).unwrap();
    for error in [data.load(&Preparation::new(8)).unwrap_err(), data.content_hash().unwrap_err()] {
        assert!(
            matches!(&error, DataError::BrokenPictures { count: 1, broken, .. }
                if matches!(broken[0].source, PictureError::Unreadable(_))),
            "{error}"
        );
    }
}

#[test]
fn the_content_hash_tells_bytes_and_captions_not_places() {
    let hash = |folder: &TempDir| open(folder.path()).unwrap().content_hash().unwrap();
    let first = hash(&folder_with(BOTH));
    assert_eq!(first.len(), 64);
    assert_eq!(first, hash(&folder_with(BOTH)));
    assert_ne!(first, hash(&folder_with(BOTH.replace("first", "last"))));
    assert_ne!(first, hash(&folder_with(BOTH.replace("\"the first\"", "null"))));
    let folder = folder_with(BOTH);
    write(folder.path(), "a.png", png(gradient(8, 7)));
    assert_ne!(first, hash(&folder));
}

#[test]
fn loading_does_not_depend_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..600u32 {
        let colour = [index as u8, (index / 3) as u8, 9];
        write(folder.path(), &format!("{index:03}.png"), png(one_colour(2 + index % 5, 3, colour)));
    }
    let data = open(folder.path()).unwrap();
    let load = |threads: usize| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| data.load(&Preparation::new(2)).unwrap())
    };
    let alone = load(1);
    assert_eq!(alone, load(4));
    for index in [0, 255, 256, 599] {
        let expected = [index as u8, (index / 3) as u8, 9];
        assert_eq!(alone.image_bytes(index)[..3], expected, "{index}");
    }
    let mut done = Vec::new();
    data.load_observed(&Preparation::new(2), &mut |count| done.push(count)).unwrap();
    assert_eq!(done.last(), Some(&600));
    assert!(done.is_sorted());
}
