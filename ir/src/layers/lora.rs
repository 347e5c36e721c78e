//! LoRA as a layer (Hu et al., 2021), in the shape of Edifice's `LoRA`: a layer of its own, its update alone, and a
//! wrapper around a dense layer. Factors are stored as PEFT stores them, A `[r, in]` and B `[out, r]`; Edifice's are
//! the transposes.

use super::factors::{Factors, dense_parts};
use super::{Checked, positive};
use crate::{BuildErrors, DType, Graph, GraphBuilder, Tensor, dims};

/// How a LoRA layer is made. Shared by [`lora_layer`], [`lora_delta`] and [`wrap`].
#[derive(Clone, Debug, PartialEq)]
pub struct LoraOptions {
    /// r, 1 or more.
    pub rank: usize,
    /// The update is scaled by alpha / r.
    pub alpha: f64,
    /// The layer's name.
    pub name: String,
}

impl Default for LoraOptions {
    /// Edifice's defaults: rank 8, alpha 16, name `lora`.
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, name: "lora".to_owned() }
    }
}

/// Edifice's defaults; see [`LoraOptions::default`].
pub fn recommended_defaults() -> LoraOptions {
    LoraOptions::default()
}

/// A LoRA layer with its sizes, to be built as a graph of its own.
///
/// ```
/// use engraft_ir::layers::LoraConfig;
/// let graph = LoraConfig::new(768, 768).rank(4).name("query").build()?;
/// assert!(graph.find("query.lora_A").is_some());
/// # Ok::<(), engraft_ir::BuildErrors>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    input_size: usize,
    output_size: usize,
    options: LoraOptions,
}

impl LoraConfig {
    /// A layer of these sizes with the default options.
    pub fn new(input_size: usize, output_size: usize) -> Self {
        Self { input_size, output_size, options: LoraOptions::default() }
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

    /// The options, as [`lora_layer`] takes them.
    pub fn options(&self) -> &LoraOptions {
        &self.options
    }

    /// out.
    pub fn output_size(&self) -> usize {
        self.output_size
    }

    /// A graph of [`lora_layer`] alone: input `input` `[batch, in]`, output `output` `[batch, out]`, named after the
    /// layer. (Edifice's `LoRA.build` is the update without a base weight: [`lora_delta`].)
    ///
    /// # Errors
    /// A size or rank of 0, an alpha that is not finite, or a bad name.
    #[track_caller]
    pub fn build(&self) -> Result<Graph, BuildErrors> {
        let g = GraphBuilder::new(&self.options.name);
        let _ = positive(&g, &self.options.name, "input_size", self.input_size);
        let x = g.input("input", DType::F32, dims!["batch", self.input_size]);
        g.output("output", lora_layer(x, self.output_size, &self.options));
        g.finish()
    }
}

/// `y = x Wᵀ + s (x Aᵀ) Bᵀ`: x `[.., in]`; `name.weight` `[out, in]` (frozen, Glorot uniform), `name.lora_A` `[r, in]` and
/// `name.lora_B` `[out, r]` (the adapter's); y `[.., out]` under `name`. A rank or size of 0 is reported to the builder.
#[track_caller]
pub fn lora_layer<'g>(x: Tensor<'g>, output_size: usize, options: &LoraOptions) -> Tensor<'g> {
    match Factors::new(x, output_size.into(), options.rank, options.alpha, &options.name) {
        Ok(factors) => {
            let base = x.dense(factors.base(&options.name, output_size.into()), None);
            (base + factors.apply(x)).named(&options.name)
        }
        Err(failed) => failed,
    }
}

/// `d = s (x Aᵀ) Bᵀ`, the update alone: x `[.., in]`; `name.lora_A` and `name.lora_B` as in [`lora_layer`]; d `[.., out]`
/// under `name`.
#[track_caller]
pub fn lora_delta<'g>(x: Tensor<'g>, output_size: usize, options: &LoraOptions) -> Tensor<'g> {
    match Factors::new(x, output_size.into(), options.rank, options.alpha, &options.name) {
        Ok(factors) => factors.apply(x).named(&options.name),
        Err(failed) => failed,
    }
}

/// A dense layer's result with the update added, under `name`; the layer's x is found through it. What is not the
/// result of a `dense` is reported to the builder.
#[track_caller]
pub fn wrap<'g>(dense: Tensor<'g>, options: &LoraOptions) -> Tensor<'g> {
    match checked_wrap(dense, options) {
        Ok(y) | Err(y) => y,
    }
}

#[track_caller]
fn checked_wrap<'g>(dense: Tensor<'g>, options: &LoraOptions) -> Checked<'g, Tensor<'g>> {
    let parts = dense_parts(dense)?;
    let factors = Factors::new(parts.x, parts.output, options.rank, options.alpha, &options.name)?;
    Ok((dense + factors.apply(parts.x)).named(&options.name))
}
