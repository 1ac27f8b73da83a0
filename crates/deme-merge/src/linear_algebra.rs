//! The few dense routines that searches with at most some dozens of weights need, in f64 and in one fixed
//! order of operations. No general library: nothing here is large or fast.

/// A square or tall matrix by rows.
pub(crate) type Matrix = Vec<Vec<f64>>;

/// The identity, `n` by `n`.
pub(crate) fn identity(n: usize) -> Matrix {
    (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect()
}

/// The inner product.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The Euclidean norm.
pub(crate) fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

/// The Euclidean distance.
pub(crate) fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

/// Matrix times vector.
pub(crate) fn product(matrix: &Matrix, x: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| dot(row, x)).collect()
}

/// Eigenvalues, ascending, and one unit eigenvector each.
pub(crate) struct Eigen {
    pub(crate) values: Vec<f64>,
    /// `vectors[k]` belongs to `values[k]`.
    pub(crate) vectors: Vec<Vec<f64>>,
}

impl Eigen {
    /// `x` in the eigenvectors' coordinates.
    pub(crate) fn coordinates(&self, x: &[f64]) -> Vec<f64> {
        self.vectors.iter().map(|vector| dot(vector, x)).collect()
    }

    /// The vector that has these coordinates.
    pub(crate) fn combination(&self, coordinates: &[f64]) -> Vec<f64> {
        let mut sum = vec![0.0; self.vectors.first().map_or(0, Vec::len)];
        for (vector, &coordinate) in self.vectors.iter().zip(coordinates) {
            for (sum, v) in sum.iter_mut().zip(vector) {
                *sum += coordinate * v;
            }
        }
        sum
    }
}

/// Eigenvalues and eigenvectors of a symmetric matrix, by cyclic Jacobi rotations.
/// (Golub and Van Loan, Matrix Computations, 4th ed., section 8.5)
pub(crate) fn symmetric_eigen(matrix: &Matrix) -> Eigen {
    let n = matrix.len();
    let mut a = matrix.clone();
    let mut vectors = identity(n);
    let size: f64 = a.iter().map(|row| dot(row, row)).sum();
    // Each sweep about squares what is left off the diagonal: ten are more than enough.
    for _ in 0..50 {
        let off_diagonal: f64 = (0..n).map(|i| dot(&a[i][..i], &a[i][..i])).sum();
        if off_diagonal <= f64::EPSILON.powi(2) * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut vectors, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[i][i].total_cmp(&a[j][j]));
    Eigen {
        values: order.iter().map(|&i| a[i][i]).collect(),
        vectors: order.iter().map(|&i| vectors[i].clone()).collect(),
    }
}

/// The rotation in the plane of `p` and `q` that makes `a[p][q]` zero.
fn rotate(a: &mut Matrix, vectors: &mut Matrix, p: usize, q: usize) {
    if a[p][q] == 0.0 {
        return;
    }
    let tau = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
    let tangent = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
    let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
    let sine = tangent * cosine;
    for row in a.iter_mut() {
        (row[p], row[q]) = (cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]);
    }
    for rows in [a, vectors] {
        for k in 0..rows[p].len() {
            let (x, y) = (rows[p][k], rows[q][k]);
            (rows[p][k], rows[q][k]) = (cosine * x - sine * y, sine * x + cosine * y);
        }
    }
}

/// The `x` that makes `|rows x - right|` smallest, by Householder reflections. Needs at least as many
/// rows as columns; what the rows leave open is zero.   (Golub and Van Loan, section 5.3)
pub(crate) fn least_squares(mut rows: Matrix, mut right: Vec<f64>) -> Vec<f64> {
    let columns = rows[0].len();
    assert!(rows.len() >= columns, "a fit has at least as many points as coefficients");
    let mut largest: f64 = 0.0;
    for k in 0..columns {
        let length = rows[k..].iter().map(|row| row[k] * row[k]).sum::<f64>().sqrt();
        largest = largest.max(length);
        if length <= 1e-13 * largest {
            rows[k][k] = 0.0;
            continue;
        }
        let pivot = rows[k][k];
        let diagonal = if pivot > 0.0 { -length } else { length };
        let mut reflector: Vec<f64> = rows[k..].iter().map(|row| row[k]).collect();
        reflector[0] = pivot - diagonal;
        let scale = 2.0 / dot(&reflector, &reflector);
        for column in k + 1..columns {
            let entries = rows[k..].iter().map(|row| row[column]);
            let along: f64 = reflector.iter().zip(entries).map(|(r, x)| r * x).sum();
            for (row, r) in rows[k..].iter_mut().zip(&reflector) {
                row[column] -= scale * along * r;
            }
        }
        let along = dot(&reflector, &right[k..]);
        for (x, r) in right[k..].iter_mut().zip(&reflector) {
            *x -= scale * along * r;
        }
        rows[k][k] = diagonal;
    }
    let mut solution = vec![0.0; columns];
    for k in (0..columns).rev() {
        if rows[k][k] != 0.0 {
            let known = dot(&rows[k][k + 1..], &solution[k + 1..]);
            solution[k] = (right[k] - known) / rows[k][k];
        }
    }
    solution
}

/// Solves `matrix x = right` for a symmetric positive definite matrix (Cholesky); none when it is not
/// positive definite.
pub(crate) fn solve_positive(matrix: &Matrix, right: &[f64]) -> Option<Vec<f64>> {
    let n = right.len();
    let mut factor = vec![vec![0.0; n]; n];
    for i in 0..n {
        for j in 0..=i {
            let rest = matrix[i][j] - dot(&factor[i][..j], &factor[j][..j]);
            factor[i][j] = if i == j { rest.sqrt() } else { rest / factor[j][j] };
        }
        // A NaN is no pivot either.
        if !(factor[i][i] > 0.0 && factor[i][i].is_finite()) {
            return None;
        }
    }
    let mut x = right.to_vec();
    for i in 0..n {
        x[i] = (x[i] - dot(&factor[i][..i], &x[..i])) / factor[i][i];
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|k| factor[k][i] * x[k]).sum();
        x[i] = (x[i] - known) / factor[i][i];
    }
    Some(x)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9 * (1.0 + a.abs().max(b.abs()))
    }

    fn matrix(rows: usize, columns: usize) -> impl Strategy<Value = Matrix> {
        let row = prop::collection::vec(-2.0f64..2.0, columns);
        prop::collection::vec(row, rows)
    }

    proptest! {
        #[test]
        fn eigenvectors_are_orthonormal_and_give_the_matrix_back(rows in matrix(6, 6)) {
            let n = rows.len();
            let symmetric: Matrix =
                (0..n).map(|i| (0..n).map(|j| rows[i][j] + rows[j][i]).collect()).collect();
            let eigen = symmetric_eigen(&symmetric);
            prop_assert!(eigen.values.is_sorted());
            for (k, vector) in eigen.vectors.iter().enumerate() {
                let image = product(&symmetric, vector);
                for (image, v) in image.iter().zip(vector) {
                    prop_assert!(close(*image, eigen.values[k] * v));
                }
                for (l, other) in eigen.vectors.iter().enumerate() {
                    prop_assert!(close(dot(vector, other), f64::from(u8::from(k == l))));
                }
            }
            let x = &rows[0];
            for (there, back) in x.iter().zip(eigen.combination(&eigen.coordinates(x))) {
                prop_assert!(close(*there, back));
            }
        }

        #[test]
        fn the_residual_of_a_fit_is_orthogonal_to_the_columns(
            rows in matrix(9, 4),
            right in prop::collection::vec(-2.0f64..2.0, 9),
        ) {
            let x = least_squares(rows.clone(), right.clone());
            for column in 0..4 {
                let residual = rows.iter().zip(&right).map(|(row, b)| row[column] * (b - dot(row, &x)));
                prop_assert!(residual.sum::<f64>().abs() < 1e-7);
            }
        }

        #[test]
        fn a_positive_matrix_is_solved(rows in matrix(5, 5), x in prop::collection::vec(-2.0f64..2.0, 5)) {
            let positive: Matrix = (0..5)
                .map(|i| (0..5).map(|j| dot(&rows[i], &rows[j]) + f64::from(u8::from(i == j))).collect())
                .collect();
            let solved = solve_positive(&positive, &product(&positive, &x));
            prop_assert!(solved.is_some());
            for (found, expected) in solved.into_iter().flatten().zip(&x) {
                prop_assert!((found - expected).abs() < 1e-8);
            }
        }
    }

    #[test]
    fn what_the_rows_leave_open_is_zero() {
        let rows = vec![vec![2.0, 0.0], vec![0.0, 0.0], vec![0.0, 0.0]];
        assert_eq!(least_squares(rows, vec![6.0, 1.0, 2.0]), [3.0, 0.0]);
    }

    #[test]
    fn a_matrix_that_is_not_positive_is_not_solved() {
        assert_eq!(solve_positive(&vec![vec![1.0, 2.0], vec![2.0, 1.0]], &[1.0, 1.0]), None);
        assert_eq!(solve_positive(&vec![vec![f64::NAN]], &[1.0]), None);
    }
}
