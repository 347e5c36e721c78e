//! What PEFT did not record: adapters made here, against the formula of the merged weights.
#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod common;

use common::{assert_agree, base, given, numbers, values, y};
use engraft_import::peft::{AttachError, Attached, LoraConfig, PeftAdapter, attach};
use engraft_import::safetensors::write;
use engraft_ir::{DType, Graph, GraphBuilder, Stage, dims, eval::Values};
use engraft_runtime::{Tensor, Weights};
use ndarray::{Array1, Array2, ArrayD, Axis, Ix1, Ix2};
use serde_json::{Value as Json, json};
use std::fs;

/// Writes an adapter the way PEFT does and opens it.
fn saved(config: &Json, tensors: &[(&str, Tensor)]) -> PeftAdapter {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("adapter_config.json"), config.to_string()).unwrap();
    let named: Vec<_> = tensors.iter().map(|(name, _)| format!("base_model.model.{name}")).collect();
    let tensors: Vec<_> =
        named.iter().zip(tensors).map(|(name, (_, t))| (name.as_str(), t.clone())).collect();
    write(directory.path().join("adapter_model.safetensors"), &tensors).unwrap();
    PeftAdapter::open(directory.path()).unwrap()
}

fn config(changes: Json) -> Json {
    let mut config = common::config_of("lora");
    let Json::Object(changes) = changes else { panic!("changes are an object") };
    config.as_object_mut().unwrap().extend(changes);
    config
}

/// A and B of a linear layer.
fn factors<'a>(a: &'a str, b: &'a str, (out, rank, r#in): (usize, usize, usize)) -> [(&'a str, Tensor); 2] {
    [(a, numbers(a, &[rank, r#in])), (b, numbers(b, &[out, rank]))]
}

fn fc1() -> [(&'static str, Tensor); 2] {
    factors("fc1.lora_A.weight", "fc1.lora_B.weight", (40, 4, 24))
}

fn fc2() -> [(&'static str, Tensor); 2] {
    factors("fc2.lora_A.weight", "fc2.lora_B.weight", (16, 4, 40))
}

fn matrix(values: &Values, name: &str) -> Array2<f64> {
    values[name].as_real().unwrap().clone().into_dimensionality::<Ix2>().unwrap()
}

fn vector(values: &Values, name: &str) -> Array1<f64> {
    values[name].as_real().unwrap().clone().into_dimensionality::<Ix1>().unwrap()
}

/// fc1 -> relu -> fc2 with the updates `s B A` of these modules merged into the weights.
fn merged(given: &Values, s: f64, modules: &[&str]) -> ArrayD<f64> {
    let layer = |x: &Array2<f64>, name: &str| {
        let mut w = matrix(given, &format!("{name}.weight"));
        if modules.contains(&name) {
            let (a, b) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
            w += &(matrix(given, &b).dot(&matrix(given, &a)) * s);
        }
        let mut y = x.dot(&w.t()) + vector(given, &format!("{name}.bias"));
        if let Some(bias) = given.get(&format!("{name}.lora_B.bias")) {
            y += &(bias.as_real().unwrap() * s);
        }
        y
    };
    let h = layer(&matrix(given, "x"), "fc1").mapv(|v| v.max(0.0));
    layer(&h, "fc2").into_dyn()
}

/// Attaches to the recorded base, and requires the formula with s = 4.
fn check(changes: Json, tensors: &[(&str, Tensor)], modules: &[&str]) -> Attached {
    let attached = attach(&base("mlp"), &saved(&config(changes), tensors)).unwrap();
    let adapted: Vec<_> = attached.report.adapted.iter().map(|a| a.module.name.as_str()).collect();
    assert_eq!(adapted, modules);
    let mut all = given("lora");
    all.extend(values(&attached.weights));
    assert_agree(&y(&attached.graph, &all), &merged(&all, 4.0, modules));
    attached
}

fn both() -> Vec<(&'static str, Tensor)> {
    [fc1(), fc2()].concat()
}

#[test]
fn a_bias_of_b_is_scaled_with_the_update() {
    let biases = [
        ("fc1.lora_B.bias", numbers("fc1.lora_B.bias", &[40])),
        ("fc2.lora_B.bias", numbers("fc2.lora_B.bias", &[16])),
    ];
    check(json!({"lora_bias": true}), &[both(), biases.to_vec()].concat(), &["fc1", "fc2"]);
}

#[test]
fn all_linear_means_every_linear_layer() {
    check(json!({"target_modules": "all-linear"}), &both(), &["fc1", "fc2"]);
    check(json!({"target_modules": "All-Linear", "exclude_modules": ["fc2"]}), &fc1(), &["fc1"]);
    check(
        json!({"target_modules": "all-linear", "modules_to_save": ["fc1"]}),
        &[fc2().to_vec(), vec![("fc1.weight", numbers("w", &[40, 24])), ("fc1.bias", numbers("b", &[40]))]]
            .concat(),
        &["fc2"],
    );
}

#[test]
fn all_linear_leaves_embeddings_and_output_layers_without_tensors() {
    let g = GraphBuilder::new("lm");
    let ids = g.input("ids", DType::I64, dims!["n"]);
    let x = g.param("emb.weight", DType::F32, dims![10, 6]).gather(ids);
    let h = x.dense(g.param("fc.weight", DType::F32, dims![6, 6]), None);
    g.output("y", h.dense(g.param("lm_head.weight", DType::F32, dims![10, 6]), None));
    let graph = g.finish().unwrap();
    let config = config(json!({"target_modules": "all-linear"}));
    let tensors = factors("fc.lora_A.weight", "fc.lora_B.weight", (6, 4, 6));
    let names = |tensors: &[(&str, Tensor)]| {
        let report = attach(&graph, &saved(&config, tensors)).unwrap().report;
        report.adapted.into_iter().map(|a| a.module.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&tensors), ["fc"]);
    let head = factors("lm_head.lora_A.weight", "lm_head.lora_B.weight", (10, 4, 6));
    assert_eq!(names(&[tensors, head].concat()), ["fc", "lm_head"]);
}

#[test]
fn exclusions_are_names_or_a_regex() {
    check(json!({"exclude_modules": ["fc2"]}), &fc1(), &["fc1"]);
    check(json!({"exclude_modules": ".*1"}), &fc2(), &["fc2"]);
    check(json!({"exclude_modules": "c1"}), &both(), &["fc1", "fc2"]);
}

#[test]
fn a_target_string_is_a_regex() {
    check(json!({"target_modules": "fc[1-2]"}), &both(), &["fc1", "fc2"]);
    check(json!({"target_modules": "^(?!.*2).*fc.$"}), &fc1(), &["fc1"]);
}

#[test]
fn patterns_set_rank_and_alpha_by_module() {
    let tensors = [factors("fc1.lora_A.weight", "fc1.lora_B.weight", (40, 2, 24)), fc2()].concat();
    let changes = json!({"rank_pattern": {"c1": 9, "f.1": 2}, "alpha_pattern": {"fc1": 8.0}});
    let attached = check(changes, &tensors, &["fc1", "fc2"]);
    let ranks: Vec<_> = attached.report.adapted.iter().map(|a| (a.rank, a.alpha, a.scale)).collect();
    assert_eq!(ranks, [(2, 8.0, 4.0), (4, 16.0, 4.0)]);
}

#[test]
fn the_order_of_a_pattern_object_counts() {
    let parse = |pattern: &str| {
        let json = format!(
            r#"{{"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": [], "rank_pattern": {pattern}}}"#
        );
        LoraConfig::parse(&json).unwrap().rank("h.0.fc1").unwrap()
    };
    assert_eq!(parse(r#"{"fc.": 2, "fc1": 4}"#), 2);
    assert_eq!(parse(r#"{"fc1": 4, "fc.": 2}"#), 4);
}

/// Three layers `h.<i>.fc` of 6 to 6.
fn stack() -> Graph {
    let g = GraphBuilder::new("stack");
    let mut x = g.input("x", DType::F32, dims!["n", 6]);
    for i in 0..3 {
        let w = g.param(&format!("h.{i}.fc.weight"), DType::F32, dims![6, 6]);
        x = x
            .dense(w, Some(g.param(&format!("h.{i}.fc.bias"), DType::F32, dims![6])))
            .named(&format!("h.{i}.fc"));
    }
    g.output("y", x);
    g.finish().unwrap()
}

#[test]
fn only_the_layers_to_transform_are_adapted() {
    let names: Vec<_> = ["h.0.fc", "h.1.fc", "h.2.fc"]
        .map(|fc| (format!("{fc}.lora_A.weight"), format!("{fc}.lora_B.weight"), fc))
        .to_vec();
    for (changes, layers) in [
        (json!({"layers_to_transform": [0, 2], "layers_pattern": "h"}), vec![0, 2]),
        (json!({"layers_to_transform": 1, "layers_pattern": ["x", "h"]}), vec![1]),
        (json!({"layers_to_transform": []}), vec![0, 1, 2]),
    ] {
        let mut changes = changes;
        changes["target_modules"] = json!(["fc"]);
        let of = |&i: &usize| factors(&names[i].0, &names[i].1, (6, 4, 6));
        let tensors: Vec<_> = layers.iter().flat_map(of).collect();
        let attached = attach(&stack(), &saved(&config(changes), &tensors)).unwrap();
        let adapted: Vec<_> = attached.report.adapted.iter().map(|a| a.module.name.as_str()).collect();
        assert_eq!(adapted, layers.iter().map(|&i| names[i].2).collect::<Vec<_>>());
    }
}

#[test]
fn lora_only_replaces_the_biases_of_adapted_modules() {
    let bias = numbers("bias", &[40]);
    for spelling in ["fc1.base_layer.bias", "fc1.bias"] {
        let tensors = [fc1().to_vec(), vec![(spelling, bias.clone())]].concat();
        let changes = json!({"bias": "lora_only", "target_modules": ["fc1"]});
        let attached = check(changes, &tensors, &["fc1"]);
        assert_eq!(attached.report.replaced, ["fc1.bias"]);
        assert_eq!(**attached.weights.get("fc1.bias").unwrap(), bias);
        let stage = |name: &str| attached.graph.params().into_iter().find(|p| p.name == name).unwrap().stage;
        assert_eq!([stage("fc1.bias"), stage("fc2.bias")], [Stage::Adapter, Stage::Base]);
    }
}

#[test]
fn with_all_biases_a_saved_modules_frozen_original_is_no_part_of_the_model() {
    let saved_bias = numbers("saved", &[16]);
    let tensors = [
        fc1().to_vec(),
        vec![
            ("fc1.base_layer.bias", numbers("b", &[40])),
            ("fc2.weight", numbers("w", &[16, 40])),
            ("fc2.bias", saved_bias.clone()),
            ("fc2.modules_to_save.bias", saved_bias),
            ("fc2.original_module.bias", numbers("original", &[16])),
        ],
    ]
    .concat();
    let changes = json!({"bias": "all", "target_modules": ["fc1"], "modules_to_save": ["fc2"]});
    let attached = check(changes, &tensors, &["fc1"]);
    assert_eq!(attached.report.replaced, ["fc1.bias", "fc2.weight", "fc2.bias"]);
}

#[test]
fn older_spellings_of_the_magnitude_are_read() {
    let recorded =
        engraft_import::safetensors::read_weights(common::case("dora").join("adapter_model.safetensors"))
            .unwrap();
    let respelled: Weights = recorded
        .iter()
        .map(|(name, tensor)| (name.replace("_vector", "_vector.weight"), tensor.clone()))
        .collect();
    let config = LoraConfig::parse(&common::config_of("dora").to_string()).unwrap();
    let attached = attach(&base("mlp"), &PeftAdapter::new(config, &respelled).unwrap()).unwrap();
    let mut all = given("dora");
    all.extend(values(&attached.weights));
    assert_agree(&y(&attached.graph, &all), all["y"].as_real().unwrap());
}

#[test]
fn an_embedding_saved_along_replaces_the_base_s() {
    let recorded = engraft_import::safetensors::read_weights(
        common::case("dora_embedding").join("adapter_model.safetensors"),
    )
    .unwrap();
    let mut tensors = recorded.clone();
    tensors.insert("base_model.model.emb.base_layer.weight", numbers("emb", &[50, 24]));
    let config = LoraConfig::parse(&common::config_of("dora_embedding").to_string()).unwrap();
    let with = attach(&base("emb"), &PeftAdapter::new(config.clone(), &tensors).unwrap()).unwrap();
    assert_eq!(with.report.replaced, ["emb.weight"]);
    // The same as the adapter alone on such a base.
    let without = attach(&base("emb"), &PeftAdapter::new(config, &recorded).unwrap()).unwrap();
    let mut all = given("dora_embedding");
    all.extend(values(&with.weights));
    assert_eq!(y(&with.graph, &all), y(&without.graph, &all));
}

#[test]
fn a_module_used_twice_is_adapted_twice() {
    let g = GraphBuilder::new("twice");
    let x = g.input("x", DType::F32, dims!["n", 6]);
    let (w, b) = (g.param("fc.weight", DType::F32, dims![6, 6]), g.param("fc.bias", DType::F32, dims![6]));
    g.output("y", x.dense(w, Some(b)).dense(w, Some(b)));
    let graph = g.finish().unwrap();
    let mut tensors = factors("fc.lora_A.weight", "fc.lora_B.weight", (6, 4, 6)).to_vec();
    tensors.push(("fc.lora_magnitude_vector", numbers("m", &[6])));
    let changes = json!({"use_dora": true, "target_modules": ["fc"]});
    let attached = attach(&graph, &saved(&config(changes), &tensors)).unwrap();

    let mut all = values(&attached.weights);
    for (name, shape) in [("x", vec![3, 6]), ("fc.weight", vec![6, 6]), ("fc.bias", vec![6])] {
        all.insert(name.to_owned(), common::value(&numbers(name, &shape)));
    }
    let mut w = matrix(&all, "fc.weight");
    w += &(matrix(&all, "fc.lora_B.weight").dot(&matrix(&all, "fc.lora_A.weight")) * 4.0);
    for (mut row, m) in w.rows_mut().into_iter().zip(vector(&all, "fc.lora_magnitude_vector")) {
        let norm = row.dot(&row).sqrt();
        row *= m / norm;
    }
    let layer = |x: Array2<f64>| x.dot(&w.t()) + vector(&all, "fc.bias");
    assert_agree(&y(&attached.graph, &all), &layer(layer(matrix(&all, "x"))).into_dyn());
}

/// `table` looked up and, transposed, as the output layer: a model with tied weights.
fn tied() -> Graph {
    let g = GraphBuilder::new("tied");
    let ids = g.input("ids", DType::I64, dims!["n"]);
    let table = g.param("emb.weight", DType::F32, dims![10, 6]);
    g.output("y", table.gather(ids).named("emb").dense(table, None).named("lm_head"));
    g.finish().unwrap()
}

#[test]
fn of_tied_weights_only_the_embedding_is_adapted() {
    let tensors =
        [("emb.lora_embedding_A", numbers("a", &[4, 10])), ("emb.lora_embedding_B", numbers("b", &[6, 4]))];
    let attached = attach(&tied(), &saved(&config(json!({"target_modules": ["emb"]})), &tensors)).unwrap();
    let mut all = values(&attached.weights);
    all.insert("emb.weight".to_owned(), common::value(&numbers("w", &[10, 6])));
    all.insert("ids".to_owned(), common::value(&Tensor::i64(&[3], vec![9, 0, 9]).unwrap()));
    let w = matrix(&all, "emb.weight");
    let delta = matrix(&all, "emb.lora_embedding_B").dot(&matrix(&all, "emb.lora_embedding_A")) * 4.0;
    let adapted = (&w + &delta.t()).select(Axis(0), &[9, 0, 9]);
    assert_agree(&y(&attached.graph, &all), &adapted.dot(&w.t()).into_dyn());

    let changes = json!({"target_modules": ["emb"], "modules_to_save": ["emb"]});
    let error = attach(&tied(), &saved(&config(changes), &[])).unwrap_err();
    assert!(matches!(error, AttachError::NoTarget { .. }), "{error}");
    assert!(error.to_string().contains(r#"`target_modules` is ["emb"]"#), "{error}");
}
