//! Prompts in a file: what pictures are to be drawn of.
//!
//! A `.jsonl` holds an object per line, with the prompt in `text` (so the `metadata.jsonl` of a folder of pictures
//! will do); any other file holds a prompt per line. Not here: captions of pictures that are there
//! (`caption_file`).

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::caption_file::line_of;
use crate::error::{DataError, io_error};

const FIELD: &str = "text";
const EMPTY_LINE: &str =
    r#"the line is empty; if the empty prompt is meant, write it in a .jsonl as {"text": ""}"#;

/// The prompts of a file, in its order; at least one. Spaces around a prompt are dropped. Empty lines at the end
/// of a file of lines, and anywhere between the objects of a `.jsonl`, do not count.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::BadPromptFile`] with the line; [`DataError::NoPrompts`].
pub fn read_prompts(path: &Path) -> Result<Vec<String>, DataError> {
    let bad = |line: usize, reason: String| DataError::BadPromptFile {
        path: path.to_path_buf(),
        line,
        reason,
    };
    let bytes = fs::read(path).map_err(io_error("read", path))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        bad(line_of(&bytes, error.valid_up_to()), format!("it is not valid UTF-8 ({error})"))
    })?;
    let text = text.trim_start_matches('\u{feff}').trim_end();
    let is_json = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("jsonl"));
    let prompts: Vec<String> = if is_json {
        let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
        let prompt = |(line, number)| prompt_of_object(line).map_err(|reason| bad(number, reason));
        lines.map(prompt).collect::<Result<_, _>>()?
    } else {
        let prompt = |(line, number): (&str, usize)| match line.trim() {
            "" => Err(bad(number, EMPTY_LINE.to_owned())),
            prompt => Ok(prompt.to_owned()),
        };
        text.lines().zip(1..).map(prompt).collect::<Result<_, _>>()?
    };
    match prompts.is_empty() {
        true => Err(DataError::NoPrompts { path: path.to_path_buf() }),
        false => Ok(prompts),
    }
}

/// The prompt of one line of a `.jsonl`, or what is wrong with it.
fn prompt_of_object(line: &str) -> Result<String, String> {
    let json: Value =
        serde_json::from_str(line).map_err(|error| format!("it is not valid JSON ({error})"))?;
    let Value::Object(object) = &json else { return Err("it is not a JSON object".to_owned()) };
    match object.get(FIELD) {
        Some(Value::String(text)) => Ok(text.trim().to_owned()),
        Some(other) => Err(format!("`{FIELD}` is {other}, not a string")),
        None => Err(format!("it has no field `{FIELD}`")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(name: &str, contents: &[u8]) -> Result<Vec<String>, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, contents).unwrap();
        read_prompts(&path)
    }

    /// The line an error names, and what it says.
    fn refusal(name: &str, contents: &[u8]) -> (usize, String) {
        match read(name, contents).unwrap_err() {
            DataError::BadPromptFile { line, reason, .. } => (line, reason),
            error => panic!("{error}"),
        }
    }

    #[test]
    fn a_prompt_per_line() {
        let found = read("p.txt", "\u{feff}a red dot\r\n  ein größerer Punkt \n\n\n".as_bytes());
        assert_eq!(found.unwrap(), ["a red dot", "ein größerer Punkt"]);
        assert_eq!(read("prompts", b"{\"text\": \"x\"}").unwrap(), ["{\"text\": \"x\"}"]);
    }

    #[test]
    fn objects_with_a_text() {
        let lines = b"{\"file_name\": \"0.png\", \"text\": \"a dot\"}\n\n{\"text\": \"\"}\n";
        for name in ["p.jsonl", "metadata.JSONL"] {
            assert_eq!(read(name, lines).unwrap(), ["a dot", ""]);
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let (line, reason) = refusal("p.txt", b"good\nbad \xff\n");
        assert!(line == 2 && reason.contains("UTF-8"), "{line}: {reason}");
        let (line, reason) = refusal("p.txt", b"one\n\nthree\n");
        assert!(line == 2 && reason.contains(".jsonl"), "{line}: {reason}");
        for (broken, word) in [
            ("{\"caption\": \"x\"}", "no field `text`"),
            ("{\"text\": 3}", "`text` is 3"),
            ("[1]", "object"),
            ("{\"text\": ", "JSON"),
        ] {
            let contents = format!("{{\"text\": \"good\"}}\n\n{broken}\n");
            let (line, reason) = refusal("p.jsonl", contents.as_bytes());
            assert!(line == 3 && reason.contains(word), "{line}: {reason}");
        }
    }

    #[test]
    fn no_prompt_at_all_is_an_error() {
        for (name, contents) in [("p.txt", ""), ("p.txt", " \n\n"), ("p.jsonl", "\n")] {
            let error = read(name, contents.as_bytes()).unwrap_err();
            assert!(matches!(error, DataError::NoPrompts { .. }), "{error}");
        }
        let error = read_prompts(Path::new("no/such/file")).unwrap_err();
        assert!(matches!(error, DataError::Io { .. }), "{error}");
    }
}
