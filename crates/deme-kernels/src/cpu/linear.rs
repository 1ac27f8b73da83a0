//! y = x W^T + b on rows, with the weight as PyTorch stores it: `[d_out, d_in]`.

use super::buffer::{Scratch, SharedOutput};
use super::conv::{pack_rows_into, packed_panels};
use super::product::{Product, Rows, Start, WHOLE, panel_width};
use super::transpose::{pixels_to_planes, planes_to_pixels};

/// Sizes of one call: x is `[rows, d_in]`, y `[rows, d_out]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinearShape {
    pub rows: usize,
    pub d_in: usize,
    pub d_out: usize,
}

/// # Safety
/// Nobody else may touch `y` meanwhile. On return all of it is written.
pub(crate) unsafe fn forward(
    s: &LinearShape,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: SharedOutput<'_>,
) {
    assert_eq!([x.len(), weight.len()], [s.rows * s.d_in, s.d_out * s.d_in]);
    assert_eq!([bias.len(), y.len()], [s.d_out, s.rows * s.d_out]);
    let width = panel_width();
    if s.rows <= width {
        // The weight is larger than what it acts on and is read as it lies: y^T = W x^T + b.
        let mut packed = Scratch::new(s.d_in * width);
        planes_to_pixels(x, s.d_in, s.rows, s.d_in, &mut packed, |k| k * width);
        let product = Product {
            a: weight,
            rows: Rows::Every { stride: s.d_in, count: s.d_out },
            a_step: 1,
            b: &packed,
            b_panel: s.d_in * width,
            b_step: width,
            runs: WHOLE,
            run_len: s.d_in,
            columns: s.rows,
            start: Start::Rows(bias),
            relu: false,
        };
        let mut transposed = Scratch::new(s.d_out * s.rows);
        // SAFETY: `transposed` is borrowed mutably; y's rows are as long as the d_out columns, and
        // the caller's promise.
        unsafe {
            product.write_parallel(SharedOutput::new(&mut transposed), s.rows);
            let to = y.pointer(0..y.len());
            pixels_to_planes(&transposed, |p| p * s.rows, s.rows, s.d_out, to, s.d_out);
        }
        return;
    }
    let packed = packed_panels(s.d_in, s.d_out, |first, used, packed| {
        planes_to_pixels(&weight[first * s.d_in..], s.d_in, used, s.d_in, packed, |k| k * width);
    });
    let product = Product {
        a: x,
        rows: Rows::Every { stride: s.d_in, count: s.rows },
        a_step: 1,
        b: &packed,
        b_panel: s.d_in * width,
        b_step: width,
        runs: WHOLE,
        run_len: s.d_in,
        columns: s.d_out,
        start: Start::Columns(bias),
        relu: false,
    };
    // SAFETY: the caller's promise.
    unsafe { product.write_parallel(y, s.d_out) };
}

/// dx = dy W.
///
/// # Safety
/// Nobody else may touch `dx` meanwhile. On return all of it is written.
pub(crate) unsafe fn input_gradient(
    s: &LinearShape,
    weight: &[f32],
    dy: &[f32],
    dx: SharedOutput<'_>,
) {
    assert_eq!([dy.len(), dx.len()], [s.rows * s.d_out, s.rows * s.d_in]);
    let width = panel_width();
    // For a few rows the weight is read as it lies: packing it would cost more than its use.
    let packed = (s.rows > width).then(|| packed_rows(weight, s.d_out, s.d_in));
    let (b, b_panel, b_step) = match &packed {
        Some(packed) => (&packed[..], s.d_out * width, width),
        None => (weight, width, s.d_in),
    };
    let product = Product {
        a: dy,
        rows: Rows::Every { stride: s.d_out, count: s.rows },
        a_step: 1,
        b,
        b_panel,
        b_step,
        runs: WHOLE,
        run_len: s.d_out,
        columns: s.d_in,
        start: Start::Zero,
        relu: false,
    };
    // SAFETY: the caller's promise.
    unsafe { product.write_parallel(dx, s.d_in) };
}

/// dW = dy^T x.
pub(crate) fn weight_gradient(s: &LinearShape, x: &[f32], dy: &[f32]) -> Vec<f32> {
    assert_eq!([x.len(), dy.len()], [s.rows * s.d_in, s.rows * s.d_out]);
    let mut dweight = vec![0.0; s.d_out * s.d_in];
    let packed = packed_rows(x, s.rows, s.d_in);
    let product = Product {
        a: dy,
        rows: Rows::Every { stride: 1, count: s.d_out },
        a_step: s.d_out,
        b: &packed,
        b_panel: s.rows * panel_width(),
        b_step: panel_width(),
        runs: WHOLE,
        run_len: s.rows,
        columns: s.d_in,
        start: Start::Zero,
        relu: false,
    };
    // SAFETY: `dweight` is borrowed mutably.
    unsafe { product.write_parallel(SharedOutput::new(&mut dweight), s.d_in) };
    dweight
}

/// `[panel][row][column]` of a row-major matrix.
fn packed_rows(matrix: &[f32], rows: usize, columns: usize) -> Scratch {
    packed_panels(rows, columns, |first, used, packed| {
        pack_rows_into(&matrix[first..], columns, rows, used, rows, 0, packed);
    })
}

/// dy summed over the rows, in their order.
pub(crate) fn bias_gradient(s: &LinearShape, dy: &[f32]) -> Vec<f32> {
    assert_eq!(dy.len(), s.rows * s.d_out);
    let mut dbias = vec![0.0; s.d_out];
    let product = Product {
        a: &[1.0],
        rows: Rows::Every { stride: 0, count: 1 },
        a_step: 0,
        b: dy,
        b_panel: panel_width(),
        b_step: s.d_out,
        runs: WHOLE,
        run_len: s.rows,
        columns: s.d_out,
        start: Start::Zero,
        relu: false,
    };
    // SAFETY: `dbias` is borrowed mutably.
    unsafe { product.write_parallel(SharedOutput::new(&mut dbias), s.d_out) };
    dbias
}
