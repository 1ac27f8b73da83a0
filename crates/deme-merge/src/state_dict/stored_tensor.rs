//! One tensor as a checkpoint holds it: dtype, shape and little-endian bytes, row major.

use std::borrow::Cow;
use std::fmt;
use std::ops::{BitOr, Range};
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;

use super::StateDictError;

/// A tensor's dtype, shape and bytes. Cloning shares the bytes.
#[derive(Clone)]
pub struct StoredTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Bytes,
}

#[derive(Clone)]
enum Bytes {
    Mapped { file: Arc<Mmap>, range: Range<usize> },
    Owned(Arc<[u8]>),
}

impl StoredTensor {
    /// A tensor of the given little-endian bytes, row major.
    ///
    /// # Errors
    /// [`StateDictError::ByteCount`] when the bytes do not fit dtype and shape.
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Self, StateDictError> {
        check_byte_count(dtype, &shape, bytes.len())?;
        Ok(Self { dtype, shape, bytes: Bytes::Owned(bytes.into()) })
    }

    /// A tensor that lies in a mapped file. The range must lie inside the file.
    pub(super) fn mapped(
        dtype: Dtype,
        shape: Vec<usize>,
        file: Arc<Mmap>,
        range: Range<usize>,
    ) -> Result<Self, StateDictError> {
        check_byte_count(dtype, &shape, range.len())?;
        Ok(Self { dtype, shape, bytes: Bytes::Mapped { file, range } })
    }

    /// An f32 tensor.
    ///
    /// # Panics
    /// When the number of values is not the product of the shape.
    pub fn from_f32(shape: Vec<usize>, values: Vec<f32>) -> Self {
        assert_eq!(
            shape.iter().product::<usize>(),
            values.len(),
            "the values must fill the shape {shape:?}"
        );
        Self { dtype: Dtype::F32, shape, bytes: Bytes::Owned(bytemuck::cast_slice(&values).into()) }
    }

    /// A tensor of `dtype` (f32, f16 or bf16) from f32 values, rounded to the nearest, ties to even.
    ///
    /// # Errors
    /// [`StateDictError::Dtype`] for any other dtype, [`StateDictError::ByteCount`] when the values do
    /// not fill the shape.
    pub fn from_f32_as(
        dtype: Dtype,
        shape: Vec<usize>,
        values: &[f32],
    ) -> Result<Self, StateDictError> {
        let mut scratch = Vec::new();
        let bytes = encode_f32(dtype, values, &mut scratch)?.to_vec();
        Self::new(dtype, shape, bytes)
    }

    /// The dtype.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes: little endian, row major.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped { file, range } => &file[range.clone()],
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// How many numbers the tensor holds.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// The values as f32. Exact for f32, f16 and bf16; f64 is rounded.
    ///
    /// # Errors
    /// [`StateDictError::Dtype`] when the tensor is not of f32, f16, bf16 or f64.
    pub fn to_f32(&self) -> Result<Vec<f32>, StateDictError> {
        Ok(self.f32_values()?.into_owned())
    }

    /// As [`Self::to_f32`], without a copy where the bytes already are aligned f32.
    pub(crate) fn f32_values(&self) -> Result<Cow<'_, [f32]>, StateDictError> {
        if let Some(values) = self.f32_in_place(self.bytes()) {
            return Ok(Cow::Borrowed(values));
        }
        let mut values = Vec::new();
        decode_f32(self.dtype, self.bytes(), &mut values)?;
        Ok(Cow::Owned(values))
    }

    /// Some entries as f32: in place where they lie as aligned f32, otherwise converted into `scratch`.
    pub(crate) fn f32_block<'a>(
        &'a self,
        entries: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> Result<&'a [f32], StateDictError> {
        let bytes = self.byte_block(entries);
        if let Some(values) = self.f32_in_place(bytes) {
            return Ok(values);
        }
        decode_f32(self.dtype, bytes, scratch)?;
        Ok(scratch)
    }

    fn f32_in_place<'a>(&self, bytes: &'a [u8]) -> Option<&'a [f32]> {
        (self.dtype == Dtype::F32).then(|| bytemuck::try_cast_slice(bytes).ok()).flatten()
    }

    /// The bytes of some entries. Only for dtypes of whole bytes.
    pub(crate) fn byte_block(&self, entries: Range<usize>) -> &[u8] {
        let item = self.dtype.bitsize() / 8;
        &self.bytes()[entries.start * item..entries.end * item]
    }

    /// The mapped file that the tensor lies in, when it does, and the bytes there of some entries.
    pub(crate) fn place(&self, entries: Range<usize>) -> Option<(&Arc<Mmap>, Range<usize>)> {
        let item = self.dtype.bitsize() / 8;
        match &self.bytes {
            Bytes::Mapped { file, range } => {
                Some((file, range.start + entries.start * item..range.start + entries.end * item))
            }
            Bytes::Owned(_) => None,
        }
    }

    /// The values as i64.
    ///
    /// # Errors
    /// [`StateDictError::Dtype`] when the tensor holds no integers or truth values, or u64.
    pub fn to_i64(&self) -> Result<Vec<i64>, StateDictError> {
        let bytes = self.bytes();
        Ok(match self.dtype {
            Dtype::I64 => values_of(bytes, i64::from_le_bytes),
            Dtype::I32 => values_of(bytes, |b| i32::from_le_bytes(b).into()),
            Dtype::U32 => values_of(bytes, |b| u32::from_le_bytes(b).into()),
            Dtype::I16 => values_of(bytes, |b| i16::from_le_bytes(b).into()),
            Dtype::U16 => values_of(bytes, |b| u16::from_le_bytes(b).into()),
            Dtype::I8 => values_of(bytes, |b| i8::from_le_bytes(b).into()),
            Dtype::U8 | Dtype::BOOL => values_of(bytes, |[b]: [u8; 1]| b.into()),
            found => {
                return Err(StateDictError::Dtype {
                    found,
                    wanted: "i64",
                    convertible: "I64, I32, I16, I8, U32, U16, U8, BOOL",
                });
            }
        })
    }

    /// The same bytes under another shape.
    ///
    /// # Errors
    /// [`StateDictError::ByteCount`] when the new shape holds another number of entries.
    pub fn reshaped(self, shape: Vec<usize>) -> Result<Self, StateDictError> {
        check_byte_count(self.dtype, &shape, self.bytes().len())?;
        Ok(Self { shape, ..self })
    }

    /// Gives the memory that a mapped file's pages take back to the system: they are read from the file again
    /// when they are used again. A tensor that is not mapped keeps its memory.
    pub fn release_pages(&self) {
        #[cfg(unix)]
        if let Bytes::Mapped { file, range } = &self.bytes {
            use memmap2::UncheckedAdvice::DontNeed;
            // Advice that is not taken costs memory, never a result.
            // SAFETY: the map is shared with the file and only ever read, so no change can be lost.
            let _ = unsafe { file.unchecked_advise_range(DontNeed, range.start, range.len()) };
        }
    }

    /// Position and value of the first NaN or infinity; none in tensors that are not floating point.
    pub(crate) fn first_non_finite(&self) -> Option<(usize, f64)> {
        first_non_finite_of(self.dtype, self.bytes())
    }
}

impl fmt::Debug for StoredTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

/// Equal dtype, shape and bytes.
impl PartialEq for StoredTensor {
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes() == other.bytes()
    }
}

fn check_byte_count(dtype: Dtype, shape: &[usize], found: usize) -> Result<(), StateDictError> {
    let expected = shape
        .iter()
        .try_fold(1u128, |product, &size| product.checked_mul(size as u128))
        .and_then(|numel| numel.checked_mul(dtype.bitsize() as u128))
        .map_or(u128::MAX, |bits| bits.div_ceil(8));
    if expected == found as u128 {
        return Ok(());
    }
    Err(StateDictError::ByteCount { dtype, shape: shape.to_vec(), expected, found })
}

fn values_of<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|&chunk| value(chunk)).collect()
}

/// Little-endian bytes as f32. Exact for f32, f16 and bf16; f64 is rounded.
fn decode_f32(dtype: Dtype, bytes: &[u8], values: &mut Vec<f32>) -> Result<(), StateDictError> {
    values.clear();
    match dtype {
        Dtype::F32 => values.extend(values_of(bytes, f32::from_le_bytes)),
        Dtype::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            Ok(halves) => {
                values.resize(halves.len(), 0.0);
                halves.convert_to_f32_slice(values);
            }
            Err(_) => values.extend(values_of(bytes, |b| f16::from_le_bytes(b).to_f32())),
        },
        Dtype::BF16 => values.extend(values_of(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F64 => values.extend(values_of(bytes, |b| f64::from_le_bytes(b) as f32)),
        found => {
            return Err(StateDictError::Dtype {
                found,
                wanted: "f32",
                convertible: "F32, F16, BF16, F64",
            });
        }
    }
    Ok(())
}

/// f32 values as little-endian bytes of `dtype` (f32, f16 or bf16), rounded to the nearest, ties to even;
/// converted into `scratch` where they are not f32.
pub(crate) fn encode_f32<'a>(
    dtype: Dtype,
    values: &'a [f32],
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], StateDictError> {
    scratch.resize(values.len() * 2, 0);
    match dtype {
        Dtype::F32 => return Ok(bytemuck::cast_slice(values)),
        Dtype::F16 => match bytemuck::try_cast_slice_mut::<u8, f16>(scratch) {
            Ok(halves) => halves.convert_from_f32_slice(values),
            Err(_) => fill(scratch, values, |x| f16::from_f32(x).to_le_bytes()),
        },
        Dtype::BF16 => fill(scratch, values, |x| bf16::from_f32(x).to_le_bytes()),
        found => {
            return Err(StateDictError::Dtype {
                found,
                wanted: "a target of f32 values",
                convertible: "F32, F16, BF16",
            });
        }
    }
    Ok(scratch)
}

fn fill<const N: usize>(bytes: &mut [u8], values: &[f32], item: impl Fn(f32) -> [u8; N]) {
    for (bytes, &value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *bytes = item(value);
    }
}

/// Position and value of the first NaN or infinity among little-endian values; none in dtypes that are not
/// floating point.
pub(crate) fn first_non_finite_of(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f64)> {
    // All exponent bits are set in a NaN and in an infinity, and in nothing else; one more in the lowest of
    // them then carries into the sign, which was cleared.
    match dtype {
        Dtype::F32 => first(
            bytes,
            |b| (u32::from_le_bytes(b) & 0x7fff_ffff) + 0x0080_0000,
            |bits| bits >> 31 != 0,
            |b| f32::from_le_bytes(b).into(),
        ),
        Dtype::F16 => first(
            bytes,
            |b| (u16::from_le_bytes(b) & 0x7fff) + 0x0400,
            |bits| bits >> 15 != 0,
            |b| f16::from_le_bytes(b).into(),
        ),
        Dtype::BF16 => first(
            bytes,
            |b| (u16::from_le_bytes(b) & 0x7fff) + 0x0080,
            |bits| bits >> 15 != 0,
            |b| bf16::from_le_bytes(b).into(),
        ),
        Dtype::F64 => first(
            bytes,
            |b| (u64::from_le_bytes(b) & (u64::MAX >> 1)) + (1 << 52),
            |bits| bits >> 63 != 0,
            f64::from_le_bytes,
        ),
        _ => None,
    }
}

/// The first chunk that is not finite. Joins the bits of all chunks first, which usually is all there is to
/// do, and fast.
fn first<const N: usize, B: Default + BitOr<Output = B>>(
    bytes: &[u8],
    bits: impl Fn([u8; N]) -> B,
    is_not_finite: impl Fn(B) -> bool,
    value: impl Fn([u8; N]) -> f64,
) -> Option<(usize, f64)> {
    let (chunks, _) = bytes.as_chunks::<N>();
    if !is_not_finite(chunks.iter().fold(B::default(), |joined, &chunk| joined | bits(chunk))) {
        return None;
    }
    let index = chunks.iter().position(|&chunk| is_not_finite(bits(chunk)))?;
    Some((index, value(chunks[index])))
}
