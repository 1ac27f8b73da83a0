//! Captions in a file of their own, paired with pictures: what a CLIP score is computed over.
//!
//! | ending | contents |
//! |---|---|
//! | `.jsonl` | an object per line, with the picture's file and its caption |
//! | `.json` | `{"a.png": "a caption"}`, a list of such objects, or COCO's `images` and `annotations` |
//! | `.csv` | a header that names both columns, then a row per picture; quotes as in RFC 4180 |
//! | `.tsv` | the same with tabs, and quotes that mean themselves |
//! | `.txt` | a caption per line, the i-th for the i-th picture in the order of the paths |
//!
//! The file is called `file_name`, `file` or `image`, the caption `text` or `caption`; other fields are
//! not looked at. A file is named by as many last parts of its path as tell it from the others. Every
//! picture must have a caption and every caption a picture: a score over less than all is another score.
//! COCO describes a picture several times; each description is a pair of its own.
//!
//! Not here: captions that belong to a data set (`imagefolder`).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{DataError, io_error};

const FILE_FIELDS: [&str; 3] = ["file_name", "file", "image"];
const CAPTION_FIELDS: [&str; 2] = ["text", "caption"];

/// How many pictures or captions without a partner an error names.
const LISTED: usize = 5;

/// Every picture with its caption, in the order of the pictures' paths (byte by byte).
///
/// # Errors
/// [`DataError::Io`]; [`DataError::UnknownCaptionFormat`]; [`DataError::BadCaptionFile`] with the line or
/// the entry; [`DataError::DuplicateCaption`], [`DataError::AmbiguousPicture`],
/// [`DataError::CaptionsWithoutPicture`], [`DataError::PicturesWithoutCaption`],
/// [`DataError::CaptionCount`].
pub fn pair_captions(
    images: &[PathBuf],
    captions: &Path,
) -> Result<Vec<(PathBuf, String)>, DataError> {
    let mut images = images.to_vec();
    // Paths compare part by part, `a/b.png` before `a.png`; data sets have them the other way round.
    images.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    let file = CaptionFile { path: captions };
    let ending = captions.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let format = match ending.to_ascii_lowercase().as_str() {
        "jsonl" => Format::JsonLines,
        "json" => Format::Json,
        "csv" => Format::CommaSeparated,
        "tsv" => Format::TabSeparated,
        "txt" => Format::Lines,
        _ => return Err(DataError::UnknownCaptionFormat { path: captions.to_path_buf() }),
    };
    let bytes = fs::read(captions).map_err(io_error("read", captions))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = line_of(&bytes, error.valid_up_to());
        file.bad(Place::Line(line), format!("it is not valid UTF-8 ({error})"))
    })?;
    let text = text.trim_start_matches('\u{feff}');
    let read = match format {
        Format::JsonLines => file.json_lines(text),
        Format::Json => file.json(text),
        Format::CommaSeparated => file.comma_separated(text),
        Format::TabSeparated => file.tab_separated(text),
        Format::Lines => file.lines(text),
    };
    match read? {
        Captions::InOrder(captions) if captions.len() == images.len() => {
            Ok(images.into_iter().zip(captions).collect())
        }
        Captions::InOrder(captions) => Err(DataError::CaptionCount {
            path: file.path.to_path_buf(),
            captions: captions.len(),
            pictures: images.len(),
        }),
        Captions::ByName { captions, several } => file.pair(images, captions, several),
    }
}

/// How a file is read, by its ending.
enum Format {
    JsonLines,
    Json,
    CommaSeparated,
    TabSeparated,
    Lines,
}

/// What a file holds.
enum Captions {
    InOrder(Vec<String>),
    ByName {
        captions: Vec<Caption>,
        /// Whether a picture may have more than one.
        several: bool,
    },
}

impl Captions {
    fn one_each(captions: Vec<Caption>) -> Self {
        Self::ByName { captions, several: false }
    }
}

struct Caption {
    place: Place,
    file: String,
    text: String,
}

/// Where something stands in a file, counted from one.
#[derive(Clone, Copy)]
enum Place {
    Line(usize),
    Entry(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Entry(entry) => write!(f, "entry {entry}"),
        }
    }
}

struct CaptionFile<'a> {
    path: &'a Path,
}

impl CaptionFile<'_> {
    fn bad(&self, place: Place, reason: impl Into<String>) -> DataError {
        let (path, place) = (self.path.to_path_buf(), place.to_string());
        DataError::BadCaptionFile { path, place, reason: reason.into() }
    }

    /// A caption, which may not be blank.
    fn caption(&self, place: Place, file: &str, text: &str) -> Result<Caption, DataError> {
        if text.trim().is_empty() {
            return Err(self.bad(place, "the caption is empty"));
        }
        Ok(Caption { place, file: file.to_owned(), text: text.to_owned() })
    }

    fn lines(&self, text: &str) -> Result<Captions, DataError> {
        let captions = text.trim_end().lines().zip(1..).map(|(line, number)| {
            let line = line.trim();
            self.caption(Place::Line(number), "", line).map(|caption| caption.text)
        });
        captions.collect::<Result<_, _>>().map(Captions::InOrder)
    }

    fn json_lines(&self, text: &str) -> Result<Captions, DataError> {
        let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
        let captions = lines.map(|(line, number)| {
            let place = Place::Line(number);
            let json = serde_json::from_str(line)
                .map_err(|error| self.bad(place, format!("it is not valid JSON ({error})")))?;
            self.object(place, &json)
        });
        captions.collect::<Result<_, _>>().map(Captions::one_each)
    }

    /// The caption an object holds.
    fn object(&self, place: Place, json: &Value) -> Result<Caption, DataError> {
        let Value::Object(object) = json else {
            return Err(self.bad(place, "it is not a JSON object"));
        };
        let field = |names: &[&str]| match names.iter().find_map(|name| object.get_key_value(*name))
        {
            Some((_, Value::String(text))) => Ok(text.as_str()),
            Some((name, other)) => {
                Err(self.bad(place, format!("`{name}` is {other}, not a string")))
            }
            None => Err(self.bad(place, missing(names))),
        };
        self.caption(place, field(&FILE_FIELDS)?, field(&CAPTION_FIELDS)?)
    }

    fn json(&self, text: &str) -> Result<Captions, DataError> {
        let not_json = |error: serde_json::Error| {
            self.bad(Place::Line(error.line().max(1)), format!("it is not valid JSON ({error})"))
        };
        match serde_json::from_str::<Value>(text).map_err(not_json)? {
            Value::Array(entries) => {
                let captions = entries.iter().zip(1..);
                let captions = captions.map(|(entry, i)| self.object(Place::Entry(i), entry));
                captions.collect::<Result<_, _>>().map(Captions::one_each)
            }
            Value::Object(object) if object.get("annotations").is_some_and(Value::is_array) => {
                self.coco(&object)
            }
            Value::Object(_) => {
                // Read again, since a map of its own keeps only the last of equal names.
                let Entries(entries) = serde_json::from_str(text).map_err(not_json)?;
                let captions = entries.iter().zip(1..).map(|((file, caption), i)| match caption {
                    Value::String(caption) => self.caption(Place::Entry(i), file, caption),
                    other => {
                        Err(self.bad(Place::Entry(i), format!("{file:?} is {other}, not a string")))
                    }
                });
                captions.collect::<Result<_, _>>().map(Captions::one_each)
            }
            other => Err(self.bad(Place::Line(1), format!("it holds {other}, no captions"))),
        }
    }

    /// COCO's `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`).
    fn coco(&self, object: &Map<String, Value>) -> Result<Captions, DataError> {
        let list = |name: &str| {
            let list = object.get(name).and_then(Value::as_array);
            list.ok_or_else(|| self.bad(Place::Line(1), format!("it has no list `{name}`")))
        };
        let mut files = BTreeMap::new();
        for (image, i) in list("images")?.iter().zip(1..) {
            let place = Place::Entry(i);
            let bad = |field: &str| self.bad(place, format!("of `images`: `{field}` is missing"));
            let id = image["id"].as_i64().ok_or_else(|| bad("id"))?;
            let file = image["file_name"].as_str().ok_or_else(|| bad("file_name"))?;
            files.insert(id, file);
        }
        let captions = list("annotations")?.iter().zip(1..).map(|(annotation, i)| {
            let place = Place::Entry(i);
            let bad = |reason: String| self.bad(place, format!("of `annotations`: {reason}"));
            let id = annotation["image_id"].as_i64();
            let id = id.ok_or_else(|| bad("`image_id` is missing".to_owned()))?;
            let file = files.get(&id);
            let file = file.ok_or_else(|| bad(format!("`images` has no image {id}")))?;
            let text = annotation["caption"].as_str();
            let text = text.ok_or_else(|| bad("`caption` is missing".to_owned()))?;
            self.caption(place, file, text.trim())
        });
        Ok(Captions::ByName { captions: captions.collect::<Result<_, _>>()?, several: true })
    }

    fn comma_separated(&self, text: &str) -> Result<Captions, DataError> {
        self.table(comma_separated_rows(text).map_err(|unclosed| {
            self.bad(Place::Line(unclosed), "a quote opens here and is not closed as it should be")
        })?)
    }

    fn tab_separated(&self, text: &str) -> Result<Captions, DataError> {
        let rows = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
        let row = |(line, number): (&str, usize)| {
            (number, line.split('\t').map(str::to_owned).collect::<Vec<_>>())
        };
        self.table(rows.map(row).collect())
    }

    /// A header, then rows, each with its line.
    fn table(&self, rows: Vec<(usize, Vec<String>)>) -> Result<Captions, DataError> {
        let mut rows = rows.into_iter();
        let (line, header) = rows.next().unwrap_or((1, Vec::new()));
        let names: Vec<String> = header.iter().map(|name| name.trim().to_lowercase()).collect();
        let column = |known: &[&str]| {
            let found = known.iter().find_map(|known| names.iter().position(|name| name == known));
            found.ok_or_else(|| {
                let found = header.join(", ");
                self.bad(Place::Line(line), format!("{} in the header ({found})", missing(known)))
            })
        };
        let (file, caption) = (column(&FILE_FIELDS)?, column(&CAPTION_FIELDS)?);
        let captions = rows.map(|(line, row)| {
            if row.len() != header.len() {
                let (found, expected) = (row.len(), header.len());
                let reason = format!(
                    "it has {found} fields, the header has {expected}; put captions with the \
                     separator in them in quotes"
                );
                return Err(self.bad(Place::Line(line), reason));
            }
            self.caption(Place::Line(line), row[file].trim(), row[caption].trim())
        });
        captions.collect::<Result<_, _>>().map(Captions::one_each)
    }

    /// Finds the picture of every caption.
    fn pair(
        &self,
        images: Vec<PathBuf>,
        captions: Vec<Caption>,
        several: bool,
    ) -> Result<Vec<(PathBuf, String)>, DataError> {
        let total = captions.len();
        let mut by_file_name: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
        for (index, image) in images.iter().enumerate() {
            let name = image.file_name().unwrap_or_default().as_encoded_bytes();
            by_file_name.entry(name).or_default().push(index);
        }
        let mut captions_of: Vec<Vec<Caption>> = images.iter().map(|_| Vec::new()).collect();
        let mut lost = Vec::new();
        for caption in captions {
            let named = without_dots(Path::new(&caption.file));
            let name = named.file_name().unwrap_or_default().as_encoded_bytes();
            let same_name = by_file_name.get(name).map_or(&[][..], Vec::as_slice);
            let mut found = same_name.iter().filter(|&&index| images[index].ends_with(&named));
            let Some(&index) = found.next() else {
                lost.push(format!("{:?} ({})", caption.file, caption.place));
                continue;
            };
            if let Some(&other) = found.next() {
                return Err(DataError::AmbiguousPicture {
                    path: self.path.to_path_buf(),
                    place: caption.place.to_string(),
                    file_name: caption.file,
                    first: images[index].clone(),
                    second: images[other].clone(),
                });
            }
            if let (false, Some(first)) = (several, captions_of[index].first()) {
                return Err(DataError::DuplicateCaption {
                    path: self.path.to_path_buf(),
                    place: caption.place.to_string(),
                    first_place: first.place.to_string(),
                    file_name: caption.file,
                });
            }
            captions_of[index].push(caption);
        }
        let listed = |names: &[String]| names[..names.len().min(LISTED)].join(", ");
        if !lost.is_empty() {
            return Err(DataError::CaptionsWithoutPicture {
                path: self.path.to_path_buf(),
                count: lost.len(),
                total,
                examples: listed(&lost),
            });
        }
        let bare = images.iter().zip(&captions_of).filter(|(_, captions)| captions.is_empty());
        let bare: Vec<String> = bare.map(|(image, _)| image.display().to_string()).collect();
        if !bare.is_empty() {
            return Err(DataError::PicturesWithoutCaption {
                path: self.path.to_path_buf(),
                count: bare.len(),
                total: images.len(),
                examples: listed(&bare),
            });
        }
        let pairs = images.into_iter().zip(captions_of);
        let pairs = pairs.flat_map(|(image, captions)| {
            captions.into_iter().map(move |caption| (image.clone(), caption.text))
        });
        Ok(pairs.collect())
    }
}

fn missing(names: &[&str]) -> String {
    format!("`{}` is missing", names.join("` or `"))
}

/// The line of a byte, counted from one.
pub(crate) fn line_of(bytes: &[u8], position: usize) -> usize {
    1 + bytes[..position].iter().filter(|&&byte| byte == b'\n').count()
}

/// A path as it is compared: `./a.png` is `a.png`.
fn without_dots(path: &Path) -> PathBuf {
    path.components().filter(|component| *component != Component::CurDir).collect()
}

/// Rows with the line they begin in; the line of a quote that is not closed or has something behind.
fn comma_separated_rows(text: &str) -> Result<Vec<(usize, Vec<String>)>, usize> {
    let mut rows = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while !rest.is_empty() {
        let first_line = line;
        let mut row = Vec::new();
        loop {
            let field;
            (field, rest) = match rest.strip_prefix('"') {
                Some(quoted) => {
                    let (field, behind) = quoted_field(quoted).ok_or(line)?;
                    line += field.matches('\n').count();
                    (field, behind)
                }
                None => {
                    let end = rest.find([',', '\n']).unwrap_or(rest.len());
                    (rest[..end].trim_end_matches('\r').to_owned(), &rest[end..])
                }
            };
            row.push(field);
            match rest.strip_prefix(',') {
                Some(behind) => rest = behind,
                None => break,
            }
        }
        let blank = row.len() == 1 && row[0].trim().is_empty();
        if !blank {
            rows.push((first_line, row));
        }
        rest = rest.strip_prefix('\n').unwrap_or(rest);
        line += 1;
    }
    Ok(rows)
}

/// A field behind its opening quote, and what follows: a comma, the end of the line, or nothing.
fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(behind) => {
                field.push('"');
                rest = behind;
            }
            None => break,
        }
    }
    let rest = rest.strip_prefix('\r').filter(|rest| rest.starts_with('\n')).unwrap_or(rest);
    (rest.is_empty() || rest.starts_with([',', '\n'])).then_some((field, rest))
}

/// The entries of a JSON object in the order of the file, those of equal names included.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_know_quotes_and_the_line_they_begin_in() {
        let text = "file,caption\r\na.png,\"one, \"\"two\"\"\nthree\"\r\n\nb.png,a \"big\" cat";
        let rows = comma_separated_rows(text).expect("all quotes are closed");
        let row = |line, fields: [&str; 2]| (line, fields.map(str::to_owned).to_vec());
        let expected = [
            row(1, ["file", "caption"]),
            row(2, ["a.png", "one, \"two\"\nthree"]),
            row(5, ["b.png", "a \"big\" cat"]),
        ];
        assert_eq!(rows, expected);
        assert_eq!(comma_separated_rows("a,b\nc,\"d\n\ne"), Err(2));
        assert_eq!(comma_separated_rows("a,b\n\n\"c\"d,e"), Err(3));
        assert_eq!(comma_separated_rows("a,"), Ok(vec![row(1, ["a", ""])]));
    }
}
