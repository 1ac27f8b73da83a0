//! CIFAR-10 (Krizhevsky 2009): 32x32 pictures of ten classes, the class name as caption.
//!
//! Two forms are read: the binary version, whose records are one label byte and 3,072 pixel bytes
//! (`[3, 32, 32]`), and the Parquet files of the Hugging Face Hub with the columns `img` and
//! `label`.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::data_set::{Example, StoredPicture};
use crate::error::{DataError, io_error};
use crate::imagefolder::require_folder;
use crate::parquet_pictures::{CaptionColumn, ParquetPictures, parquet_files};
use crate::picture::Picture;

/// The class names, by label.
pub const CIFAR10_CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The two parts CIFAR-10 comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cifar10Split {
    /// `data_batch_1.bin` to `data_batch_5.bin`, or `train-*.parquet`: 50,000 pictures.
    #[default]
    Train,
    /// `test_batch.bin`, or `test-*.parquet`: 10,000 pictures.
    Test,
}

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const RECORD: usize = 1 + 3 * PLANE;
const CLASS_NAMES_FILE: &str = "batches.meta.txt";
/// The folder the binary version's archive unpacks to.
const BINARY_FOLDER: &str = "cifar-10-batches-bin";
/// The folders in which the Hub's copies keep their Parquet files.
const PARQUET_FOLDERS: [&str; 2] = ["plain_text", "data"];

/// An opened CIFAR-10.
#[derive(Debug)]
pub(crate) enum Cifar10 {
    Binary(Vec<BinaryFile>),
    Parquet(ParquetPictures),
}

#[derive(Debug)]
pub(crate) struct BinaryFile {
    path: PathBuf,
    /// The examples that lie in this file.
    examples: Range<usize>,
}

impl Cifar10 {
    pub(crate) fn open(
        folder: &Path,
        split: Cifar10Split,
    ) -> Result<(Self, Vec<Example>), DataError> {
        require_folder(folder, "folder of CIFAR-10's files")?;
        let file_names = split.binary_file_names();
        for binary_folder in [folder.to_path_buf(), folder.join(BINARY_FOLDER)] {
            if binary_folder.join(&file_names[0]).is_file() {
                return open_binary(&binary_folder, split);
            }
        }
        let prefix = split.parquet_prefix();
        let standard_names = CIFAR10_CLASSES.map(str::to_owned);
        let parquet_folders = PARQUET_FOLDERS.map(|name| folder.join(name));
        for parquet_folder in std::iter::once(folder)
            .chain(parquet_folders.iter().map(PathBuf::as_path).filter(|folder| folder.is_dir()))
        {
            let paths = parquet_files(parquet_folder, prefix)?;
            if !paths.is_empty() {
                let captions = CaptionColumn::Label("label", &standard_names);
                let (parquet, examples) = ParquetPictures::open_files(paths, "img", captions)?;
                return Ok((Self::Parquet(parquet), examples));
            }
        }
        Err(DataError::NotCifar10 {
            path: folder.to_path_buf(),
            missing: file_names[0].clone(),
            parquet_prefix: prefix,
        })
    }

    pub(crate) fn read(&self, indices: Range<usize>) -> Result<Vec<StoredPicture>, DataError> {
        let files = match self {
            Self::Binary(files) => files,
            Self::Parquet(parquet) => return parquet.read(indices),
        };
        let mut pictures = Vec::with_capacity(indices.len());
        for file in files {
            let start = indices.start.max(file.examples.start);
            let end = indices.end.min(file.examples.end);
            if start < end {
                let records = start - file.examples.start..end - file.examples.start;
                file.read(records, &mut pictures).map_err(io_error("read", &file.path))?;
            }
        }
        Ok(pictures)
    }
}

impl Cifar10Split {
    fn binary_file_names(self) -> Vec<String> {
        match self {
            Self::Train => (1..=5).map(|number| format!("data_batch_{number}.bin")).collect(),
            Self::Test => vec!["test_batch.bin".to_owned()],
        }
    }

    fn parquet_prefix(self) -> &'static str {
        match self {
            Self::Train => "train-",
            Self::Test => "test-",
        }
    }
}

/// Reads and checks all labels.
fn open_binary(folder: &Path, split: Cifar10Split) -> Result<(Cifar10, Vec<Example>), DataError> {
    let classes = read_class_names(&folder.join(CLASS_NAMES_FILE))?;
    let mut files = Vec::new();
    let mut examples = Vec::new();
    for file_name in split.binary_file_names() {
        let path = folder.join(&file_name);
        let bytes = fs::read(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::NotCifar10 {
                path: folder.to_path_buf(),
                missing: file_name.clone(),
                parquet_prefix: split.parquet_prefix(),
            },
            _ => io_error("read", &path)(source),
        })?;
        let bad_file = |reason: String| DataError::BadCifar10File { path: path.clone(), reason };
        if bytes.is_empty() || bytes.len() % RECORD != 0 {
            return Err(bad_file(format!(
                "its {} bytes are not a number of {RECORD}-byte records",
                bytes.len()
            )));
        }
        let start = examples.len();
        for (record, content) in bytes.chunks_exact(RECORD).enumerate() {
            let class = classes.get(usize::from(content[0])).ok_or_else(|| {
                bad_file(format!(
                    "record {record} has label {}, not one of 0..{}",
                    content[0],
                    classes.len()
                ))
            })?;
            examples.push(Example {
                name: format!("{file_name}#{record}"),
                caption: Some(class.clone()),
            });
        }
        files.push(BinaryFile { path, examples: start..examples.len() });
    }
    Ok((Cifar10::Binary(files), examples))
}

/// The class names of `batches.meta.txt`, one per line; the standard ones where there is no such
/// file.
fn read_class_names(path: &Path) -> Result<Vec<String>, DataError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(CIFAR10_CLASSES.map(str::to_owned).to_vec());
        }
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if names.len() != CIFAR10_CLASSES.len() {
        return Err(DataError::BadCifar10File {
            path: path.to_path_buf(),
            reason: format!("it names {} classes, not {}", names.len(), CIFAR10_CLASSES.len()),
        });
    }
    Ok(names)
}

impl BinaryFile {
    fn read(
        &self,
        records: Range<usize>,
        pictures: &mut Vec<StoredPicture>,
    ) -> std::io::Result<()> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start((records.start * RECORD) as u64))?;
        let mut bytes = vec![0; records.len() * RECORD];
        file.read_exact(&mut bytes)?;
        for (record, content) in records.zip(bytes.chunks_exact(RECORD)) {
            let planes = &content[1..];
            let pixels = (0..PLANE)
                .flat_map(|position| [0, 1, 2].map(|channel| planes[channel * PLANE + position]))
                .collect();
            pictures.push(StoredPicture::Decoded(Picture {
                name: format!("{}#{record}", self.path.display()),
                width: SIDE as u32,
                height: SIDE as u32,
                pixels,
            }));
        }
        Ok(())
    }
}
