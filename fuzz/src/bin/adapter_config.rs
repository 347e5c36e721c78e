//! An `adapter_config.json`, and after a line of its own the names of an adapter's tensors.
#![no_main]

use engraft_import::peft::{LoraConfig, PeftAdapter};
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
        if let Ok(tensor) = Tensor::f32(&[1, 1], vec![1.0]) {
            weights.insert(name, tensor);
        }
    }
    let _ = PeftAdapter::new(config, &weights);
});
