//! CIFAR-10 in both of its forms.

use std::fmt::Write as _;
use std::path::Path;

use deme_data::{CIFAR10_CLASSES, Cifar10Split, DataConfig, DataError, DataSet, Preparation};
use tempfile::TempDir;

use crate::files::{one_colour, png, write};
use crate::parquet_files::{integer_column, picture_struct_column, write_parquet};

fn open(folder: &Path, split: Cifar10Split) -> Result<DataSet, DataError> {
    DataSet::open(&DataConfig::Cifar10 { path: folder.to_path_buf(), split })
}

/// One record: red is the label times ten, green counts rows, blue counts columns.
fn record(label: u8) -> Vec<u8> {
    let mut bytes = vec![label];
    bytes.extend([label.wrapping_mul(10); 1024]);
    bytes.extend((0..1024).map(|position| (position / 32) as u8));
    bytes.extend((0..1024).map(|position| (position % 32) as u8));
    bytes
}

fn binary_folder(subfolder: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for number in 1..=5u8 {
        let bytes = [record(number), record(9 - number)].concat();
        write(folder.path(), &format!("{subfolder}data_batch_{number}.bin"), bytes);
    }
    write(folder.path(), &format!("{subfolder}test_batch.bin"), record(0));
    folder
}

#[test]
fn the_binary_version_is_read() {
    for subfolder in ["", "cifar-10-batches-bin/"] {
        let folder = binary_folder(subfolder);
        let data = open(folder.path(), Cifar10Split::Train).unwrap();
        assert_eq!(data.len(), 10);
        assert_eq!(data.example(5).name, "data_batch_3.bin#1");
        assert_eq!(data.example(5).caption.as_deref(), Some("frog"));
        let prepared = data.load(&Preparation::new(32)).unwrap();
        // Row 7, column 21 of the picture with label 6.
        assert_eq!(prepared.image_bytes(5)[3 * (7 * 32 + 21)..][..3], [60, 7, 21]);
        assert_eq!(open(folder.path(), Cifar10Split::Test).unwrap().len(), 1);
        assert_eq!(data.content_hash().unwrap().len(), 64);
    }
}

#[test]
fn class_names_come_from_the_meta_file() {
    let folder = binary_folder("");
    let mut names = String::new();
    for index in 0..10 {
        writeln!(names, "class {index}").unwrap();
    }
    write(folder.path(), "batches.meta.txt", format!("{names}\n"));
    let data = open(folder.path(), Cifar10Split::Train).unwrap();
    assert_eq!(data.example(0).caption.as_deref(), Some("class 1"));
    write(folder.path(), "batches.meta.txt", "one\ntwo\n");
    let error = open(folder.path(), Cifar10Split::Train).unwrap_err();
    assert!(
        matches!(&error, DataError::BadCifar10File { reason, .. } if reason.contains("2 classes")),
        "{error}"
    );
}

#[test]
fn the_hubs_parquet_is_read() {
    for subfolder in ["", "plain_text/"] {
        let folder = tempfile::tempdir().unwrap();
        let pictures: Vec<_> =
            (0..10u8).map(|label| Some(png(one_colour(32, 32, [label, 1, 2])))).collect();
        write(folder.path(), &format!("{subfolder}README.md"), "");
        write_parquet(
            &folder.path().join(format!("{subfolder}train-00000-of-00001.parquet")),
            vec![("img", picture_struct_column(&pictures)), ("label", integer_column(0..10))],
            4,
        );
        let data = open(folder.path(), Cifar10Split::Train).unwrap();
        for (index, class) in CIFAR10_CLASSES.iter().enumerate() {
            assert_eq!(data.example(index).caption.as_deref(), Some(*class));
        }
        let prepared = data.load(&Preparation::new(32)).unwrap();
        assert_eq!(prepared.image_bytes(7)[..3], [7, 1, 2]);
        let error = open(folder.path(), Cifar10Split::Test).unwrap_err();
        assert!(matches!(error, DataError::NotCifar10 { .. }), "{error}");
    }
}

#[test]
fn a_label_of_no_class_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_parquet(
        &folder.path().join("train-0.parquet"),
        vec![
            ("img", picture_struct_column(&[Some(vec![1]), Some(vec![2])])),
            ("label", integer_column(9..11)),
        ],
        10,
    );
    let error = open(folder.path(), Cifar10Split::Train).unwrap_err();
    assert!(
        matches!(&error, DataError::BadParquetValue { row: 1, column, .. } if column == "label"),
        "{error}"
    );
}

#[test]
fn a_missing_batch_is_named() {
    let folder = binary_folder("");
    std::fs::remove_file(folder.path().join("data_batch_4.bin")).unwrap();
    let error = open(folder.path(), Cifar10Split::Train).unwrap_err();
    assert!(
        matches!(&error, DataError::NotCifar10 { missing, .. } if missing == "data_batch_4.bin"),
        "{error}"
    );
}

#[test]
fn truncated_files_and_wrong_labels_are_refused() {
    let whole = record(3);
    for (bytes, expected) in
        [(whole[..3000].to_vec(), "3000 bytes"), (Vec::new(), "0 bytes"), (record(10), "label 10")]
    {
        let folder = binary_folder("");
        write(folder.path(), "data_batch_2.bin", bytes);
        let error = open(folder.path(), Cifar10Split::Train).unwrap_err();
        assert!(
            matches!(&error, DataError::BadCifar10File { path, reason }
                if path.ends_with("data_batch_2.bin") && reason.contains(expected)),
            "{error}"
        );
    }
}

#[test]
fn a_missing_folder_is_named() {
    let error = open(Path::new("/nowhere/cifar"), Cifar10Split::Train).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }), "{error}");
}
