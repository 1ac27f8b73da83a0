//! One axis of Winograd's minimal filtering (Winograd 1980; Lavin and Gray 2016, section 4):
//! y = A^T [(G g) * (B^T d)], by the Toom-Cook construction on chosen points.
//!
//! For points p with N(x) = prod (x - p): row p of G is p^j / N'(p), row p of B^T are the
//! coefficients of N(x) / (x - p), column p of A^T is p^i. The point at infinity takes the last tap,
//! the coefficients of N and the last output.

use super::super::vector::Vector;
use super::super::winograd::transform::{Four, Transform};

/// Most points of an axis.
pub(super) const MOST: usize = 9;

/// The transforms along one axis; `IN` products for `OUT` outputs, the first entries of the arrays.
///
/// # Safety
/// The instruction set of V must be available.
pub(super) trait Axis {
    const IN: usize;
    const OUT: usize;
    /// B^T d
    unsafe fn input<V: Vector>(d: [V; MOST]) -> [V; MOST];
    /// A^T m
    unsafe fn output<V: Vector>(m: [V; MOST]) -> [V; 4];
}

/// A kernel of one tap: nothing to transform.
pub(super) struct One;

/// Points 0, 1, -1, 2, -2, infinity: 4 outputs of 3 taps, or 2 outputs of 5.
pub(super) struct Six<const OUT: usize>;

/// Points 0, 1, -1, 2, -2, 1/2, -1/2, 4, -4: 3 outputs of 7 taps. A layer's relative error (rms) is
/// 2e-6 to 3e-6; with a tenth point, for 4 outputs, it would be two to three times that.
pub(super) struct Nine;

/// The finite points of an axis with `points` products.
pub(super) fn finite_points(points: usize) -> &'static [f64] {
    match points {
        1 => &[0.0],
        6 => &[0.0, 1.0, -1.0, 2.0, -2.0],
        9 => &[0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 4.0, -4.0],
        _ => unreachable!("no axis has {points} points"),
    }
}

/// G, `[point][tap]`.
pub(super) fn weight_factors(points: usize, taps: usize) -> Vec<f64> {
    let finite = finite_points(points);
    let mut factors = Vec::with_capacity(points * taps);
    for (i, p) in finite.iter().enumerate() {
        let others = finite.iter().enumerate().filter(|(j, _)| *j != i);
        let slope: f64 = others.map(|(_, q)| p - q).product();
        factors.extend((0..taps).map(|j| p.powi(j as i32) / slope));
    }
    if points > finite.len() {
        factors.extend((0..taps).map(|j| if j + 1 == taps { 1.0 } else { 0.0 }));
    }
    factors
}

// SAFETY of all: the functions of `Vector` are called with registers only; the callers run where the
// instruction set of V is enabled.
impl Axis for One {
    const IN: usize = 1;
    const OUT: usize = 1;
    #[inline(always)]
    unsafe fn input<V: Vector>(d: [V; MOST]) -> [V; MOST] {
        d
    }
    #[inline(always)]
    unsafe fn output<V: Vector>([m0, ..]: [V; MOST]) -> [V; 4] {
        [m0; 4]
    }
}

impl<const OUT: usize> Axis for Six<OUT> {
    const IN: usize = 6;
    const OUT: usize = OUT;
    #[inline(always)]
    unsafe fn input<V: Vector>([d0, d1, d2, d3, d4, d5, z, ..]: [V; MOST]) -> [V; MOST] {
        let [v0, v1, v2, v3, v4, v5] = unsafe { Four::input([d0, d1, d2, d3, d4, d5]) };
        [v0, v1, v2, v3, v4, v5, z, z, z]
    }
    #[inline(always)]
    unsafe fn output<V: Vector>([m0, m1, m2, m3, m4, m5, z, ..]: [V; MOST]) -> [V; 4] {
        unsafe {
            if OUT == 4 {
                return Four::output([m0, m1, m2, m3, m4, m5]);
            }
            let y0 = m0.add(m1.add(m2)).add(m3.add(m4));
            [y0, V::splat(2.0).mul_add(m3.sub(m4), m1.sub(m2)).add(m5), z, z]
        }
    }
}

impl Axis for Nine {
    const IN: usize = 9;
    const OUT: usize = 3;
    #[inline(always)]
    unsafe fn input<V: Vector>([d0, d1, d2, d3, d4, d5, d6, d7, d8]: [V; MOST]) -> [V; MOST] {
        // N(x) = x M(x^2), M(y) = (y - 1) (y - 4) (y - 1/4) (y - 16); N(x) / (x - p) =
        // x (x + p) Q(x^2) with Q(y) = M(y) / (y - p^2).
        unsafe {
            let (even, odd) = ([d2, d4, d6, d8], [d1, d3, d5, d7]);
            let m0 = V::splat(16.0).mul_add(d0, monic(even, [-85.0, 89.25, -21.25]));
            let [p1, n1] = pair(even, odd, 1.0, [-16.0, 69.0, -20.25]);
            let [p2, n2] = pair(even, odd, 2.0, [-4.0, 20.25, -17.25]);
            let [ph, nh] = pair(even, odd, 0.5, [-64.0, 84.0, -21.0]);
            let [p4, n4] = pair(even, odd, 4.0, [-1.0, 5.25, -5.25]);
            [m0, p1, n1, p2, n2, ph, nh, p4, n4]
        }
    }
    #[inline(always)]
    unsafe fn output<V: Vector>(m: [V; MOST]) -> [V; 4] {
        let [m0, p1, n1, p2, n2, ph, nh, p4, n4] = m;
        unsafe {
            let (s1, s2, sh, s4) = (p1.add(n1), p2.add(n2), ph.add(nh), p4.add(n4));
            let (d1, d2, dh, d4) = (p1.sub(n1), p2.sub(n2), ph.sub(nh), p4.sub(n4));
            let y0 = m0.add(sh).add(s1).add(s2.add(s4));
            let outer = V::splat(4.0).mul_add(d4, V::splat(2.0).mul(d2));
            let y1 = V::splat(0.5).mul_add(dh, d1).add(outer);
            let outer = V::splat(16.0).mul_add(s4, V::splat(4.0).mul(s2));
            [y0, y1, V::splat(0.25).mul_add(sh, s1).add(outer), m0]
        }
    }
}

/// q0 d0 + q1 d1 + q2 d2 + d3
#[inline(always)]
unsafe fn monic<V: Vector>(d: [V; 4], q: [f32; 3]) -> V {
    unsafe {
        let low = V::splat(q[1]).mul_add(d[1], V::splat(q[0]).mul(d[0]));
        V::splat(q[2]).mul_add(d[2], low.add(d[3]))
    }
}

/// The rows of B^T for p and -p.
#[inline(always)]
unsafe fn pair<V: Vector>(even: [V; 4], odd: [V; 4], p: f32, q: [f32; 3]) -> [V; 2] {
    unsafe {
        let (even, odd) = (monic(even, q), monic(odd, q));
        [V::splat(p).mul_add(odd, even), V::splat(-p).mul_add(odd, even)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::vector::Portable;
    use super::*;

    /// Lanes 0 of what an axis makes of `d` and `g`.
    fn filtered<A: Axis>(d: &[f64], g: &[f64]) -> Vec<f64> {
        let factors = weight_factors(A::IN, g.len());
        // SAFETY: the portable vectors need no instruction set.
        unsafe {
            let first = |v: Portable| {
                let mut lanes = [0.0; 8];
                v.store(lanes.as_mut_ptr());
                f64::from(lanes[0])
            };
            let mut tile = [Portable::splat(0.0); MOST];
            for (tile, d) in tile.iter_mut().zip(d) {
                *tile = Portable::splat(*d as f32);
            }
            let transformed = A::input(tile);
            let mut products = [Portable::splat(0.0); MOST];
            for i in 0..A::IN {
                let u: f64 = (0..g.len()).map(|j| factors[i * g.len() + j] * g[j]).sum();
                products[i] = Portable::splat((first(transformed[i]) * u) as f32);
            }
            let y = A::output(products);
            (0..A::OUT).map(|i| first(y[i])).collect()
        }
    }

    fn check<A: Axis>(taps: usize) {
        let d: Vec<f64> = (0..A::IN).map(|i| ((i * 7 + 3) % 11) as f64 - 4.5).collect();
        let g: Vec<f64> = (0..taps).map(|i| ((i * 5 + 2) % 7) as f64 - 2.5).collect();
        assert_eq!(A::OUT + taps - 1, A::IN);
        for (i, y) in filtered::<A>(&d, &g).into_iter().enumerate() {
            let expected: f64 = g.iter().zip(&d[i..]).map(|(g, d)| g * d).sum();
            assert!((y - expected).abs() < 1e-4, "output {i} of {taps} taps: {y}, not {expected}");
        }
    }

    #[test]
    fn each_axis_is_a_filter() {
        check::<One>(1);
        check::<Six<4>>(3);
        check::<Six<2>>(5);
        check::<Nine>(7);
    }
}
