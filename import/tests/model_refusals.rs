//! Everything about a model that is refused, each by the name of the thing; and the configs of real models, which are not.
#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod common;

use common::models::{Recorded, config, data, ids, json};
use common::numbers;
use engraft_import::models::{Architecture, GraphOptions, Logits, ModelDirectory};
use engraft_import::safetensors::write;
use engraft_runtime::{Tensor, Weights};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::fs;
use std::path::{Path, PathBuf};

#[track_caller]
fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} should contain {part:?}");
    }
}

fn read(config: &Json) -> Result<Architecture, String> {
    Architecture::from_config(config.as_object().unwrap()).map_err(|error| error.to_string())
}

#[track_caller]
fn assert_config_refused(model_type: &str, fields: &[(&str, Json)], parts: &[&str]) {
    let mut config = config(model_type);
    for (field, value) in fields {
        config[*field] = value.clone();
    }
    assert_contains(&read(&config).unwrap_err(), parts);
}

/// As they are on the hub, and all fields of the classes of transformers 5.
#[test]
fn configs_of_real_models_are_read() {
    let contexts = [
        ("bert-base-uncased", 512),
        ("bert-base-chinese", 512),
        ("all-MiniLM-L6-v2", 512),
        ("roberta-base", 512),
        ("xlm-roberta-base", 512),
        ("gpt2", 1024),
        ("Llama-2-7b-hf", 4096),
        ("Llama-3.1-8B-Instruct", 131_072),
        ("Llama-3.2-1B", 131_072),
        ("SmolLM2-135M-Instruct", 8192),
        ("Mistral-7B-v0.1", 32_768),
        ("Qwen2-0.5B", 131_072),
        ("Qwen2.5-0.5B", 32_768),
        ("Qwen2.5-7B-Instruct", 32_768),
        ("transformers-5-bert", 512),
        ("transformers-5-roberta", 510),
        ("transformers-5-gpt2", 1024),
        ("transformers-5-llama", 2048),
        ("transformers-5-qwen2", 32_768),
    ];
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/configs");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), contexts.len());
    for (name, context) in contexts {
        let text = fs::read_to_string(directory.join(format!("{name}.json"))).unwrap();
        let architecture = Architecture::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(architecture.context(), context, "{name}");
        assert!(architecture.graph(GraphOptions { logits: Logits::Last }).is_ok(), "{name}");
    }
}

#[test]
fn architectures_that_are_not_supported_are_refused_by_name() {
    for found in [json!("t5"), json!(""), json!(7), json!("Bert")] {
        let error = read(&json!({"model_type": found})).unwrap_err();
        assert_contains(
            &error,
            &["`model_type`", &found.to_string(), "bert, gpt2, llama, mistral, qwen2, roberta, xlm-roberta"],
        );
    }
    assert_eq!(read(&json!({})).unwrap_err(), "`model_type` is missing");
    assert_eq!(read(&json!({"model_type": null})).unwrap_err(), "`model_type` is missing");
}

#[test]
fn fields_that_are_not_supported_are_refused_by_name() {
    for model_type in ["bert", "roberta", "xlm-roberta", "gpt2", "llama", "qwen2"] {
        for (field, value) in [
            ("add_cross_attention", json!(true)),
            ("cross_attention_hidden_size", json!(16)),
            ("is_encoder_decoder", json!(true)),
            ("tie_encoder_decoder", json!(true)),
            ("auto_map", json!({"AutoModel": "modeling.Model"})),
            ("pruned_heads", json!({"0": [1]})),
            ("quantization_config", json!({"bits": 4})),
            ("compression_config", json!({"format": "pack"})),
            ("logit_scale", json!(0.5)),
            ("logits_scaling", json!(0.5)),
            ("final_logit_softcapping", json!(30.0)),
            ("attn_logit_softcapping", json!(50.0)),
            ("embedding_multiplier", json!(12.0)),
            ("residual_multiplier", json!(0.2)),
            ("attention_multiplier", json!(0.1)),
        ] {
            let name = format!("`{field}` is {value}, which is not supported");
            assert_config_refused(model_type, &[(field, value)], &[&name]);
        }
    }
    for (model_type, field, value) in [
        ("bert", "is_decoder", json!(true)),
        ("roberta", "is_decoder", json!(true)),
        ("bert", "position_embedding_type", json!("relative_key")),
        ("bert", "hidden_act", json!("quick_gelu")),
        ("gpt2", "activation_function", json!("mish")),
        ("llama", "hidden_act", json!("gelu_10")),
        ("llama", "sliding_window", json!(4096)),
        ("llama", "rope_interleaved", json!(true)),
        ("llama", "partial_rotary_factor", json!(0.5)),
        ("qwen2", "use_mrope", json!(true)),
        ("gpt2", "is_causal", json!(false)),
        ("llama", "is_causal", json!(false)),
        ("llama", "is_causal", json!(null)),
        ("qwen2", "is_causal", json!(false)),
        ("qwen2", "layer_types", json!(["chunked_attention"])),
    ] {
        let name = format!("`{field}` is {value}, which is not supported");
        assert_config_refused(model_type, &[(field, value)], &[&name]);
    }
}

#[test]
fn unknown_fields_are_refused_if_they_say_anything() {
    for model_type in ["gpt2", "llama", "qwen2"] {
        let mut config = config(model_type);
        config["is_causal"] = json!(true);
        assert!(read(&config).is_ok());
    }
    for model_type in ["bert", "roberta", "gpt2", "llama", "qwen2"] {
        for nothing in [json!(null), json!(false), json!([]), json!({}), json!("")] {
            let mut config = config(model_type);
            config["use_new_thing"] = nothing;
            assert!(read(&config).is_ok());
        }
        for something in [json!(true), json!(0), json!("on"), json!([0]), json!({"a": null})] {
            let parts = format!("`use_new_thing` is {something}, but no such field is known");
            assert_config_refused(model_type, &[("use_new_thing", something)], &[&parts]);
        }
    }
}

#[test]
fn wrong_values_are_refused_with_what_was_expected() {
    for (model_type, field, value, expected) in [
        ("bert", "vocab_size", json!(0), "an integer from 1 to 16777216"),
        ("bert", "vocab_size", json!(1_u64 << 40), "an integer from 1 to 16777216"),
        ("bert", "hidden_size", json!(-16), "an integer from 1 to"),
        ("bert", "hidden_size", json!(16.0), "an integer from 1 to"),
        ("bert", "hidden_size", json!([16]), "an integer from 1 to"),
        ("bert", "num_hidden_layers", json!(100_000), "an integer from 1 to 1024"),
        ("bert", "num_attention_heads", json!(3), "a divisor of the hidden size 16"),
        ("bert", "layer_norm_eps", json!(0), "a positive number"),
        ("bert", "layer_norm_eps", json!("1e-12"), "a positive number"),
        ("bert", "hidden_act", json!(1), "a string"),
        ("bert", "position_embedding_type", json!(true), "a string"),
        ("roberta", "pad_token_id", json!(-1), "an integer from 0 to 30"),
        ("roberta", "pad_token_id", json!(31), "an integer from 0 to 30"),
        ("roberta", "max_position_embeddings", json!(2), "more than 2, `pad_token_id` + 1"),
        ("gpt2", "n_head", json!(5), "a divisor of the hidden size 16"),
        ("gpt2", "scale_attn_weights", json!(1), "true or false"),
        ("llama", "num_key_value_heads", json!(3), "a divisor of the 4 heads"),
        ("llama", "num_attention_heads", json!(3), "a divisor of the hidden size 16"),
        ("llama", "head_dim", json!(5), "an even number up to 8192"),
        ("llama", "head_dim", json!(16384), "an even number up to 8192"),
        ("llama", "tie_word_embeddings", json!("yes"), "true or false"),
        ("llama", "attention_bias", json!(1), "true or false"),
        ("llama", "rope_parameters", json!("default"), "an object"),
        ("llama", "rope_theta", json!(-1.0), "a positive number"),
        ("qwen2", "layer_types", json!(["full_attention", "full_attention"]), "one for each of the 1 layers"),
        ("qwen2", "layer_types", json!("full_attention"), "a list of strings"),
        ("qwen2", "layer_types", json!(["sliding_attention"]), "full_attention, as no window is used"),
    ] {
        assert_config_refused(model_type, &[(field, value)], &[field, "expected", expected]);
    }
    for (model_type, field) in
        [("bert", "vocab_size"), ("llama", "max_position_embeddings"), ("gpt2", "n_layer")]
    {
        let mut config = config(model_type);
        config.as_object_mut().unwrap().remove(field);
        assert_eq!(read(&config).unwrap_err(), format!("`{field}` is missing"));
    }
}

/// What transformers takes for an absent field is not what Llama has.
#[test]
fn fields_of_mistral_must_be_there() {
    let error = |fields: &[&str]| {
        let mut config = config("mistral");
        for field in fields {
            config[*field] = json!(null);
        }
        read(&config).map(|_| ()).unwrap_err()
    };
    assert_eq!(error(&[]), "`num_key_value_heads` is missing");
    assert_eq!(error(&["num_key_value_heads"]), "`sliding_window` is missing");
}

#[test]
fn rotary_positions_that_are_not_supported_are_refused() {
    let llama3 =
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
    let with = |field: &str, value: Json| {
        let mut rope = llama3.clone();
        rope[field] = value;
        rope
    };
    for (rope, expected) in [
        (
            json!({"rope_type": "dynamic", "factor": 2.0}),
            "`rope_parameters.rope_type` is \"dynamic\", which is not",
        ),
        (json!({"rope_type": "yarn", "factor": 4.0}), "supported are default, linear and llama3"),
        (json!({"rope_type": "longrope"}), "\"longrope\""),
        (json!({"type": "yarn"}), "`rope_parameters.type` is \"yarn\""),
        (json!({"type": "linear", "rope_type": "default"}), "expected \"default\", as `rope_type`"),
        (json!({"rope_type": "linear"}), "`rope_parameters.factor` is missing"),
        (
            json!({"rope_type": "linear", "factor": 0}),
            "`rope_parameters.factor` is 0, expected a positive number",
        ),
        (
            json!({"rope_type": "default", "factor": 2.0}),
            "`rope_parameters.factor` is 2.0, but no such field",
        ),
        (json!({"full_attention": {"rope_type": "default"}}), "`rope_parameters.full_attention`"),
        (
            json!({"rope_type": "default", "partial_rotary_factor": 0.25}),
            "`rope_parameters.partial_rotary_factor`",
        ),
        (with("high_freq_factor", json!(1.0)), "expected more than `low_freq_factor`, 1"),
        (with("low_freq_factor", json!(null)), "`rope_parameters.low_freq_factor` is missing"),
        (
            with("attention_factor", json!(1.5)),
            "`rope_parameters.attention_factor` is 1.5, but no such field",
        ),
    ] {
        assert_config_refused("llama", &[("rope_parameters", rope)], &[expected]);
    }
    let scaling = ("rope_scaling", json!({"type": "yarn", "factor": 4.0}));
    assert_config_refused("qwen2", &[scaling], &["`rope_scaling.type` is \"yarn\", which is not supported"]);
    let both = [("rope_parameters", json!({"rope_theta": 10000.0})), ("rope_scaling", llama3.clone())];
    assert_config_refused("llama", &both, &["`rope_scaling` is", "`rope_parameters` is there, too"]);
    let two = [("rope_parameters", json!({"rope_theta": 10000.0})), ("rope_theta", json!(500.0))];
    assert_config_refused("llama", &two, &["`rope_theta` is 500.0, expected 10000"]);
}

#[test]
fn malformed_configs_are_refused() {
    for (text, part) in [
        ("", "malformed"),
        ("[]", "expected an object"),
        ("{\"model_type\": \"bert\"", "malformed"),
        ("{\"model_type\": \"bert\", \"model_type\": \"llama\"}", "two fields `model_type`"),
        ("{\"a\": {\"b\": [{\"c\": 1, \"c\": 2}]}}", "two fields `c`"),
        ("{\"vocab_size\": NaN}", "malformed"),
    ] {
        assert_contains(&Architecture::parse(text).unwrap_err().to_string(), &["malformed", part]);
    }
    assert!(Architecture::parse(&format!("{{\"a\": {}", "[".repeat(100_000))).is_err());
}

/// A recorded model and its tensors, to be changed.
fn recorded(name: &str) -> (Architecture, Weights) {
    let case = Recorded::open(data("peft").join(name));
    (case.architecture, case.weights)
}

fn without(weights: &Weights, names: &[&str]) -> Weights {
    weights
        .iter()
        .filter(|(name, _)| !names.contains(name))
        .map(|(name, data)| (name, data.clone()))
        .collect()
}

#[track_caller]
fn assert_tensors_refused(architecture: &Architecture, weights: &Weights, parts: &[&str]) {
    assert_contains(&architecture.normalise(weights).unwrap_err().to_string(), parts);
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let (bert, weights) = recorded("bert_dora");
    let with = |name: &str, tensor: Tensor| {
        let mut changed = weights.clone();
        changed.insert(name, tensor);
        changed
    };
    for unknown in ["encoder.layer.2.output.dense.bias", "adapter.weight", "bert.bert.pooler.dense.bias"] {
        let parts = [format!("tensor `{unknown}` is none of the model's")];
        assert_tensors_refused(&bert, &with(unknown, numbers("x", &[48])), &[&parts[0]]);
    }
    let bias = "encoder.layer.1.output.dense.bias";
    let missing = without(&weights, &[bias]);
    assert_tensors_refused(&bert, &missing, &["1 of the model's tensors are missing", bias]);
    assert_tensors_refused(
        &bert,
        &Weights::new(),
        &["37 of the model's tensors", "`embeddings.LayerNorm.bias`", "..."],
    );
    assert_tensors_refused(
        &bert,
        &with(&format!("bert.{bias}"), numbers("x", &[48])),
        &[&format!("tensors `bert.{bias}` and `{bias}` are the same parameter")],
    );
    assert_tensors_refused(&bert, &with(bias, numbers("x", &[47])), &[bias, "f32[47], expected f32[48]"]);
    let integers = Tensor::i64(&[48], vec![0; 48]).unwrap();
    assert_tensors_refused(&bert, &with(bias, integers), &[bias, "i64[48], expected f32[48]"]);
}

#[test]
fn tied_tensors_must_be_equal_and_untied_ones_must_be_there() {
    let (gpt2, mut weights) = recorded("gpt2_dora");
    weights.insert("lm_head.weight", numbers("head", &[97, 48]));
    assert_tensors_refused(
        &gpt2,
        &weights,
        &["`lm_head.weight` differs from `transformer.wte.weight`", "ties them"],
    );
    let (llama, weights) = recorded("llama_dora");
    let weights = without(&weights, &["lm_head.weight"]);
    assert_tensors_refused(&llama, &weights, &["1 of the model's tensors are missing", "`lm_head.weight`"]);
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_name() {
    let refused = |model_type: &str, inputs: &[(&str, Tensor)], past: usize, parts: &[&str]| {
        let given = inputs.iter().map(|(name, tensor)| (*name, tensor.clone())).collect();
        let architecture = read(&config(model_type)).unwrap();
        let error = architecture.fill_inputs(&given, past, GraphOptions::default()).unwrap_err();
        assert_contains(&error.to_string(), parts);
    };
    let row = |length: usize| Tensor::i64(&[1, length], vec![5; length]).unwrap();
    let masked = |hidden: usize, seen: usize| {
        Tensor::i64(&[1, hidden + seen], [vec![0; hidden], vec![1; seen]].concat()).unwrap()
    };
    let input = |tensor| [("input_ids", tensor)];
    refused("bert", &[], 0, &["input `input_ids` is missing"]);
    refused("bert", &input(numbers("x", &[1, 2])), 0, &["input `input_ids` is f32, expected i64 or i32"]);
    refused(
        "bert",
        &input(Tensor::i64(&[2], vec![1, 2]).unwrap()),
        0,
        &["`input_ids`", "[2]", "[batch, seq]"],
    );
    refused("bert", &input(Tensor::i64(&[0, 2], vec![]).unwrap()), 0, &["[0, 2]", "1 or more each"]);
    refused("bert", &input(row(0)), 0, &["[1, 0]", "1 or more each"]);
    refused(
        "bert",
        &input(ids(&[&[1, 2], &[3, 31]])),
        0,
        &["input `input_ids`, row 1, token 1: 31 is out of range, expected 0 to 30"],
    );
    refused("bert", &input(ids(&[&[-1]])), 0, &["-1 is out of range"]);
    refused(
        "bert",
        &[("input_ids", row(2)), ("token_type_ids", ids(&[&[0, 2]]))],
        0,
        &["`token_type_ids`", "0 to 1"],
    );
    refused(
        "bert",
        &[("input_ids", row(2)), ("attention_mask", ids(&[&[1, 2]]))],
        0,
        &["`attention_mask`", "0 to 1"],
    );
    refused("bert", &[("input_ids", row(2)), ("attention_mask", row(3))], 0, &["[1, 3], expected [1, 2]"]);
    refused(
        "llama",
        &[("input_ids", row(2)), ("attention_mask", masked(0, 2))],
        3,
        &["[1, 2], expected [1, 5]"],
    );
    refused(
        "bert",
        &[("input_ids", row(2)), ("position_ids", ids(&[&[0, 12]]))],
        0,
        &["`position_ids`", "0 to 11"],
    );
    refused("roberta", &[("input_ids", row(2)), ("position_ids", ids(&[&[0, 12]]))], 0, &["0 to 11"]);
    refused("llama", &[("input_ids", row(2)), ("token_type_ids", row(2))], 0, &["no input `token_type_ids`"]);
    refused(
        "bert",
        &[("input_ids", row(2)), ("ids", row(2))],
        0,
        &["no input `ids`", "input_ids, attention_mask"],
    );
    refused("bert", &input(row(2)), 3, &["3 tokens are said to have been seen before", "encoder"]);
    // The contexts are 12, and 10 for RoBERTa.
    refused("bert", &input(row(13)), 0, &["`input_ids`, row 0: 13 tokens, but the model's context is 12"]);
    refused("roberta", &input(row(11)), 0, &["`input_ids`, row 0: 11 tokens, but the model's context is 10"]);
    refused("llama", &input(row(3)), 10, &["`input_ids`, row 0: 13 tokens, but the model's context is 12"]);
    refused("llama", &input(row(3)), usize::MAX, &["but the model's context is 12"]);
    let long = [("input_ids", row(20)), ("attention_mask", masked(4, 16))];
    refused("bert", &long, 0, &["`input_ids`, row 0: 16 tokens, but the model's context is 12"]);
    let fits = [("input_ids", row(20)), ("attention_mask", masked(8, 12))];
    let given: Weights = fits.into_iter().collect();
    assert!(read(&config("bert")).unwrap().fill_inputs(&given, 0, GraphOptions::default()).is_ok());
}

/// A copy of a recorded model's directory.
fn copy(name: &str) -> tempfile::TempDir {
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name);
    let directory = tempfile::tempdir().unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), directory.path().join(file.file_name())).unwrap();
    }
    directory
}

#[track_caller]
fn assert_directory_refused(directory: &Path, parts: &[&str]) {
    assert_contains(&ModelDirectory::open(directory).unwrap_err().to_string(), parts);
}

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn directories_that_are_not_whole_are_refused() {
    assert_directory_refused(Path::new("no/such"), &["no/such/config.json: "]);
    let model = copy("roberta");
    let path = model.path();
    fs::rename(path.join("model.safetensors"), path.join("kept")).unwrap();
    assert_directory_refused(
        path,
        &["there is neither `model.safetensors` nor `model.safetensors.index.json`"],
    );
    fs::write(path.join("pytorch_model.bin"), "x").unwrap();
    assert_directory_refused(path, &["pytorch_model.bin: pickled tensors are not read", "save_pretrained"]);
    fs::rename(path.join("kept"), path.join("model.safetensors")).unwrap();
    assert!(ModelDirectory::open(path).is_ok(), "the pickle does no harm");
    write(path.join("model.safetensors"), &[("x", numbers("x", &[2]))]).unwrap();
    assert_directory_refused(path, &["model.safetensors: tensor `x` is none of the model's"]);
    write(path.join("model.safetensors"), &[]).unwrap();
    assert_directory_refused(path, &["model.safetensors: ", "of the model's tensors are missing"]);
    fs::write(path.join("model.safetensors"), "x").unwrap();
    assert_directory_refused(path, &["model.safetensors: the header takes 8 bytes"]);
    fs::write(path.join("config.json"), "{\"model_type\": \"t5\"}").unwrap();
    assert_directory_refused(path, &["config.json: `model_type` is \"t5\""]);
    fs::write(path.join("config.json"), vec![b' '; (1 << 24) + 1]).unwrap();
    assert_directory_refused(path, &["config.json: the file has more than 16777216 bytes"]);
}

/// Of a config that makes no graph no file of weights is to blame, be it one or several.
#[test]
fn a_config_that_makes_no_graph_is_named() {
    for name in ["llama_linear_f16", "llama3_sharded_bf16"] {
        let model = copy(name);
        let (path, file) = (model.path(), model.path().join("config.json"));
        let mut config = json(&file);
        // Each is a size that a config may state, but their product is none that a weight may have.
        for (field, size) in
            [("num_attention_heads", 1 << 24), ("num_key_value_heads", 1 << 24), ("head_dim", 1 << 13)]
        {
            config[field] = json!(size);
        }
        fs::write(&file, config.to_string()).unwrap();
        let message = ModelDirectory::open(path).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}: ", file.display())), "{message}");
        assert_contains(&message, &["too large"]);
    }
}

#[test]
fn shards_must_be_what_their_index_says() {
    let model = copy("llama3_sharded_bf16");
    let (path, index) = (model.path(), model.path().join(INDEX));
    let good = json(&index);
    let changed = |change: &dyn Fn(&mut Json)| {
        let mut text = good.clone();
        change(&mut text);
        fs::write(&index, text.to_string()).unwrap();
    };
    assert!(ModelDirectory::open(path).is_ok());
    let (norm, first) = ("model.norm.weight", "model-00001-of-00005.safetensors");
    let there = good["weight_map"][norm].as_str().unwrap().to_owned();
    assert_ne!(there, first);

    changed(&|index| index["weight_map"][norm] = first.into());
    assert_directory_refused(
        path,
        &[first, "tensor `model.norm.weight` is missing", "the index says that it is here"],
    );
    changed(&|index| drop(index["weight_map"].as_object_mut().unwrap().remove(norm)));
    assert_directory_refused(path, &[&there, norm, "is here, but the index says that it is nowhere"]);
    changed(&|index| index["weight_map"]["model.extra"] = first.into());
    assert_directory_refused(path, &[first, "tensor `model.extra` is missing"]);
    for outside in
        ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..", "", "./x.safetensors", "x.bin"]
    {
        changed(&|index| index["weight_map"][norm] = outside.into());
        assert_directory_refused(
            path,
            &[INDEX, &format!("`{outside}` is not the name of a safetensors file")],
        );
    }
    for malformed in [json!(7), json!(null), json!(["x"])] {
        changed(&|index| index["weight_map"] = malformed.clone());
        assert_directory_refused(path, &[INDEX, "expected `weight_map`, an object of file names by tensor"]);
    }
    changed(&|index| index["weight_map"][norm] = 7.into());
    assert_directory_refused(path, &[INDEX, "expected `weight_map`"]);
    fs::write(&index, "{\"weight_map\": {\"a\": \"x.safetensors\", \"a\": \"y.safetensors\"}}").unwrap();
    assert_directory_refused(path, &[INDEX, "the index is malformed", "two fields `a`"]);

    // What is wrong with a tensor is said with its own file's name, and what is missing with the index's.
    let bytes = fs::read(path.join(&there)).unwrap();
    let mine = good["weight_map"].as_object().unwrap().iter().filter(|(_, file)| *file == &there);
    let names: Vec<&str> = mine.map(|(name, _)| name.as_str()).collect();
    let tensors: Vec<_> = names.iter().map(|&name| (name, numbers(name, &[2]))).collect();
    changed(&|_| {});
    write(path.join(&there), &tensors).unwrap();
    assert_directory_refused(path, &[&format!("{there}: tensor `"), "is f32[2], expected f32["]);
    changed(&|index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        for &name in &names {
            map.remove(name);
        }
    });
    fs::remove_file(path.join(&there)).unwrap();
    assert_directory_refused(path, &[INDEX, "of the model's tensors are missing"]);
    fs::write(path.join(&there), bytes).unwrap();

    changed(&|_| {});
    fs::remove_file(path.join(&there)).unwrap();
    assert_directory_refused(path, &[&there]);
    // A tensor that another shard holds, too.
    let (tensor, other) =
        good["weight_map"].as_object().unwrap().iter().find(|(_, file)| *file != &there).unwrap();
    let mine = good["weight_map"].as_object().unwrap().iter().filter(|(_, file)| *file == &there);
    let mut names: Vec<&str> = mine.map(|(name, _)| name.as_str()).collect();
    names.push(tensor);
    let tensors: Vec<_> = names.into_iter().map(|name| (name, numbers(name, &[2]))).collect();
    write(path.join(&there), &tensors).unwrap();
    let elsewhere = format!("is here, but the index says that it is in `{}`", other.as_str().unwrap());
    assert_directory_refused(path, &[&there, tensor, &elsewhere]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a field holds, a config is read or refused, and what is read makes a graph or an error.
    #[test]
    fn hostile_fields_are_read_or_refused(which in 0_usize..40, number: i64, small in 0_u64..70, kind in 0..6) {
        for model_type in ["bert", "roberta", "gpt2", "llama", "qwen2"] {
            let mut config = config(model_type);
            let fields: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
            let value = match kind {
                0 => json!(number),
                1 => json!(small),
                2 => json!(f64::from_bits(number.cast_unsigned())),
                3 => json!([small]),
                4 => json!({"rope_type": "llama3", "factor": small, "low_freq_factor": number, "high_freq_factor": 4}),
                _ => json!(null),
            };
            let more = ["rope_parameters", "head_dim", "num_key_value_heads", "sliding_window", "pad_token_id", "n_inner"];
            let field = fields.iter().map(String::as_str).chain(more).cycle().nth(which).unwrap().to_owned();
            config[field] = value;
            if let Ok(architecture) = read(&config) {
                drop(architecture.graph(GraphOptions::default()));
                drop(architecture.fill_inputs(&Weights::from_iter([("input_ids", ids(&[&[1, 0]]))]), 0, GraphOptions::default()));
            }
        }
    }
}
