//! Random adapters as PEFT writes them: a directory with a config and tensors. The same in every run, and ordinary: no B is
//! zero, and `DoRA`'s magnitudes are near the norms of the base. Knows nothing about who reads them.

use engraft::import::safetensors;
use engraft::runtime::{Tensor, Weights};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::json;
use std::path::Path;

/// The linear layers of a BERT.
pub const ALL: &[&str] =
    &["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"];
/// Those that LoRA began with.
pub const QUERY_AND_VALUE: &[&str] = &["query", "value"];

/// What an adapter is like.
#[derive(Clone, Copy)]
pub struct Kind {
    pub rank: usize,
    pub dora: bool,
    /// The modules whose name ends so.
    pub targets: &'static [&'static str],
}

/// A stream of numbers.
pub struct Numbers(ChaCha8Rng);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// One of the first `count` whole numbers.
    pub fn below(&mut self, count: usize) -> usize {
        (self.0.next_u64() % count as u64) as usize
    }

    /// Between -`size` and `size`.
    pub fn float(&mut self, size: f32) -> f32 {
        ((self.0.next_u32() >> 8) as f32 / (1_u32 << 23) as f32 - 1.0) * size
    }

    pub fn tensor(&mut self, shape: &[usize], size: f32) -> Tensor {
        Tensor::f32(shape, (0..shape.iter().product()).map(|_| self.float(size)).collect()).unwrap()
    }
}

/// A base as adapters see it: its linear layers.
pub struct Layers(Vec<Layer>);

struct Layer {
    module: String,
    /// `‖W‖₂` of each output.
    norms: Vec<f32>,
    inputs: usize,
}

/// `‖W‖₂` of each output of `[out, in]`.
pub fn norms(weight: &Tensor) -> Vec<f32> {
    let rows = weight.as_f32().unwrap().chunks_exact(weight.shape()[1]);
    rows.map(|row| row.iter().map(|w| w * w).sum::<f32>().sqrt()).collect()
}

impl Layers {
    /// Those of a checkpoint.
    pub fn new(checkpoint: &Weights) -> Self {
        let layer = |(name, weight): (&str, &std::sync::Arc<Tensor>)| {
            let module = name.strip_suffix(".weight").filter(|module| is_one_of(module, ALL))?;
            Some(Layer { module: module.to_owned(), norms: norms(weight), inputs: weight.shape()[1] })
        };
        Self(checkpoint.iter().filter_map(layer).collect())
    }

    /// Writes an adapter into a directory, which is made. Returns the bytes of its tensors.
    pub fn write(&self, directory: &Path, kind: Kind, seed: u64) -> usize {
        let Kind { rank, dora, targets } = kind;
        let mut numbers = Numbers::new(seed);
        let mut tensors = Vec::new();
        for Layer { module, norms, inputs } in self.0.iter().filter(|layer| is_one_of(&layer.module, targets))
        {
            let name = |part: &str| format!("base_model.model.{module}.{part}");
            let (out, fan_in) = (norms.len(), (3.0 / *inputs as f32).sqrt());
            tensors.push((name("lora_A.weight"), numbers.tensor(&[rank, *inputs], fan_in)));
            tensors.push((name("lora_B.weight"), numbers.tensor(&[out, rank], 0.03)));
            if dora {
                let magnitudes = norms.iter().map(|norm| norm * (1.0 + numbers.float(0.1))).collect();
                tensors.push((name("lora_magnitude_vector"), Tensor::f32(&[out], magnitudes).unwrap()));
            }
        }
        let config = json!({
            "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "use_dora": dora,
            "target_modules": targets, "bias": "none", "task_type": null, "inference_mode": true,
        });
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("adapter_config.json"), config.to_string()).unwrap();
        let named: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        safetensors::write(directory.join("adapter_model.safetensors"), &named).unwrap();
        let elements = tensors.iter().map(|(_, tensor)| tensor.shape().iter().product::<usize>());
        elements.sum::<usize>() * size_of::<f32>()
    }
}

fn is_one_of(module: &str, targets: &[&str]) -> bool {
    targets.iter().any(|target| module.strip_suffix(target).is_some_and(|rest| rest.ends_with('.')))
}
