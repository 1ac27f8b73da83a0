//! The `.npz` files of feature statistics: a zip of `.npy` arrays (NumPy's format 1.0 to 3.0).
//!
//! Reads little-endian float32 and float64 in C order, stored or deflated, and never more bytes than
//! the header's shape allows. Object arrays are pickles and are refused.

use crate::EvalError;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Widest feature that is believed; a covariance of this size has 2 GiB.
const MAX_DIM: u64 = 16_384;

/// Longest header that is believed.
const MAX_HEADER: usize = 4096;

const READABLE: &str = "'<f8' or '<f4' in C order";

/// `mu`, `sigma` and the optional `count`.
pub(crate) type Stats = (Vec<f64>, Vec<f64>, Option<u64>);

pub(crate) fn read_stats(path: &Path) -> Result<Stats, EvalError> {
    let file = File::open(path).map_err(|source| EvalError::io(path, source))?;
    let mut archive =
        ZipArchive::new(BufReader::new(file)).map_err(|error| invalid(path, error.to_string()))?;
    let mut reader = NpzReader { path, archive: &mut archive };
    let (shape, mu) = reader.floats("mu")?;
    let [dim] = shape[..] else {
        return Err(reader.wrong_shape("mu", shape, "one dimension".to_owned()));
    };
    let (shape, sigma) = reader.floats("sigma")?;
    if shape != [dim, dim] {
        return Err(reader.wrong_shape(
            "sigma",
            shape,
            format!("[{dim}, {dim}] as mu has [{dim}]"),
        ));
    }
    let count = reader.count()?;
    Ok((mu, sigma, count))
}

pub(crate) fn write_stats(
    path: &Path,
    mu: &[f64],
    sigma: &[f64],
    count: Option<u64>,
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
    archive: &'a mut ZipArchive<BufReader<File>>,
}

impl NpzReader<'_> {
    fn floats(&mut self, array: &'static str) -> Result<(Vec<u64>, Vec<f64>), EvalError> {
        let path = self.path;
        let (header, data) = self
            .array(array, |descr| match descr {
                "<f8" => Some(8),
                "<f4" => Some(4),
                _ => None,
            })?
            .ok_or_else(|| EvalError::MissingArray { path: path.to_owned(), array })?;
        let values = if header.descr == "<f8" {
            data.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect()
        } else {
            data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect()
        };
        Ok((header.shape, values))
    }

    /// The number of pictures, which only our own files hold.
    fn count(&mut self) -> Result<Option<u64>, EvalError> {
        let found = self.array("count", |descr| (descr == "<i8").then_some(8))?;
        let Some((header, data)) = found else { return Ok(None) };
        match data.as_chunks::<8>().0 {
            [bytes] => Ok(u64::try_from(i64::from_le_bytes(*bytes)).ok()),
            _ => Err(self.wrong_shape("count", header.shape, "one number".to_owned())),
        }
    }

    /// Header and data of an array, or `None` when the file does not have it.
    fn array(
        &mut self,
        array: &'static str,
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
            expected: READABLE,
        };
        if header.descr.contains('O') {
            return Err(wrong_type("an array of Python objects (a pickle)".to_owned()));
        }
        let Some(item_size) = item_size(&header.descr) else {
            return Err(wrong_type(format!("of type '{}'", header.descr)));
        };
        if header.fortran_order {
            return Err(wrong_type("in Fortran order".to_owned()));
        }
        if header.shape.len() > 2 || header.shape.iter().any(|&size| !(1..=MAX_DIM).contains(&size))
        {
            return Err(EvalError::ArrayShape {
                path: path.to_owned(),
                array,
                found: header.shape,
                expected: format!("at most two dimensions of 1 to {MAX_DIM}"),
            });
        }
        let expected = header.shape.iter().product::<u64>() * item_size;
        let mut data = Vec::new();
        // One byte more than expected shows that there is too much, however much there is.
        entry
            .take(expected + 1)
            .read_to_end(&mut data)
            .map_err(|error| invalid(path, format!("array `{array}`: {error}")))?;
        let found = data.len() as u64;
        if found != expected {
            return Err(EvalError::ArrayLength { path: path.to_owned(), array, expected, found });
        }
        Ok(Some((header, data)))
    }

    fn wrong_shape(&self, array: &'static str, found: Vec<u64>, expected: String) -> EvalError {
        EvalError::ArrayShape { path: self.path.to_owned(), array, found, expected }
    }
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
    fn pickles_integers_big_endian_and_fortran_order_are_refused() {
        for descr in ["|O", "<i8", ">f8"] {
            let error = error_of(npy(descr, "(2,)", &f8(&[1.0, 2.0])), sigma());
            assert!(matches!(error, EvalError::ArrayType { array: "mu", .. }), "{error}");
        }
        let mut fortran = sigma();
        let at = fortran.windows(5).position(|window| window == b"False").unwrap();
        fortran.splice(at..at + 5, *b"True ");
        assert!(matches!(error_of(mu(), fortran), EvalError::ArrayType { array: "sigma", .. }));
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
