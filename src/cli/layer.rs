//! One linear layer with bias, bare and with DoRA, of any size and with random values: what is timed. It knows nothing
//! about how it is run.

use super::error::CliError;
use engraft::compiler::values::to_tensor;
use engraft::ir::{Bindings, Symbol, sample};
use engraft::prelude::*;
use engraft::runtime::{self, Weights};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The numerator of the update's scale, alpha / r.
const ALPHA: f64 = 16.0;

/// The largest number of features that is tried.
const FEATURES: usize = 16384;

/// A layer's sizes, written as `INxOUT:RANK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Features of the input.
    pub inputs: usize,
    /// Features of the output.
    pub outputs: usize,
    /// r.
    pub rank: usize,
}

/// When A, B and m are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factors {
    /// When an adapter is loaded.
    Loaded,
    /// They come with each call.
    Live,
}

/// The parameters that a [`Factors::Live`] layer takes with each call after its input, in order.
pub const FACTORS: [&str; 3] = ["lora_A", "lora_B", "magnitude"];

impl Layer {
    /// The scale of the update.
    pub fn scale(&self) -> f64 {
        ALPHA / self.rank as f64
    }

    /// `y = x Wᵀ + bias`.
    ///
    /// # Errors
    /// None for sizes of 1 or more.
    pub fn dense(&self) -> Result<Graph, CliError> {
        let g = GraphBuilder::new("dense");
        let (x, w, bias) = self.base(&g);
        g.output("y", x.dense(w, Some(bias)));
        Ok(g.finish()?)
    }

    /// The layer with DoRA, in the paper's meaning.
    ///
    /// # Errors
    /// None for sizes of 1 or more.
    pub fn dora(&self, factors: Factors) -> Result<Graph, CliError> {
        let g = GraphBuilder::new("dora");
        let (x, w, bias) = self.base(&g);
        let shapes = [dims![self.rank, self.inputs], dims![self.outputs, self.rank], dims![self.outputs]];
        let mut params = FACTORS.into_iter().zip(shapes).map(|(name, shape)| {
            let param = g.param(name, F32, shape);
            if factors == Factors::Live { param.live() } else { param.adapter() }
        });
        if let (Some(a), Some(b), Some(m)) = (params.next(), params.next(), params.next()) {
            let direction = (w + Tensor::lora_delta(a, b, self.scale())).normalize(Axis::IN);
            g.output("y", x.dense(direction.magnitude(m, Axis::OUT), Some(bias)));
        }
        Ok(g.finish()?)
    }

    fn base<'g>(&self, g: &'g GraphBuilder) -> (Tensor<'g>, Tensor<'g>, Tensor<'g>) {
        let x = g.input("x", F32, dims!["batch", self.inputs]);
        let w = g.param("weight", F32, dims![self.outputs, self.inputs]);
        (x, w, g.param("bias", F32, dims![self.outputs]))
    }

    /// Random values of all parameters, and an input `x` of so many rows.
    ///
    /// # Errors
    /// They do not fit into memory.
    pub fn values(&self, batch: usize) -> Result<Weights, CliError> {
        let graph = self.dora(Factors::Loaded)?;
        let bindings = Bindings::from([(Symbol::new("batch"), batch as u64)]);
        let values = sample::values(&graph, &bindings, 1)?;
        let mut tensors = Weights::new();
        for (name, ty) in graph.inputs().iter().map(|input| (&input.name, &input.ty)) {
            tensors.insert(name, to_tensor(&values[name], ty)?);
        }
        for param in graph.params() {
            tensors.insert(&param.name, to_tensor(&values[&param.name], &param.ty)?);
        }
        Ok(tensors)
    }
}

/// The tensor `name` of a layer's values.
///
/// # Errors
/// It is missing.
pub fn tensor<'a>(values: &'a Weights, name: &'static str) -> Result<&'a Arc<runtime::Tensor>, CliError> {
    values.get(name).ok_or(CliError::NoValue { tensor: name })
}

/// The first rows of a matrix.
///
/// # Errors
/// It is no matrix of floats with as many rows.
pub fn first_rows(matrix: &runtime::Tensor, rows: usize) -> Result<Arc<runtime::Tensor>, CliError> {
    let features = matrix.shape().last().copied().unwrap_or_default();
    let elements = matrix.as_f32()?.iter().take(rows * features).copied().collect();
    Ok(Arc::new(runtime::Tensor::f32(&[rows, features], elements)?))
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}:{}", self.inputs, self.outputs, self.rank)
    }
}

impl Serialize for Layer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Layer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = |text: &str| text.parse().ok().filter(|size| (1..=FEATURES).contains(size));
        let parsed = text.split_once('x').and_then(|(inputs, rest)| {
            let (outputs, rank) = rest.split_once(':')?;
            Some(Self { inputs: size(inputs)?, outputs: size(outputs)?, rank: size(rank)? })
        });
        parsed.ok_or_else(|| {
            format!("expected INxOUT:RANK, each from 1 to {FEATURES}, such as 768x3072:8, found `{text}`")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Layer;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        let layer = Layer { inputs: 768, outputs: 3072, rank: 8 };
        assert_eq!("768x3072:8".parse(), Ok(layer));
        assert_eq!(layer.to_string(), "768x3072:8");
        for bad in ["", "768", "768x768", "768:8", "0x768:8", "768x768:0", "768x99999:8", "-1x2:3", "axb:c"] {
            let message = bad.parse::<Layer>().unwrap_err();
            assert!(message.contains("INxOUT:RANK") && message.ends_with(&format!("`{bad}`")), "{message}");
        }
    }
}
