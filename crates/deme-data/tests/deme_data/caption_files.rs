//! Caption files of every kind, and everything that can be wrong with one.

use std::path::PathBuf;

use deme_data::{DataError, pair_captions};

use crate::files::write;

/// Three pictures, two of them called the same.
const PICTURES: [&str; 3] = ["/data/b/x.png", "/data/a.png", "/data/c/x.png"];

fn paired(name: &str, text: impl AsRef<[u8]>) -> Result<Vec<(PathBuf, String)>, DataError> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), name, text);
    pair_captions(&PICTURES.map(PathBuf::from), &folder.path().join(name))
}

/// What every good file here says.
#[track_caller]
fn all_good(pairs: Result<Vec<(PathBuf, String)>, DataError>) {
    let pairs = pairs.unwrap();
    let pairs: Vec<(&str, &str)> =
        pairs.iter().map(|(path, text)| (path.to_str().unwrap(), text.as_str())).collect();
    let expected = [
        ("/data/a.png", "a red, \"round\" ball"),
        ("/data/b/x.png", "zwei blaue Bälle"),
        ("/data/c/x.png", "three"),
    ];
    assert_eq!(pairs, expected);
}

const LINES: &str = r#"{"file_name": "c/x.png", "text": "three", "width": 3}
{"file_name": "./b/x.png", "text": "zwei blaue Bälle"}

{"file": "a.png", "caption": "a red, \"round\" ball"}"#;

#[test]
fn all_formats_give_the_same_pairs() {
    all_good(paired("captions.jsonl", LINES));
    all_good(paired("captions.JSONL", format!("\u{feff}{LINES}\r\n")));
    let list = LINES.replace("}\n", "},");
    all_good(paired("captions.json", format!("[{}]", list.replace("},\n", "},"))));
    let map = r#"{"a.png": "a red, \"round\" ball", "c/x.png": "three",
        "data/b/x.png": "zwei blaue Bälle"}"#;
    all_good(paired("captions.json", map));
    let csv = "id,File,Caption\r\n1,a.png,\"a red, \"\"round\"\" ball\"\r\n2,b/x.png,zwei blaue \
               Bälle\r\n3,c/x.png, three \r\n";
    all_good(paired("captions.csv", csv));
    let tsv =
        "text\timage\na red, \"round\" ball\ta.png\nzwei blaue Bälle\tb/x.png\nthree\tc/x.png";
    all_good(paired("captions.tsv", tsv));
    all_good(paired("captions.txt", "a red, \"round\" ball\nzwei blaue Bälle\n three\n\n"));
}

#[test]
fn coco_may_describe_a_picture_several_times() {
    let coco = r#"{"info": {}, "images": [{"id": 7, "file_name": "a.png"},
        {"id": 9, "file_name": "b/x.png"}, {"id": 8, "file_name": "c/x.png"}],
        "annotations": [{"image_id": 8, "id": 1, "caption": "three"},
        {"image_id": 7, "id": 2, "caption": "one "}, {"image_id": 9, "id": 4, "caption": "two"},
        {"image_id": 7, "id": 3, "caption": "uno"}]}"#;
    let pairs = paired("captions_val.json", coco).unwrap();
    let texts: Vec<&str> = pairs.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(texts, ["one", "uno", "two", "three"]);
    assert_eq!(pairs[1].0, PathBuf::from("/data/a.png"));
}

#[test]
fn what_cannot_be_read_is_named_with_its_place() {
    let cases: [(&str, &[u8], &str, &str); 23] = [
        ("x.jsonl", b"{}\n", "line 1", "`file_name` or `file` or `image` is missing"),
        ("x.jsonl", b"\n{\"file\": \"a.png\"}", "line 2", "`text` or `caption` is missing"),
        ("x.jsonl", b"{\"file\": 3, \"text\": \"\"}", "line 1", "`file` is 3, not a string"),
        ("x.jsonl", b"{\"file\": \"a.png\", \"text\": \" \"}", "line 1", "empty"),
        ("x.jsonl", b"[]", "line 1", "not a JSON object"),
        ("x.jsonl", b"{}}", "line 1", "not valid JSON"),
        ("x.jsonl", b"{\"file\": \"a.png\", \"text\": \"a\"}\n\xFF", "line 2", "UTF-8"),
        ("x.txt", b"one\n\nthree\n", "line 2", "empty"),
        ("x.txt", b"one\ntwo\nb\xE4lle\n", "line 3", "UTF-8"),
        ("x.json", b"{\"a.png\": \"a\",\n}", "line 2", "not valid JSON"),
        ("x.json", b"{\"a.png\": [\"a\"]}", "entry 1", "not a string"),
        ("x.json", b"[{\"file\": \"a.png\", \"text\": \"a\"}, 3]", "entry 2", "not a JSON object"),
        ("x.json", b"3", "line 1", "no captions"),
        ("x.json", b"{\"annotations\": []}", "line 1", "no list `images`"),
        ("x.json", b"{\"annotations\": [], \"images\": [{}]}", "entry 1", "`id` is missing"),
        ("x.json", b"{\"annotations\": [{}], \"images\": []}", "entry 1", "`image_id` is missing"),
        (
            "x.json",
            b"{\"annotations\": [{\"image_id\": 1}], \"images\": []}",
            "entry 1",
            "no image 1",
        ),
        (
            "x.json",
            b"{\"annotations\": [{\"image_id\": 1}], \"images\": [{\"id\": 1, \"file_name\": \"\"}]}",
            "entry 1",
            "`caption` is missing",
        ),
        ("x.csv", b"a.png,one\n", "line 1", "is missing in the header (a.png, one)"),
        ("x.csv", b"", "line 1", "is missing"),
        ("x.csv", b"file,text\n\na.png,one, two\n", "line 3", "it has 3 fields"),
        ("x.csv", b"file,text\na.png,\"one\n", "line 2", "quote"),
        ("x.tsv", b"file\ttext\na.png\n", "line 2", "it has 1 fields"),
    ];
    for (name, text, expected_place, part) in cases {
        let error = paired(name, text).unwrap_err();
        let DataError::BadCaptionFile { place, reason, .. } = &error else { panic!("{error}") };
        assert!(place == expected_place && reason.contains(part), "{error}");
    }
}

#[test]
fn two_captions_for_a_picture_are_refused() {
    let error = paired("x.json", r#"{"a.png": "a", "a.png": "b"}"#).unwrap_err();
    let DataError::DuplicateCaption { place, first_place, file_name, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((&**place, &**first_place, &**file_name), ("entry 2", "entry 1", "a.png"));
    let lines = format!("{LINES}\n{{\"file\": \"data/a.png\", \"text\": \"b\"}}");
    let error = paired("x.jsonl", lines).unwrap_err();
    assert!(error.to_string().contains("line 5: \"data/a.png\" already has a caption (line 4)"));
}

#[test]
fn a_name_that_two_pictures_have_is_refused() {
    let error = paired("x.csv", "file,text\nx.png,one\n").unwrap_err();
    assert!(matches!(&error, DataError::AmbiguousPicture { place, .. } if place == "line 2"));
    let text = error.to_string();
    assert!(text.contains("/data/b/x.png") && text.contains("/data/c/x.png"), "{text}");
}

#[test]
fn captions_and_pictures_without_a_partner_are_refused() {
    let error = paired("x.csv", "file,text\nd.png,one\na.png,two\n../a.png,three\n").unwrap_err();
    let DataError::CaptionsWithoutPicture { count, total, examples, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((count, total), (&2, &3));
    assert_eq!(examples, "\"d.png\" (line 2), \"../a.png\" (line 4)");
    let error = paired("x.csv", "file,text\nb/x.png,one\n").unwrap_err();
    let DataError::PicturesWithoutCaption { count, total, examples, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((count, total, &**examples), (&2, &3, "/data/a.png, /data/c/x.png"));
}

#[test]
fn a_list_of_another_length_is_refused() {
    let error = paired("x.txt", "one\ntwo\n").unwrap_err();
    assert!(matches!(error, DataError::CaptionCount { captions: 2, pictures: 3, .. }));
}

#[test]
fn files_of_other_kinds_and_files_that_are_not_there_are_refused() {
    for name in ["captions.parquet", "captions"] {
        let error = paired(name, "").unwrap_err();
        assert!(matches!(error, DataError::UnknownCaptionFormat { .. }), "{error}");
    }
    let error = pair_captions(&[], "/nowhere/x.txt".as_ref()).unwrap_err();
    assert!(matches!(error, DataError::Io { action: "read", .. }), "{error}");
}
