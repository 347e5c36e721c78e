//! What the demo shows: an adapter that PEFT saved, its base and PEFT's outputs, and a layer of a realistic size with
//! random weights. It knows nothing about how they are shown.

use crate::cli::error::CliError;
use crate::cli::layer::{Factors, Layer, tensor};
use engraft::import::peft::{Attached, LoraConfig, PeftAdapter, attach};
use engraft::import::safetensors::parse_weights;
use engraft::ir::layers::linear;
use engraft::prelude::*;
use engraft::runtime::{self, Weights};
use std::path::PathBuf;
use std::sync::Arc;

const CONFIG: &str = include_str!("../../../tests/data/peft/dora/adapter_config.json");
const ADAPTER: &[u8] = include_bytes!("../../../tests/data/peft/dora/adapter_model.safetensors");
const BASE: &[u8] = include_bytes!("../../../tests/data/peft/dora/base.safetensors");
const RECORDED: &[u8] = include_bytes!("../../../tests/data/peft/dora/io.safetensors");

/// A base, its graph with an adapter, weights for both, and an input.
pub struct Example {
    /// The graph of the base.
    pub base: Graph,
    /// The graph with the adapter.
    pub adapted: Graph,
    /// All parameters of both.
    pub weights: Weights,
    /// The input `x` of both.
    pub input: Arc<runtime::Tensor>,
}

/// The example that PEFT recorded.
pub struct Recorded {
    /// The example.
    pub example: Example,
    /// What attaching the adapter reported.
    pub report: String,
    /// The output `y`.
    pub output: Arc<runtime::Tensor>,
}

/// The example that PEFT recorded.
///
/// # Errors
/// The demo's own data cannot be read.
pub fn recorded() -> Result<Recorded, CliError> {
    let g = GraphBuilder::new("mlp");
    let x = g.input("x", F32, dims!["batch", 24]);
    let hidden = linear(x, "fc1", 40, true).relu();
    g.output("y", linear(hidden, "fc2", 16, true));
    let base = g.finish()?;

    let tensors = parse_weights("adapter_model.safetensors", ADAPTER)?;
    let attached = attached(&base, &PeftAdapter::new(LoraConfig::parse(CONFIG)?, &tensors)?)?;
    let mut weights = parse_weights("base.safetensors", BASE)?;
    for (name, tensor) in attached.weights.iter() {
        weights.insert(name, Arc::clone(tensor));
    }
    let recorded = parse_weights("io.safetensors", RECORDED)?;
    let tensor = |tensor: &'static str| recorded.get(tensor).cloned().ok_or(CliError::NoRecording { tensor });
    let example = Example { base, adapted: attached.graph, weights, input: tensor("x")? };
    Ok(Recorded { example, report: attached.report.to_string(), output: tensor("y")? })
}

/// The realistic layer.
pub const LAYER: Layer = Layer { inputs: 768, outputs: 768, rank: 8 };

/// A DoRA layer of a realistic size with random values.
///
/// # Errors
/// None that a sound build gives rise to.
pub fn realistic(batch: usize) -> Result<Example, CliError> {
    let weights = LAYER.values(batch)?;
    let input = Arc::clone(tensor(&weights, "x")?);
    Ok(Example { base: LAYER.dense()?, adapted: LAYER.dora(Factors::Loaded)?, weights, input })
}

fn attached(base: &Graph, adapter: &PeftAdapter) -> Result<Attached, CliError> {
    attach(base, adapter)
        .map_err(|source| CliError::Attach { path: PathBuf::from("the demo"), source: Box::new(source) })
}
