//! An `adapter_config.json`, and after a line of its own the names of an adapter's tensors.
#![no_main]

use engraft_import::peft::{LoraConfig, PeftAdapter, combine};
use engraft_runtime::{Tensor, Weights};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (config, names) = text.split_once("\n---\n").unwrap_or((text, ""));
    let Ok(config) = LoraConfig::parse(config) else { return };
    for module in ["fc1", "model.layers.0.self_attn.q_proj", ""] {
        let _ = (config.select(module), config.rank(module), config.scale(module));
    }
    let mut weights = Weights::new();
    for name in names.lines() {
        let is_vector = name.ends_with("_vector") || name.ends_with(".bias");
        let shape: &[usize] = if is_vector { &[1] } else { &[1, 1] };
        if let Ok(tensor) = Tensor::f32(shape, vec![1.0]) {
            weights.insert(name, tensor);
        }
    }
    let Ok(adapter) = PeftAdapter::new(config, &weights) else { return };
    let Ok(contents) = adapter.contents() else { return };
    // What combines with itself is an adapter of the same modules.
    let Ok(combined) = combine(&[(0.5, &adapter), (-1.0, &adapter)]) else { return };
    let combined = combined.contents().expect("a combination is whole");
    let modules = |contents: &engraft_import::peft::Contents| {
        contents.factors.iter().map(|factors| factors.module().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(modules(&combined), modules(&contents));
});
