//! The normal form of what adapters do to one linear module, as numbers: `y = g ∘ (x Wᵀ + (x Aᵀ) Bᵀ) + bias + shift`, with s
//! in B. In `f64`; what is written or run is rounded once, at the end. Knows nothing about graphs and files.

use super::factors::Factors;
use super::modules::{Layer, Module};
use crate::safetensors::Floats;
use engraft_runtime::Tensor;
use thiserror::Error;

/// Why a normal form does not exist or cannot be computed.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum FormError {
    /// The base's weight is not the module's.
    #[error("module `{module}`: the base's weight has {found} elements, expected {inputs} x {outputs}")]
    Weight {
        /// The module.
        module: String,
        /// How many elements it has.
        found: usize,
        /// in.
        inputs: usize,
        /// out.
        outputs: usize,
    },
    /// The adapter was made for another size.
    #[error(
        "module `{module}`: the adapter is for {} inputs and {} outputs, the module has {} and {}",
        found.0, found.1, expected.0, expected.1
    )]
    Size {
        /// The module.
        module: String,
        /// in and out of the adapter.
        found: (usize, usize),
        /// in and out of the module.
        expected: (usize, usize),
    },
    /// DoRA divides by the norm of a row of zeros.
    #[error("module `{module}`: W + s B A is zero for output {output}, so DoRA has no direction there")]
    ZeroNorm {
        /// The module.
        module: String,
        /// The output.
        output: usize,
    },
    /// A row's norm is infinite or no number, so the base's weight is not finite.
    #[error("module `{module}`: the norm of W + s B A is {found} for output {output}")]
    Norm {
        /// The module.
        module: String,
        /// The output.
        output: usize,
        /// The norm.
        found: f64,
    },
    /// What is behind a gain of zero has no place inside it.
    #[error(
        "module `{module}`: an earlier DoRA's gain is zero for output {output}, where a later adapter adds something: \
         g (W + D) cannot say that"
    )]
    ZeroGain {
        /// The module.
        module: String,
        /// The output.
        output: usize,
    },
    /// DoRA in a weighted sum.
    #[error(
        "module `{module}`: a weighted combination is a sum of updates s B A, and DoRA is none: its gain multiplies W, \
         too. Apply adapters one after the other instead, or merge them"
    )]
    WeightedDora {
        /// The module.
        module: String,
    },
    /// A number of the form is beyond an `f32`.
    #[error("module `{module}`: {part} has an element that is no finite f32")]
    Overflow {
        /// The module.
        module: String,
        /// What it is part of.
        part: &'static str,
    },
    /// A weight of a combination is infinite or no number.
    #[error("module `{module}`: the weight of an adapter is {found}, expected a finite number")]
    NotFinite {
        /// The module.
        module: String,
        /// The weight.
        found: f64,
    },
}

/// Why updates have no weighted sum, and which of them is at fault.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{source}")]
pub struct WeightedError {
    /// Its index among the parts.
    pub part: usize,
    /// Why.
    pub source: FormError,
}

/// A module's weight W as its base stores it: `[out, in]`, or `[in, out]` of an embedding and GPT-2's layers.
#[derive(Clone, Debug)]
pub struct BaseWeight<'w> {
    module: &'w str,
    inputs: usize,
    outputs: usize,
    transposed: bool,
    floats: Floats<'w>,
}

impl<'w> BaseWeight<'w> {
    /// The weight of a module, row-major as it is stored.
    ///
    /// # Errors
    /// [`FormError::Weight`].
    pub fn new(module: &'w Module, floats: Floats<'w>) -> Result<Self, FormError> {
        let (inputs, outputs) = (module.inputs as usize, module.outputs as usize);
        let found = floats.len();
        if inputs.checked_mul(outputs) != Some(found) {
            return Err(FormError::Weight { module: module.name.clone(), found, inputs, outputs });
        }
        let transposed = module.layer != Layer::Linear;
        Ok(Self { module: &module.name, inputs, outputs, transposed, floats })
    }

    /// How many rows are stored, and how many elements each has.
    pub fn stored(&self) -> (usize, usize) {
        if self.transposed { (self.inputs, self.outputs) } else { (self.outputs, self.inputs) }
    }

    /// Reads a stored row.
    pub(crate) fn read_row(&self, row: usize, numbers: &mut [f64]) {
        self.floats.read(row * self.stored().1, numbers);
    }
}

/// A low-rank matrix `[out, in]` as it is stored, a row at a time: `left [rows, r]` times `right [r, columns]`.
struct Product {
    rank: usize,
    left: Vec<f64>,
    right: Vec<f64>,
}

impl Product {
    /// B A, or its transpose.
    fn new(b: Vec<f64>, a: Vec<f64>, rank: usize, transposed: bool) -> Self {
        if !transposed {
            return Self { rank, left: b, right: a };
        }
        let inputs = a.len().checked_div(rank).unwrap_or(0);
        let outputs = b.len().checked_div(rank).unwrap_or(0);
        Self { rank, left: transpose(&a, rank, inputs), right: transpose(&b, outputs, rank) }
    }

    /// Adds `factor` times a row.
    fn add_row(&self, row: usize, factor: f64, numbers: &mut [f64]) {
        let columns = numbers.len();
        for k in 0..self.rank {
            let left = factor * self.left[row * self.rank + k];
            for (number, right) in numbers.iter_mut().zip(&self.right[k * columns..]) {
                *number += left * right;
            }
        }
    }
}

fn transpose(matrix: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| matrix[i * columns + j])).collect()
}

fn widen(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

/// DoRA's gain g = m / ‖W + s B A‖ `[out]`, the norm over in, of the base's own weight. `None` of an adapter that is not
/// DoRA.
///
/// # Errors
/// The adapter was made for another size, or a row's norm is zero.
pub fn gain(factors: &Factors, weight: &BaseWeight<'_>) -> Result<Option<Vec<f64>>, FormError> {
    check_size(weight.module, factors, (weight.inputs, weight.outputs))?;
    let Some(magnitude) = factors.magnitude() else { return Ok(None) };
    let (rows, columns) = weight.stored();
    let scaled = factors.b().iter().map(|&b| f64::from(b) * factors.scale()).collect();
    let delta = Product::new(scaled, widen(factors.a()), factors.rank(), weight.transposed);
    let (mut squares, mut numbers) = (vec![0.0; weight.outputs], vec![0.0; columns]);
    for row in 0..rows {
        weight.read_row(row, &mut numbers);
        delta.add_row(row, 1.0, &mut numbers);
        if weight.transposed {
            squares.iter_mut().zip(&numbers).for_each(|(square, x)| *square += x * x);
        } else {
            squares[row] = numbers.iter().map(|x| x * x).sum();
        }
    }
    let module = || weight.module.to_owned();
    let gain = squares.iter().zip(magnitude).enumerate().map(|(output, (square, &m))| {
        let norm = square.sqrt();
        match norm {
            0.0 => Err(FormError::ZeroNorm { module: module(), output }),
            found if !found.is_finite() => Err(FormError::Norm { module: module(), output, found }),
            _ => Ok(f64::from(m) / norm),
        }
    });
    gain.collect::<Result<_, _>>().map(Some)
}

fn check_size(module: &str, factors: &Factors, expected: (usize, usize)) -> Result<(), FormError> {
    let found = (factors.inputs(), factors.outputs());
    if found == expected {
        return Ok(());
    }
    Err(FormError::Size { module: module.to_owned(), found, expected })
}

/// Whether an update can be a part of a weighted sum.
fn check_weighted(
    module: &str,
    (weight, factors): (f64, &Factors),
    expected: (usize, usize),
) -> Result<(), FormError> {
    check_size(module, factors, expected)?;
    if factors.is_dora() {
        return Err(FormError::WeightedDora { module: module.to_owned() });
    }
    if !weight.is_finite() {
        return Err(FormError::NotFinite { module: module.to_owned(), found: weight });
    }
    Ok(())
}

/// What adapters do to one module: `y = g ∘ (x Wᵀ + (x Aᵀ) Bᵀ) + bias + shift`, where W and bias are the base's.
///
/// Adapters that are active together are applied in order, as PEFT's layers do it, each to what those before it gave, and
/// each DoRA's gain is that of the base's own weight. With y₀ = x Wᵀ + bias and D = s B A:
///
/// - LoRA after anything: `y + x Dᵀ + s b`, so D's rows are divided by the gain so far, and `s b` (the bias of B) is shift;
/// - DoRA after anything: `g ∘ (y - bias) + bias + g ∘ x Dᵀ`, so the gain is multiplied by g, and the shift too.
///
/// So two adapters are W' = g₂ (g₁ (W + D₁) + D₂), where a LoRA's g is 1.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearForm {
    module: String,
    inputs: usize,
    outputs: usize,
    rank: usize,
    /// `[r, in]`
    a: Vec<f64>,
    /// `[out, r]`, with s in it.
    b: Vec<f64>,
    gain: Option<Vec<f64>>,
    shift: Option<Vec<f64>>,
}

impl LinearForm {
    /// What no adapter does.
    pub fn identity(module: &str, inputs: usize, outputs: usize) -> Self {
        let (a, b) = (Vec::new(), Vec::new());
        Self { module: module.to_owned(), inputs, outputs, rank: 0, a, b, gain: None, shift: None }
    }

    /// The same, and after it another adapter, whose gain is that of [`gain()`] on the base's own weight.
    ///
    /// # Errors
    /// The adapter is of another size, or adds to an output whose gain is zero.
    pub fn then(mut self, factors: &Factors, gain: Option<&[f64]>) -> Result<Self, FormError> {
        check_size(&self.module, factors, (self.inputs, self.outputs))?;
        let rank = factors.rank();
        let mut scaled: Vec<f64> = factors.b().iter().map(|&b| f64::from(b) * factors.scale()).collect();
        if let Some(before) = &self.gain {
            for (output, (row, &gain)) in scaled.chunks_mut(rank).zip(before).enumerate() {
                if gain == 0.0 && row.iter().any(|&b| b != 0.0) {
                    return Err(FormError::ZeroGain { module: self.module.clone(), output });
                }
                row.iter_mut().filter(|b| **b != 0.0).for_each(|b| *b /= gain);
            }
        }
        self.append(&widen(factors.a()), &scaled, rank);
        if let Some(bias) = factors.bias_of_b() {
            let shift = self.shift.get_or_insert_with(|| vec![0.0; self.outputs]);
            let scale = factors.scale();
            shift.iter_mut().zip(bias).for_each(|(shift, &bias)| *shift += scale * f64::from(bias));
        }
        if let Some(gain) = gain {
            let before = self.gain.get_or_insert_with(|| vec![1.0; self.outputs]);
            before.iter_mut().zip(gain).for_each(|(before, gain)| *before *= gain);
            self.shift.iter_mut().flatten().zip(gain).for_each(|(shift, gain)| *shift *= gain);
        }
        Ok(self)
    }

    /// A sum of LoRA updates, each times its weight: Σ w s B A, exactly, since the A's are put below each other and the
    /// w s B's beside each other. (Sums of the A's and of the B's, PEFT's `combination_type="linear"`, are not that: they
    /// multiply each adapter's B with every other's A.)
    ///
    /// # Errors
    /// An adapter is DoRA or of another size, or a weight is not finite; the error says which part it is.
    pub fn weighted(
        module: &str,
        (inputs, outputs): (usize, usize),
        parts: &[(f64, &Factors)],
    ) -> Result<Self, WeightedError> {
        let mut form = Self::identity(module, inputs, outputs);
        for (part, (weight, factors)) in parts.iter().enumerate() {
            let checked = check_weighted(module, (*weight, factors), (inputs, outputs));
            checked.map_err(|source| WeightedError { part, source })?;
            let scale = weight * factors.scale();
            let scaled: Vec<f64> = factors.b().iter().map(|&b| f64::from(b) * scale).collect();
            form.append(&widen(factors.a()), &scaled, factors.rank());
            if let Some(bias) = factors.bias_of_b() {
                let shift = form.shift.get_or_insert_with(|| vec![0.0; outputs]);
                shift.iter_mut().zip(bias).for_each(|(shift, &bias)| *shift += scale * f64::from(bias));
            }
        }
        Ok(form)
    }

    /// Puts A below ours, and B beside ours.
    fn append(&mut self, a: &[f64], b: &[f64], rank: usize) {
        self.a.extend(a);
        let total = self.rank + rank;
        let mut joined = Vec::with_capacity(self.outputs * total);
        for output in 0..self.outputs {
            joined.extend(&self.b[output * self.rank..(output + 1) * self.rank]);
            joined.extend(&b[output * rank..(output + 1) * rank]);
        }
        (self.b, self.rank) = (joined, total);
    }

    /// The module.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// in, or vocab of an embedding.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// out, or dim of an embedding.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// r: the sum of the adapters' ranks.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// A `[r, in]`.
    pub fn a(&self) -> &[f64] {
        &self.a
    }

    /// B `[out, r]`, with s in it.
    pub fn b(&self) -> &[f64] {
        &self.b
    }

    /// g `[out]`, if an adapter is DoRA.
    pub fn gain(&self) -> Option<&[f64]> {
        self.gain.as_deref()
    }

    /// What is added to the base's bias `[out]`, if an adapter's B has a bias.
    pub fn shift(&self) -> Option<&[f64]> {
        self.shift.as_deref()
    }

    /// The form rounded to `f32`, each number once.
    ///
    /// # Errors
    /// [`FormError::Overflow`].
    pub fn tensors(&self) -> Result<FormTensors, FormError> {
        let round = |part: &'static str, shape: &[usize], numbers: &[f64]| {
            let rounded: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
            let tensor = rounded.iter().all(|x| x.is_finite()).then(|| Tensor::f32(shape, rounded).ok());
            tensor.flatten().ok_or_else(|| FormError::Overflow { module: self.module.clone(), part })
        };
        let outputs = |part, numbers: &Option<Vec<f64>>| {
            numbers.as_ref().map(|numbers| round(part, &[self.outputs], numbers)).transpose()
        };
        Ok(FormTensors {
            a: round("A", &[self.rank, self.inputs], &self.a)?,
            b: round("B", &[self.outputs, self.rank], &self.b)?,
            gain: outputs("the gain", &self.gain)?,
            shift: outputs("the shift of the bias", &self.shift)?,
        })
    }

    /// What makes rows of W' = g (W + B A), and of W from that.
    ///
    /// # Errors
    /// The weight is of another size.
    pub fn merger(&self, weight: &BaseWeight<'_>) -> Result<Merger, FormError> {
        let (found, expected) = ((self.inputs, self.outputs), (weight.inputs, weight.outputs));
        if found != expected {
            return Err(FormError::Size { module: self.module.clone(), found, expected });
        }
        let product = Product::new(self.b.clone(), self.a.clone(), self.rank, weight.transposed);
        Ok(Merger { product, gain: self.gain.clone(), transposed: weight.transposed })
    }
}

/// A normal form as it is run: rounded to `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct FormTensors {
    /// A `[r, in]`.
    pub a: Tensor,
    /// B `[out, r]`, with s in it.
    pub b: Tensor,
    /// g `[out]`.
    pub gain: Option<Tensor>,
    /// What is added to the base's bias `[out]`.
    pub shift: Option<Tensor>,
}

/// Makes merged weights of a base's, a stored row at a time, and undoes it.
pub struct Merger {
    product: Product,
    gain: Option<Vec<f64>>,
    transposed: bool,
}

impl Merger {
    /// Makes a stored row of W into that of g (W + B A).
    pub fn merge(&self, row: usize, numbers: &mut [f64]) {
        self.product.add_row(row, 1.0, numbers);
        self.each_gain(row, numbers, |x, gain| x * gain);
    }

    /// Makes a stored row of W' = g (W + B A) into that of W' / g - B A, which is W but for rounding: if W' was rounded
    /// with unit roundoff u, and g to an `f32`, by at most `|W + B A| (u + 2⁻²⁴)`. Where g is zero the row is lost, and not
    /// finite here.
    pub fn unmerge(&self, row: usize, numbers: &mut [f64]) {
        self.each_gain(row, numbers, |x, gain| x / gain);
        self.product.add_row(row, -1.0, numbers);
    }

    fn each_gain(&self, row: usize, numbers: &mut [f64], with: fn(f64, f64) -> f64) {
        match &self.gain {
            None => {}
            Some(gain) if self.transposed => {
                numbers.iter_mut().zip(gain).for_each(|(x, &gain)| *x = with(*x, gain));
            }
            Some(gain) => numbers.iter_mut().for_each(|x| *x = with(*x, gain[row])),
        }
    }
}
