//! A folder of pictures, with or without captions: the Hugging Face `imagefolder` layout.
//!
//! Pictures are found by their endings in the folder and its subfolders and ordered by relative
//! path, byte by byte. Files and folders whose names begin with a dot are left out, as everywhere,
//! and links to folders are not followed. When `metadata.jsonl` is there, it must name every
//! picture: a picture that silently loses its caption, or is silently left out, spoils what is
//! trained on captions. A line without the caption field, or with null in it, is allowed and gives a
//! picture without caption. Metadata in other formats or in subfolders is refused, not ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use crate::data_set::{Example, StoredPicture};
use crate::error::{DataError, io_error};

const METADATA: &str = "metadata.jsonl";
const OTHER_METADATA: [&str; 2] = ["metadata.csv", "metadata.parquet"];
const ENDINGS: [&str; 5] = ["png", "jpg", "jpeg", "webp", "bmp"];
const WHAT: &str = "folder of the pictures";

/// How many pictures without a line an error names.
const LISTED_PICTURES: usize = 5;

/// The files of an imagefolder, in order.
#[derive(Debug)]
pub(crate) struct Imagefolder {
    paths: Vec<PathBuf>,
}

impl Imagefolder {
    pub(crate) fn open(
        folder: &Path,
        caption_field: &str,
    ) -> Result<(Self, Vec<Example>), DataError> {
        require_folder(folder, WHAT)?;
        let root = fs::canonicalize(folder).map_err(io_error("read", folder))?;
        let names = picture_names(folder, &root, Metadata::Read)?;
        let metadata = folder.join(METADATA);
        let mut captions = if metadata.is_file() {
            read_captions(&metadata, &root, &names, caption_field)?
        } else {
            BTreeMap::new()
        };
        let paths = names.iter().map(|name| root.join(name)).collect();
        let examples = names
            .into_iter()
            .map(|name| Example { caption: captions.remove(&name), name })
            .collect();
        Ok((Self { paths }, examples))
    }

    pub(crate) fn read(&self, indices: Range<usize>) -> Vec<StoredPicture> {
        self.paths[indices]
            .par_iter()
            .map(|path| match fs::read(path) {
                Ok(bytes) => StoredPicture::Encoded(bytes),
                Err(error) => StoredPicture::Unreadable(error),
            })
            .collect()
    }
}

/// The pictures of a folder and its subfolders in the order of their relative paths (byte by byte),
/// found as for a data set. Files with captions are not looked at, and links may lead anywhere.
///
/// # Errors
/// [`DataError::Missing`], [`DataError::NotAFolder`], [`DataError::Io`], [`DataError::NoPictures`],
/// [`DataError::NameNotUnicode`].
pub fn picture_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    require_folder(folder, WHAT)?;
    let root = fs::canonicalize(folder).map_err(io_error("read", folder))?;
    let names = picture_names(folder, &root, Metadata::Ignored)?;
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// What becomes of captions beside the pictures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Metadata {
    /// They are read, so that those in a place or of a kind that is not read are refused.
    Read,
    Ignored,
}

/// The relative paths of all pictures of `folder`, which is `root` without links.
fn picture_names(
    folder: &Path,
    root: &Path,
    metadata: Metadata,
) -> Result<BTreeSet<String>, DataError> {
    let mut names = BTreeSet::new();
    find_pictures(root, root, metadata, &mut names)?;
    if names.is_empty() {
        return Err(DataError::NoPictures { path: folder.to_path_buf() });
    }
    Ok(names)
}

/// Refuses a path that is not there or not a folder.
pub(crate) fn require_folder(path: &Path, expected: &'static str) -> Result<(), DataError> {
    let metadata = fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => DataError::Missing { path: path.to_path_buf(), expected },
        _ => io_error("read", path)(source),
    })?;
    if metadata.is_dir() {
        Ok(())
    } else {
        Err(DataError::NotAFolder { path: path.to_path_buf(), expected })
    }
}

/// Adds the relative paths, joined by `/`, of all pictures below `folder`.
fn find_pictures(
    root: &Path,
    folder: &Path,
    metadata: Metadata,
    names: &mut BTreeSet<String>,
) -> Result<(), DataError> {
    for entry in fs::read_dir(folder).map_err(io_error("read", folder))? {
        let entry = entry.map_err(io_error("read", folder))?;
        let path = entry.path();
        let file_name = entry.file_name();
        if file_name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let file_type = entry.file_type().map_err(io_error("read", &path))?;
        if file_type.is_dir() {
            find_pictures(root, &path, metadata, names)?;
            continue;
        }
        let is_misplaced_metadata = file_name == METADATA && folder != root;
        let is_unread =
            is_misplaced_metadata || OTHER_METADATA.iter().any(|other| file_name == *other);
        if metadata == Metadata::Read && is_unread {
            return Err(DataError::UnsupportedMetadata { path });
        }
        let can_be_read = file_type.is_file() || file_type.is_symlink();
        if !can_be_read || !has_picture_ending(&path) {
            continue;
        }
        let name = relative_name(root, &path)?;
        if file_type.is_symlink() {
            let target = fs::canonicalize(&path).map_err(io_error("read", &path))?;
            if target.is_dir() {
                continue;
            }
            if metadata == Metadata::Read && !target.starts_with(root) {
                return Err(DataError::OutsideFolder {
                    named_by: "a symbolic link".to_owned(),
                    file_name: name,
                    folder: root.to_path_buf(),
                });
            }
        }
        names.insert(name);
    }
    Ok(())
}

fn has_picture_ending(path: &Path) -> bool {
    path.extension()
        .and_then(|ending| ending.to_str())
        .is_some_and(|ending| ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

fn relative_name(root: &Path, path: &Path) -> Result<String, DataError> {
    let relative = path.strip_prefix(root).unwrap_or(path);
    let parts: Option<Vec<&str>> =
        relative.components().map(|component| component.as_os_str().to_str()).collect();
    Ok(parts.ok_or_else(|| DataError::NameNotUnicode { path: path.to_path_buf() })?.join("/"))
}

/// The captions by picture name; pictures whose line has none are left out.
fn read_captions(
    path: &Path,
    root: &Path,
    names: &BTreeSet<String>,
    caption_field: &str,
) -> Result<BTreeMap<String, String>, DataError> {
    let bytes = fs::read(path).map_err(io_error("read", path))?;
    let mut first_lines: BTreeMap<String, usize> = BTreeMap::new();
    let mut captions = BTreeMap::new();
    let mut fields: BTreeSet<String> = BTreeSet::new();
    for (index, bytes) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let line = index + 1;
        let bad_line =
            |reason: String| DataError::BadMetadataLine { path: path.to_path_buf(), line, reason };
        let text = std::str::from_utf8(bytes)
            .map_err(|error| bad_line(format!("it is not valid UTF-8 ({error})")))?
            .trim_start_matches('\u{feff}')
            .trim();
        if text.is_empty() {
            continue;
        }
        let entry: Value = serde_json::from_str(text)
            .map_err(|error| bad_line(format!("it is not valid JSON ({error})")))?;
        let Value::Object(entry) = entry else {
            return Err(bad_line("it is not a JSON object".to_owned()));
        };
        let file_name = match entry.get("file_name") {
            Some(Value::String(file_name)) => file_name,
            Some(other) => {
                return Err(bad_line(format!("`file_name` is {other}, not a string")));
            }
            None => return Err(bad_line("`file_name` is missing".to_owned())),
        };
        let name = picture_name(path, line, file_name, root)?;
        if !names.contains(&name) {
            return Err(DataError::NoSuchPicture {
                path: path.to_path_buf(),
                line,
                file_name: file_name.clone(),
            });
        }
        if let Some(&first_line) = first_lines.get(&name) {
            return Err(DataError::DuplicateFileName {
                path: path.to_path_buf(),
                line,
                first_line,
                file_name: file_name.clone(),
            });
        }
        match entry.get(caption_field) {
            Some(Value::String(caption)) => {
                captions.insert(name.clone(), caption.clone());
            }
            None | Some(Value::Null) => {}
            Some(other) => {
                return Err(bad_line(format!("`{caption_field}` is {other}, not a string")));
            }
        }
        fields.extend(entry.keys().cloned());
        first_lines.insert(name, line);
    }
    if !fields.is_empty() && !fields.contains(caption_field) {
        fields.remove("file_name");
        return Err(DataError::NoCaptionField {
            path: path.to_path_buf(),
            field: caption_field.to_owned(),
            found: if fields.is_empty() {
                "none".to_owned()
            } else {
                Vec::from_iter(fields).join(", ")
            },
        });
    }
    let unnamed: Vec<&str> =
        names.iter().filter(|name| !first_lines.contains_key(*name)).map(String::as_str).collect();
    if !unnamed.is_empty() {
        return Err(DataError::UnnamedPictures {
            path: path.to_path_buf(),
            count: unnamed.len(),
            total: names.len(),
            examples: unnamed[..unnamed.len().min(LISTED_PICTURES)].join(", "),
        });
    }
    Ok(captions)
}

/// The name of the picture a line means, with `.` and doubled slashes taken out.
fn picture_name(
    path: &Path,
    line: usize,
    file_name: &str,
    root: &Path,
) -> Result<String, DataError> {
    let outside = || DataError::OutsideFolder {
        named_by: format!("{}, line {line},", path.display()),
        file_name: file_name.to_owned(),
        folder: root.to_path_buf(),
    };
    let mut parts = Vec::new();
    for component in Path::new(file_name).components() {
        match component {
            // The whole name was a string, so its parts are.
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(outside());
            }
        }
    }
    let name = parts.join("/");
    // A picture behind a link to a folder elsewhere is outside, too, though no `..` says so.
    match fs::canonicalize(root.join(&name)) {
        Ok(target) if !target.starts_with(root) => Err(outside()),
        _ => Ok(name),
    }
}
