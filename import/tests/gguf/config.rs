//! The configuration, against what Hugging Face has for such models, and what is refused.

use crate::writer::{File, Stored, bool, f32, i32s, text, u32};
use crate::{assert_names, open};
use serde_json::{Value as Json, json};

fn config(file: &File) -> Result<Json, String> {
    open(&file.bytes())?.config().map(Json::Object).map_err(|error| error.to_string())
}

#[track_caller]
fn assert_refused(change: impl FnOnce(&mut File), parts: &[&str]) {
    let mut file = File::llama();
    change(&mut file);
    assert_names(&config(&file).unwrap_err(), parts);
}

#[test]
fn a_llama_is_configured_as_hugging_face_does() {
    let expected = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 6,
        "hidden_size": 4,
        "intermediate_size": 6,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 16,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": 0,
    });
    assert_eq!(config(&File::llama()).unwrap(), expected);
}

#[test]
fn what_may_be_left_out_may_be_given() {
    let mut file = File::llama();
    file.push("output.weight", &[4, 6]);
    file.push("blk.0.attn_q.bias", &[4]);
    file.set("llama.rope.freq_base", f32(100_000.0));
    file.set("llama.attention.key_length", u32(2));
    file.set("llama.attention.value_length", u32(2));
    file.set("llama.rope.dimension_count", u32(2));
    file.set("llama.vocab_size", u32(6));
    file.set("llama.expert_count", u32(0));
    file.set("llama.attention.causal", bool(true));
    file.set("llama.rope.scaling.type", text("linear"));
    file.set("llama.rope.scaling.factor", f32(4.0));
    file.remove("llama.attention.head_count_kv");
    let config = config(&file).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    assert_eq!(config["attention_bias"], true);
    assert_eq!(config["num_key_value_heads"], 2);
    assert_eq!(config["rope_theta"], 100_000.0);
    assert_eq!(config["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
}

#[test]
fn a_qwen2_keeps_its_rows() {
    let mut file = File::llama();
    file.rename("qwen2");
    file.push("blk.0.attn_q.bias", &[4]);
    let config = config(&file).unwrap();
    assert_eq!(
        (&config["model_type"], &config["architectures"]),
        (&json!("qwen2"), &json!(["Qwen2ForCausalLM"]))
    );
    let weights = open(&file.bytes()).unwrap().weights().unwrap();
    let q = weights.get("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!(q.as_f32().unwrap(), (0..16).map(|i| i as f32).collect::<Vec<_>>());
    assert!(weights.get("model.layers.0.self_attn.q_proj.bias").is_some());
    file.push("blk.0.attn_output.bias", &[4]);
    let message = open(&file.bytes()).unwrap().weights().unwrap_err().to_string();
    assert_names(&message, &["`blk.0.attn_output.bias` is none of the architecture `qwen2`"]);
}

#[test]
fn the_factors_of_llama_3_are_a_scaling() {
    // A head of two elements turns once in 2 pi positions, which is short: its factor is 1, and so is the scaling's.
    let mut file = File::llama();
    file.push("rope_freqs.weight", &[1]);
    file.tensors.last_mut().unwrap().data = 1_f32.to_le_bytes().to_vec();
    assert_eq!(config(&file).unwrap()["rope_scaling"]["rope_type"], "llama3");
    assert_eq!(open(&file.bytes()).unwrap().weights().unwrap().len(), 11);
    file.tensors.last_mut().unwrap().data = 8_f32.to_le_bytes().to_vec();
    assert_names(&config(&file).unwrap_err(), &["`rope_freqs.weight`: factor 0 is 8, expected 1"]);
}

#[test]
fn what_changes_the_computation_is_refused() {
    let cases: [(&str, Stored, &str); 12] = [
        ("expert_count", u32(8), "is 8, which changes the computation"),
        ("attention.sliding_window", u32(4096), "is 4096, which"),
        ("logit_scale", f32(0.5), "is 0.5, which"),
        ("final_logit_softcapping", f32(30.0), "is 30, which"),
        ("attention.causal", bool(false), "is false, which"),
        ("never_heard_of", u32(1), "is 1, which"),
        ("rope.scaling.type", text("longrope"), "is \"longrope\", which"),
        ("rope.scaling.attn_factor", f32(2.0), "is 2, which"),
        ("rope.dimension_count", u32(1), "is 1, expected 2, the size of a head"),
        ("attention.value_length", u32(4), "is 4, expected 2, the size of a head"),
        ("attention.key_length", u32(3), "is 3, expected an even number"),
        ("vocab_size", u32(7), "is 7, expected 6, the rows of `token_embd.weight`"),
    ];
    for (key, value, message) in cases {
        let key = format!("llama.{key}");
        assert_refused(|file| file.set(&key, value), &[&format!("metadata `{key}` {message}")]);
    }
    // The file's own key: whoever has a GGUF file alone has no `rope_scaling` to look for.
    for model in ["llama", "qwen2"] {
        let yarn = |file: &mut File| {
            file.rename(model);
            file.set(&format!("{model}.rope.scaling.type"), text("yarn"));
            file.set(&format!("{model}.rope.scaling.factor"), f32(4.0));
            file.set(&format!("{model}.rope.scaling.original_context_length"), u32(8));
        };
        let message =
            format!("metadata `{model}.rope.scaling.type` is \"yarn\", which changes the computation");
        assert_refused(yarn, &[&message]);
    }
    assert_refused(
        |file| file.rename("gemma"),
        &["`general.architecture` is \"gemma\", expected `llama` or `qwen2`"],
    );
    assert_refused(|file| file.set("general.type", text("adapter")), &["`general.type` is \"adapter\""]);
    assert_refused(|file| file.set("split.count", u32(2)), &["`split.count` is 2, expected one file"]);
}

#[test]
fn what_is_missing_or_wrong_is_refused() {
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        assert_refused(|file| file.remove(key), &[&format!("metadata `{key}` is missing, expected")]);
        let message = format!("metadata `{key}` is an array of 2, expected");
        assert_refused(|file| file.set(key, i32s(&[1, 2])), &[&message]);
    }
    let set =
        |key: &'static str, value: Stored| move |file: &mut File| file.set(&format!("llama.{key}"), value);
    assert_refused(set("block_count", u32(0)), &["is 0, expected 1 or more"]);
    assert_refused(
        set("attention.head_count", u32(3)),
        &["`llama.embedding_length` is 4, expected a multiple of the 3"],
    );
    assert_refused(set("attention.head_count_kv", u32(4)), &["is 4, expected a divisor of the 2 heads"]);
    assert_refused(set("rope.freq_base", f32(f32::NAN)), &["is NaN, expected a finite number"]);
    assert_refused(set("rope.freq_base", f32(-1.0)), &["is -1, expected a positive number"]);
    assert_refused(set("rope.scaling.type", text("linear")), &["`llama.rope.scaling.factor` is missing"]);
}
