//! Tars of pictures and captions in webdataset's form (Aizman, Maltby and Breuel 2019, arXiv 2001.01858):
//! entries whose names agree up to the first dot of the last part, the key, belong together.
//!
//! Opening reads every tar once from header to header: captions are kept, of pictures only where they lie.
//! Nothing is unpacked; a picture is read from its place when it is wanted.
//! Not here: compressed tars, shards behind URLs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::data_set::{Example, StoredPicture};
use crate::error::{DataError, io_error};

/// The unit in which a tar is written.
const BLOCK: u64 = 512;

const PICTURE_EXTENSIONS: [&str; 5] = ["jpg", "jpeg", "png", "webp", "bmp"];

/// A larger caption file is a mistake, and must not fill the memory.
const MAX_CAPTION_BYTES: u64 = 1 << 24;

/// Tars whose pictures, one tar after the other, are the examples.
#[derive(Debug)]
pub(crate) struct Webdataset {
    tars: Vec<Tar>,
}

#[derive(Debug)]
struct Tar {
    path: PathBuf,
    /// The examples that lie in this tar.
    examples: Range<usize>,
    /// Where the picture of each lies.
    places: Vec<Place>,
}

/// Bytes of a file.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    bytes: u64,
}

impl Webdataset {
    /// Opens a tar, or a folder of tars ordered by name.
    pub(crate) fn open(
        path: &Path,
        caption_field: Option<&str>,
    ) -> Result<(Self, Vec<Example>), DataError> {
        let metadata = fs::metadata(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => DataError::Missing {
                path: path.to_path_buf(),
                expected: "tar of pictures and captions, or folder of such tars",
            },
            _ => io_error("read", path)(source),
        })?;
        let paths = if metadata.is_dir() { tar_files(path)? } else { vec![path.to_path_buf()] };
        if paths.is_empty() {
            return Err(DataError::Empty {
                what: format!("{} (no .tar file lies in it)", path.display()),
            });
        }
        let samples: Vec<Vec<Sample>> =
            paths.par_iter().map(|path| read_tar(path)).collect::<Result<_, _>>()?;
        let captioned = samples.iter().flatten().any(|sample| !sample.texts.is_empty());
        let (mut tars, mut examples) = (Vec::new(), Vec::new());
        for (path, samples) in paths.into_iter().zip(samples) {
            let (start, mut places) = (examples.len(), Vec::with_capacity(samples.len()));
            for sample in samples {
                let Sample { key, picture, mut texts } = sample;
                let Some((entry, place)) = picture else {
                    let entry = texts.pop().map(|(_, text)| text.entry).unwrap_or_default();
                    return Err(DataError::NoPictureInTar { path, entry, key });
                };
                let caption = match captioned {
                    true => Some(caption(&path, &entry, &texts, caption_field)?),
                    false => None,
                };
                let tar = path.file_name().unwrap_or_default().to_string_lossy();
                examples.push(Example { name: format!("{tar}/{entry}"), caption });
                places.push(place);
            }
            tars.push(Tar { path, examples: start..examples.len(), places });
        }
        if examples.is_empty() {
            return Err(DataError::Empty { what: format!("{} (no picture)", path.display()) });
        }
        Ok((Self { tars }, examples))
    }

    pub(crate) fn read(&self, indices: Range<usize>) -> Result<Vec<StoredPicture>, DataError> {
        let mut pictures = Vec::with_capacity(indices.len());
        for tar in &self.tars {
            let start = indices.start.max(tar.examples.start);
            let end = indices.end.min(tar.examples.end);
            if start < end {
                let mut file = File::open(&tar.path).map_err(io_error("read", &tar.path))?;
                let inside = start - tar.examples.start..end - tar.examples.start;
                for place in &tar.places[inside] {
                    pictures.push(match place.read(&mut file) {
                        Ok(bytes) => StoredPicture::Encoded(bytes),
                        Err(error) => StoredPicture::Unreadable(error),
                    });
                }
            }
        }
        Ok(pictures)
    }
}

impl Place {
    fn read(self, file: &mut File) -> io::Result<Vec<u8>> {
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(self.bytes).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != self.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }
}

/// The `.tar` files of a folder, ordered by name.
fn tar_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error("read", folder))? {
        let path = entry.map_err(io_error("read", folder))?.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// What a tar holds under one key.
#[derive(Debug, Default)]
struct Sample {
    key: String,
    /// The picture's entry, and where it lies.
    picture: Option<(String, Place)>,
    texts: Vec<(TextKind, Text)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextKind {
    Txt,
    Json,
}

#[derive(Debug)]
struct Text {
    entry: String,
    content: String,
}

/// All samples of a tar, ordered by key.
fn read_tar(path: &Path) -> Result<Vec<Sample>, DataError> {
    let file = File::open(path).map_err(io_error("read", path))?;
    let length = file.metadata().map_err(io_error("read", path))?.len();
    let mut archive = tar::Archive::new(file);
    let mut samples = BTreeMap::new();
    let (mut last, mut end): (Option<String>, u64) = (None, 0);
    let entries = archive.entries_with_seek().map_err(io_error("read", path))?;
    for entry in entries {
        let mut entry =
            entry.map_err(|error| no_header(path, error, last.clone(), length - end))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        let place = Place { offset: entry.raw_file_position(), bytes: entry.size() };
        let behind = place.offset.checked_add(place.bytes).filter(|&behind| behind <= length);
        let Some(behind) = behind else {
            let (path, entry) = (path.to_path_buf(), name);
            return Err(DataError::TruncatedTar { path, entry, within: true });
        };
        let kind = entry.header().entry_type();
        if !kind.is_dir() {
            let unicode = std::str::from_utf8(&entry.path_bytes()).is_ok();
            let content = Content { path, name: &name, kind, unicode, place };
            content.add_to(&mut samples, &mut entry)?;
        }
        end = behind.next_multiple_of(BLOCK).min(length);
        last = Some(name);
    }
    let file = archive.into_inner();
    check_end(path, file, end, last)?;
    Ok(samples.into_iter().map(|(key, sample)| Sample { key, ..sample }).collect())
}

/// Why no header could be read behind the entry `last`, where `rest` bytes are left.
fn no_header(path: &Path, error: io::Error, last: Option<String>, rest: u64) -> DataError {
    match last {
        _ if error.raw_os_error().is_some() => io_error("read", path)(error),
        Some(entry) if rest < BLOCK => {
            DataError::TruncatedTar { path: path.to_path_buf(), entry, within: false }
        }
        Some(entry) => bad_tar(path, Some(entry), "what follows is no header of an entry"),
        None => bad_tar(path, None, "it does not begin as a tar does"),
    }
}

/// That zeros follow from `end` on, at least one block of them.
fn check_end(path: &Path, mut file: File, end: u64, last: Option<String>) -> Result<(), DataError> {
    file.seek(SeekFrom::Start(end)).map_err(io_error("read", path))?;
    let mut rest = io::BufReader::new(file);
    let mut found = 0;
    let mut buffer = [0; BLOCK as usize];
    loop {
        match rest.read(&mut buffer).map_err(io_error("read", path))? {
            0 => break,
            bytes if buffer[..bytes].iter().all(|&byte| byte == 0) => found += bytes as u64,
            _ => {
                let reason = "something follows the end of the archive: several tars in one file?";
                return Err(bad_tar(path, last, reason));
            }
        }
    }
    match last {
        _ if found >= BLOCK => Ok(()),
        Some(entry) => {
            Err(DataError::TruncatedTar { path: path.to_path_buf(), entry, within: false })
        }
        None => Err(bad_tar(path, None, "it is empty")),
    }
}

/// An entry that is no folder.
struct Content<'a> {
    path: &'a Path,
    name: &'a str,
    kind: tar::EntryType,
    unicode: bool,
    place: Place,
}

impl Content<'_> {
    /// Puts the entry where it belongs; entries that are neither pictures nor captions are passed over.
    fn add_to(
        &self,
        samples: &mut BTreeMap<String, Sample>,
        content: &mut impl Read,
    ) -> Result<(), DataError> {
        let Some((key, extension)) = key_and_extension(self.name) else { return Ok(()) };
        let text = match extension.as_str() {
            "txt" => Some(TextKind::Txt),
            "json" => Some(TextKind::Json),
            extension if PICTURE_EXTENSIONS.contains(&extension) => None,
            _ => return Ok(()),
        };
        if !self.unicode {
            return Err(self.bad("the name is not valid UTF-8; rename the file and pack it again"));
        }
        if !(self.kind.is_file() || self.kind.is_contiguous()) {
            return Err(self.bad(
                "it is a link or a sparse file, not a plain one; pack the tar with \
                 `tar --dereference --hard-dereference`",
            ));
        }
        let sample = samples.entry(key).or_default();
        let entry = self.name.to_owned();
        match text {
            None => {
                if let Some((first, _)) = &sample.picture {
                    return Err(self.bad(&format!(
                        "there is already the picture {first:?} under this key; keep one of the two"
                    )));
                }
                sample.picture = Some((entry, self.place));
            }
            Some(kind) => {
                if let Some((_, first)) = sample.texts.iter().find(|(found, _)| *found == kind) {
                    return Err(self.bad(&format!(
                        "there is already {:?} under this key; keep one of the two",
                        first.entry
                    )));
                }
                sample.texts.push((kind, Text { entry, content: self.text(content)? }));
            }
        }
        Ok(())
    }

    fn text(&self, content: &mut impl Read) -> Result<String, DataError> {
        if self.place.bytes > MAX_CAPTION_BYTES {
            return Err(self.bad(&format!(
                "{} bytes are no caption; more than {MAX_CAPTION_BYTES} are refused",
                self.place.bytes
            )));
        }
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(io_error("read", self.path))?;
        String::from_utf8(bytes)
            .map_err(|error| self.bad(&format!("the text is not valid UTF-8 ({error})")))
    }

    fn bad(&self, reason: &str) -> DataError {
        bad_entry(self.path, self.name, reason)
    }
}

/// What a name has before the first dot of its last part, and behind it in small letters. Names whose last part
/// begins with a dot (or has none) are of no sample.
fn key_and_extension(name: &str) -> Option<(String, String)> {
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name[last..].find('.').filter(|&dot| dot > 0)? + last;
    Some((name[..dot].to_owned(), name[dot + 1..].to_lowercase()))
}

/// The caption of a picture: its `.txt`, or the field of its `.json`.
fn caption(
    path: &Path,
    picture: &str,
    texts: &[(TextKind, Text)],
    caption_field: Option<&str>,
) -> Result<String, DataError> {
    let of = |kind| texts.iter().find(|(found, _)| *found == kind).map(|(_, text)| text);
    let missing = |expected: String, fields: Vec<String>| DataError::NoCaptionInTar {
        path: path.to_path_buf(),
        entry: picture.to_owned(),
        expected,
        fields,
    };
    let fields = || match of(TextKind::Json) {
        None => Ok(None),
        Some(Text { entry, content }) => serde_json::from_str::<Map<String, Value>>(content)
            .map(Some)
            .map_err(|error| bad_entry(path, entry, &format!("it is no JSON object ({error})"))),
    };
    let Some(field) = caption_field else {
        return match of(TextKind::Txt) {
            // The end of a text file's line is not part of what it says.
            Some(text) => Ok(text.content.trim_end_matches(['\r', '\n']).to_owned()),
            None => Err(missing("a .txt file".to_owned(), texts_in(fields()?.as_ref()))),
        };
    };
    let fields = fields()?;
    match fields.as_ref().and_then(|fields| fields.get(field)) {
        Some(Value::String(caption)) => Ok(caption.clone()),
        None | Some(Value::Null) => {
            Err(missing(format!("the field {field:?} of a .json file"), texts_in(fields.as_ref())))
        }
        Some(other) => {
            let entry = of(TextKind::Json).map_or(picture, |text| &text.entry);
            Err(bad_entry(path, entry, &format!("`{field}` is {other}, not a string")))
        }
    }
}

/// Names of the fields that hold text.
fn texts_in(fields: Option<&Map<String, Value>>) -> Vec<String> {
    let fields = fields.into_iter().flatten();
    fields.filter(|(_, value)| value.is_string()).map(|(name, _)| name.clone()).collect()
}

fn bad_tar(path: &Path, behind: Option<String>, reason: &str) -> DataError {
    DataError::BadTar { path: path.to_path_buf(), behind, reason: reason.to_owned() }
}

fn bad_entry(path: &Path, entry: &str, reason: &str) -> DataError {
    DataError::BadTarEntry {
        path: path.to_path_buf(),
        entry: entry.to_owned(),
        reason: reason.to_owned(),
    }
}
