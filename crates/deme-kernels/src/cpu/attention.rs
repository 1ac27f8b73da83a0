//! softmax(q k^T scale) v, head by head and a block of queries at a time.
//!
//! No `[heads, L_q, L_k]` tensor is made: a block's scores of some hundred keys live in the thread's cache, with the
//! softmax carried from keys to keys (Milakov and Gimelshein 2018, arXiv 1805.02867), and the backward pass computes
//! them again.

use super::buffer::{Scratch, SharedOutput};
use super::conv::{pack_rows, padded, parts_per_item};
use super::product::{Product, Rows, Start, WHOLE, panel_width, split};
use super::simd::{LANES, MulAdd, exp, fold, lane_sum, multiversioned};
use super::transpose::planes_to_pixels;
use rayon::prelude::*;
use std::ops::Range;

/// Sizes of one call: q is `[heads, queries, d]`, k `[heads, keys, d]`, v `[heads, keys, d_v]`,
/// where heads counts those of all images, `heads_per_image` each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    pub heads: usize,
    pub heads_per_image: usize,
    pub queries: usize,
    pub keys: usize,
    pub d: usize,
    pub d_v: usize,
    pub scale: f32,
    pub causal: bool,
}

/// Queries whose scores are held at once.
const BLOCK: usize = 48;
/// Keys whose scores are held at once in the forward pass: whole panels.
const KEYS: usize = 512;

/// One head's inputs.
#[derive(Clone, Copy)]
struct Head<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

/// Where a head's rows stand: row r of head h of image b from `b * image + h * head + r * row` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    pub image: usize,
    pub head: usize,
    pub row: usize,
}

impl Places {
    /// Head behind head, `[B, heads, rows, d]`.
    pub(crate) fn apart(heads: usize, rows: usize, d: usize) -> Self {
        Self { image: heads * rows * d, head: rows * d, row: d }
    }

    /// Each row has all heads, `[B, rows, heads, d]`.
    pub(crate) fn together(heads: usize, rows: usize, d: usize) -> Self {
        Self { image: heads * rows * d, head: d, row: heads * d }
    }

    /// The first entry of row `row` of head `i`, counted through all images.
    fn start(&self, i: usize, heads_per_image: usize, row: usize) -> usize {
        i / heads_per_image * self.image + i % heads_per_image * self.head + row * self.row
    }
}

/// The rows of all heads of one tensor.
#[derive(Clone, Copy)]
pub(crate) struct HeadRows<'a> {
    pub values: &'a [f32],
    pub places: Places,
}

impl<'a> HeadRows<'a> {
    /// From the given row of head `i` on.
    fn from(&self, i: usize, heads_per_image: usize, row: usize) -> &'a [f32] {
        &self.values[self.places.start(i, heads_per_image, row)..]
    }
}

impl AttentionShape {
    fn head<'a>(&self, i: usize, q: &'a [f32], k: &'a [f32], v: &'a [f32]) -> Head<'a> {
        let part = |x: &'a [f32], len: usize| &x[i * len..(i + 1) * len];
        Head {
            q: part(q, self.queries * self.d),
            k: part(k, self.keys * self.d),
            v: part(v, self.keys * self.d_v),
        }
    }

    fn check(&self, q: &[f32], k: &[f32], v: &[f32]) {
        assert_eq!(q.len(), self.heads * self.queries * self.d);
        assert_eq!(k.len(), self.heads * self.keys * self.d);
        assert_eq!(v.len(), self.heads * self.keys * self.d_v);
    }

    /// Keys that query i sees.
    fn visible(&self, i: usize) -> usize {
        if self.causal { self.keys.min(i + 1) } else { self.keys }
    }

    /// `rows[queries] transposed`: a product of `count` rows, `stride` apart, with a transposed matrix,
    /// row stride `width` in the result.
    fn scores(
        &self,
        rows: &[f32],
        [stride, count, d]: [usize; 3],
        transposed: &[f32],
        width: usize,
        to: &mut [f32],
    ) {
        let product = Product {
            a: rows,
            rows: Rows::Every { stride, count },
            a_step: 1,
            b: transposed,
            b_panel: panel_width(),
            b_step: width,
            runs: WHOLE,
            run_len: d,
            columns: self.keys,
            start: Start::Zero,
            relu: false,
        };
        product.write(to, width);
    }

    /// Softmax of the block's scores in place.
    fn normalise(&self, block: &Range<usize>, width: usize, scores: &mut [f32]) {
        for (i, row) in block.clone().zip(scores.chunks_exact_mut(width)) {
            let (visible, hidden) = row[..self.keys].split_at_mut(self.visible(i));
            softmax(visible, self.scale);
            hidden.fill(0.0);
        }
    }
}

/// `[rows][columns]`, rows `stride` apart, to `[column][width]`.
fn transposed(x: &[f32], stride: usize, rows: usize, columns: usize, width: usize) -> Scratch {
    let mut to = Scratch::new(columns * width);
    planes_to_pixels(x, stride, rows, columns, &mut to, |c| c * width);
    to
}

/// # Safety
/// Nobody else may touch `y`, `heads * queries * d_v` entries, meanwhile. On return all of it is written, in
/// `places`, which are [`Places::apart`] or [`Places::together`].
pub(crate) unsafe fn forward(
    s: &AttentionShape,
    q: HeadRows<'_>,
    k: HeadRows<'_>,
    v: HeadRows<'_>,
    y: SharedOutput<'_>,
    places: Places,
) {
    s.check(q.values, k.values, v.values);
    assert_eq!(y.len(), s.heads * s.queries * s.d_v);
    if y.len() == 0 {
        return;
    }
    let per_image = s.heads_per_image;
    let parts = parts_per_item(s.heads, s.queries.div_ceil(BLOCK));
    (0..s.heads * parts).into_par_iter().for_each(|task| {
        let (head, queries) = (task / parts, split(s.queries, parts, task % parts));
        let kt = key_panels(k.from(head, per_image, 0), k.places.row, s.keys, s.d);
        // Panels next to each other: rows a power of two apart would crowd one cache set.
        let v = pack_rows(v.from(head, per_image, 0), v.places.row, s.keys, s.d_v);
        let most = BLOCK.min(queries.len());
        let mut scores = Scratch::new(most * padded(KEYS.min(s.keys)));
        let mut sums = Scratch::new(most * s.d_v);
        let mut start = queries.start;
        while start < queries.end {
            let block = start..queries.end.min(start + BLOCK);
            let rows = q.from(head, per_image, block.start);
            let softmaxes = s.block(&block, [rows, &kt, &v], q.places.row, &mut scores, &mut sums);
            let of_queries = softmaxes.iter().zip(sums.chunks_exact(s.d_v));
            for (i, (softmax, sums)) in of_queries.enumerate().take(block.len()) {
                // Without keys the sums are empty.
                let inverse = if s.keys == 0 { 0.0 } else { 1.0 / softmax.sum };
                let first = places.start(head, per_image, block.start + i);
                let to = y.pointer(first..first + s.d_v);
                for (j, sum) in sums.iter().enumerate() {
                    // SAFETY: in bounds by `pointer`; the caller's promise; rows are disjoint.
                    unsafe { to.add(j).write(sum * inverse) };
                }
            }
            start = block.end;
        }
    });
}

/// A query's softmax after some of its keys.
#[derive(Clone, Copy)]
pub(crate) struct Softmax {
    /// The largest scaled score.
    most: f32,
    /// Of e^(score - most).
    sum: f32,
}

impl Softmax {
    /// Before the first key.
    const BEGIN: Self = Self { most: f32::NEG_INFINITY, sum: 0.0 };
}

impl AttentionShape {
    /// The queries' e^(score - most) v, summed over the keys some at a time into `sums` (`[query][d_v]`), and what
    /// they are to be divided by. `rows` are the queries, `row` apart, `kt` comes from [`key_panels`], v from
    /// [`pack_rows`].
    fn block(
        &self,
        block: &Range<usize>,
        [rows, kt, v]: [&[f32]; 3],
        row: usize,
        scores: &mut [f32],
        sums: &mut [f32],
    ) -> [Softmax; BLOCK] {
        let width = padded(KEYS.min(self.keys));
        let mut softmaxes = [Softmax::BEGIN; BLOCK];
        // Without keys one empty block writes zeros.
        for first in (0..self.keys.max(1)).step_by(KEYS) {
            let keys = first..self.keys.min(first + KEYS);
            if first > 0 && self.visible(block.end - 1) <= first {
                break;
            }
            let to_keys = Product {
                a: rows,
                rows: Rows::Every { stride: row, count: block.len() },
                a_step: 1,
                b: &kt[first * self.d..],
                b_panel: self.d * panel_width(),
                b_step: panel_width(),
                runs: WHOLE,
                run_len: self.d,
                columns: keys.len(),
                start: Start::Zero,
                relu: false,
            };
            to_keys.write(scores, width);
            let of_queries = scores.chunks_exact_mut(width).zip(&mut softmaxes);
            for (i, (scores, softmax)) in block.clone().zip(of_queries) {
                let visible = self.visible(i).saturating_sub(first).min(keys.len());
                let (visible, hidden) = scores[..keys.len()].split_at_mut(visible);
                let before = *softmax;
                *softmax = softened(visible, self.scale, before);
                hidden.fill(0.0);
                if first > 0 {
                    let factor = (before.most - softmax.most).exp();
                    let sums = &mut sums[(i - block.start) * self.d_v..][..self.d_v];
                    sums.iter_mut().for_each(|sum| *sum *= factor);
                }
            }
            let to_values = Product {
                a: scores,
                rows: Rows::Every { stride: width, count: block.len() },
                a_step: 1,
                b: &v[first * panel_width()..],
                b_panel: self.keys * panel_width(),
                b_step: panel_width(),
                runs: WHOLE,
                run_len: keys.len(),
                columns: self.d_v,
                start: if first == 0 { Start::Zero } else { Start::Existing },
                relu: false,
            };
            to_values.write(sums, self.d_v);
        }
        softmaxes
    }
}

/// Rows of `d` entries, `stride` apart, as `[panel][d][key]`.
fn key_panels(k: &[f32], stride: usize, keys: usize, d: usize) -> Scratch {
    let width = panel_width();
    let mut panels = Scratch::new(keys.div_ceil(width) * d * width);
    for (panel, to) in panels.chunks_exact_mut((d * width).max(1)).enumerate() {
        let first = panel * width;
        let used = width.min(keys - first);
        planes_to_pixels(&k[first * stride..], stride, used, d, to, |i| i * width);
    }
    panels
}

/// With P the softmax and dP = dy v^T: dv = P^T dy, dS = P * (dP - rowsum(P * dP)) scale,
/// dq = dS k, dk = dS^T q.
///
/// # Safety
/// Nobody else may touch the outputs, shaped as q, k and v, meanwhile. On return all of them are
/// written.
pub(crate) unsafe fn backward(
    s: &AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    dy: &[f32],
    [dq, dk, dv]: [SharedOutput<'_>; 3],
) {
    s.check(q, k, v);
    assert_eq!(dy.len(), s.heads * s.queries * s.d_v);
    assert_eq!([dq.len(), dk.len(), dv.len()], [q.len(), k.len(), v.len()]);
    (0..s.heads).into_par_iter().for_each(|head| {
        let Head { q, k, v } = s.head(head, q, k, v);
        let dy = &dy[head * s.queries * s.d_v..][..s.queries * s.d_v];
        let dq = dq.range(head * s.queries * s.d..(head + 1) * s.queries * s.d);
        let dk = dk.range(head * s.keys * s.d..(head + 1) * s.keys * s.d);
        let dv = dv.range(head * s.keys * s.d_v..(head + 1) * s.keys * s.d_v);
        let width = padded(s.keys);
        let kt = transposed(k, s.d, s.keys, s.d, width);
        let vt = transposed(v, s.d_v, s.keys, s.d_v, width);
        let k = pack_rows(k, s.d, s.keys, s.d);
        let mut p = Scratch::new(BLOCK.min(s.queries) * width);
        let mut ds = Scratch::new(BLOCK.min(s.queries) * width);
        let mut start = 0;
        // Without queries the sums over them are zero: one empty block writes that.
        while start < s.queries.max(1) {
            let block = start.min(s.queries)..s.queries.min(start + BLOCK);
            let q = &q[block.start * s.d..block.end * s.d];
            let dy = &dy[block.start * s.d_v..block.end * s.d_v];
            s.scores(q, [s.d, block.len(), s.d], &kt, width, &mut p);
            s.normalise(&block, width, &mut p);
            s.scores(dy, [s.d_v, block.len(), s.d_v], &vt, width, &mut ds);
            let rows = p.chunks_exact(width).zip(ds.chunks_exact_mut(width));
            for (p, ds) in rows.take(block.len()) {
                softmax_gradient(&p[..s.keys], s.scale, &mut ds[..s.keys]);
            }
            let begin = if start == 0 { Start::Zero } else { Start::Existing };
            let over_queries = |a, b, columns| Product {
                a,
                rows: Rows::Every { stride: 1, count: s.keys },
                a_step: width,
                b,
                b_panel: block.len() * panel_width(),
                b_step: panel_width(),
                runs: WHOLE,
                run_len: block.len(),
                columns,
                start: begin,
                relu: false,
            };
            let dy = pack_rows(dy, s.d_v, block.len(), s.d_v);
            let q = pack_rows(q, s.d, block.len(), s.d);
            let to_v = over_queries(&p, &dy, s.d_v);
            let to_k = over_queries(&ds, &q, s.d);
            let to_q = Product {
                a: &ds,
                rows: Rows::Every { stride: width, count: block.len() },
                a_step: 1,
                b: &k,
                b_panel: s.keys * panel_width(),
                b_step: panel_width(),
                runs: WHOLE,
                run_len: s.keys,
                columns: s.d,
                start: Start::Zero,
                relu: false,
            };
            let dq = dq.range(block.start * s.d..block.end * s.d);
            // SAFETY: the caller's promise; every head has its own parts, and the first block
            // writes dk and dv before later ones read them.
            unsafe {
                to_v.write_part(dv, s.d_v, 0..s.keys, 0..to_v.panels());
                to_k.write_part(dk, s.d, 0..s.keys, 0..to_k.panels());
                to_q.write_part(dq, s.d, 0..block.len(), 0..to_q.panels());
            }
            start += BLOCK;
        }
    });
}

multiversioned! {
    fn softened(row: &mut [f32], scale: f32, before: Softmax) -> Softmax = softened_with
}

/// e^(scale row - most) in place, with the largest scaled score so far; not finite where a score is not.
#[inline(always)]
fn softened_with<F: MulAdd>(row: &mut [f32], scale: f32, before: Softmax) -> Softmax {
    // The largest scaled score, for either sign of the scale.
    let mut most = [before.most; LANES];
    let (lanes, rest) = row.as_chunks::<LANES>();
    for x in lanes {
        for i in 0..LANES {
            let x = x[i] * scale;
            most[i] = if x > most[i] { x } else { most[i] };
        }
    }
    for (i, x) in rest.iter().enumerate() {
        most[i] = most[i].max(x * scale);
    }
    let most = most.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    for x in row.iter_mut() {
        *x = exp::<F>(F::mul_add(*x, scale, -most));
    }
    let sum = lane_sum(row, row, |sum, x, _| sum + x);
    Softmax { most, sum: before.sum * (before.most - most).exp() + sum }
}

multiversioned! {
    fn softmax(row: &mut [f32], scale: f32) = softmax_with
}

/// softmax(scale row) in place; not finite where a score is not.
#[inline(always)]
fn softmax_with<F: MulAdd>(row: &mut [f32], scale: f32) {
    let inverse = 1.0 / softened_with::<F>(row, scale, Softmax::BEGIN).sum;
    for x in row.iter_mut() {
        *x *= inverse;
    }
}

multiversioned! {
    fn softmax_gradient(p: &[f32], scale: f32, dp: &mut [f32]) = softmax_gradient_with
}

/// dp becomes p * (dp - sum(p dp)) scale.
#[inline(always)]
fn softmax_gradient_with<F: MulAdd>(p: &[f32], scale: f32, dp: &mut [f32]) {
    let mut sums = [0.0f32; LANES];
    let (ps, p_rest) = p.as_chunks::<LANES>();
    let (dps, dp_rest) = dp.as_chunks::<LANES>();
    for (p, dp) in ps.iter().zip(dps) {
        for i in 0..LANES {
            sums[i] = F::mul_add(p[i], dp[i], sums[i]);
        }
    }
    for (i, (p, dp)) in p_rest.iter().zip(dp_rest).enumerate() {
        sums[i] = F::mul_add(*p, *dp, sums[i]);
    }
    let sum = fold(sums);
    for (p, dp) in p.iter().zip(dp) {
        *dp = p * (*dp - sum) * scale;
    }
}
