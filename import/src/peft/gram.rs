//! Sizes and angles of the updates s B A without ever making one: from r x r products. Knows nothing about the base.
//!
//! With D = s B A, `<D₁, D₂> = s₁ s₂ tr(A₁ᵀ B₁ᵀ B₂ A₂) = s₁ s₂ Σ (B₁ᵀ B₂) ∘ (A₁ A₂ᵀ)`, which takes `(in + out) r₁ r₂`
//! products instead of `in out r`.

use super::factors::Factors;

/// The Frobenius norm of s B A.
pub fn update_norm(factors: &Factors) -> f64 {
    // What rounding leaves below zero is zero.
    inner_product(factors, factors).unwrap_or(0.0).max(0.0).sqrt()
}

/// The inner product of two updates s B A; `None` if they are of different sizes.
pub fn inner_product(x: &Factors, y: &Factors) -> Option<f64> {
    if (x.inputs(), x.outputs()) != (y.inputs(), y.outputs()) {
        return None;
    }
    let (p, q, inputs) = (x.rank(), y.rank(), x.inputs());
    let mut gram_of_b = vec![0.0; p * q];
    for (row_of_x, row_of_y) in x.b().chunks_exact(p).zip(y.b().chunks_exact(q)) {
        for (sums, &b) in gram_of_b.chunks_exact_mut(q).zip(row_of_x) {
            sums.iter_mut().zip(row_of_y).for_each(|(sum, &c)| *sum += f64::from(b) * f64::from(c));
        }
    }
    let rows = |factors: &'_ Factors, row: usize| row * factors.inputs()..(row + 1) * factors.inputs();
    let dot = |i: usize, j: usize| -> f64 {
        let pairs = x.a()[rows(x, i)].iter().zip(&y.a()[rows(y, j)]);
        pairs.map(|(&a, &c)| f64::from(a) * f64::from(c)).sum()
    };
    let gram_of_a = |i: usize, j: usize| if inputs == 0 { 0.0 } else { dot(i, j) };
    let pairs = (0..p).flat_map(|i| (0..q).map(move |j| (i, j)));
    let sum: f64 = pairs.map(|(i, j)| gram_of_b[i * q + j] * gram_of_a(i, j)).sum();
    Some(x.scale() * y.scale() * sum)
}

/// The Euclidean norm of all elements.
pub fn norm(numbers: &[f32]) -> f64 {
    numbers.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// How two updates of the same module are to each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Relation {
    /// ‖D₁‖.
    pub first: f64,
    /// ‖D₂‖.
    pub second: f64,
    /// The cosine of the angle between them; `None` if one of them is zero.
    pub cosine: Option<f64>,
    /// ‖D₁ - D₂‖ / ‖D₁‖; `None` if D₁ is zero and D₂ is not. Equal factors give exactly 0; otherwise no less than about
    /// 1e-8 can be told.
    pub relative_difference: Option<f64>,
}

/// How two updates are to each other; `None` if they are of different sizes.
pub fn relation(x: &Factors, y: &Factors) -> Option<Relation> {
    let product = inner_product(x, y)?;
    let (first, second) = (update_norm(x), update_norm(y));
    let same = x.scale() == y.scale() && x.a() == y.a() && x.b() == y.b();
    let difference = (first * first + second * second - 2.0 * product).max(0.0).sqrt();
    let relative_difference = match (same || difference == 0.0, first > 0.0) {
        (true, _) => Some(0.0),
        (false, true) => Some(difference / first),
        (false, false) => None,
    };
    let sizes = first * second;
    let cosine = (sizes > 0.0).then(|| if same { 1.0 } else { (product / sizes).clamp(-1.0, 1.0) });
    Some(Relation { first, second, cosine, relative_difference })
}
