//! Winograd's one-dimensional transforms (Lavin and Gray 2016, sections 4.1 to 4.3).

use super::super::vector::Vector;

/// The one-dimensional transforms; each acts on the first `input()` or `out()` entries.
///
/// # Safety
/// The instruction set of V must be available.
pub(in super::super) trait Transform {
    const OUT: usize;
    const IN: usize;
    /// B^T d
    unsafe fn input<V: Vector>(d: [V; 6]) -> [V; 6];
    /// A^T m
    unsafe fn output<V: Vector>(m: [V; 6]) -> [V; 4];
    /// G g
    unsafe fn weight<V: Vector>(g: [V; 3]) -> [V; 6];
    /// A y
    unsafe fn output_adjoint<V: Vector>(y: [V; 4]) -> [V; 6];
    /// G^T u
    unsafe fn weight_adjoint<V: Vector>(u: [V; 6]) -> [V; 3];
}

/// Interpolation points 0, 1, -1, infinity.
pub(super) struct Two;
/// Interpolation points 0, 1, -1, 2, -2, infinity.
pub(in super::super) struct Four;

// SAFETY of both: the trait functions of `Vector` are called with registers only; the callers run
// where the instruction set of V is enabled.
impl Transform for Two {
    const OUT: usize = 2;
    const IN: usize = 4;
    #[inline(always)]
    unsafe fn input<V: Vector>([d0, d1, d2, d3, z, _]: [V; 6]) -> [V; 6] {
        unsafe { [d0.sub(d2), d1.add(d2), d2.sub(d1), d1.sub(d3), z, z] }
    }
    #[inline(always)]
    unsafe fn output<V: Vector>([m0, m1, m2, m3, z, _]: [V; 6]) -> [V; 4] {
        unsafe { [m0.add(m1.add(m2)), m1.sub(m2).sub(m3), z, z] }
    }
    #[inline(always)]
    unsafe fn weight<V: Vector>([g0, g1, g2]: [V; 3]) -> [V; 6] {
        unsafe {
            let half = V::splat(0.5);
            let (even, odd) = (g0.add(g2).mul(half), g1.mul(half));
            [g0, even.add(odd), even.sub(odd), g2, g0, g0]
        }
    }
    #[inline(always)]
    unsafe fn output_adjoint<V: Vector>([y0, y1, z, _]: [V; 4]) -> [V; 6] {
        unsafe { [y0, y0.add(y1), y0.sub(y1), V::splat(0.0).sub(y1), z, z] }
    }
    #[inline(always)]
    unsafe fn weight_adjoint<V: Vector>([u0, u1, u2, u3, ..]: [V; 6]) -> [V; 3] {
        unsafe {
            let half = V::splat(0.5);
            let even = u1.add(u2).mul(half);
            [u0.add(even), u1.sub(u2).mul(half), even.add(u3)]
        }
    }
}

impl Transform for Four {
    const OUT: usize = 4;
    const IN: usize = 6;
    #[inline(always)]
    unsafe fn input<V: Vector>([d0, d1, d2, d3, d4, d5]: [V; 6]) -> [V; 6] {
        unsafe {
            let (two, four) = (V::splat(2.0), V::splat(4.0));
            let (minus_four, minus_five) = (V::splat(-4.0), V::splat(-5.0));
            let a = minus_four.mul_add(d2, d4); // d4 - 4 d2
            let b = minus_four.mul_add(d1, d3); // d3 - 4 d1
            let c = d4.sub(d2);
            let d = two.mul(d3.sub(d1));
            [
                four.mul_add(d0, minus_five.mul_add(d2, d4)),
                a.add(b),
                a.sub(b),
                c.add(d),
                c.sub(d),
                four.mul_add(d1, minus_five.mul_add(d3, d5)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn output<V: Vector>([m0, m1, m2, m3, m4, m5]: [V; 6]) -> [V; 4] {
        unsafe {
            let (a, b) = (m1.add(m2), m1.sub(m2));
            let (c, d) = (m3.add(m4), m3.sub(m4));
            [
                m0.add(a).add(c),
                V::splat(2.0).mul_add(d, b),
                V::splat(4.0).mul_add(c, a),
                V::splat(8.0).mul_add(d, b).add(m5),
            ]
        }
    }
    #[inline(always)]
    unsafe fn weight<V: Vector>([g0, g1, g2]: [V; 3]) -> [V; 6] {
        unsafe {
            let sixth = V::splat(-1.0 / 6.0);
            let (even, odd) = (g0.add(g2).mul(sixth), g1.mul(sixth));
            // (g0 + 4 g2) / 24 and 2 g1 / 24
            let far = V::splat(4.0).mul_add(g2, g0).mul(V::splat(1.0 / 24.0));
            let far_odd = g1.mul(V::splat(1.0 / 12.0));
            [
                g0.mul(V::splat(0.25)),
                even.add(odd),
                even.sub(odd),
                far.add(far_odd),
                far.sub(far_odd),
                g2,
            ]
        }
    }
    #[inline(always)]
    unsafe fn output_adjoint<V: Vector>([y0, y1, y2, y3]: [V; 4]) -> [V; 6] {
        unsafe {
            let (even, odd) = (y0.add(y2), y1.add(y3));
            let far = V::splat(4.0).mul_add(y2, y0);
            let far_odd = V::splat(4.0).mul_add(y3, y1);
            let far_odd = far_odd.add(far_odd);
            [y0, even.add(odd), even.sub(odd), far.add(far_odd), far.sub(far_odd), y3]
        }
    }
    #[inline(always)]
    unsafe fn weight_adjoint<V: Vector>([u0, u1, u2, u3, u4, u5]: [V; 6]) -> [V; 3] {
        unsafe {
            let sixth = V::splat(-1.0 / 6.0);
            let (even, odd) = (u1.add(u2).mul(sixth), u1.sub(u2).mul(sixth));
            let far = u3.add(u4).mul(V::splat(1.0 / 24.0));
            let far_odd = u3.sub(u4);
            [
                V::splat(0.25).mul_add(u0, even.add(far)),
                V::splat(1.0 / 12.0).mul_add(far_odd, odd),
                V::splat(4.0).mul_add(far, even).add(u5),
            ]
        }
    }
}
