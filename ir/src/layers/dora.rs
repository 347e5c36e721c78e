//! DoRA as a layer (Liu et al., 2024), in the shape of Edifice's `DoRA`, and in either of its two meanings, which are
//! never turned into each other. Factors are stored as PEFT stores them, A `[r, in]` and B `[out, r]`, and the weight
//! `[out, in]`; Edifice's are the transposes, under the names `dora_base_weight`, `dora_A`, `dora_B` and `dora_magnitude`.

use super::factors::{Factors, dense_parts};
use super::{Checked, positive};
use crate::ops::{EpsilonAt, Init};
use crate::{Axis, BuildErrors, DType, Dim, Graph, GraphBuilder, Shape, Tensor, dims};

/// What is normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DoraMeaning {
    /// The weight, as in the paper and PEFT: with `W' = m ∘ (W + s B A) / ‖W + s B A‖`, one norm per output over `in`
    /// and no epsilon, `y = x W'ᵀ + bias`. It can be merged. The magnitude starts as the norm ([`Init::Norm`]), so
    /// that the layer starts as its base.
    #[default]
    Weight,
    /// The output, as Edifice computes it: with `c = x Wᵀ + bias + s (x Aᵀ) Bᵀ`,
    /// `y = m ∘ c / sqrt(Σ_last c² + 1e-8)`. It depends on each sample and cannot be merged. The magnitude starts as
    /// ones.
    Output,
}

/// ε of [`DoraMeaning::Output`], inside the root.
const EPSILON: f64 = 1e-8;

/// How a DoRA layer is made. Shared by [`dora_layer`] and [`wrap`].
#[derive(Clone, Debug, PartialEq)]
pub struct DoraOptions {
    /// r, 1 or more.
    pub rank: usize,
    /// The update is scaled by alpha / r.
    pub alpha: f64,
    /// The layer's name.
    pub name: String,
    /// What is normalised.
    pub meaning: DoraMeaning,
}

impl Default for DoraOptions {
    /// Edifice's defaults, rank 8, alpha 16 and name `dora`, in the paper's meaning.
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, name: "dora".to_owned(), meaning: DoraMeaning::Weight }
    }
}

/// Edifice's defaults; see [`DoraOptions::default`].
pub fn recommended_defaults() -> DoraOptions {
    DoraOptions::default()
}

/// A DoRA layer with its sizes, to be built as a graph of its own.
///
/// ```
/// use engraft_ir::layers::{DoraConfig, DoraMeaning};
/// let graph = DoraConfig::new(768, 768).rank(4).alpha(8.0).meaning(DoraMeaning::Output).build()?;
/// assert_eq!(graph.output_types()[0].1.to_string(), "f32[batch, 768]");
/// # Ok::<(), engraft_ir::BuildErrors>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DoraConfig {
    input_size: usize,
    output_size: usize,
    options: DoraOptions,
}

impl DoraConfig {
    /// A layer of these sizes with the default options.
    pub fn new(input_size: usize, output_size: usize) -> Self {
        Self { input_size, output_size, options: DoraOptions::default() }
    }

    /// Sets r.
    #[must_use]
    pub fn rank(mut self, rank: usize) -> Self {
        self.options.rank = rank;
        self
    }

    /// Sets alpha.
    #[must_use]
    pub fn alpha(mut self, alpha: f64) -> Self {
        self.options.alpha = alpha;
        self
    }

    /// Sets the name.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.options.name);
        self
    }

    /// Sets the meaning.
    #[must_use]
    pub fn meaning(mut self, meaning: DoraMeaning) -> Self {
        self.options.meaning = meaning;
        self
    }

    /// The options, as [`dora_layer`] takes them.
    pub fn options(&self) -> &DoraOptions {
        &self.options
    }

    /// out.
    pub fn output_size(&self) -> usize {
        self.output_size
    }

    /// A graph of [`dora_layer`] alone: input `input` `[batch, in]`, output `output` `[batch, out]`, named after the
    /// layer.
    ///
    /// # Errors
    /// A size or rank of 0, an alpha that is not finite, or a bad name.
    #[track_caller]
    pub fn build(&self) -> Result<Graph, BuildErrors> {
        let g = GraphBuilder::new(&self.options.name);
        let _ = positive(&g, &self.options.name, "input_size", self.input_size);
        let x = g.input("input", DType::F32, dims!["batch", self.input_size]);
        g.output("output", dora_layer(x, self.output_size, &self.options));
        g.finish()
    }
}

/// A layer with a base of its own: x `[.., in]`; `name.weight` `[out, in]` (frozen, Glorot uniform); `name.lora_A`
/// `[r, in]`, `name.lora_B` `[out, r]` and `name.magnitude` `[out]` (the adapter's); y `[.., out]` under `name`, as the
/// [`DoraMeaning`] says, without bias. A rank or size of 0 is reported to the builder.
#[track_caller]
pub fn dora_layer<'g>(x: Tensor<'g>, output_size: usize, options: &DoraOptions) -> Tensor<'g> {
    let factors = match Factors::new(x, output_size.into(), options.rank, options.alpha, &options.name) {
        Ok(factors) => factors,
        Err(failed) => return failed,
    };
    let weight = factors.base(&options.name, output_size.into());
    let magnitude = magnitude(&factors, output_size.into(), options);
    let y = match options.meaning {
        DoraMeaning::Weight => over_weight(x, weight, None, &factors, magnitude),
        DoraMeaning::Output => over_output(x, x.dense(weight, None), &factors, magnitude),
    };
    y.named(&options.name)
}

/// A dense layer with DoRA around it, under `name`; the layer's x, weight and bias are found through its result. The
/// bias is added after scaling in the paper's meaning, and normalised with the rest in Edifice's. What is not the result
/// of a `dense` is reported to the builder.
#[track_caller]
pub fn wrap<'g>(dense: Tensor<'g>, options: &DoraOptions) -> Tensor<'g> {
    match checked_wrap(dense, options) {
        Ok(y) | Err(y) => y,
    }
}

#[track_caller]
fn checked_wrap<'g>(dense: Tensor<'g>, options: &DoraOptions) -> Checked<'g, Tensor<'g>> {
    let parts = dense_parts(dense)?;
    let factors = Factors::new(parts.x, parts.output.clone(), options.rank, options.alpha, &options.name)?;
    let magnitude = magnitude(&factors, parts.output, options);
    let y = match options.meaning {
        DoraMeaning::Weight => over_weight(parts.x, parts.weight, parts.bias, &factors, magnitude),
        DoraMeaning::Output => over_output(parts.x, dense, &factors, magnitude),
    };
    Ok(y.named(&options.name))
}

#[track_caller]
fn magnitude<'g>(factors: &Factors<'g>, output: Dim, options: &DoraOptions) -> Tensor<'g> {
    let init = match options.meaning {
        DoraMeaning::Weight => Init::Norm,
        DoraMeaning::Output => Init::Ones,
    };
    let name = format!("{}.magnitude", options.name);
    let magnitude = factors.a.builder().param(&name, factors.dtype, Shape::new(vec![output]));
    magnitude.adapter().init(init).group("magnitude")
}

#[track_caller]
fn over_weight<'g>(
    x: Tensor<'g>,
    weight: Tensor<'g>,
    bias: Option<Tensor<'g>>,
    factors: &Factors<'g>,
    magnitude: Tensor<'g>,
) -> Tensor<'g> {
    let adapted = weight + Tensor::lora_delta(factors.a, factors.b, factors.scale);
    x.dense(adapted.normalize(Axis::IN).magnitude(magnitude, Axis::OUT), bias)
}

#[track_caller]
fn over_output<'g>(
    x: Tensor<'g>,
    dense: Tensor<'g>,
    factors: &Factors<'g>,
    magnitude: Tensor<'g>,
) -> Tensor<'g> {
    let c = dense + factors.apply(x);
    c.normalize_with(Axis::LAST, EPSILON, EpsilonAt::Inside).magnitude(magnitude, Axis::LAST)
}
