//! Singular values of large dense matrices, without vectors, in f64. No tensor engine.
//!
//! In three steps: Householder reflections of whole panels reduce the matrix to a narrow band, so that
//! nearly all work is matrix products (the two-stage reduction of Großer and Lang 1999); the band is
//! chased down to two diagonals; the two diagonals are iterated on (Golub and Kahan 1965; Demmel and
//! Kahan 1990). Nothing is squared on the way, so small singular values are as exact as large ones,
//! up to the rounding of the largest.
//!
//! Work is shared between threads in tiles of fixed width: a result depends on the matrix alone.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_transpose_on_the_left_in_place_scratch as reflect_scratch,
    apply_block_householder_transpose_on_the_left_in_place_with_conj as reflect_in_place,
};
use faer::linalg::qr::no_pivoting::factor::{qr_in_place, qr_in_place_scratch};
use faer::{Conj, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Diagonals above the main one that the band keeps, and columns per panel.
const BAND: usize = 32;

/// Columns per task.
const TILE: usize = 256;

/// Sweeps per singular value until the iteration is given up; two are usual.
const MAX_SWEEPS: usize = 30;

/// The iteration did not settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoConvergence;

/// The `min(m, n)` singular values of an m x n matrix of finite numbers, in no particular order.
pub(crate) fn singular_values(matrix: Mat<f64>) -> Result<Vec<f64>, NoConvergence> {
    let largest = matrix.norm_max();
    if largest == 0.0 {
        return Ok(vec![0.0; matrix.nrows().min(matrix.ncols())]);
    }
    // A power of two near the largest entry: exact, and the squares of what matters stay in range.
    let scale = largest.log2().floor().clamp(-1000.0, 1000.0).exp2();
    let mut matrix = if matrix.nrows() < matrix.ncols() {
        Mat::from_fn(matrix.ncols(), matrix.nrows(), |i, j| matrix[(j, i)])
    } else {
        matrix
    };
    for column in matrix.as_mut().col_iter_mut() {
        column.iter_mut().for_each(|value| *value /= scale);
    }
    let mut square = upper_factor(matrix);
    reduce_to_band(&mut square);
    let (diagonal, above) = Band::of(&square).into_bidiagonal();
    let values = bidiagonal_singular_values(diagonal, above, MAX_SWEEPS)?;
    Ok(values.into_iter().map(|value| value * scale).collect())
}

/// R of A = Q R, n x n for an m x n matrix with m >= n. A square matrix is given back as it is: it has
/// the singular values of its own R.
pub(crate) fn upper_factor(mut matrix: Mat<f64>) -> Mat<f64> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    debug_assert!(rows >= columns, "the factor of a wide matrix is not square");
    if rows == columns {
        return matrix;
    }
    for start in (0..columns).step_by(BAND) {
        eliminate_below(matrix.as_mut().submatrix_mut(start, start, rows - start, columns - start));
    }
    Mat::from_fn(columns, columns, |i, j| if i <= j { matrix[(i, j)] } else { 0.0 })
}

/// Reflects the first columns of a block to upper triangular form, and the rest with them. Below
/// their diagonal the first columns hold the reflections.
fn eliminate_below(block: MatMut<'_, f64>) {
    let rows = block.nrows();
    let width = BAND.min(block.ncols());
    let (mut panel, rest) = block.split_at_col_mut(width);
    let reflections = width.min(rows);
    let mut factor = Mat::zeros(reflections, reflections);
    // A panel of a transposed matrix lies scattered in memory.
    let mut dense = panel.as_ref().to_owned();
    let parameters = Default::default();
    let scratch = qr_in_place_scratch::<f64>(rows, width, reflections, Par::Seq, parameters);
    qr_in_place(
        dense.as_mut(),
        factor.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        parameters,
    );
    panel.copy_from(&dense);
    let basis = dense.as_ref().subcols(0, reflections);
    column_tiles(rest).into_par_iter().for_each(|tile| reflect(basis, factor.as_ref(), tile));
}

fn reflect(basis: MatRef<'_, f64>, factor: MatRef<'_, f64>, tile: MatMut<'_, f64>) {
    let scratch = reflect_scratch::<f64>(basis.nrows(), factor.nrows(), tile.ncols());
    let mut memory = MemBuffer::new(scratch);
    reflect_in_place(basis, factor, Conj::No, tile, Par::Seq, MemStack::new(&mut memory));
}

fn column_tiles(matrix: MatMut<'_, f64>) -> Vec<MatMut<'_, f64>> {
    let mut tiles = Vec::new();
    let mut rest = matrix;
    while rest.ncols() > 0 {
        let width = TILE.min(rest.ncols());
        let (tile, behind) = rest.split_at_col_mut(width);
        tiles.push(tile);
        rest = behind;
    }
    tiles
}

/// Leaves a band of [`BAND`] diagonals above the main one; what stands outside it afterwards are
/// reflections, to be ignored.
fn reduce_to_band(matrix: &mut Mat<f64>) {
    let dim = matrix.nrows();
    for start in (0..dim).step_by(BAND) {
        let size = dim - start;
        eliminate_below(matrix.as_mut().submatrix_mut(start, start, size, size));
        if size > BAND {
            // From the right: the same on the transpose of the rows just finished and all below.
            let right = matrix.as_mut().submatrix_mut(start, start + BAND, size, size - BAND);
            eliminate_below(right.transpose_mut());
        }
    }
}

/// The band by columns: the entry of row r and column c at `c * STRIDE + MAIN + r - c`. Beside the
/// band there is room for what the chase pushes out of it.
struct Band {
    dim: usize,
    entries: Vec<f64>,
}

/// Position of the main diagonal within a column.
const MAIN: usize = 2 * BAND;

/// Entries per column.
const STRIDE: usize = 3 * BAND + 1;

impl Band {
    fn of(matrix: &Mat<f64>) -> Self {
        let dim = matrix.nrows();
        let mut band = Self { dim, entries: vec![0.0; dim * STRIDE] };
        for column in 0..dim {
            for row in column.saturating_sub(BAND)..=column {
                let at = band.at(row, column);
                band.entries[at] = matrix[(row, column)];
            }
        }
        band
    }

    fn at(&self, row: usize, column: usize) -> usize {
        column * STRIDE + MAIN + row - column
    }

    /// The main diagonal and the one above it, with the singular values of the band.
    ///
    /// Row by row, all entries of a row but the first two are reflected away. That pushes entries
    /// below the diagonal, in the block of the columns that were mixed; reflecting the first of these
    /// columns pushes entries out of the band's upper edge, one block further down; and so on to the
    /// end. Only the first row and column of each block are cleaned: the next row's chase, one entry
    /// further, does the rest.
    fn into_bidiagonal(mut self) -> (Vec<f64>, Vec<f64>) {
        let mut reflection = [0.0; BAND];
        for first in 0..self.dim.saturating_sub(1) {
            let (mut row, mut start) = (first, first + 1);
            while start < self.dim {
                let end = (start + BAND).min(self.dim);
                self.clean_row(row, start, end, &mut reflection);
                self.clean_column(start, end, &mut reflection);
                (row, start) = (start, end);
            }
        }
        let diagonal = (0..self.dim).map(|i| self.entries[self.at(i, i)]).collect();
        let above = (1..self.dim).map(|i| self.entries[self.at(i - 1, i)]).collect();
        (diagonal, above)
    }

    /// Mixes columns `start..end` so that row `row` keeps only the first of them.
    fn clean_row(&mut self, row: usize, start: usize, end: usize, space: &mut [f64; BAND]) {
        let vector = &mut space[..end - start];
        for (value, column) in vector.iter_mut().zip(start..end) {
            *value = self.entries[self.at(row, column)];
        }
        let (scale, head) = householder(vector);
        for column in start..end {
            let at = self.at(row, column);
            self.entries[at] = if column == start { head } else { 0.0 };
        }
        if scale == 0.0 {
            return;
        }
        let count = end - row - 1;
        let mut sums = [0.0; 2 * BAND];
        let sums = &mut sums[..count];
        for (value, column) in vector.iter().zip(start..end) {
            let at = self.at(row + 1, column);
            let entries = &self.entries[at..at + count];
            sums.iter_mut().zip(entries).for_each(|(sum, entry)| *sum += value * entry);
        }
        for (value, column) in vector.iter().zip(start..end) {
            let at = self.at(row + 1, column);
            let entries = &mut self.entries[at..at + count];
            let factor = scale * value;
            entries.iter_mut().zip(&*sums).for_each(|(entry, sum)| *entry -= factor * sum);
        }
    }

    /// Mixes rows `start..end` so that column `start` keeps only the first of them.
    fn clean_column(&mut self, start: usize, end: usize, space: &mut [f64; BAND]) {
        let count = end - start;
        let vector = &mut space[..count];
        let at = self.at(start, start);
        vector.copy_from_slice(&self.entries[at..at + count]);
        let (scale, head) = householder(vector);
        self.entries[at..at + count].fill(0.0);
        self.entries[at] = head;
        if scale == 0.0 {
            return;
        }
        for column in start + 1..(end + BAND).min(self.dim) {
            let at = self.at(start, column);
            let entries = &mut self.entries[at..at + count];
            let factor = scale * dot(entries, vector);
            entries.iter_mut().zip(&*vector).for_each(|(entry, value)| *entry -= factor * value);
        }
    }
}

/// H = I - scale v v^T with H x = (head, 0, ..): gives scale and head, and v in the place of x, v_0 = 1.
fn householder(x: &mut [f64]) -> (f64, f64) {
    let tail = dot(&x[1..], &x[1..]);
    let first = x[0];
    x[0] = 1.0;
    if tail == 0.0 {
        return (0.0, first);
    }
    // The sign that cancels nothing.
    let head = -(first * first + tail).sqrt().copysign(first);
    let factor = 1.0 / (first - head);
    x[1..].iter_mut().for_each(|value| *value *= factor);
    ((head - first) / head, head)
}

/// Eight sums side by side, which a processor adds at once, then one.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

/// Singular values of the upper bidiagonal matrix with these two diagonals: QR sweeps, with a shift
/// where that loses nothing and without one where a value is about zero.   (Demmel and Kahan 1990)
fn bidiagonal_singular_values(
    mut diagonal: Vec<f64>,
    mut above: Vec<f64>,
    sweeps_per_value: usize,
) -> Result<Vec<f64>, NoConvergence> {
    let largest = diagonal.iter().chain(&above).fold(0f64, |most, value| most.max(value.abs()));
    if largest == 0.0 {
        return Ok(diagonal);
    }
    // Squares of what matters neither overflow nor vanish.
    diagonal.iter_mut().chain(&mut above).for_each(|value| *value /= largest);
    let mut sweeps = sweeps_per_value * diagonal.len();
    let mut last_block = None;
    let mut end = diagonal.len() - 1;
    while end > 0 {
        if negligible(&diagonal, &above, end - 1) {
            end -= 1;
            continue;
        }
        let start = (0..end - 1).rev().find(|&i| negligible(&diagonal, &above, i));
        let start = start.map_or(0, |i| i + 1);
        let (d, e) = (&mut diagonal[start..=end], &mut above[start..end]);
        if last_block != Some((start, end)) {
            last_block = Some((start, end));
            // The sweeps find small values at the end; transposed and read backwards, the matrix is
            // bidiagonal again and has the same values.
            if d[0].abs() < d[d.len() - 1].abs() {
                d.reverse();
                e.reverse();
            }
        }
        sweeps = sweeps.checked_sub(1).ok_or(NoConvergence)?;
        let shift = smaller_singular_value(d[d.len() - 2], e[e.len() - 1], d[d.len() - 1]);
        let some_zero = d.iter().any(|value| value.abs() <= f64::EPSILON * f64::EPSILON);
        if some_zero || (shift / d[0]).powi(2) < f64::EPSILON {
            sweep_without_shift(d, e);
        } else {
            sweep(d, e, shift);
        }
    }
    Ok(diagonal.into_iter().map(|value| value.abs() * largest).collect())
}

/// Whether entry i above the diagonal is rounding, beside its neighbours or the largest entry, 1.
fn negligible(diagonal: &[f64], above: &[f64], i: usize) -> bool {
    let neighbours = diagonal[i].abs() + diagonal[i + 1].abs();
    above[i].abs() <= f64::EPSILON * neighbours.max(0.125)
}

/// Of the matrix [[a, b], [0, c]].
fn smaller_singular_value(a: f64, b: f64, c: f64) -> f64 {
    let (a, b, c) = (a.abs(), b.abs(), c.abs());
    // (s1 + s2)^2 = |.|^2 + 2 |det| and (s1 - s2)^2 = |.|^2 - 2 |det|, the latter without cancelling.
    let sum = (a + c).hypot(b);
    let difference = (a - c).hypot(b);
    if sum + difference == 0.0 { 0.0 } else { 2.0 * a * c / (sum + difference) }
}

/// c, s and r with c f + s g = r, c g - s f = 0.
fn rotation(f: f64, g: f64) -> (f64, f64, f64) {
    let r = (f * f + g * g).sqrt();
    if r == 0.0 { (1.0, 0.0, 0.0) } else { (f / r, g / r, r) }
}

fn sweep(d: &mut [f64], e: &mut [f64], shift: f64) {
    let last = d.len() - 1;
    let mut f = (d[0].abs() - shift) * (1f64.copysign(d[0]) + shift / d[0]);
    let mut g = e[0];
    for i in 0..last {
        let (c, s, r) = rotation(f, g);
        if i > 0 {
            e[i - 1] = r;
        }
        f = c * d[i] + s * e[i];
        e[i] = c * e[i] - s * d[i];
        g = s * d[i + 1];
        d[i + 1] *= c;
        let (c, s, r) = rotation(f, g);
        d[i] = r;
        f = c * e[i] + s * d[i + 1];
        d[i + 1] = c * d[i + 1] - s * e[i];
        if i + 1 < last {
            g = s * e[i + 1];
            e[i + 1] *= c;
        }
    }
    e[last - 1] = f;
}

fn sweep_without_shift(d: &mut [f64], e: &mut [f64]) {
    let last = d.len() - 1;
    let (mut c, mut old_c, mut old_s) = (1.0, 1.0, 0.0);
    for i in 0..last {
        let (next_c, s, r) = rotation(d[i] * c, e[i]);
        c = next_c;
        if i > 0 {
            e[i - 1] = old_s * r;
        }
        (old_c, old_s, d[i]) = rotation(old_c * r, d[i + 1] * s);
    }
    let h = d[last] * c;
    d[last] = h * old_c;
    e[last - 1] = h * old_s;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn random(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Mat::from_fn(rows, columns, |_, _| rng.random_range(-1.0..1.0))
    }

    fn sorted(matrix: &Mat<f64>) -> Vec<f64> {
        let mut values = singular_values(matrix.clone()).unwrap();
        values.sort_by(|a, b| b.total_cmp(a));
        values
    }

    /// The library's, which goes another way (one-stage reduction, divide and conquer).
    fn expected(matrix: &Mat<f64>) -> Vec<f64> {
        matrix.singular_values().unwrap()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(f64::MIN_POSITIVE, |most, &value| most.max(value));
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-13 * largest, "{found} and {expected}");
        }
    }

    #[test]
    fn they_are_those_of_another_algorithm_at_all_shapes() {
        let sides = [1, 2, 3, 31, 32, 33, 34, 63, 64, 65, 97, 150, 300];
        for (seed, &side) in sides.iter().enumerate() {
            for other in [side, side + 1, 2 * side, side + 70] {
                let tall = random(other, side, seed as u64);
                assert_close(&sorted(&tall), &expected(&tall));
                let wide = random(side, other, seed as u64 + 100);
                assert_close(&sorted(&wide), &expected(&wide));
            }
        }
    }

    #[test]
    fn small_values_beside_large_ones_keep_their_digits() {
        // diag(1, 1/4, 1/16, ...) between two reflections, down to 1e-15 of the largest.
        let dim = 80;
        let reflection = |seed| {
            let v = random(dim, 1, seed);
            let length: f64 = (0..dim).map(|i| v[(i, 0)] * v[(i, 0)]).sum();
            Mat::from_fn(dim, dim, |i, j| {
                f64::from(u8::from(i == j)) - 2.0 * v[(i, 0)] * v[(j, 0)] / length
            })
        };
        let values: Vec<f64> = (0..dim).map(|i| 0.5f64.powi(2 * (i as i32 % 26))).collect();
        let left = reflection(1);
        let scaled = Mat::from_fn(dim, dim, |i, j| left[(i, j)] * values[j]);
        let mut values = values;
        values.sort_by(|a, b| b.total_cmp(a));
        assert_close(&sorted(&(scaled * reflection(2))), &values);
    }

    #[test]
    fn zeros_equal_values_and_wide_ranges_are_no_trouble() {
        assert_eq!(sorted(&Mat::zeros(40, 40)), vec![0.0; 40]);
        assert_eq!(singular_values(Mat::zeros(5, 0)).unwrap(), Vec::<f64>::new());
        assert_close(&sorted(&Mat::identity(70, 70)), &[1.0; 70]);
        let ones = Mat::from_fn(50, 40, |_, _| 1.0);
        assert_close(&sorted(&ones), &expected(&ones));
        let low_rank = random(90, 7, 1) * random(7, 90, 2);
        assert_close(&sorted(&low_rank), &expected(&low_rank));
        let tiny = random(40, 40, 3) * 1e-200;
        let plain = sorted(&random(40, 40, 3));
        let scaled: Vec<f64> = sorted(&tiny).iter().map(|value| value * 1e200).collect();
        assert_close(&scaled, &plain);
        let graded = Mat::from_fn(60, 60, |i, j| if i <= j { 0.7f64.powi(i as i32) } else { 0.0 });
        assert_close(&sorted(&graded), &expected(&graded));
        let backwards = Mat::from_fn(60, 60, |i, j| graded[(59 - i, 59 - j)]);
        assert_close(&sorted(&backwards), &expected(&graded));
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let matrix = random(700, 650, 9);
        let of = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| singular_values(matrix.clone()).unwrap())
        };
        let one = of(1);
        assert_eq!(one, of(2));
        assert_eq!(one, of(3));
    }

    #[test]
    fn too_few_sweeps_are_admitted() {
        let refused = bidiagonal_singular_values(vec![1.0, 2.0, 3.0], vec![1.0, 1.0], 0);
        assert_eq!(refused, Err(NoConvergence));
    }

    proptest! {
        #[test]
        fn a_bidiagonal_matrix_keeps_its_norm_and_determinant(
            d in prop::collection::vec(prop_oneof![Just(0.0), -3.0..3.0f64, -1e-9..1e-9f64], 1..12),
            e in prop::collection::vec(prop_oneof![Just(0.0), -3.0..3.0f64], 11),
        ) {
            let e = e[..d.len() - 1].to_vec();
            let norm: f64 = d.iter().chain(&e).map(|x| x * x).sum();
            let determinant: f64 = d.iter().product::<f64>().abs();
            let values = bidiagonal_singular_values(d, e, MAX_SWEEPS).unwrap();
            let squares: f64 = values.iter().map(|x| x * x).sum();
            prop_assert!((squares - norm).abs() <= 1e-13 * norm.max(1e-300));
            let product: f64 = values.iter().product();
            let scale = norm.sqrt().max(1.0).powi(values.len() as i32);
            prop_assert!((product - determinant).abs() <= 1e-13 * scale);
        }
    }
}
