//! The matrix product under everything: a block of rows times panels of columns.
//!
//! ```text
//! c[i, j] = start + sum over runs r, over k < run_len of
//!           a[r.a + rows[i] + k a_step] * b[r.b + panel(j) b_panel + k b_step + lane(j)]
//! ```
//!
//! With one run it is a product of two strided matrices. With several it is a convolution: a run
//! is a kernel tap, or an image row. Each c is one chain of multiply-adds in the order of the runs,
//! so its value depends neither on the split of the work nor on the neighbouring rows.

use super::buffer::SharedOutput;
use super::simd::{InstructionSet, instruction_set};
use super::vector::{Vector, vectorised};
use rayon::prelude::*;
use std::ops::Range;

/// Columns of one panel of b: two registers.
pub(crate) fn panel_width() -> usize {
    match instruction_set() {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 => 32,
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => 16,
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon => 16,
        InstructionSet::Portable => 16,
    }
}

/// Where each row of a starts.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// Row i at `i * stride`.
    Every { stride: usize, count: usize },
    /// Row i at `offsets[i]`.
    At(&'a [usize]),
}

impl Rows<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Rows::Every { count, .. } => *count,
            Rows::At(offsets) => offsets.len(),
        }
    }

    #[inline(always)]
    fn offset(&self, i: usize) -> usize {
        match self {
            Rows::Every { stride, .. } => i * stride,
            Rows::At(offsets) => offsets[i],
        }
    }

    fn last(&self) -> usize {
        match self {
            Rows::Every { stride, count } => count.saturating_sub(1) * stride,
            Rows::At(offsets) => offsets.iter().copied().max().unwrap_or(0),
        }
    }
}

/// Where one run starts in a and in b.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Run {
    pub a: usize,
    pub b: usize,
}

/// What the sums start from.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// What stands in c.
    Existing,
    /// One value per column.
    Columns(&'a [f32]),
    /// One value per row.
    Rows(&'a [f32]),
}

/// One product; see the module.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub a: &'a [f32],
    pub rows: Rows<'a>,
    pub a_step: usize,
    pub b: &'a [f32],
    pub b_panel: usize,
    pub b_step: usize,
    pub runs: &'a [Run],
    pub run_len: usize,
    pub columns: usize,
    pub start: Start<'a>,
    /// Whether negative results become zero.
    pub relu: bool,
}

/// One run from the beginning of a and b.
pub(crate) const WHOLE: &[Run] = &[Run { a: 0, b: 0 }];

impl Product<'_> {
    pub(crate) fn panels(&self) -> usize {
        self.columns.div_ceil(panel_width())
    }

    /// Panics unless every entry the sums read exists.
    fn check(&self) {
        if self.run_len > 0 && !self.runs.is_empty() && self.rows.len() > 0 && self.columns > 0 {
            let depth = self.run_len - 1;
            let a = self.runs.iter().map(|run| run.a).max().unwrap_or(0);
            let a_end = a + self.rows.last() + depth * self.a_step + 1;
            assert!(a_end <= self.a.len(), "reads a to {a_end} of {}", self.a.len());
            let (width, panels) = (panel_width(), self.panels());
            let last = (panels - 1) * self.b_panel + self.columns - (panels - 1) * width;
            let before = if panels > 1 { (panels - 2) * self.b_panel + width } else { 0 };
            let b = self.runs.iter().map(|run| run.b).max().unwrap_or(0);
            let b_end = b + depth * self.b_step + last.max(before);
            assert!(b_end <= self.b.len(), "reads b to {b_end} of {}", self.b.len());
        }
        match self.start {
            Start::Columns(values) => assert!(values.len() >= self.columns),
            Start::Rows(values) => assert!(values.len() >= self.rows.len()),
            Start::Zero | Start::Existing => {}
        }
    }

    /// Writes the whole product into `c`, row i at `i * c_row`, on this thread.
    pub(crate) fn write(&self, c: &mut [f32], c_row: usize) {
        let c = SharedOutput::new(c);
        // SAFETY: `c` is borrowed mutably and initialised.
        unsafe { self.write_part(c, c_row, 0..self.rows.len(), 0..self.panels()) }
    }

    /// Writes the whole product into `c`, row i at `i * c_row`, on all threads.
    ///
    /// # Safety
    /// No other thread may touch those entries of `c` meanwhile; with [`Start::Existing`] they
    /// must be initialised.
    pub(crate) unsafe fn write_parallel(&self, c: SharedOutput<'_>, c_row: usize) {
        let (rows, panels) = (self.rows.len(), self.panels());
        let depth = self.run_len * self.runs.len();
        let work = rows * self.columns * depth;
        // A part below a quarter of a million multiply-adds is not worth another thread.
        let parts = (work >> 18).clamp(1, 4 * rayon::current_num_threads());
        if parts == 1 {
            // SAFETY: the caller's promises.
            return unsafe { self.write_part(c, c_row, 0..rows, 0..panels) };
        }
        let row_parts = parts.min(rows.div_ceil(12));
        let panel_parts = parts.div_ceil(row_parts).min(panels);
        (0..row_parts * panel_parts).into_par_iter().for_each(|part| {
            let (i, j) = (part / panel_parts, part % panel_parts);
            let rows = split(rows, row_parts, i);
            // SAFETY: the caller's promises; the parts are disjoint.
            unsafe { self.write_part(c, c_row, rows, split(panels, panel_parts, j)) };
        });
    }

    /// Writes some rows of all panels, the first of them at the beginning of `c`.
    ///
    /// # Safety
    /// As for [`Product::write_parallel`].
    pub(crate) unsafe fn write_rows(&self, c: SharedOutput<'_>, c_row: usize, rows: Range<usize>) {
        let start = match self.start {
            Start::Rows(values) => Start::Rows(&values[rows.clone()]),
            other => other,
        };
        let (a, rows) = match self.rows {
            Rows::Every { stride, .. } => {
                (&self.a[rows.start * stride..], Rows::Every { stride, count: rows.len() })
            }
            Rows::At(offsets) => (self.a, Rows::At(&offsets[rows])),
        };
        let part = Product { a, rows, start, ..*self };
        // SAFETY: the caller's promise.
        unsafe { part.write_part(c, c_row, 0..rows.len(), 0..self.panels()) };
    }

    /// Writes some rows of some panels.
    ///
    /// # Safety
    /// As for [`Product::write_parallel`], for that part of `c`.
    pub(crate) unsafe fn write_part(
        &self,
        c: SharedOutput<'_>,
        c_row: usize,
        rows: Range<usize>,
        panels: Range<usize>,
    ) {
        self.check();
        if rows.is_empty() || panels.is_empty() {
            return;
        }
        assert!(rows.end <= self.rows.len() && panels.end <= self.panels());
        let last = (panels.end * panel_width()).min(self.columns);
        let c = c.pointer(0..(rows.end - 1) * c_row + last);
        self.in_depth(|part| {
            // SAFETY: `check` has proven every read, the line above every write inside bounds.
            unsafe { block(part, c, c_row, rows.clone(), panels.clone()) }
        });
    }

    /// Calls `write` with parts of the sums, [`DEPTH`] terms at most, in their order: each goes on
    /// from what the one before has written.
    fn in_depth(&self, mut write: impl FnMut(&Product<'_>)) {
        if self.runs.len() * self.run_len <= DEPTH {
            return write(self);
        }
        let mut start = self.start;
        let at_once = (DEPTH / self.run_len).max(1);
        for (chunk, runs) in self.runs.chunks(at_once).enumerate() {
            let last_runs = (chunk + 1) * at_once >= self.runs.len();
            let parts = self.run_len.div_ceil(DEPTH);
            for i in 0..parts {
                let k = split(self.run_len, parts, i);
                let shift = |run: &Run| Run {
                    a: run.a + k.start * self.a_step,
                    b: run.b + k.start * self.b_step,
                };
                let relu = self.relu && last_runs && i + 1 == parts;
                if parts == 1 {
                    write(&Product { runs, start, relu, ..*self });
                } else {
                    let run = [shift(&runs[0])];
                    write(&Product { runs: &run, run_len: k.len(), start, relu, ..*self });
                }
                start = Start::Existing;
            }
        }
    }
}

/// Terms of the sums that are taken at once: so much of a panel stays in the nearest cache.
const DEPTH: usize = 384;

/// Part `i` of `parts` nearly equal ranges of `0..n`.
pub(crate) fn split(n: usize, parts: usize, i: usize) -> Range<usize> {
    n * i / parts..n * (i + 1) / parts
}

vectorised! {
    unsafe fn block(p: &Product<'_>, c: *mut f32, c_row: usize, rows: Range<usize>, panels: Range<usize>) = block_with
}

/// # Safety
/// The reads of `p` and the writes to `c` must lie in bounds.
#[inline(always)]
unsafe fn block_with<V: Vector>(
    p: &Product<'_>,
    c: *mut f32,
    c_row: usize,
    rows: Range<usize>,
    panels: Range<usize>,
) {
    let width = 2 * V::LANES;
    // 24 accumulators fit 32 wide registers, 12 fit 16.
    let most = if V::LANES == 16 { 12 } else { 6 };
    let blocks = rows.len().div_ceil(most);
    let depth = p.runs.len() * p.run_len;
    // Panels that stay in the second-level cache together are taken block by block, which writes each
    // row of c in one stream; else so many blocks go through one panel as stay there themselves.
    let together = panels.len() * depth * width * size_of::<f32>() <= 256 << 10;
    let block_bytes = most * depth.max(1) * size_of::<f32>();
    let group = if together { 1 } else { ((128 << 10) / block_bytes).clamp(1, blocks) };
    for i in 0..blocks * panels.len() {
        // Group by group, in each panel by panel, in each block by block.
        let first = i / (group * panels.len()) * group;
        let in_group = group.min(blocks - first);
        let rest = i - first * panels.len();
        let (panel, block) = (rest / in_group, first + rest % in_group);
        let panel = panels.start + panel;
        let first = panel * width;
        let columns = width.min(p.columns - first);
        let part = split(rows.len(), blocks, block);
        let tile = Tile { row: rows.start + part.start, first, columns, b: panel * p.b_panel };
        // SAFETY: the caller's promise.
        unsafe {
            macro_rules! by_rows {
                ($($m:literal)*) => {
                    match part.len() {
                        $($m => tile_of::<V, $m>(p, tile, c, c_row),)*
                        _ => unreachable!("blocks have at most 12 rows"),
                    }
                };
            }
            if V::LANES == 16 {
                by_rows!(1 2 3 4 5 6 7 8 9 10 11 12)
            } else {
                by_rows!(1 2 3 4 5 6)
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Tile {
    row: usize,
    first: usize,
    columns: usize,
    b: usize,
}

#[inline(always)]
unsafe fn tile_of<V: Vector, const M: usize>(p: &Product<'_>, t: Tile, c: *mut f32, c_row: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if t.columns == 2 * V::LANES {
            kernel::<V, M, 2, false>(p, t, c, c_row);
        } else if t.columns > V::LANES {
            kernel::<V, M, 2, true>(p, t, c, c_row);
        } else if t.columns == V::LANES {
            kernel::<V, M, 1, false>(p, t, c, c_row);
        } else {
            kernel::<V, M, 1, true>(p, t, c, c_row);
        }
    }
}

/// M rows times N registers of columns, the last of them partial when `TAIL`.
#[inline(always)]
unsafe fn kernel<V: Vector, const M: usize, const N: usize, const TAIL: bool>(
    p: &Product<'_>,
    t: Tile,
    c: *mut f32,
    c_row: usize,
) {
    let rest = t.columns - (N - 1) * V::LANES;
    // SAFETY (whole function): the caller has checked all reads and writes; a partial register
    // touches only its first `rest` entries.
    unsafe {
        // The compiler keeps the sums in registers only when every index is a constant from the
        // start, so whatever touches them is written out row by row.
        macro_rules! for_each_row {
            ($m:ident => $body:block) => {
                for_each_row!($m => $body; 0 1 2 3 4 5 6 7 8 9 10 11)
            };
            ($m:ident => $body:block; $($i:literal)*) => {{$(
                if $i < M {
                    #[allow(non_upper_case_globals)]
                    const $m: usize = $i;
                    $body
                }
            )*}};
        }
        // Zero bytes are zero floats.
        let mut sums: [[V; N]; M] = std::mem::zeroed();
        match p.start {
            Start::Zero => {}
            Start::Existing => for_each_row!(m => {
                let from = c.add((t.row + m) * c_row + t.first);
                sums[m] = load_columns::<V, N, TAIL>(from, rest);
            }),
            Start::Columns(values) => {
                let values = load_columns::<V, N, TAIL>(values.as_ptr().add(t.first), rest);
                for_each_row!(m => { sums[m] = values; });
            }
            Start::Rows(values) => for_each_row!(m => {
                sums[m] = [V::splat(values[t.row + m]); N];
            }),
        }
        let mut rows = [0; M];
        for (m, row) in rows.iter_mut().enumerate() {
            *row = p.rows.offset(t.row + m);
        }
        for run in p.runs {
            let mut a = p.a.as_ptr().add(run.a);
            let mut b = p.b.as_ptr().add(run.b + t.b);
            for _ in 0..p.run_len {
                let column = load_columns::<V, N, TAIL>(b, rest);
                for_each_row!(m => {
                    let x = V::splat(*a.add(rows[m]));
                    sums[m][0] = x.mul_add(column[0], sums[m][0]);
                    if N > 1 {
                        sums[m][N - 1] = x.mul_add(column[N - 1], sums[m][N - 1]);
                    }
                });
                a = a.wrapping_add(p.a_step);
                b = b.wrapping_add(p.b_step);
            }
        }
        if p.relu {
            let zero = V::splat(0.0);
            for_each_row!(m => {
                sums[m][0] = zero.max(sums[m][0]);
                if N > 1 {
                    sums[m][N - 1] = zero.max(sums[m][N - 1]);
                }
            });
        }
        for_each_row!(m => {
            let to = c.add((t.row + m) * c_row + t.first);
            if N > 1 {
                sums[m][0].store(to);
            }
            let to = to.add((N - 1) * V::LANES);
            if TAIL {
                sums[m][N - 1].store_first(to, rest);
            } else {
                sums[m][N - 1].store(to);
            }
        });
    }
}

#[inline(always)]
unsafe fn load_columns<V: Vector, const N: usize, const TAIL: bool>(
    from: *const f32,
    rest: usize,
) -> [V; N] {
    // SAFETY: the caller's promise: N registers, the last of `rest` entries when TAIL.
    unsafe {
        let mut columns = [V::splat(0.0); N];
        for n in 0..N {
            columns[n] = if TAIL && n == N - 1 {
                V::load_first(from.add(n * V::LANES), rest)
            } else {
                V::load(from.add(n * V::LANES))
            };
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104729) % 201) as f32 / 100.0 - 1.0).collect()
    }

    #[test]
    fn every_size_and_start_follows_f64() {
        for m in [1usize, 2, 5, 7, 12, 13, 25] {
            for n in [1usize, 3, 8, 15, 16, 17, 31, 32, 33, 70] {
                for k in [0usize, 1, 2, 9, 801] {
                    let (a, b, c) = (ramp(m * k + 1, 1), ramp(k * n + n, 2), ramp(m * n, 3));
                    let columns = ramp(n, 4);
                    let rows = ramp(m, 5);
                    let starts = [
                        Start::Zero,
                        Start::Existing,
                        Start::Columns(&columns),
                        Start::Rows(&rows),
                    ];
                    for start in starts {
                        let product = Product {
                            a: &a,
                            rows: Rows::Every { stride: k, count: m },
                            a_step: 1,
                            b: &b,
                            b_panel: panel_width(),
                            b_step: n,
                            runs: WHOLE,
                            run_len: k,
                            columns: n,
                            start,
                            relu: false,
                        };
                        let mut found = c.clone();
                        product.write(&mut found, n);
                        for i in 0..m {
                            for j in 0..n {
                                let first = match start {
                                    Start::Zero => 0.0,
                                    Start::Existing => c[i * n + j],
                                    Start::Columns(x) => x[j],
                                    Start::Rows(x) => x[i],
                                };
                                let mut sum = f64::from(first);
                                for l in 0..k {
                                    sum += f64::from(a[i * k + l]) * f64::from(b[l * n + j]);
                                }
                                let error = (f64::from(found[i * n + j]) - sum).abs();
                                let within = 1e-5 + 1e-6 * k as f64;
                                assert!(error < within, "{m} {n} {k}: {error}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn several_runs_add_up() {
        let (a, b) = (ramp(40, 1), ramp(400, 2));
        let runs = [Run { a: 0, b: 0 }, Run { a: 9, b: 100 }, Run { a: 3, b: 40 }];
        let offsets = [0, 5, 2];
        let product = Product {
            a: &a,
            rows: Rows::At(&offsets),
            a_step: 2,
            b: &b,
            b_panel: panel_width(),
            b_step: 20,
            runs: &runs,
            run_len: 4,
            columns: 18,
            start: Start::Zero,
            relu: false,
        };
        let mut c = vec![0.0; 3 * 18];
        product.write(&mut c, 18);
        for i in 0..3 {
            for j in 0..18 {
                let mut sum = 0.0;
                for run in runs {
                    for k in 0..4 {
                        sum += a[run.a + offsets[i] + 2 * k] * b[run.b + 20 * k + j];
                    }
                }
                assert!((c[i * 18 + j] - sum).abs() < 1e-5);
            }
        }
    }

    #[test]
    #[should_panic(expected = "reads b to")]
    fn refuses_to_read_beyond_b() {
        let product = Product {
            a: &[0.0; 8],
            rows: Rows::Every { stride: 4, count: 2 },
            a_step: 1,
            b: &[0.0; 19],
            b_panel: panel_width(),
            b_step: 5,
            runs: WHOLE,
            run_len: 4,
            columns: 5,
            start: Start::Zero,
            relu: false,
        };
        product.write(&mut [0.0; 10], 5);
    }
}
