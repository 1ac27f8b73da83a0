//! One tensor as a checkpoint holds it: dtype, shape and little-endian bytes, row major.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

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
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => bytemuck::cast_slice(values).to_vec(),
            Dtype::F16 => bytes_of(values, |x| f16::from_f32(x).to_le_bytes()),
            Dtype::BF16 => bytes_of(values, |x| bf16::from_f32(x).to_le_bytes()),
            found => {
                return Err(StateDictError::Dtype {
                    found,
                    wanted: "a target of f32 values",
                    convertible: "F32, F16, BF16",
                });
            }
        };
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
        let bytes = self.bytes();
        Ok(match self.dtype {
            Dtype::F32 => match bytemuck::try_cast_slice(bytes) {
                Ok(values) => Cow::Borrowed(values),
                Err(_) => Cow::Owned(values_of(bytes, f32::from_le_bytes)),
            },
            Dtype::F16 => Cow::Owned(values_of(bytes, |b| f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => Cow::Owned(values_of(bytes, |b| bf16::from_le_bytes(b).to_f32())),
            Dtype::F64 => Cow::Owned(values_of(bytes, |b| f64::from_le_bytes(b) as f32)),
            found => {
                return Err(StateDictError::Dtype {
                    found,
                    wanted: "f32",
                    convertible: "F32, F16, BF16, F64",
                });
            }
        })
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

    /// Position and value of the first NaN or infinity; none in tensors that are not floating point.
    pub(crate) fn first_non_finite(&self) -> Option<(usize, f64)> {
        let bytes = self.bytes();
        match self.dtype {
            Dtype::F32 => first_non_finite(bytes, |b| f32::from_le_bytes(b).into()),
            Dtype::F16 => first_non_finite(bytes, |b| f16::from_le_bytes(b).into()),
            Dtype::BF16 => first_non_finite(bytes, |b| bf16::from_le_bytes(b).into()),
            Dtype::F64 => first_non_finite(bytes, f64::from_le_bytes),
            _ => None,
        }
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

fn bytes_of<const N: usize>(values: &[f32], bytes: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&x| bytes(x)).collect()
}

fn first_non_finite<const N: usize>(
    bytes: &[u8],
    value: impl Fn([u8; N]) -> f64,
) -> Option<(usize, f64)> {
    let (chunks, _) = bytes.as_chunks::<N>();
    let index = chunks.iter().position(|&chunk| !value(chunk).is_finite())?;
    Some((index, value(chunks[index])))
}
