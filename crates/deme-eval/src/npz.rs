//! The `.npz` files of feature statistics: a zip of `.npy` arrays (NumPy's format 1.0 to 3.0).
//!
//! Reads float32 and float64 of either byte order, in C or Fortran order, stored or deflated. What a
//! file declares is checked against its size before memory is taken, and never more is read than the
//! header's shape allows. Object arrays are pickles and are refused.

use crate::feature_stats::StatsArrays;
use crate::{EvalError, StatsStamp};
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::path::Path;
use zip::read::ZipFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Widest feature that is believed; a covariance of this size has 512 MiB.
const MAX_DIM: u64 = 8192;

/// Longest header that is believed.
const MAX_HEADER: usize = 4096;

/// Longest stamp that is believed, in bytes.
const MAX_STAMP: u64 = 1 << 16;

/// No deflated byte makes more than this many (RFC 1951: 258 for two bits, and a little for tables).
const MAX_INFLATION: u64 = 1032;

/// The array that holds the stamp: JSON text as bytes. Other readers ignore it.
const STAMP: &str = "deme_stamp";

/// What a file of statistics holds.
#[derive(Debug)]
pub(crate) struct StoredStats {
    pub(crate) mu: Vec<f64>,
    pub(crate) sigma: Vec<f64>,
    pub(crate) count: Option<u64>,
    pub(crate) stamp: Option<StatsStamp>,
}

pub(crate) fn read_stats(path: &Path, arrays: StatsArrays) -> Result<StoredStats, EvalError> {
    let mut reader = NpzReader::open(path)?;
    let (mu_name, sigma_name) = arrays.names();
    reader.check_present([mu_name, sigma_name])?;
    let (shape, mu) = reader.floats(mu_name)?;
    let [dim] = shape[..] else {
        return Err(reader.wrong_shape(mu_name, shape, "one dimension".to_owned()));
    };
    let (shape, sigma) = reader.floats(sigma_name)?;
    if shape != [dim, dim] {
        let expected = format!("[{dim}, {dim}] as {mu_name} has [{dim}]");
        return Err(reader.wrong_shape(sigma_name, shape, expected));
    }
    let (count, stamp) = (reader.count()?, reader.stamp()?);
    if let (Some(count), Some(stamp)) = (count, &stamp)
        && count != stamp.count
    {
        let reason = format!("`count` is {count} but the stamp says {}", stamp.count);
        return Err(invalid(path, reason));
    }
    let count = count.or(stamp.as_ref().map(|stamp| stamp.count));
    Ok(StoredStats { mu, sigma, count, stamp })
}

/// Whether the file holds these arrays, by their names alone.
pub(crate) fn holds(path: &Path, arrays: StatsArrays) -> Result<bool, EvalError> {
    let reader = NpzReader::open(path)?;
    let (mu, sigma) = arrays.names();
    Ok(reader.has(mu) || reader.has(sigma))
}

pub(crate) fn write_stats(
    path: &Path,
    mu: &[f64],
    sigma: &[f64],
    count: Option<u64>,
    stamp: Option<&StatsStamp>,
) -> Result<(), EvalError> {
    let dim = mu.len();
    let floats = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut arrays = vec![
        ("mu.npy", npy("<f8", &format!("({dim},)"), &floats(mu))),
        ("sigma.npy", npy("<f8", &format!("({dim}, {dim})"), &floats(sigma))),
    ];
    if let Some(count) = count {
        arrays.push(("count.npy", npy("<i8", "()", &count.to_le_bytes())));
    }
    if let Some(stamp) = stamp {
        let text = stamp.to_json();
        arrays.push(("deme_stamp.npy", npy("|u1", &format!("({},)", text.len()), text.as_bytes())));
    }
    let zipped = || -> zip::result::ZipResult<Vec<u8>> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::DEFAULT.compression_method(CompressionMethod::Stored);
        for (name, bytes) in &arrays {
            zip.start_file(*name, options)?;
            zip.write_all(bytes)?;
        }
        Ok(zip.finish()?.into_inner())
    };
    let bytes = zipped().map_err(|error| invalid(path, error.to_string()))?;
    deme_merge::write_atomically(path, |writer| writer.write_all(&bytes))
        .map_err(|source| EvalError::io(path, source))
}

/// One array in format 1.0: magic, header length, header padded to 64 bytes, data.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

struct NpzReader<'a> {
    path: &'a Path,
    archive: ZipArchive<BufReader<File>>,
    file_size: u64,
}

impl<'a> NpzReader<'a> {
    fn open(path: &'a Path) -> Result<Self, EvalError> {
        let io = |source| EvalError::io(path, source);
        let file = File::open(path).map_err(io)?;
        let file_size = file.metadata().map_err(io)?.len();
        let archive = ZipArchive::new(BufReader::new(file));
        let archive = archive.map_err(|error| invalid(path, error.to_string()))?;
        // Which of two arrays of one name counts is decided differently by different readers.
        if archive.has_duplicate_names() {
            return Err(invalid(path, "two of its arrays have the same name".to_owned()));
        }
        Ok(Self { path, archive, file_size })
    }

    fn has(&self, array: &str) -> bool {
        self.archive.index_for_name(&format!("{array}.npy")).is_some()
    }

    fn check_present(&self, arrays: [&'static str; 2]) -> Result<(), EvalError> {
        let Some(array) = arrays.into_iter().find(|array| !self.has(array)) else { return Ok(()) };
        let path = self.path.to_owned();
        if self.has("arr_0") && arrays.iter().all(|array| !self.has(array)) {
            return Err(EvalError::PicturesNotStatistics { path });
        }
        Err(EvalError::MissingArray { path, array })
    }

    /// Shape and values, row by row.
    fn floats(&mut self, array: &'static str) -> Result<(Vec<u64>, Vec<f64>), EvalError> {
        let items = |descr: &str| match descr {
            "<f8" => Some(8),
            ">f8" => Some(8),
            "<f4" => Some(4),
            ">f4" => Some(4),
            _ => None,
        };
        let found = self.array(array, "float32 or float64", 2, MAX_DIM, items)?;
        let (header, data) = found.ok_or_else(|| self.missing(array))?;
        let (wide, narrow) = (data.as_chunks::<8>().0, data.as_chunks::<4>().0);
        let mut values: Vec<f64> = match header.descr.as_str() {
            "<f8" => wide.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect(),
            ">f8" => wide.iter().map(|&bytes| f64::from_be_bytes(bytes)).collect(),
            "<f4" => narrow.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect(),
            _ => narrow.iter().map(|&bytes| f32::from_be_bytes(bytes).into()).collect(),
        };
        if let (true, &[rows, columns]) = (header.fortran_order, &header.shape[..]) {
            let (rows, columns) = (rows as usize, columns as usize);
            let by_rows = (0..rows * columns).map(|k| values[k / columns + k % columns * rows]);
            values = by_rows.collect();
        }
        Ok((header.shape, values))
    }

    /// The number of pictures, which only our own files hold.
    fn count(&mut self) -> Result<Option<u64>, EvalError> {
        let found = self.array("count", "int64", 0, 1, |descr| (descr == "<i8").then_some(8))?;
        let Some((header, data)) = found else { return Ok(None) };
        match data.as_chunks::<8>().0 {
            [bytes] => {
                let count = i64::from_le_bytes(*bytes);
                let wrong = |_| invalid(self.path, format!("`count` is {count}"));
                u64::try_from(count).map(Some).map_err(wrong)
            }
            _ => Err(self.wrong_shape("count", header.shape, "one number".to_owned())),
        }
    }

    fn stamp(&mut self) -> Result<Option<StatsStamp>, EvalError> {
        let found =
            self.array(STAMP, "uint8", 1, MAX_STAMP, |descr| (descr == "|u1").then_some(1))?;
        let Some((_, text)) = found else { return Ok(None) };
        let stamp = serde_json::from_slice(&text);
        stamp.map(Some).map_err(|error| EvalError::Stamp {
            path: self.path.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Header and data of an array of at most so many dimensions of at most such a size, or `None`
    /// when the file does not have it.
    fn array(
        &mut self,
        array: &'static str,
        readable: &'static str,
        max_dimensions: usize,
        max_size: u64,
        item_size: impl Fn(&str) -> Option<u64>,
    ) -> Result<Option<(NpyHeader, Vec<u8>)>, EvalError> {
        let path = self.path;
        let mut entry = match self.archive.by_name(&format!("{array}.npy")) {
            Ok(entry) => entry,
            Err(zip::result::ZipError::FileNotFound) => return Ok(None),
            Err(error) => return Err(invalid(path, format!("array `{array}`: {error}"))),
        };
        let header = read_header(&mut entry)
            .map_err(|reason| invalid(path, format!("array `{array}`: {reason}")))?;
        let wrong_type = |found: String| EvalError::ArrayType {
            path: path.to_owned(),
            array,
            found,
            expected: readable,
        };
        if header.descr.contains('O') {
            return Err(wrong_type("an array of Python objects (a pickle)".to_owned()));
        }
        let Some(item_size) = item_size(&header.descr) else {
            return Err(wrong_type(format!("of type '{}'", header.descr)));
        };
        let sizes_fit = header.shape.iter().all(|size| (1..=max_size).contains(size));
        if header.shape.len() > max_dimensions || !sizes_fit {
            return Err(EvalError::ArrayShape {
                path: path.to_owned(),
                array,
                found: header.shape,
                expected: format!("at most {max_dimensions} dimensions of 1 to {max_size}"),
            });
        }
        let expected = header.shape.iter().product::<u64>() * item_size;
        check_declared(path, array, &entry, expected, self.file_size)?;
        let mut data = Vec::with_capacity(expected as usize);
        // One byte more than expected shows that there is too much, however much there is.
        entry
            .by_ref()
            .take(expected + 1)
            .read_to_end(&mut data)
            .map_err(|error| invalid(path, format!("array `{array}`: {error}")))?;
        let found = data.len() as u64;
        if found != expected {
            return Err(EvalError::ArrayLength { path: path.to_owned(), array, expected, found });
        }
        Ok(Some((header, data)))
    }

    fn missing(&self, array: &'static str) -> EvalError {
        EvalError::MissingArray { path: self.path.to_owned(), array }
    }

    fn wrong_shape(&self, array: &'static str, found: Vec<u64>, expected: String) -> EvalError {
        EvalError::ArrayShape { path: self.path.to_owned(), array, found, expected }
    }
}

/// Whether an array can have so many bytes at all: no memory is taken on a header's word alone.
fn check_declared(
    path: &Path,
    array: &'static str,
    entry: &ZipFile<'_, BufReader<File>>,
    expected: u64,
    file_size: u64,
) -> Result<(), EvalError> {
    let packed = entry.compressed_size();
    if packed > file_size {
        let reason =
            format!("array `{array}`: it should have {packed} bytes, the file {file_size}");
        return Err(invalid(path, reason));
    }
    let possible = match entry.compression() {
        CompressionMethod::Stored => packed,
        _ => packed.saturating_mul(MAX_INFLATION),
    };
    let found = possible.min(entry.size());
    if found < expected {
        return Err(EvalError::ArrayLength { path: path.to_owned(), array, expected, found });
    }
    Ok(())
}

fn invalid(path: &Path, reason: String) -> EvalError {
    EvalError::Npz { path: path.to_owned(), reason }
}

/// The Python dictionary in front of an array.
#[derive(Debug, PartialEq, Eq)]
struct NpyHeader {
    descr: String,
    fortran_order: bool,
    shape: Vec<u64>,
}

fn read_header(reader: &mut impl Read) -> Result<NpyHeader, String> {
    let mut start = [0; 8];
    reader.read_exact(&mut start).map_err(|error| error.to_string())?;
    if &start[..6] != b"\x93NUMPY" {
        return Err("it does not begin as an .npy array".to_owned());
    }
    let mut read = |bytes: &mut [u8]| reader.read_exact(bytes).map_err(|error| error.to_string());
    let length = if start[6] == 1 {
        let mut length = [0; 2];
        read(&mut length)?;
        u16::from_le_bytes(length) as usize
    } else {
        let mut length = [0; 4];
        read(&mut length)?;
        u32::from_le_bytes(length) as usize
    };
    if length > MAX_HEADER {
        return Err(format!("its header has {length} bytes, more than {MAX_HEADER}"));
    }
    let mut header = vec![0; length];
    read(&mut header)?;
    let header = String::from_utf8(header).map_err(|error| error.to_string())?;
    parse_header(&header).ok_or_else(|| format!("its header `{}` is not understood", header.trim()))
}

/// `{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }`
fn parse_header(header: &str) -> Option<NpyHeader> {
    let inside = header.trim().strip_prefix('{')?.strip_suffix('}')?;
    let value_of = |key: &str| {
        let (_, rest) = inside.split_once(&format!("'{key}'"))?;
        rest.trim_start().strip_prefix(':').map(str::trim_start)
    };
    let descr = value_of("descr")?;
    let descr = match descr.strip_prefix('\'') {
        Some(quoted) => quoted.split_once('\'')?.0.to_owned(),
        // A record type: kept as it is, nothing here can read it.
        None => descr.to_owned(),
    };
    let order = value_of("fortran_order")?;
    let fortran_order = order.starts_with("True");
    if !fortran_order && !order.starts_with("False") {
        return None;
    }
    let (shape, _) = value_of("shape")?.strip_prefix('(')?.split_once(')')?;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
    let shape = sizes.map(|size| size.trim_end_matches('L').parse().ok()).collect::<Option<_>>()?;
    Some(NpyHeader { descr, fortran_order, shape })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::FeatureStats;
    use crate::stats_stamp::stamp_of;

    fn file_of(arrays: &[(&str, Vec<u8>)], method: CompressionMethod) -> tempfile::NamedTempFile {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in arrays {
            zip.start_file(*name, SimpleFileOptions::DEFAULT.compression_method(method)).unwrap();
            zip.write_all(bytes).unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), zip.finish().unwrap().into_inner()).unwrap();
        file
    }

    fn error_of(mu: Vec<u8>, sigma: Vec<u8>) -> EvalError {
        let arrays = [("mu.npy", mu), ("sigma.npy", sigma)];
        let file = file_of(&arrays, CompressionMethod::Deflated);
        FeatureStats::load_npz(file.path()).unwrap_err()
    }

    fn f8(values: &[f64]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn mu() -> Vec<u8> {
        npy("<f8", "(2,)", &f8(&[1.0, 2.0]))
    }

    fn sigma() -> Vec<u8> {
        npy("<f8", "(2, 2)", &f8(&[1.0, 0.5, 0.5, 2.0]))
    }

    #[test]
    fn written_and_read_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats.npz");
        for count in [None, Some(12)] {
            let stats =
                FeatureStats::new(vec![0.1, -2.0], vec![1.0, 0.5, 0.5, 3.0], count).unwrap();
            stats.save_npz(&path).unwrap();
            assert_eq!(FeatureStats::load_npz(&path).unwrap(), stats);
        }
    }

    #[test]
    fn float32_is_read_stored_and_deflated() {
        let f4 = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let arrays = [
            ("sigma.npy", npy("<f4", "(1, 1)", &f4(&[2.5]))),
            ("mu.npy", npy("<f4", "(1,)", &f4(&[1.5]))),
        ];
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let stats = FeatureStats::load_npz(file_of(&arrays, method).path()).unwrap();
            assert_eq!((stats.mu(), stats.sigma(), stats.count()), (&[1.5][..], &[2.5][..], None));
        }
    }

    #[test]
    fn a_missing_file_and_no_zip_are_named() {
        let error = FeatureStats::load_npz(Path::new("/nowhere/stats.npz")).unwrap_err();
        assert!(matches!(error, EvalError::Io { .. }));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"no zip at all").unwrap();
        let error = FeatureStats::load_npz(file.path()).unwrap_err();
        assert!(matches!(error, EvalError::Npz { .. }));
    }

    #[test]
    fn a_missing_array_is_named() {
        let file = file_of(&[("mu.npy", mu())], CompressionMethod::Stored);
        let error = FeatureStats::load_npz(file.path()).unwrap_err();
        assert!(matches!(error, EvalError::MissingArray { array: "sigma", .. }));
    }

    #[test]
    fn the_stamp_is_kept_and_gives_the_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats.npz");
        let stats = FeatureStats::new(vec![0.1], vec![1.0], Some(12)).unwrap();
        let stats = stats.with_stamp(stamp_of("inception", 12)).unwrap();
        stats.save_npz(&path).unwrap();
        assert_eq!(FeatureStats::load_npz(&path).unwrap(), stats);
        let stamp = npy("|u1", "(3,)", b"{}x");
        let broken = [("mu.npy", mu()), ("sigma.npy", sigma()), ("deme_stamp.npy", stamp)];
        let file = file_of(&broken, CompressionMethod::Stored);
        let error = FeatureStats::load_npz(file.path()).unwrap_err();
        assert!(matches!(error, EvalError::Stamp { .. }), "{error}");
    }

    #[test]
    fn counts_that_contradict_the_stamp_or_are_negative_are_refused() {
        let text = stamp_of("inception", 5).to_json();
        let stamp = npy("|u1", &format!("({},)", text.len()), text.as_bytes());
        let with_count = |count: i64, more: &[(&str, Vec<u8>)]| {
            let count = npy("<i8", "()", &count.to_le_bytes());
            let mut arrays = vec![("mu.npy", mu()), ("sigma.npy", sigma()), ("count.npy", count)];
            arrays.extend(more.iter().cloned());
            let file = file_of(&arrays, CompressionMethod::Stored);
            FeatureStats::load_npz(file.path())
        };
        let stamp = [("deme_stamp.npy", stamp)];
        assert_eq!(with_count(5, &stamp).unwrap().count(), Some(5));
        assert!(matches!(with_count(6, &stamp).unwrap_err(), EvalError::Npz { .. }));
        let error = with_count(-1, &[]).unwrap_err();
        assert!(error.to_string().contains("`count` is -1"), "{error}");
    }

    #[test]
    fn spatial_statistics_are_read_by_name_or_where_there_are_no_others() {
        let spatial = [
            ("mu_s.npy", npy("<f8", "(1,)", &f8(&[7.0]))),
            ("sigma_s.npy", npy("<f8", "(1, 1)", &f8(&[3.0]))),
        ];
        let only = file_of(&spatial, CompressionMethod::Stored);
        assert_eq!(FeatureStats::load_npz(only.path()).unwrap().mu(), [7.0]);
        let mut both = vec![("mu.npy", mu()), ("sigma.npy", sigma())];
        both.extend(spatial);
        let both = file_of(&both, CompressionMethod::Stored);
        assert_eq!(FeatureStats::load_npz(both.path()).unwrap().dim(), 2);
        let read = FeatureStats::load_npz_arrays(both.path(), StatsArrays::Spatial).unwrap();
        assert_eq!((read.mu(), read.sigma()), (&[7.0][..], &[3.0][..]));
    }

    #[test]
    fn a_batch_of_pictures_without_statistics_is_told_from_a_missing_array() {
        let pictures = npy("|u1", "(1, 2, 2, 3)", &[0; 12]);
        let file = file_of(&[("arr_0.npy", pictures.clone())], CompressionMethod::Deflated);
        let error = FeatureStats::load_npz(file.path()).unwrap_err();
        assert!(matches!(error, EvalError::PicturesNotStatistics { .. }), "{error}");
        let arrays = [("arr_0.npy", pictures), ("mu.npy", mu()), ("sigma.npy", sigma())];
        let file = file_of(&arrays, CompressionMethod::Deflated);
        assert_eq!(FeatureStats::load_npz(file.path()).unwrap().dim(), 2);
    }

    #[test]
    fn big_endian_and_fortran_order_are_read() {
        let big = |values: &[f64]| values.iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<u8>>();
        let single =
            |values: &[f32]| values.iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<u8>>();
        let mut fortran = npy(">f4", "(2, 2)", &single(&[1.0, 0.5, 0.500001, 2.0]));
        let at = fortran.windows(5).position(|window| window == b"False").unwrap();
        fortran.splice(at..at + 5, *b"True ");
        let arrays = [("mu.npy", npy(">f8", "(2,)", &big(&[1.0, 2.0]))), ("sigma.npy", fortran)];
        let file = file_of(&arrays, CompressionMethod::Stored);
        let stats = FeatureStats::load_npz(file.path()).unwrap();
        let expected = [1.0, f64::from(0.500001f32), 0.5, 2.0];
        assert_eq!((stats.mu(), stats.sigma()), (&[1.0, 2.0][..], &expected[..]));
    }

    #[test]
    fn pickles_integers_and_complex_numbers_are_refused() {
        for descr in ["|O", "<i8", "<c16", "<f2"] {
            let error = error_of(npy(descr, "(2,)", &f8(&[1.0, 2.0])), sigma());
            assert!(matches!(error, EvalError::ArrayType { array: "mu", .. }), "{error}");
        }
    }

    #[test]
    fn two_arrays_of_one_name_are_refused() {
        // No writer makes such a file; a name of equal length is changed where it stands.
        let other = npy("<f8", "(2,)", &f8(&[8.0, 9.0]));
        let arrays = [("mu.npy", mu()), ("mv.npy", other), ("sigma.npy", sigma())];
        let file = file_of(&arrays, CompressionMethod::Stored);
        let mut bytes = std::fs::read(file.path()).unwrap();
        while let Some(at) = bytes.windows(6).position(|window| window == b"mv.npy") {
            bytes[at + 1] = b'u';
        }
        std::fs::write(file.path(), bytes).unwrap();
        let error = FeatureStats::load_npz(file.path()).unwrap_err();
        assert!(error.to_string().contains("same name"), "{error}");
    }

    #[test]
    fn truncated_and_damaged_files_are_refused() {
        let arrays = [("mu.npy", mu()), ("sigma.npy", sigma())];
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let file = file_of(&arrays, method);
            let whole = std::fs::read(file.path()).unwrap();
            for length in [0, 10, whole.len() / 2, whole.len() - 1] {
                std::fs::write(file.path(), &whole[..length]).unwrap();
                let error = FeatureStats::load_npz(file.path()).unwrap_err();
                assert!(matches!(error, EvalError::Npz { .. }), "{length}: {error}");
            }
        }
        // One bit of the data: the checksum tells.
        let file = file_of(&arrays, CompressionMethod::Stored);
        let mut bytes = std::fs::read(file.path()).unwrap();
        let value = 2f64.to_le_bytes();
        let at = bytes.windows(8).position(|window| window == value).unwrap();
        bytes[at + 2] ^= 1;
        std::fs::write(file.path(), bytes).unwrap();
        let error = FeatureStats::load_npz(file.path()).unwrap_err();
        assert!(matches!(error, EvalError::Npz { .. }), "{error}");
    }

    #[test]
    fn headers_that_promise_more_than_the_file_can_hold_take_no_memory() {
        // Half a gigabyte declared, some bytes there.
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let wide = npy("<f8", "(8192,)", &f8(&[0.0; 8192]));
            let empty = npy("<f8", "(8192, 8192)", &[]);
            let file = file_of(&[("mu.npy", wide), ("sigma.npy", empty)], method);
            let error = FeatureStats::load_npz(file.path()).unwrap_err();
            let EvalError::ArrayLength { array, expected, found, .. } = error else {
                panic!("{error}")
            };
            assert_eq!((array, expected), ("sigma", 1 << 29));
            assert!(found < 1 << 20, "{found}");
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        let cases = [
            (npy("<f8", "(1, 2)", &f8(&[1.0, 2.0])), sigma()),
            (npy("<f8", "(0,)", &[]), sigma()),
            (mu(), npy("<f8", "(4,)", &f8(&[1.0; 4]))),
            (mu(), npy("<f8", "(3, 3)", &f8(&[1.0; 9]))),
            (mu(), npy("<f8", "(1, 2, 2)", &f8(&[1.0; 4]))),
            (npy("<f8", "(99999999999,)", &[]), sigma()),
        ];
        for (mu, sigma) in cases {
            let error = error_of(mu, sigma);
            assert!(matches!(error, EvalError::ArrayShape { .. }), "{error}");
        }
    }

    #[test]
    fn too_little_and_too_much_data_are_refused() {
        let short = npy("<f8", "(2,)", &f8(&[1.0]));
        let error = error_of(short, sigma());
        assert!(matches!(error, EvalError::ArrayLength { expected: 16, found: 8, .. }));
        // A bomb: megabytes of zeros behind a header of two numbers. Reading stops at once.
        let bomb = npy("<f8", "(2,)", &vec![0; 1 << 24]);
        let error = error_of(bomb, sigma());
        assert!(matches!(error, EvalError::ArrayLength { expected: 16, found: 17, .. }));
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let error = error_of(npy("<f8", "(2,)", &f8(&[1.0, f64::NAN])), sigma());
        assert!(matches!(error, EvalError::NonFiniteStats { array: "mu", index: 1, .. }));
    }

    #[test]
    fn a_damaged_header_is_refused() {
        let mut no_magic = mu();
        no_magic[0] = b'x';
        assert!(matches!(error_of(no_magic, sigma()), EvalError::Npz { .. }));
        let mut no_shape = mu();
        let at = no_shape.windows(5).position(|window| window == b"shape").unwrap();
        no_shape[at] = b'z';
        assert!(matches!(error_of(no_shape, sigma()), EvalError::Npz { .. }));
        let mut long = b"\x93NUMPY\x02\x00".to_vec();
        long.extend(u32::MAX.to_le_bytes());
        assert!(matches!(error_of(long, sigma()), EvalError::Npz { .. }));
    }
}
