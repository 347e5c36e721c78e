//! What the demo shows: an adapter that PEFT saved, its base and PEFT's outputs, and a layer of a realistic size with
//! random weights. It knows nothing about how they are shown.

use crate::cli::error::CliError;
use engraft::compiler::values::to_tensor;
use engraft::import::peft::{Attached, LoraConfig, PeftAdapter, attach};
use engraft::import::safetensors::parse_weights;
use engraft::ir::layers::linear;
use engraft::ir::{Symbol, sample};
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
    pub attached: Attached,
    /// All parameters of both.
    pub weights: Weights,
    /// The input `x` of both.
    pub input: Arc<runtime::Tensor>,
}

/// The example that PEFT recorded, and its output `y`.
///
/// # Errors
/// The demo's own data cannot be read.
pub fn recorded() -> Result<(Example, Arc<runtime::Tensor>), CliError> {
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
    Ok((Example { base, attached, weights, input: tensor("x")? }, tensor("y")?))
}

/// The sizes of the realistic layer: features in and out, and r.
pub const LAYER: (usize, usize, usize) = (768, 768, 8);

/// A DoRA layer of a realistic size with random values.
///
/// # Errors
/// None that a sound build gives rise to.
pub fn realistic(batch: usize) -> Result<Example, CliError> {
    let (inputs, outputs, rank) = LAYER;
    let g = GraphBuilder::new("layer");
    let x = g.input("x", F32, dims!["batch", inputs]);
    g.output("y", linear(x, "fc", outputs, true));
    let base = g.finish()?;

    let config = format!(
        r#"{{"peft_type": "LORA", "use_dora": true, "r": {rank}, "lora_alpha": 16, "target_modules": ["fc"]}}"#
    );
    let mut tensors = Weights::new();
    for (name, shape) in [
        ("lora_A.weight", vec![rank, inputs]),
        ("lora_B.weight", vec![outputs, rank]),
        ("lora_magnitude_vector", vec![outputs]),
    ] {
        let zeros = runtime::Tensor::zeros(runtime::DType::F32, &shape)?;
        tensors.insert(format!("base_model.model.fc.{name}"), zeros);
    }
    let attached = attached(&base, &PeftAdapter::new(LoraConfig::parse(&config)?, &tensors)?)?;

    let bindings = [(Symbol::new("batch"), batch as u64)].into();
    let values = sample::values(&attached.graph, &bindings, 1)?;
    let mut weights = Weights::new();
    for param in attached.graph.params() {
        weights.insert(&param.name, to_tensor(&values[&param.name], &param.ty)?);
    }
    let input = to_tensor(&values["x"], &attached.graph.inputs()[0].ty)?;
    Ok(Example { base, attached, weights, input: Arc::new(input) })
}

fn attached(base: &Graph, adapter: &PeftAdapter) -> Result<Attached, CliError> {
    attach(base, adapter)
        .map_err(|source| CliError::Attach { path: PathBuf::from("the demo"), source: Box::new(source) })
}
