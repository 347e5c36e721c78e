//! A `model.safetensors.index.json` beside a config and two shards.
#![no_main]

use engraft_import::models::{Architecture, GraphOptions, ModelDirectory};
use engraft_import::safetensors::write;
use engraft_runtime::{DType, Tensor};
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

const CONFIG: &str = r#"{"model_type": "bert", "vocab_size": 3, "hidden_size": 2, "num_hidden_layers": 1,
    "num_attention_heads": 1, "intermediate_size": 2, "max_position_embeddings": 2}"#;

/// The directory, in which the embeddings are in one shard and the rest is in another.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("engraft-fuzz-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("there may be temporary directories");
    fs::write(directory.join("config.json"), CONFIG).expect("there is room for temporary files");
    let graph = Architecture::parse(CONFIG).expect("it is one").graph(GraphOptions::default());
    let tensors = graph.expect("it makes a graph").params().into_iter().map(|param| {
        let shape: Vec<_> = param.ty.shape.iter().filter_map(|dim| dim.as_fixed()).collect();
        let shape: Vec<_> = shape.into_iter().map(|dim| dim as usize).collect();
        (param.name, Tensor::zeros(DType::F32, &shape).expect("it is small"))
    });
    let (first, second): (Vec<_>, Vec<_>) = tensors.partition(|(name, _)| name.contains("embeddings"));
    for (file, tensors) in [("a.safetensors", first), ("b.safetensors", second)] {
        let named: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        write(directory.join(file), &named).expect("there is room for temporary files");
    }
    directory
});

fuzz_target!(|bytes: &[u8]| {
    fs::write(DIRECTORY.join("model.safetensors.index.json"), bytes)
        .expect("there is room for temporary files");
    // What is accepted has every tensor of the model.
    let Ok(model) = ModelDirectory::open(&*DIRECTORY) else { return };
    let graph = model.architecture().graph(GraphOptions::default()).expect("it makes a graph");
    for param in graph.params() {
        assert!(model.weights().get(&param.name).is_some(), "`{}`", param.name);
    }
});
