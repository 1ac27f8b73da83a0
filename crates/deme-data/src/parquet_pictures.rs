//! Parquet files with embedded pictures, as the Hugging Face Hub stores image data sets.
//!
//! The pictures' column holds the bytes of picture files, either directly or as the struct
//! `{bytes, path}` of the `datasets` library. Only captions are kept in memory; pictures are read
//! when they are wanted.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::cast;
use arrow_schema::{DataType, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection, RowSelector};

use crate::data_set::{Example, StoredPicture};
use crate::error::{DataError, io_error};

/// Rows of captions read at a time.
const CAPTION_ROWS: usize = 8192;

/// The field of a picture struct that holds the picture's file.
const BYTES_FIELD: &str = "bytes";

/// Where captions come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CaptionColumn<'a> {
    /// There are none.
    None,
    /// A column of text.
    Text(&'a str),
    /// A column of integers that number these class names.
    Label(&'a str, &'a [String]),
}

/// Parquet files whose rows, one file after the other, are the examples.
#[derive(Debug)]
pub(crate) struct ParquetPictures {
    files: Vec<ParquetFile>,
    image_column: String,
}

#[derive(Debug)]
struct ParquetFile {
    path: PathBuf,
    /// The examples that lie in this file.
    examples: Range<usize>,
}

impl ParquetPictures {
    /// Opens a file, or a folder of files ordered by name.
    pub(crate) fn open(
        path: &Path,
        image_column: &str,
        caption_column: Option<&str>,
    ) -> Result<(Self, Vec<Example>), DataError> {
        let metadata = fs::metadata(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing {
                path: path.to_path_buf(),
                expected: "Parquet file, or folder of Parquet files",
            },
            _ => io_error("read", path)(source),
        })?;
        let paths =
            if metadata.is_dir() { parquet_files(path, "")? } else { vec![path.to_path_buf()] };
        if paths.is_empty() {
            return Err(DataError::Empty {
                what: format!("{} (no .parquet file lies in it)", path.display()),
            });
        }
        let captions = caption_column.map_or(CaptionColumn::None, CaptionColumn::Text);
        Self::open_files(paths, image_column, captions)
    }

    pub(crate) fn open_files(
        paths: Vec<PathBuf>,
        image_column: &str,
        caption_column: CaptionColumn<'_>,
    ) -> Result<(Self, Vec<Example>), DataError> {
        let mut files = Vec::new();
        let mut examples = Vec::new();
        let mut rowless = String::new();
        for path in paths {
            let start = examples.len();
            read_examples(&path, image_column, caption_column, &mut examples)?;
            rowless = path.display().to_string();
            files.push(ParquetFile { path, examples: start..examples.len() });
        }
        if examples.is_empty() {
            return Err(DataError::Empty { what: rowless });
        }
        let parquet = Self { files, image_column: image_column.to_owned() };
        Ok((parquet, examples))
    }

    pub(crate) fn read(&self, indices: Range<usize>) -> Result<Vec<StoredPicture>, DataError> {
        let mut pictures = Vec::with_capacity(indices.len());
        for file in &self.files {
            let start = indices.start.max(file.examples.start);
            let end = indices.end.min(file.examples.end);
            if start < end {
                let rows = start - file.examples.start..end - file.examples.start;
                file.read(&self.image_column, rows, &mut pictures)?;
            }
        }
        Ok(pictures)
    }
}

/// The `.parquet` files of a folder whose names begin with `prefix`, ordered by name.
pub(crate) fn parquet_files(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error("read", folder))? {
        let path = entry.map_err(io_error("read", folder))?.path();
        let matches = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(prefix) && name.ends_with(".parquet"));
        if matches {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

impl ParquetFile {
    /// Appends the pictures of these rows.
    fn read(
        &self,
        image_column: &str,
        rows: Range<usize>,
        pictures: &mut Vec<StoredPicture>,
    ) -> Result<(), DataError> {
        let builder = open_parquet(&self.path)?;
        let column = column_index(&self.path, builder.schema(), image_column)?;
        let projection = ProjectionMask::roots(builder.parquet_schema(), [column]);
        let selection = RowSelection::from(vec![
            RowSelector::skip(rows.start),
            RowSelector::select(rows.len()),
        ]);
        let batches = builder
            .with_projection(projection)
            .with_row_selection(selection)
            .with_batch_size(rows.len())
            .build()
            .map_err(bad_parquet(&self.path))?;
        let mut row = rows.start;
        for batch in batches {
            let batch = batch.map_err(bad_parquet(&self.path))?;
            self.append_pictures(&batch, image_column, row, pictures)?;
            row += batch.num_rows();
        }
        if row != rows.end {
            let reason = format!("it ends at row {row}, before row {}", rows.end);
            return Err(bad_parquet(&self.path)(reason));
        }
        Ok(())
    }

    fn append_pictures(
        &self,
        batch: &RecordBatch,
        image_column: &str,
        first_row: usize,
        pictures: &mut Vec<StoredPicture>,
    ) -> Result<(), DataError> {
        let column = batch.column(0);
        let bytes: &ArrayRef = match column.as_struct_opt() {
            Some(fields) => fields.column_by_name(BYTES_FIELD).ok_or_else(|| {
                wrong_type(&self.path, image_column, PICTURES, column.data_type())
            })?,
            None => column,
        };
        let bytes = cast(bytes, &DataType::LargeBinary).map_err(bad_parquet(&self.path))?;
        let bytes = bytes.as_binary::<i64>();
        for index in 0..bytes.len() {
            if column.is_null(index) || bytes.is_null(index) {
                return Err(DataError::BadParquetValue {
                    path: self.path.clone(),
                    row: first_row + index,
                    column: image_column.to_owned(),
                    reason: "there is no embedded picture".to_owned(),
                });
            }
            pictures.push(StoredPicture::Encoded(bytes.value(index).to_vec()));
        }
        Ok(())
    }
}

/// Appends names and captions of all rows, after checking the types of both columns.
fn read_examples(
    path: &Path,
    image_column: &str,
    caption_column: CaptionColumn<'_>,
    examples: &mut Vec<Example>,
) -> Result<(), DataError> {
    let builder = open_parquet(path)?;
    let schema = builder.schema().clone();
    check_image_column(path, &schema, image_column)?;
    let rows = usize::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut captions = Vec::with_capacity(rows);
    match caption_column {
        CaptionColumn::None => captions.resize(rows, None),
        CaptionColumn::Text(column) | CaptionColumn::Label(column, _) => {
            let index = column_index(path, &schema, column)?;
            check_caption_column(path, &schema, index, caption_column)?;
            let projection = ProjectionMask::roots(builder.parquet_schema(), [index]);
            let batches = builder
                .with_projection(projection)
                .with_batch_size(CAPTION_ROWS)
                .build()
                .map_err(bad_parquet(path))?;
            for batch in batches {
                let batch = batch.map_err(bad_parquet(path))?;
                append_captions(path, batch.column(0), caption_column, &mut captions)?;
            }
        }
    }
    examples.extend(
        captions
            .into_iter()
            .enumerate()
            .map(|(row, caption)| Example { name: format!("{file_name}#{row}"), caption }),
    );
    Ok(())
}

fn append_captions(
    path: &Path,
    column: &ArrayRef,
    caption_column: CaptionColumn<'_>,
    captions: &mut Vec<Option<String>>,
) -> Result<(), DataError> {
    match caption_column {
        CaptionColumn::None => {}
        CaptionColumn::Text(_) => {
            let texts = cast(column, &DataType::LargeUtf8).map_err(bad_parquet(path))?;
            let texts = texts.as_string::<i64>();
            captions.extend(texts.iter().map(|text| text.map(str::to_owned)));
        }
        CaptionColumn::Label(name, classes) => {
            let labels = cast(column, &DataType::Int64).map_err(bad_parquet(path))?;
            for label in labels.as_primitive::<Int64Type>() {
                let class = label
                    .and_then(|label| usize::try_from(label).ok())
                    .and_then(|label| classes.get(label))
                    .ok_or_else(|| DataError::BadParquetValue {
                        path: path.to_path_buf(),
                        row: captions.len(),
                        column: name.to_owned(),
                        reason: match label {
                            Some(label) => {
                                format!("label {label} is not within 0..{}", classes.len())
                            }
                            None => "the label is null".to_owned(),
                        },
                    })?;
                captions.push(Some(class.clone()));
            }
        }
    }
    Ok(())
}

const PICTURES: &str = "the bytes of picture files, or a struct with such a field `bytes`";

fn check_image_column(path: &Path, schema: &Schema, column: &str) -> Result<(), DataError> {
    let found = schema.field(column_index(path, schema, column)?).data_type();
    let bytes = match found {
        DataType::Struct(fields) => {
            fields.iter().find(|field| field.name() == BYTES_FIELD).map(|field| field.data_type())
        }
        other => Some(other),
    };
    match bytes {
        Some(DataType::Binary | DataType::LargeBinary | DataType::BinaryView) => Ok(()),
        _ => Err(wrong_type(path, column, PICTURES, found)),
    }
}

fn check_caption_column(
    path: &Path,
    schema: &Schema,
    index: usize,
    caption_column: CaptionColumn<'_>,
) -> Result<(), DataError> {
    let field = schema.field(index);
    let value_type = match field.data_type() {
        DataType::Dictionary(_, values) => values.as_ref(),
        other => other,
    };
    let (expected, fits) = match caption_column {
        CaptionColumn::Label(..) => ("integer labels", value_type.is_integer()),
        CaptionColumn::None | CaptionColumn::Text(_) => (
            "text",
            matches!(value_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View),
        ),
    };
    if fits { Ok(()) } else { Err(wrong_type(path, field.name(), expected, field.data_type())) }
}

fn open_parquet(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, DataError> {
    let file = File::open(path).map_err(io_error("read", path))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(bad_parquet(path))
}

fn column_index(path: &Path, schema: &Schema, column: &str) -> Result<usize, DataError> {
    schema.index_of(column).map_err(|_| {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        DataError::NoSuchColumn {
            path: path.to_path_buf(),
            column: column.to_owned(),
            found: names.join(", "),
        }
    })
}

fn wrong_type(path: &Path, column: &str, expected: &'static str, found: &DataType) -> DataError {
    DataError::WrongColumnType {
        path: path.to_path_buf(),
        column: column.to_owned(),
        expected,
        found: found.to_string(),
    }
}

fn bad_parquet<Reason: ToString>(path: &Path) -> impl FnOnce(Reason) -> DataError {
    let path = path.to_path_buf();
    move |reason| DataError::BadParquet { path, reason: reason.to_string() }
}
