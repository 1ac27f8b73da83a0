//! The one image preparation: resizing as PIL does it and cropping as torchvision does it.
//!
//! Resizing is Pillow's `resize` for 8-bit pictures: a separable convolution whose filter is widened
//! by the scale when shrinking (antialiasing), weights in 22-bit fixed point, each of the two passes
//! rounded to 8 bits, horizontal first. Sizes and crop positions are torchvision's
//! `Resize(resolution)` and `CenterCrop(resolution)`. Published numbers depend on exactly this, so
//! nothing else in the project resizes a picture.
//!
//! Two published measures resize otherwise, and so there are two functions for them alone:
//! [`resize_channels`] is the same without the rounding (clean-fid), [`interpolate_bilinear`] is
//! torch's, which skips pixels when shrinking (pytorch-fid).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::picture::Picture;

/// How pictures of any size become squares of one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preparation {
    /// Width and height of the prepared pictures, in pixels.
    pub resolution: u32,
    /// True: the shorter side is resized to `resolution` and the middle is cut out. False: both
    /// sides are resized to `resolution`, whatever that does to the proportions.
    #[serde(default = "default_center_crop")]
    pub center_crop: bool,
    /// The filter pictures are resized with.
    #[serde(default)]
    pub interpolation: Interpolation,
}

fn default_center_crop() -> bool {
    true
}

/// A filter of PIL's `resize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// A triangle of radius 1: torchvision's default.
    #[default]
    Bilinear,
    /// Keys' cubic with a = -0.5, radius 2: CLIP's choice.
    Bicubic,
    /// A windowed sinc of radius 3.
    Lanczos,
}

impl Preparation {
    /// The largest resolution that can be asked for.
    pub const MAX_RESOLUTION: u32 = 8192;

    /// Centre-cropped squares of this size by bilinear resizing.
    pub fn new(resolution: u32) -> Self {
        Self { resolution, center_crop: true, interpolation: Interpolation::Bilinear }
    }

    /// Checks the resolution.
    ///
    /// # Errors  [`DataError::BadResolution`]
    pub fn validate(&self) -> Result<(), DataError> {
        if (1..=Self::MAX_RESOLUTION).contains(&self.resolution) {
            Ok(())
        } else {
            Err(DataError::BadResolution { resolution: self.resolution, max: Self::MAX_RESOLUTION })
        }
    }

    /// One picture prepared: `[resolution, resolution, 3]` bytes.
    ///
    /// # Panics
    /// When the picture has no pixels.
    pub fn prepare(&self, picture: &Picture) -> Picture {
        if self.center_crop {
            prepare_square(picture, self.resolution, self.interpolation)
        } else {
            resize_rgb(picture, self.resolution, self.resolution, self.interpolation)
        }
    }
}

/// Resizes a picture to `width` x `height`, as PIL's `Image.resize`.
///
/// # Panics
/// When the picture has no pixels, or not as many as it says.
pub fn resize_rgb(picture: &Picture, width: u32, height: u32, filter: Interpolation) -> Picture {
    let columns = AxisWindow { resized: u64::from(width), kept: 0..u64::from(width) };
    let rows = AxisWindow { resized: u64::from(height), kept: 0..u64::from(height) };
    resize_window(picture, &columns, &rows, filter)
}

/// Resizes the shorter side of a picture to `size`, as torchvision's `Resize(size)`: the longer side
/// becomes `size * longer / shorter`, rounded down.
///
/// # Panics
/// When the picture has no pixels, or not as many as it says.
pub fn resize_shorter_side(picture: &Picture, size: u32, filter: Interpolation) -> Picture {
    let (width, height) = shorter_side_to(picture, size);
    let whole = |resized: u64| AxisWindow { resized, kept: 0..resized };
    resize_window(picture, &whole(width), &whole(height), filter)
}

/// Resizes the shorter side to `size` and cuts out the middle `size` x `size`, as torchvision's
/// `Resize(size)` and `CenterCrop(size)`. Only the part that is kept is computed.
///
/// # Panics
/// When the picture has no pixels, or not as many as it says.
pub fn prepare_square(picture: &Picture, size: u32, filter: Interpolation) -> Picture {
    let (width, height) = shorter_side_to(picture, size);
    resize_window(
        picture,
        &AxisWindow::centered(width, size),
        &AxisWindow::centered(height, size),
        filter,
    )
}

/// Resizes a picture without rounding to bytes: PIL's `Image.resize` of each channel as a picture of
/// mode `F`. Each of the two passes sums in f64 and gives f32.
///
/// # Shapes  returns [3, height, width], in the bytes' units (0 to 255); bicubic and Lanczos overshoot
/// # Panics
/// When the picture has no pixels, or not as many as it says.
pub fn resize_channels(
    picture: &Picture,
    width: u32,
    height: u32,
    filter: Interpolation,
) -> Vec<f32> {
    check_pixels(picture);
    let whole = |resized: u32| AxisWindow { resized: resized.into(), kept: 0..resized.into() };
    let column_taps = axis_taps(picture.width, &whole(width), filter);
    let row_taps = axis_taps(picture.height, &whole(height), filter);
    let from_width = picture.width as usize;
    let mut resized = Vec::with_capacity(3 * column_taps.len() * row_taps.len());
    let mut narrowed = Vec::with_capacity(column_taps.len() * picture.height as usize);
    let mut sums = vec![0.0; column_taps.len()];
    for channel in 0..3 {
        narrowed.clear();
        for row in picture.pixels.chunks_exact(3 * from_width) {
            narrowed.extend(column_taps.iter().map(|Taps { start, weights }| {
                let run = row[3 * start + channel..].iter().step_by(3);
                let products = run.zip(weights).map(|(&byte, weight)| f64::from(byte) * weight);
                products.sum::<f64>() as f32
            }));
        }
        for Taps { start, weights } in &row_taps {
            sums.fill(0.0);
            let rows = narrowed[start * column_taps.len()..].chunks_exact(column_taps.len());
            for (row, weight) in rows.zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(row) {
                    *sum += f64::from(value) * weight;
                }
            }
            resized.extend(sums.iter().map(|&sum| sum as f32));
        }
    }
    resized
}

/// Bilinear resizing without antialiasing: torch's `interpolate(mode="bilinear",
/// align_corners=False)` on the CPU, bit for bit where torch computes with fused
/// multiplications and additions. Each output value comes from the four nearest pixels, however
/// far the picture shrinks.
///
/// # Shapes  planes: [C, H, W] of `size` [H, W]; returns [C, H', W'] of `resized` [H', W']
/// # Panics
/// When a side is 0, or the values are no whole number of planes.
pub fn interpolate_bilinear(planes: &[f32], size: [usize; 2], resized: [usize; 2]) -> Vec<f32> {
    let [height, width] = size;
    assert!(
        height > 0 && width > 0 && planes.len().is_multiple_of(height * width),
        "{} values are no planes of {height}x{width}",
        planes.len()
    );
    let rows = bilinear_taps(height, resized[0]);
    let columns = bilinear_taps(width, resized[1]);
    let between =
        |[a, b]: [f32; 2], [weight_a, weight_b]: [f32; 2]| a.mul_add(weight_a, b * weight_b);
    let mut values =
        Vec::with_capacity(planes.len() / (height * width) * rows.len() * columns.len());
    for plane in planes.chunks_exact(height * width) {
        for tap in &rows {
            let [above, below] = tap.positions.map(|row| &plane[row * width..][..width]);
            values.extend(columns.iter().map(|column| {
                let in_row =
                    |row: &[f32]| between(column.positions.map(|x| row[x]), column.weights);
                between([in_row(above), in_row(below)], tap.weights)
            }));
        }
    }
    values
}

/// The two input positions of an output position, and their weights.
struct BilinearTap {
    positions: [usize; 2],
    weights: [f32; 2],
}

/// torch's indices and weights of one axis, in f32 as torch computes them.
fn bilinear_taps(size: usize, resized: usize) -> Vec<BilinearTap> {
    let scale = size as f32 / resized as f32;
    let taps = (0..resized).map(|position| {
        let source = (scale * (position as f32 + 0.5) - 0.5).max(0.0);
        let first = (source as usize).min(size - 1);
        let second = (first + 1).min(size - 1);
        let of_second = (source - first as f32).clamp(0.0, 1.0);
        BilinearTap { positions: [first, second], weights: [1.0 - of_second, of_second] }
    });
    taps.collect()
}

fn check_pixels(picture: &Picture) {
    let (width, height) = (picture.width as usize, picture.height as usize);
    assert!(
        width > 0 && height > 0 && picture.pixels.len() == 3 * width * height,
        "{}: a {width}x{height} picture of {} bytes cannot be resized",
        picture.name,
        picture.pixels.len()
    );
}

fn shorter_side_to(picture: &Picture, size: u32) -> (u64, u64) {
    let (width, height) = (u64::from(picture.width), u64::from(picture.height));
    assert!(width > 0 && height > 0, "{}: no pixels", picture.name);
    let size = u64::from(size);
    if width <= height { (size, size * height / width) } else { (size * width / height, size) }
}

/// One axis of a resized picture, of which only a part is computed.
struct AxisWindow {
    /// The size of the whole axis after resizing.
    resized: u64,
    /// The positions that are kept.
    kept: Range<u64>,
}

impl AxisWindow {
    /// torchvision's `CenterCrop`: it begins at `round((resized - size) / 2)`, and Python rounds
    /// halves to even.
    fn centered(resized: u64, size: u32) -> Self {
        let margin = resized - u64::from(size);
        let start = match margin % 4 {
            3 => margin / 2 + 1,
            _ => margin / 2,
        };
        Self { resized, kept: start..start + u64::from(size) }
    }
}

/// The weights of one output position over a run of input positions.
struct Taps<W> {
    /// The first input position.
    start: usize,
    /// Numbers, or in fixed point with [`WEIGHT_BITS`] fraction bits.
    weights: Vec<W>,
}

/// Fraction bits of a weight: 32, less 8 for the pixel and 2 for sums beyond one.
const WEIGHT_BITS: u32 = 32 - 8 - 2;

fn resize_window(
    picture: &Picture,
    columns: &AxisWindow,
    rows: &AxisWindow,
    filter: Interpolation,
) -> Picture {
    check_pixels(picture);
    let column_taps = fixed_point_taps(picture.width, columns, filter);
    let row_taps = fixed_point_taps(picture.height, rows, filter);
    // Only the rows that the vertical pass will read go through the horizontal one.
    let first_row = row_taps.iter().map(|taps| taps.start).min().unwrap_or(0);
    let end_row = row_taps.iter().map(|taps| taps.start + taps.weights.len()).max().unwrap_or(0);
    let row_bytes = 3 * picture.width as usize;
    let source = &picture.pixels[first_row * row_bytes..end_row * row_bytes];
    let narrowed = resize_rows(source, row_bytes, &column_taps);
    let pixels = resize_columns(&narrowed, 3 * column_taps.len(), first_row, &row_taps);
    Picture {
        name: picture.name.clone(),
        width: column_taps.len() as u32,
        height: row_taps.len() as u32,
        pixels,
    }
}

/// The horizontal pass: every row of `row_bytes` becomes one of `3 * taps.len()` bytes.
fn resize_rows(pixels: &[u8], row_bytes: usize, taps: &[Taps<i32>]) -> Vec<u8> {
    let mut resized = Vec::with_capacity(pixels.len() / row_bytes * 3 * taps.len());
    for row in pixels.chunks_exact(row_bytes) {
        for Taps { start, weights } in taps {
            let mut sums = [ROUNDING; 3];
            let run = &row[3 * start..3 * (start + weights.len())];
            for (pixel, &weight) in run.chunks_exact(3).zip(weights) {
                for (sum, &byte) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(byte) * weight;
                }
            }
            resized.extend(sums.map(byte_from_sum));
        }
    }
    resized
}

/// The vertical pass over rows of `row_bytes`, the first of which is the picture's `first_row`.
fn resize_columns(
    pixels: &[u8],
    row_bytes: usize,
    first_row: usize,
    taps: &[Taps<i32>],
) -> Vec<u8> {
    let mut resized = Vec::with_capacity(row_bytes * taps.len());
    let mut sums = vec![ROUNDING; row_bytes];
    for Taps { start, weights } in taps {
        sums.fill(ROUNDING);
        let run = &pixels[(start - first_row) * row_bytes..];
        for (row, &weight) in run.chunks_exact(row_bytes).zip(weights) {
            for (sum, &byte) in sums.iter_mut().zip(row) {
                *sum += i32::from(byte) * weight;
            }
        }
        resized.extend(sums.iter().map(|&sum| byte_from_sum(sum)));
    }
    resized
}

/// One half in fixed point: sums begin with it so that dropping the fraction rounds.
const ROUNDING: i32 = 1 << (WEIGHT_BITS - 1);

fn byte_from_sum(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// [`axis_taps`] as pictures of bytes are resized with.
fn fixed_point_taps(size: u32, window: &AxisWindow, filter: Interpolation) -> Vec<Taps<i32>> {
    let taps = axis_taps(size, window, filter).into_iter();
    let fixed = |weights: Vec<f64>| weights.into_iter().map(fixed_point).collect();
    taps.map(|Taps { start, weights }| Taps { start, weights: fixed(weights) }).collect()
}

/// The taps of the kept positions of one axis of `size` input pixels. Weights sum to one.
fn axis_taps(size: u32, window: &AxisWindow, filter: Interpolation) -> Vec<Taps<f64>> {
    if window.resized == u64::from(size) {
        // PIL skips a pass that changes nothing.
        return window
            .kept
            .clone()
            .map(|position| Taps { start: position as usize, weights: vec![1.0] })
            .collect();
    }
    let scale = f64::from(size) / window.resized as f64;
    // Shrinking widens the filter to cover every input pixel; enlarging leaves it as it is.
    let filter_scale = scale.max(1.0);
    let radius = filter.radius() * filter_scale;
    window
        .kept
        .clone()
        .map(|position| {
            let center = (position as f64 + 0.5) * scale;
            let start = (center - radius + 0.5).max(0.0) as usize;
            let end = ((center + radius + 0.5) as usize).min(size as usize);
            let weights: Vec<f64> = (start..end)
                .map(|input| filter.weight((input as f64 - center + 0.5) / filter_scale))
                .collect();
            let total: f64 = weights.iter().sum();
            let weights = weights.iter().map(|weight| weight / total).collect();
            Taps { start, weights }
        })
        .collect()
}

fn fixed_point(weight: f64) -> i32 {
    // `as` cuts towards zero, so halves round away from it.
    (weight * f64::from(1 << WEIGHT_BITS) + 0.5f64.copysign(weight)) as i32
}

impl Interpolation {
    /// Where the filter ends, in output pixels when shrinking and input pixels when enlarging.
    fn radius(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, distance: f64) -> f64 {
        let x = distance.abs();
        if x >= self.radius() {
            return 0.0;
        }
        match self {
            Self::Bilinear => 1.0 - x,
            Self::Bicubic => {
                const A: f64 = -0.5;
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                }
            }
            Self::Lanczos => sinc(x) * sinc(x / 3.0),
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        1.0
    } else {
        let angle = std::f64::consts::PI * x;
        angle.sin() / angle
    }
}
