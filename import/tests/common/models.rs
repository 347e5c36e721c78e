//! Recorded models: from their files to the reference interpreter's outputs.

use super::{value, values};
use engraft_import::models::{Architecture, GraphOptions, Kind};
use engraft_import::peft::{PeftAdapter, attach};
use engraft_import::safetensors::read_weights;
use engraft_ir::eval::{Values, eval};
use engraft_ir::value::Value;
use engraft_ir::{Graph, Op, verify};
use engraft_runtime::{Tensor, Weights};
use ndarray::{ArrayD, Axis, IxDyn};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

/// A directory of recorded data.
pub fn data(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(kind)
}

pub fn json(path: &Path) -> Json {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A model with inputs and outputs that were recorded.
pub struct Recorded {
    pub architecture: Architecture,
    pub weights: Weights,
    /// The inputs that were recorded.
    pub given: Weights,
    /// All that was recorded.
    pub io: Values,
    tolerance: (f64, f64),
}

impl Recorded {
    /// Reads a directory with `case.json`, `base.safetensors` and `io.safetensors`.
    pub fn open(directory: impl AsRef<Path>) -> Self {
        let directory = directory.as_ref();
        let case = json(&directory.join("case.json"));
        let architecture = Architecture::from_config(case["base_config"].as_object().unwrap()).unwrap();
        let weights = read_weights(directory.join("base.safetensors")).unwrap();
        let io = read_weights(directory.join("io.safetensors")).unwrap();
        Self::new(architecture, &weights, &io, &case)
    }

    pub fn new(architecture: Architecture, weights: &Weights, io: &Weights, case: &Json) -> Self {
        let weights = architecture.normalise(weights).unwrap().weights;
        let inputs = ["input_ids", "attention_mask", "token_type_ids", "position_ids"];
        let given = inputs.iter().filter_map(|name| Some((*name, io.get(name)?.clone()))).collect();
        let tolerance = ["atol", "rtol"].map(|name| case["tolerance"][name].as_f64().unwrap());
        Self { architecture, weights, given, io: values(io), tolerance: tolerance.into() }
    }

    /// The output without a past.
    pub fn run(&self, adapter: Option<&PeftAdapter>, given: &Weights, options: GraphOptions) -> ArrayD<f64> {
        let (graph, all) = self.prepare(adapter, options);
        self.call(&graph, &all, given, options, &Values::new())[self.output()].as_real().unwrap().clone()
    }

    /// What the model's output is called.
    pub fn output(&self) -> &'static str {
        match self.architecture.kind() {
            Kind::Encoder => "last_hidden_state",
            Kind::Decoder => "logits",
        }
    }

    /// The graph and the values of its parameters.
    pub fn prepare(&self, adapter: Option<&PeftAdapter>, options: GraphOptions) -> (Graph, Values) {
        let graph = self.architecture.graph(options).unwrap();
        assert!(verify(&graph).is_ok());
        let mut all = values(&self.weights);
        let Some(adapter) = adapter else { return (graph, all) };
        let (adapter, _) = self.architecture.fit_adapter(adapter).unwrap();
        let attached = attach(&graph, &adapter).unwrap();
        all.extend(values(&attached.weights));
        (attached.graph, all)
    }

    /// All outputs; `carried` are those of the call before, if there was one.
    pub fn call(
        &self,
        graph: &Graph,
        params: &Values,
        given: &Weights,
        options: GraphOptions,
        carried: &Values,
    ) -> Values {
        let batch = given.get("input_ids").unwrap().shape()[0];
        let mut all = params.clone();
        let mut past = 0;
        for node in graph.nodes() {
            let Op::Input(input) = node.op() else { continue };
            let Some(name) = &input.carries else { continue };
            let width = input.shape[2].as_fixed().unwrap() as usize;
            let empty = || Value::from(ArrayD::<f64>::zeros(IxDyn(&[0, batch, width])));
            let value = carried.get(name).cloned().unwrap_or_else(empty);
            past = value.shape()[0];
            all.insert(node.name().to_owned(), value);
        }
        let filled = self.architecture.fill_inputs(given, past, options).unwrap();
        all.extend(filled.iter().map(|(name, tensor)| ((*name).to_owned(), value(tensor))));
        eval(graph, &all).unwrap()
    }

    /// Recorded ids, or a mask.
    pub fn ids(&self, name: &str) -> ArrayD<i64> {
        self.io[name].as_int().unwrap().clone()
    }

    /// Of an output `[batch, seq, width]` the tokens that the mask does not hide.
    pub fn visible(&self, output: &ArrayD<f64>) -> ArrayD<f64> {
        let mask = self.ids("attention_mask");
        let tokens: Vec<usize> = mask.iter().enumerate().filter(|(_, m)| **m != 0).map(|(i, _)| i).collect();
        let width = output.shape()[2];
        let flat = output.to_shape((mask.len(), width)).unwrap();
        flat.select(Axis(0), &tokens).into_dyn()
    }

    /// Requires the recorded output `name`.
    #[track_caller]
    pub fn check(&self, adapter: Option<&PeftAdapter>, name: &str) {
        let ours = self.run(adapter, &self.given, GraphOptions::default());
        self.assert_agree(&ours, self.io[name].as_real().unwrap());
    }

    /// Requires agreement within the case's tolerance.
    #[track_caller]
    pub fn assert_agree(&self, ours: &ArrayD<f64>, theirs: &ArrayD<f64>) {
        let (atol, rtol) = self.tolerance;
        assert_eq!(ours.shape(), theirs.shape());
        assert!(!ours.is_empty());
        let largest = theirs.iter().fold(1.0_f64, |largest, t| largest.max(t.abs()));
        for (i, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            let difference = (ours - theirs).abs();
            assert!(
                difference <= atol * largest + rtol * theirs.abs(),
                "element {i}: {ours}, expected {theirs}"
            );
        }
    }
}

/// Ids, or a mask.
pub fn ids(rows: &[&[i64]]) -> Tensor {
    Tensor::i64(&[rows.len(), rows[0].len()], rows.concat()).unwrap()
}

/// A small config of an architecture, with one layer.
pub fn config(model_type: &str) -> Json {
    match model_type {
        "gpt2" => serde_json::json!({
            "model_type": "gpt2", "vocab_size": 31, "n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 12,
        }),
        _ => serde_json::json!({
            "model_type": model_type, "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 12,
        }),
    }
}
