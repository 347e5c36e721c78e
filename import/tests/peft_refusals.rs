//! Everything about an adapter that is refused, each by the name of the thing.
#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod common;

use common::{MANY, base, config_of, numbers, unmade};
use engraft_import::peft::{AttachError, LoraConfig, PeftAdapter, attach};
use engraft_import::safetensors::read_weights;
use engraft_ir::{DType, Graph, GraphBuilder, dims};
use engraft_runtime::{Tensor, Weights};
use serde_json::{Value as Json, json};
use std::fs;

#[track_caller]
fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} should contain {part:?}");
    }
}

/// The config of a recorded case with a field changed.
fn with(name: &str, field: &str, value: Json) -> Json {
    let mut config = config_of(name);
    config[field] = value;
    config
}

#[track_caller]
fn assert_config_refused(config: &str, parts: &[&str]) {
    assert_contains(&LoraConfig::parse(config).unwrap_err().to_string(), parts);
}

#[test]
fn fields_that_are_not_supported_are_refused_by_name() {
    for (field, value) in [
        ("alora_invocation_tokens", json!([1, 2])),
        ("arrow_config", json!({"top_k": 3})),
        ("ensure_weight_tying", json!(true)),
        ("kasa_config", json!({"beta": 0.1})),
        ("kasa_config", json!({})),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("megatron_config", json!({"x": 1})),
        ("monteclora_config", json!({"num_samples": 8})),
        ("target_parameters", json!(["experts.w"])),
        ("trainable_token_indices", json!([0])),
        ("trainable_token_indices", json!({"embed_tokens": [0]})),
        ("use_bdlora", json!({"nblocks": 2})),
        ("use_qalora", json!(true)),
        ("velora_config", json!({"num_groups": 2})),
    ] {
        let text = with("lora", field, value.clone()).to_string();
        assert_config_refused(&text, &[&format!("`{field}`"), &value.to_string(), "not supported"]);
    }
}

#[test]
fn unknown_fields_are_refused_if_they_say_anything() {
    for nothing in [json!(null), json!(false), json!([]), json!({}), json!("")] {
        assert!(LoraConfig::parse(&with("lora", "use_new_thing", nothing).to_string()).is_ok());
    }
    for something in [json!(true), json!(0), json!("on"), json!([0]), json!({"a": null})] {
        let text = with("lora", "use_new_thing", something.clone()).to_string();
        assert_config_refused(&text, &["`use_new_thing`", &something.to_string()]);
    }
}

#[test]
fn wrong_values_are_refused_with_what_was_expected() {
    for (field, value, expected) in [
        ("r", json!(0), "a positive integer"),
        ("r", json!(-4), "a positive integer"),
        ("r", json!(4.0), "a positive integer"),
        ("r", json!("4"), "a positive integer"),
        ("r", json!({"a": 1}), "a positive integer"),
        ("lora_alpha", json!("16"), "a number"),
        ("lora_alpha", json!(null), "a number"),
        ("use_dora", json!("yes"), "true or false"),
        ("use_dora", json!({"on": 1}), "true or false"),
        ("use_rslora", json!(1), "true or false"),
        ("lora_bias", json!("all"), "true or false"),
        ("bias", json!("some"), "\"lora_only\""),
        ("bias", json!(null), "\"lora_only\""),
        ("target_modules", json!(7), "a list of strings"),
        ("target_modules", json!([7]), "a list of strings"),
        ("target_modules", json!([""]), "a list of strings"),
        ("exclude_modules", json!({"a": 1}), "a list of strings"),
        ("modules_to_save", json!("fc2"), "a list of strings"),
        ("layers_to_transform", json!("1"), "a list of integers"),
        ("layers_to_transform", json!([-1]), "a list of integers"),
        ("layers_pattern", json!(3), "a list of strings"),
        ("rank_pattern", json!([4]), "an object of values by pattern"),
        ("init_lora_weights", json!("nonsense"), "PEFT's methods"),
        ("init_lora_weights", json!("pissa_niter_x"), "PEFT's methods"),
        ("init_lora_weights", json!(3), "PEFT's methods"),
    ] {
        let text = with("lora", field, value.clone()).to_string();
        assert_config_refused(&text, &[&format!("`{field}`"), expected]);
    }
    let rank = with("lora", "rank_pattern", json!({"fc1": 0})).to_string();
    assert_config_refused(&rank, &["`rank_pattern.fc1` is 0", "a positive integer"]);
    let alpha = with("lora", "alpha_pattern", json!({"fc1": "8"})).to_string();
    assert_config_refused(&alpha, &["`alpha_pattern.fc1` is \"8\"", "a number"]);
}

#[test]
fn contradictions_and_bad_patterns_are_refused() {
    for (field, value) in [
        ("target_modules", json!("(")),
        ("exclude_modules", json!("[a&&b]")),
        ("modules_to_save", json!(["("])),
        ("rank_pattern", json!({"(": 4})),
        ("alpha_pattern", json!({"(": 4})),
    ] {
        let text = with("lora", field, value).to_string();
        assert_config_refused(&text, &[&format!("`{field}`"), "cannot be used"]);
    }
    let mut config = with("lora", "target_modules", json!(".*fc1"));
    config["layers_to_transform"] = json!([1]);
    assert_config_refused(&config.to_string(), &["`layers_to_transform`", "`target_modules` as a string"]);
    let orphan = with("lora", "layers_pattern", json!(["h"])).to_string();
    assert_config_refused(&orphan, &["`layers_pattern`", "`layers_to_transform`"]);
    assert_config_refused(
        &with("dora", "lora_bias", json!(true)).to_string(),
        &["`lora_bias`", "`use_dora`"],
    );
}

#[test]
fn other_kinds_of_adapters_are_refused_by_name() {
    for kind in ["IA3", "LOHA", "OFT", "ADALORA", "VERA", "X"] {
        let text = with("lora", "peft_type", json!(kind)).to_string();
        assert_config_refused(&text, &["`peft_type`", kind, "not supported yet"]);
        let alone = json!({"peft_type": kind, "feedforward_modules": ["fc"]}).to_string();
        assert_config_refused(&alone, &["`peft_type`", kind, "not supported yet"]);
    }
    assert_config_refused(&with("lora", "peft_type", json!(null)).to_string(), &["`peft_type` is null"]);
}

#[test]
fn text_that_is_no_config_is_refused() {
    let whole = config_of("dora").to_string();
    for length in 0..whole.len() {
        assert_config_refused(&whole[..length], &["malformed"]);
    }
    for field in ["peft_type", "r", "lora_alpha", "target_modules"] {
        let mut config = config_of("lora");
        config.as_object_mut().unwrap().remove(field);
        assert_config_refused(&config.to_string(), &[&format!("`{field}` is missing")]);
    }
    let null_targets = with("lora", "target_modules", json!(null)).to_string();
    assert_config_refused(&null_targets, &["`target_modules` is null, expected a list"]);
    for number in ["NaN", "Infinity", "-Infinity", "1e999"] {
        for field in ["lora_alpha", "lora_dropout"] {
            let text = with("lora", field, json!("X")).to_string().replace("\"X\"", number);
            assert_config_refused(&text, &["malformed", &format!("`{field}`")]);
        }
    }
    assert_config_refused("[]", &["malformed", "an object"]);
    assert_config_refused(r#"{"r": 1, "r": 2}"#, &["two fields `r`"]);
    assert_config_refused(&"[".repeat(100_000), &["malformed"]);
    assert_config_refused(&format!("{{\"r\": {}", "[".repeat(100_000)), &["malformed"]);
}

/// The tensors of a recorded case.
fn tensors_of(name: &str) -> Weights {
    read_weights(common::case(name).join("adapter_model.safetensors")).unwrap()
}

#[track_caller]
fn refused(graph: &Graph, config: &Json, tensors: &Weights) -> AttachError {
    let config = LoraConfig::parse(&config.to_string()).unwrap();
    attach(graph, &PeftAdapter::new(config, tensors).unwrap()).unwrap_err()
}

#[track_caller]
fn assert_refused(graph: &Graph, config: &Json, tensors: &Weights, parts: &[&str]) {
    assert_contains(&refused(graph, config, tensors).to_string(), parts);
}

#[test]
fn a_missing_tensor_is_named() {
    for name in ["lora", "dora", "dora_embedding", "lora_bias_all", "lora_modules_to_save"] {
        let all = tensors_of(name);
        for (missing, _) in all.iter() {
            let rest: Weights =
                all.iter().filter(|(n, _)| *n != missing).map(|(n, t)| (n, t.clone())).collect();
            let short = missing.strip_prefix("base_model.model.").unwrap();
            let graph = base(&common::base_of(name));
            assert_refused(&graph, &config_of(name), &rest, &[&format!("tensor `{short}` is missing")]);
        }
    }
}

#[test]
fn a_tensor_of_another_shape_or_type_is_named() {
    for name in ["dora", "dora_embedding", "dora_fan_in_fan_out", "lora_bias_all", "lora_modules_to_save"] {
        let graph = base(&common::base_of(name));
        for (wrong, tensor) in tensors_of(name).iter() {
            let short = format!("`{}`", wrong.strip_prefix("base_model.model.").unwrap());
            let mut shape = tensor.shape().to_vec();
            shape[0] += 1;
            let mut tensors = tensors_of(name);
            tensors.insert(wrong, numbers("wrong", &shape));
            let (found, expected) = (format!("is {shape:?}"), format!("expected {:?}", tensor.shape()));
            assert_refused(&graph, &config_of(name), &tensors, &[&short, &found, &expected]);

            let ids = Tensor::i32(tensor.shape(), vec![0; tensor.len()]).unwrap();
            tensors.insert(wrong, ids);
            assert_refused(&graph, &config_of(name), &tensors, &[&short, "is i32, expected a float"]);
        }
    }
    let text = refused(&base("mlp"), &with("lora", "r", json!(8)), &tensors_of("lora")).to_string();
    assert_eq!(
        text,
        "module `fc1`: tensor `fc1.lora_A.weight` is [4, 24], expected [8, 24] (r is 8 by the config)"
    );
}

#[test]
fn a_tensor_that_nothing_uses_is_named() {
    let mut tensors = tensors_of("lora");
    tensors.insert("base_model.model.fc3.lora_A.weight", numbers("a", &[4, 24]));
    tensors.insert("base_model.model.fc1.bias", numbers("b", &[40]));
    let parts = ["nothing uses", "`fc1.bias`", "`fc3.lora_A.weight`"];
    assert_refused(&base("mlp"), &config_of("lora"), &tensors, &parts);
    // DoRA's magnitudes, were it taken for LoRA.
    let as_lora = with("dora", "use_dora", json!(false));
    assert_refused(
        &base("mlp"),
        &as_lora,
        &tensors_of("dora"),
        &["nothing uses", "`fc1.lora_magnitude_vector`"],
    );
    // A module that the config leaves out.
    let without = with("lora", "target_modules", json!(["fc1"]));
    assert_refused(&base("mlp"), &without, &tensors_of("lora"), &["nothing uses", "`fc2.lora_A.weight`"]);

    let mut foreign = tensors_of("lora");
    foreign.insert("fc1.lora_A.weight", numbers("a", &[4, 24]));
    let config = LoraConfig::parse(&config_of("lora").to_string()).unwrap();
    let error = PeftAdapter::new(config, &foreign).unwrap_err().to_string();
    assert_contains(&error, &["`fc1.lora_A.weight`", "`base_model.model.`"]);
}

#[test]
fn tensors_that_contradict_each_other_are_named() {
    let mut tensors = tensors_of("lora_bias_all");
    tensors.insert("base_model.model.fc1.bias", numbers("other", &[40]));
    let parts = ["`fc1.bias`", "`fc1.base_layer.bias`", "differ"];
    assert_refused(&base("mlp"), &config_of("lora_bias_all"), &tensors, &parts);
}

/// Tensors of a module whose floats are still to be made, more of them than any machine has memory for.
#[test]
fn tensors_that_there_is_no_memory_for_are_named() {
    type Part = (&'static str, &'static [usize]);
    const MAGNITUDE: &str = "lora_magnitude_vector";
    let contents = |parts: &[Part]| {
        let is_dora = parts.iter().any(|(part, _)| *part == MAGNITUDE);
        let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["fc"], "use_dora": is_dora});
        let tensors =
            parts.iter().map(|(part, shape)| (format!("base_model.model.fc.{part}"), unmade(shape)));
        let config = LoraConfig::parse(&config.to_string()).unwrap();
        PeftAdapter::new(config, &tensors.collect()).unwrap().contents()
    };
    let (a, b) = ("lora_A.weight", "lora_B.weight");
    let cases: [(&[Part], &str); 3] = [
        (&[(a, &[1, MANY]), (b, &[2, 1])], "lora_A"),
        (&[(a, &[1, 3]), (b, &[MANY, 1])], "lora_B"),
        // Two for one parameter: whether they differ is not known.
        (
            &[(a, &[1, 3]), (b, &[MANY, 1]), (MAGNITUDE, &[MANY]), ("lora_magnitude_vector.weight", &[MANY])],
            "fc.lora_magnitude_vector",
        ),
    ];
    for (parts, tensor) in cases {
        let message = contents(parts).unwrap_err().to_string();
        assert_contains(
            &message,
            &[&format!("module `fc`: tensor `{tensor}"), "there is no memory for the "],
        );
    }
    let contents = contents(&[(a, &[1, 3]), (b, &[2, 1]), (MAGNITUDE, &[2])]).unwrap();
    let fc = &contents.factors[0];
    assert_eq!((fc.a(), fc.b(), fc.magnitude()), (&[1.0; 3][..], &[1.0; 2][..], Some(&[1.0; 2][..])));
}

#[test]
fn modules_that_cannot_be_meant_are_named() {
    let nothing = with("lora", "target_modules", json!(["query"]));
    assert_refused(&base("mlp"), &nothing, &tensors_of("lora"), &["none of", "`fc1`, `fc2`"]);

    let bias = with("lora_embedding", "lora_bias", json!(true));
    assert_refused(&base("emb"), &bias, &tensors_of("lora_embedding"), &["`lora_bias`", "`emb`"]);

    // Saved as a whole by a name's end in the middle of a word, which does not keep it from being targeted.
    let saved = with("lora", "modules_to_save", json!(["c2"]));
    assert_refused(&base("mlp"), &saved, &tensors_of("lora"), &["`fc2`", "modules_to_save"]);
}

#[test]
fn weights_that_are_no_modules_are_named_when_targeted() {
    let graph =
        |other: &dyn for<'g> Fn(&'g GraphBuilder, engraft_ir::Tensor<'g>) -> engraft_ir::Tensor<'g>| {
            let g = GraphBuilder::new("odd");
            let x = g.input("x", DType::F32, dims!["n", 6]);
            let y = other(&g, x);
            g.output("y", y);
            g.finish().unwrap()
        };
    let norm = graph(&|g, x| x.layer_norm(Some(g.param("ln.weight", DType::F32, dims![6])), None, 1e-5));
    let scaled = graph(&|g, x| x.dense(g.param("ln.weight", DType::F32, dims![6, 6]) * 2.0, None));
    let mixed = graph(&|g, x| {
        let w = g.param("ln.weight", DType::F32, dims![6, 6]);
        x.dense(w, None).named("a").matmul(w).named("b")
    });
    let config = with("lora", "target_modules", json!(["ln"]));
    for (graph, parts) in [
        (norm, ["`ln`", "f32[6]", "expected f32[out, in]"]),
        (scaled, ["`ln`", "(scale)", "expected linear layers"]),
        (mixed, ["`ln`", "[out, in] by `a`", "[in, out] by `b`"]),
    ] {
        assert_refused(&graph, &config, &Weights::new(), &parts);
    }
}

#[test]
fn a_saved_module_with_a_tied_weight_is_named() {
    let g = GraphBuilder::new("tied");
    let ids = g.input("ids", DType::I64, dims!["n"]);
    let table = g.param("emb.weight", DType::F32, dims![10, 6]);
    let h = table.gather(ids).dense(g.param("fc.weight", DType::F32, dims![6, 6]), None);
    g.output("y", h.dense(table, None).named("lm_head"));
    let graph = g.finish().unwrap();
    let mut config = with("lora", "target_modules", json!(["fc"]));
    config["modules_to_save"] = json!(["emb"]);
    let tensors: Weights = [
        ("base_model.model.fc.lora_A.weight", numbers("a", &[4, 6])),
        ("base_model.model.fc.lora_B.weight", numbers("b", &[6, 4])),
    ]
    .into_iter()
    .collect();
    assert_refused(&graph, &config, &tensors, &["`emb`", "tied to `lm_head`"]);
}

#[test]
fn a_replaced_parameter_of_open_size_or_of_integers_is_named() {
    let check = |dtype: DType, parts: &[&str]| {
        let g = GraphBuilder::new("open");
        let x = g.input("x", DType::F32, dims!["n", 24]);
        g.output("y", x.dense(g.param("fc1.weight", DType::F32, dims![40, 24]), None));
        let rows = if dtype.is_float() { dims!["n", 1] } else { dims![40] };
        g.output("z", g.param("head.scale", dtype, rows));
        let mut config = with("lora", "target_modules", json!(["fc1"]));
        config["modules_to_save"] = json!(["head"]);
        assert_refused(&g.finish().unwrap(), &config, &tensors_of("lora"), parts);
    };
    check(DType::F32, &["`head.scale`", "f32[n, 1]", "expected f32 of fixed size"]);
    check(DType::I64, &["`head.scale`", "i64[40]", "expected f32 of fixed size"]);
}

#[test]
fn attaching_twice_is_refused_by_the_names_that_are_taken() {
    let adapter = PeftAdapter::open(common::case("lora")).unwrap();
    let once = attach(&base("mlp"), &adapter).unwrap();
    let error = attach(&once.graph, &adapter).unwrap_err();
    assert_contains(&error.to_string(), &["`fc1.lora_A.weight` is taken"]);
}

#[test]
fn a_directory_is_refused_by_the_file_that_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let path = |file: &str| directory.path().join(file);
    let refused = || PeftAdapter::open(directory.path()).unwrap_err().to_string();
    assert_contains(&refused(), &["adapter_config.json"]);
    fs::write(path("adapter_config.json"), "{").unwrap();
    assert_contains(&refused(), &["adapter_config.json", "malformed"]);
    fs::write(path("adapter_config.json"), b"\xff").unwrap();
    assert_contains(&refused(), &["adapter_config.json", "UTF-8"]);
    fs::copy(common::case("lora").join("adapter_config.json"), path("adapter_config.json")).unwrap();
    assert_contains(&refused(), &["adapter_model.safetensors"]);
    fs::write(path("adapter_model.bin"), "").unwrap();
    assert_contains(&refused(), &["adapter_model.bin", "pickled"]);
    fs::write(path("adapter_model.safetensors"), "short").unwrap();
    assert_contains(&refused(), &["adapter_model.safetensors", "5"]);
    fs::File::create(path("adapter_config.json")).unwrap().set_len((1 << 24) + 1).unwrap();
    assert_contains(&refused(), &["adapter_config.json", "more than 16777216 bytes"]);
}
