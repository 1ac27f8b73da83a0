//! Position embeddings of one grid of patches brought to another.
//!
//! DINOv2 was trained on 518 x 518 pixels, so it has 37 x 37 positions; 224 x 224 pixels need 16 x 16.
//! Both programs take torch's bicubic interpolation, but not at the same places.

/// Where the new positions lie among the old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PositionInterpolation {
    /// transformers': new and old grid cover the same area.
    Size,
    /// Meta's: the new grid counts as 0.1 patches wider than it is, once a guard against rounding, so
    /// that it covers a little less than the old one. The features differ visibly from the others.
    OffsetScale,
}

impl PositionInterpolation {
    /// Old patches per new one.
    fn scale(self, grid: usize, new_grid: usize) -> f64 {
        match self {
            Self::Size => grid as f64 / new_grid as f64,
            Self::OffsetScale => grid as f64 / (new_grid as f64 + 0.1),
        }
    }
}

/// `[grid * grid, width]` to `[new_grid * new_grid, width]`, unchanged when the grids are equal.
pub(super) fn interpolate_positions(
    positions: &[f32],
    grid: usize,
    new_grid: usize,
    interpolation: PositionInterpolation,
) -> Vec<f32> {
    if grid == new_grid {
        return positions.to_vec();
    }
    let width = positions.len() / (grid * grid);
    let taps: Vec<_> = (0..new_grid)
        .map(|position| cubic_taps(position, grid, interpolation.scale(grid, new_grid)))
        .collect();
    let mut interpolated = Vec::with_capacity(new_grid * new_grid * width);
    for rows in &taps {
        for columns in &taps {
            let mut sums = vec![0.0; width];
            for (row, row_weight) in rows {
                for (column, column_weight) in columns {
                    let embedding = &positions[(row * grid + column) * width..][..width];
                    for (sum, &value) in sums.iter_mut().zip(embedding) {
                        *sum += row_weight * column_weight * f64::from(value);
                    }
                }
            }
            interpolated.extend(sums.iter().map(|&sum| sum as f32));
        }
    }
    interpolated
}

/// The four nearest old positions and their weights: Keys' cubic with torch's a = -0.75, the border
/// repeated, no antialiasing.
fn cubic_taps(position: usize, grid: usize, scale: f64) -> [(usize, f64); 4] {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let source = scale * (position as f64 + 0.5) - 0.5;
    let first = source.floor();
    let t = source - first;
    let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
    std::array::from_fn(|i| {
        let place = (first + i as f64 - 1.0).clamp(0.0, (grid - 1) as f64);
        (place as usize, weights[i])
    })
}
