//! Parquet files with embedded pictures.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BinaryArray, DictionaryArray, Int64Array, LargeBinaryArray, LargeStringArray,
    RecordBatch, StringArray, StringViewArray, StructArray,
};
use arrow_schema::{DataType, Field};
use deme_data::{DataConfig, DataError, DataSet, Preparation};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use crate::files::{one_colour, png};

pub fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>, rows_per_group: usize) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    )
    .unwrap();
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(rows_per_group)).build();
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties))
            .unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

pub fn binary_column(pictures: &[Option<Vec<u8>>]) -> ArrayRef {
    Arc::new(BinaryArray::from_iter(pictures.iter().map(Option::as_ref)))
}

/// The struct `{bytes, path}` of the `datasets` library.
pub fn picture_struct_column(pictures: &[Option<Vec<u8>>]) -> ArrayRef {
    let paths = StringArray::from(vec![None::<&str>; pictures.len()]);
    Arc::new(StructArray::from(vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), binary_column(pictures)),
        (Arc::new(Field::new("path", DataType::Utf8, true)), Arc::new(paths) as ArrayRef),
    ]))
}

pub fn integer_column(values: Range<i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn text_column(texts: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(texts.to_vec()))
}

fn open(path: &Path, caption_column: Option<&str>) -> Result<DataSet, DataError> {
    DataSet::open(&DataConfig::Parquet {
        path: path.to_path_buf(),
        image_column: "image".to_owned(),
        caption_column: caption_column.map(str::to_owned),
    })
}

fn pictures(count: u8) -> Vec<Option<Vec<u8>>> {
    (0..count).map(|index| Some(png(one_colour(3, 2, [index, 7, 9])))).collect()
}

#[test]
fn pictures_and_captions_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pictures.parquet");
    for column in [binary_column, picture_struct_column] {
        write_parquet(
            &path,
            vec![
                ("text", text_column(&[Some("zero"), None, Some("two")])),
                ("image", column(&pictures(3))),
            ],
            2,
        );
        let data = open(&path, Some("text")).unwrap();
        assert_eq!(data.len(), 3);
        assert_eq!(data.example(2).name, "pictures.parquet#2");
        assert_eq!(data.example(2).caption.as_deref(), Some("two"));
        assert_eq!(data.example(1).caption, None);
        assert!(!data.has_captions());
        let prepared = data.load(&Preparation::new(2)).unwrap();
        assert_eq!(prepared.image_bytes(2)[..3], [2, 7, 9]);
        assert_eq!(data.picture(1).unwrap().pixels[..3], [1, 7, 9]);
        assert_eq!(open(&path, None).unwrap().example(0).caption, None);
    }
}

#[test]
fn columns_as_other_people_name_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pictures.parquet");
    let texts = || {
        let texts = [Some("zero"), Some("one")];
        let categories: DictionaryArray<Int32Type> = texts.into_iter().collect();
        [
            text_column(&texts),
            Arc::new(LargeStringArray::from(texts.to_vec())) as ArrayRef,
            Arc::new(StringViewArray::from(texts.to_vec())),
            Arc::new(categories),
        ]
    };
    let large = |pictures: &[Option<Vec<u8>>]| -> ArrayRef {
        Arc::new(LargeBinaryArray::from_iter(pictures.iter().map(Option::as_ref)))
    };
    for (image, caption) in [
        ("image", "text"),
        ("image", "caption"),
        ("jpg", "txt"),
        ("jpg", "TEXT"),
        ("png", "caption"),
    ] {
        for texts in texts() {
            for column in [binary_column, picture_struct_column, large] {
                let columns = vec![
                    ("__key__", text_column(&[Some("0"), Some("1")])),
                    (image, column(&pictures(2))),
                    (caption, texts.clone()),
                    ("width", integer_column(3..5)),
                ];
                write_parquet(&path, columns, 8);
                let data = DataSet::open(&DataConfig::Parquet {
                    path: path.clone(),
                    image_column: image.to_owned(),
                    caption_column: Some(caption.to_owned()),
                })
                .unwrap();
                assert_eq!(data.example(1).caption.as_deref(), Some("one"));
                assert_eq!(data.picture(1).unwrap().pixels[..3], [1, 7, 9]);
            }
        }
    }
}

#[test]
fn files_of_a_folder_follow_each_other_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<_> = (0..700usize)
        .map(|index| Some(png(one_colour(1, 1, [index as u8, (index / 256) as u8, 0]))))
        .collect();
    for (name, rows) in [("b.parquet", 150..700), ("a.parquet", 0..150)] {
        let column = picture_struct_column(&all[rows]);
        write_parquet(&folder.path().join(name), vec![("image", column)], 64);
    }
    let data = open(folder.path(), None).unwrap();
    assert_eq!(data.example(150).name, "b.parquet#0");
    let prepared = data.load(&Preparation::new(1)).unwrap();
    for index in 0..700usize {
        let expected = [index as u8, (index / 256) as u8, 0];
        assert_eq!(prepared.image_bytes(index), expected, "{index}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = open(Path::new("/nowhere/a.parquet"), None).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }), "{error}");
}

#[test]
fn nothing_to_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = open(folder.path(), None).unwrap_err();
    assert!(matches!(error, DataError::Empty { .. }), "{error}");
    let path = folder.path().join("a.parquet");
    write_parquet(&path, vec![("image", binary_column(&[]))], 8);
    let error = open(&path, None).unwrap_err();
    assert!(matches!(error, DataError::Empty { .. }), "{error}");
}

#[test]
fn a_damaged_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write_parquet(&path, vec![("image", binary_column(&pictures(3)))], 8);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = open(&path, None).unwrap_err();
    assert!(matches!(error, DataError::BadParquet { .. }), "{error}");
    assert!(error.to_string().contains("a.parquet"));
}

#[test]
fn missing_columns_are_named_with_those_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let columns =
        || vec![("picture", binary_column(&pictures(1))), ("text", text_column(&[Some("")]))];
    write_parquet(&path, columns(), 8);
    let error = open(&path, None).unwrap_err();
    assert!(
        matches!(&error, DataError::NoSuchColumn { column, found, .. }
            if column == "image" && found == "picture, text"),
        "{error}"
    );
}

#[test]
fn columns_of_other_types_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    write_parquet(
        &path,
        vec![("image", binary_column(&pictures(1))), ("text", integer_column(0..1))],
        8,
    );
    let error = open(&path, Some("text")).unwrap_err();
    assert!(
        matches!(&error, DataError::WrongColumnType { column, found, .. }
            if column == "text" && found == "Int64"),
        "{error}"
    );
    write_parquet(&path, vec![("image", text_column(&[Some("a.png")]))], 8);
    let error = open(&path, None).unwrap_err();
    assert!(
        matches!(&error, DataError::WrongColumnType { column, .. } if column == "image"),
        "{error}"
    );
}

#[test]
fn a_row_without_picture_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let mut some = pictures(5);
    some[3] = None;
    for column in [binary_column(&some), picture_struct_column(&some)] {
        write_parquet(&path, vec![("image", column)], 2);
        let error = open(&path, None).unwrap().load(&Preparation::new(1)).unwrap_err();
        assert!(matches!(error, DataError::BadParquetValue { row: 3, .. }), "{error}");
    }
}
