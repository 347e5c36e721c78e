//! Merged directories compute what the base computes with the adapter attached, keep everything else to the byte, and give
//! the base back.
#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod common;

use common::models::{Recorded, data, json as read_json};
use common::{assert_agree, case, numbers};
use engraft_import::merge::{MergeError, MergeOptions, MergeReport, check, effects, merge, unmerge};
use engraft_import::models::{Architecture, GraphOptions, ModelDirectory};
use engraft_import::peft::{LoraConfig, PeftAdapter};
use engraft_import::safetensors::{FloatType, SafetensorsFile, read_weights, write};
use engraft_runtime::{Tensor, Weights};
use ndarray::ArrayD;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The directory of a recorded model, of this crate's tests.
fn model(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name)
}

/// A recorded base as a model's directory, with a tokenizer and what must not be copied.
fn directory(recorded: &Path) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let case = read_json(&recorded.join("case.json"));
    fs::write(place.path().join("config.json"), case["base_config"].to_string()).unwrap();
    fs::copy(recorded.join("base.safetensors"), place.path().join("model.safetensors")).unwrap();
    fs::create_dir(place.path().join("1_Pooling")).unwrap();
    for file in [
        ".gitattributes",
        "tokenizer.json",
        "LICENSE",
        "1_Pooling/config.json",
        "pytorch_model.bin",
        "model.safetensors.index.json",
    ] {
        fs::write(place.path().join(file), file).unwrap();
    }
    place
}

/// Every tensor's bytes, by name.
fn bytes(path: &Path) -> BTreeMap<String, (String, Vec<u8>)> {
    let file = SafetensorsFile::open(path).unwrap();
    let tensors = file
        .tensors()
        .map(|t| (t.name.to_owned(), (format!("{:?}{:?}", t.dtype, t.shape), t.bytes.to_vec())));
    tensors.collect()
}

fn default() -> MergeOptions {
    MergeOptions::default()
}

fn to(dtype: FloatType) -> MergeOptions {
    MergeOptions { dtype: Some(dtype), ..default() }
}

#[test]
fn merged_is_what_peft_recorded_and_unmerged_the_base() {
    for (name, changed) in [("bert_dora", 4), ("llama_dora", 14), ("gpt2_dora", 6)] {
        let (base, place, adapter) =
            (directory(&case(name)), tempfile::tempdir().unwrap(), PeftAdapter::open(case(name)).unwrap());
        let merged = place.path().join("merged");
        let report = merge(base.path(), &[&adapter], &merged, default()).unwrap();
        assert_eq!(report.copied, ["1_Pooling/config.json", "LICENSE", "config.json", "tokenizer.json"]);
        assert_eq!(report.left, ["pytorch_model.bin"]);
        assert_eq!(report.changed.len(), changed, "{name}");
        assert!(report.worst().unwrap().survival.unwrap() > 0.999, "{report:?}");
        assert!(!merged.join("model.safetensors.index.json").exists());

        let read = |file: &str| read_weights(case(name).join(file)).unwrap();
        let recorded_case = read_json(&case(name).join("case.json"));
        let architecture =
            Architecture::from_config(recorded_case["base_config"].as_object().unwrap()).unwrap();
        let weights = read_weights(merged.join("model.safetensors")).unwrap();
        let recorded = Recorded::new(architecture, &weights, &read("io.safetensors"), &recorded_case);
        let ours = recorded.run(None, &recorded.given, GraphOptions::default());
        assert_agree(&ours, recorded.io["y"].as_real().unwrap());

        let (before, after) =
            (bytes(&base.path().join("model.safetensors")), bytes(&merged.join("model.safetensors")));
        let differ: Vec<_> = before.keys().filter(|name| before[*name] != after[*name]).collect();
        let mut reported: Vec<_> = report.changed.iter().map(|tensor| &tensor.tensor).collect();
        reported.sort_unstable();
        assert_eq!(differ, reported);
        assert_eq!(before.len(), report.changed.len() + report.kept);

        unmerged_is_near(name, base.path(), &merged, &adapter);
        fs::remove_dir_all(merged.join("engraft")).unwrap();
        let error = unmerge(&merged, &[&adapter], place.path().join("lost"), default()).unwrap_err();
        assert!(matches!(error, MergeError::NoGain { adapter: 1, .. }), "{error}");
        assert_eq!(
            fs::read_dir(place.path()).unwrap().count(),
            2,
            "merged and unmerged, and nothing in part"
        );
    }
}

/// Unmerging gives the base's own elements back within the bound that it states.
fn unmerged_is_near(name: &str, base: &Path, merged: &Path, adapter: &PeftAdapter) {
    let unmerged = merged.with_file_name("unmerged");
    let report = unmerge(merged, &[adapter], &unmerged, default()).unwrap();
    assert!(report.worst().is_none() && !unmerged.join("engraft").exists());
    let [base, merged_weights, unmerged] =
        [base, merged, &unmerged].map(|directory| read_weights(directory.join("model.safetensors")).unwrap());
    let gains = read_weights(merged.join("engraft/merged.safetensors")).unwrap();
    for tensor in &report.changed {
        let get = |weights: &Weights| weights.get(&tensor.tensor).unwrap().as_f32().unwrap().to_vec();
        let (w, w1, back) = (get(&base), get(&merged_weights), get(&unmerged));
        let module = tensor.tensor.strip_suffix(".weight").unwrap();
        let find = || gains.iter().find(|(gain, _)| gain.ends_with(module)).unwrap().1.clone();
        let gain = find();
        let columns = base.get(&tensor.tensor).unwrap().shape()[1];
        let u = FloatType::F32.unit_roundoff();
        for (i, ((&w, &w1), &back)) in w.iter().zip(&w1).zip(&back).enumerate() {
            // GPT-2's weights are stored [in, out].
            let output = if name == "gpt2_dora" { i % columns } else { i / columns };
            let sum = f64::from(w1 / gain.as_f32().unwrap()[output]).abs();
            let bound = (2.0 * sum * u + f64::from(w.abs()) * u) * 1.001 + f64::from(f32::MIN_POSITIVE);
            let off = (f64::from(back) - f64::from(w)).abs();
            assert!(
                off <= bound,
                "{} {i}: {back}, expected {w} within {bound:e}, off {off:e}",
                tensor.tensor
            );
        }
    }
}

/// An adapter of these tensors on a model, with numbers of about this size in B.
fn adapter(changes: &Json, size: f32, tensors: &[(String, Vec<usize>)]) -> PeftAdapter {
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let mut all = Weights::new();
    for (name, shape) in tensors {
        let numbers = numbers(name, shape);
        let scaled = |tensor: &Tensor| {
            let numbers = tensor.as_f32().unwrap().iter().map(|x| x * size).collect();
            Tensor::f32(shape, numbers).unwrap()
        };
        let tensor = if name.contains("_B") { scaled(&numbers) } else { numbers };
        all.insert(format!("base_model.model.{name}"), tensor);
    }
    PeftAdapter::new(LoraConfig::parse(&config.to_string()).unwrap(), &all).unwrap()
}

/// A name and a shape.
fn part(name: &str, shape: &[usize]) -> (String, Vec<usize>) {
    (name.to_owned(), shape.to_vec())
}

/// A and B of the queries of a model like Llama with two layers, and how many outputs each has.
fn queries(base: &Path) -> (Vec<(String, Vec<usize>)>, usize) {
    let opened = ModelDirectory::open(base).unwrap();
    let q = |layer: u8| format!("model.layers.{layer}.self_attn.q_proj");
    let shape = opened.weights().get(&format!("{}.weight", q(0))).unwrap().shape().to_vec();
    let of = |layer| {
        let q = q(layer);
        [
            part(&format!("{q}.lora_A.weight"), &[2, shape[1]]),
            part(&format!("{q}.lora_B.weight"), &[shape[0], 2]),
        ]
    };
    ([of(0), of(1)].concat(), shape[0])
}

fn q(base: &Path, size: f32) -> PeftAdapter {
    adapter(&json!({"target_modules": ["q_proj"]}), size, &queries(base).0)
}

/// What a directory computes for its recorded inputs, with this adapter attached.
fn logits(directory: &Path, inputs: &Path, adapter: Option<&PeftAdapter>) -> ArrayD<f64> {
    let opened = ModelDirectory::open(directory).unwrap();
    let io = read_weights(inputs.join("io.safetensors")).unwrap();
    let tolerance = json!({"tolerance": {"atol": 1e-5, "rtol": 1e-4}});
    let recorded = Recorded::new(opened.architecture().clone(), opened.weights(), &io, &tolerance);
    recorded.run(adapter, &recorded.given, GraphOptions::default())
}

/// Shards stay shards, in half precision or widened, and come back to the byte.
#[test]
fn shards_are_merged_and_come_back_to_the_byte() {
    let (base, place) = (model("llama3_sharded_bf16"), tempfile::tempdir().unwrap());
    let adapter = q(&base, 0.1);
    let outputs = queries(&base).1;
    let theirs = logits(&base, &base, Some(&adapter));
    let index = |directory: &Path| read_json(&directory.join("model.safetensors.index.json"));
    let size = |report: &MergeReport| report.changed.iter().map(|tensor| tensor.dtype).collect::<Vec<_>>();

    let wide = place.path().join("wide");
    let report = merge(&base, &[&adapter], &wide, to(FloatType::F32)).unwrap();
    assert_eq!(size(&report), [FloatType::F32; 2]);
    assert_agree(&logits(&wide, &base, None), &theirs);
    assert_eq!(index(&wide)["weight_map"], index(&base)["weight_map"]);
    let total = |directory: &Path| index(directory)["metadata"]["total_size"].as_u64().unwrap();
    assert_eq!(total(&wide), total(&base) + (2 * outputs * 16 * 2) as u64);
    let config = |directory: &Path| read_json(&directory.join("config.json"));
    let (before, after) = (config(&base), config(&wide));
    let field = if before.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    assert_eq!((&before[field], &after[field]), (&json!("bfloat16"), &json!("float32")));

    // Wide enough to round back to what was there.
    let back = place.path().join("back");
    unmerge(&wide, &[&adapter], &back, to(FloatType::Bf16)).unwrap();
    let shards = fs::read_dir(&base).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let shards: Vec<_> = shards.filter(|name| name.starts_with("model-")).collect();
    assert_eq!(shards.len(), 5);
    for shard in shards {
        assert_eq!(bytes(&base.join(&shard)), bytes(&back.join(&shard)), "{shard}");
        let [ours, theirs] = [&back, &base].map(|directory| fs::read(directory.join(&shard)).unwrap());
        assert!(ours == theirs, "{shard}: the header, too");
    }

    let narrow = place.path().join("narrow");
    let report = merge(&base, &[&adapter], &narrow, default()).unwrap();
    assert_eq!(size(&report), [FloatType::Bf16; 2]);
    let survival = report.worst().unwrap().survival.unwrap();
    assert!((0.9..0.9999).contains(&survival), "{survival}");
    assert_eq!(fs::read(narrow.join("config.json")).unwrap(), fs::read(base.join("config.json")).unwrap());
    assert_eq!(index(&narrow)["weight_map"], index(&base)["weight_map"]);
}

/// A small change is lost in bf16, so it is refused, and written when that is asked for.
#[test]
fn what_does_not_survive_is_refused() {
    let (base, place) = (model("llama3_sharded_bf16"), tempfile::tempdir().unwrap());
    let (output, small) = (place.path().join("out"), q(&base, 1e-4));
    let error = merge(&base, &[&small], &output, default()).unwrap_err();
    let text = error.to_string();
    let MergeError::Lossy { tensor, dtype, survival, least, tensors } = error else { panic!("{text}") };
    assert!(tensor.ends_with("self_attn.q_proj.weight"), "{text}");
    assert_eq!((dtype, least, tensors), (FloatType::Bf16, 0.5, 2));
    assert!(survival < 0.2 && text.contains(&tensor), "{text}");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "nothing is left of it");

    assert!(merge(&base, &[&small], place.path().join("wide"), to(FloatType::F32)).is_ok());
    let report = merge(&base, &[&small], &output, MergeOptions { force: true, ..default() }).unwrap();
    assert_eq!(report.worst().unwrap().survival, Some(survival));
    let mild = MergeOptions { least_survival: 0.0, ..default() };
    assert!(merge(&base, &[&small], place.path().join("mild"), mild).is_ok());
}

/// Embeddings, saved modules, half precision and a name that is not the graph's: as with the adapter attached.
#[test]
fn embeddings_and_saved_modules_are_merged() {
    let (base, place) = (model("llama_linear_f16"), tempfile::tempdir().unwrap());
    let changes = json!({"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"], "use_dora": true});
    let (mut tensors, outputs) = queries(&base);
    tensors.extend([
        part("model.embed_tokens.lora_embedding_A", &[2, 31]),
        part("model.embed_tokens.lora_embedding_B", &[16, 2]),
        part("model.embed_tokens.lora_magnitude_vector", &[16]),
        part("model.layers.0.self_attn.q_proj.lora_magnitude_vector", &[outputs]),
        part("model.layers.1.self_attn.q_proj.lora_magnitude_vector", &[outputs]),
        part("lm_head.weight", &[31, 16]),
    ]);
    let adapter = adapter(&changes, 1.0, &tensors);
    let output = place.path().join("merged");
    let report = merge(&base, &[&adapter], &output, to(FloatType::F32)).unwrap();
    let whats: Vec<_> = report.changed.iter().map(|t| (t.tensor.as_str(), t.what.name())).collect();
    let q = |layer: u8| format!("model.layers.{layer}.self_attn.q_proj.weight");
    let expected = [
        ("lm_head.weight", "replaced"),
        ("model.embed_tokens.weight", "adapted"),
        (&q(0), "adapted"),
        (&q(1), "adapted"),
    ];
    assert_eq!(whats, expected);
    assert_agree(&logits(&output, &base, None), &logits(&base, &base, Some(&adapter)));
    let error = unmerge(&output, &[&adapter], place.path().join("x"), default()).unwrap_err();
    assert!(error.to_string().contains("the adapters replaced `lm_head.weight`"), "{error}");
}

/// Several at once, and biases: those of B are scaled and added, those of the base replaced.
#[test]
fn several_adapters_and_biases_are_merged() {
    let (base, place) = (model("qwen2_window"), tempfile::tempdir().unwrap());
    let config = read_json(&base.join("config.json"));
    let hidden = config["hidden_size"].as_u64().unwrap() as usize;
    let shapes = read_weights(base.join("model.safetensors")).unwrap();
    let q = "model.layers.0.self_attn.q_proj";
    let out = shapes.get(&format!("{q}.weight")).unwrap().shape()[0];
    let (a, b, bias) =
        (format!("{q}.lora_A.weight"), format!("{q}.lora_B.weight"), format!("{q}.lora_B.bias"));
    let tensors = [part(&a, &[2, hidden]), part(&b, &[out, 2]), part(&bias, &[out])];
    let one = json!({"target_modules": [q], "lora_bias": true});
    let with_bias = adapter(&one, 1.0, &tensors);
    let output = place.path().join("merged");
    let report = merge(&base, &[&with_bias], &output, default()).unwrap();
    let whats: Vec<_> = report.changed.iter().map(|t| t.what.name()).collect();
    assert_eq!(whats, ["bias", "adapted"]);
    assert_agree(&logits(&output, &base, None), &logits(&base, &base, Some(&with_bias)));

    // A merged directory is a base for the next; two LoRAs at once are the same.
    let (twice, both) = (place.path().join("twice"), place.path().join("both"));
    merge(&output, &[&with_bias], &twice, default()).unwrap();
    merge(&base, &[&with_bias, &with_bias], &both, default()).unwrap();
    assert_agree(&logits(&both, &base, None), &logits(&twice, &base, None));
    let back = place.path().join("back");
    unmerge(&both, &[&with_bias, &with_bias], &back, default()).unwrap();
    assert_agree(&logits(&back, &base, None), &logits(&base, &base, None));
    let error = unmerge(&both, &[&with_bias], place.path().join("x"), default()).unwrap_err();
    assert!(matches!(error, MergeError::OtherAdapters { .. }), "{error}");
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("out");
    let error = |base: &Path, adapter: &PeftAdapter, options| {
        let error = merge(base, &[adapter], &output, options).unwrap_err();
        assert!(!output.exists());
        error.to_string()
    };
    let llama = model("llama_linear_f16");
    assert!(
        error(&llama.join("config.json"), &q(&llama, 1.0), default())
            .contains("expected a model's directory")
    );
    assert!(error(place.path(), &q(&llama, 1.0), default()).contains("config.json"));

    // GPT-2's output layer shares the embedding.
    let gpt2 = directory(&case("gpt2_dora"));
    let shapes = read_weights(gpt2.path().join("model.safetensors")).unwrap();
    let (name, table) = shapes.iter().find(|(name, _)| name.ends_with("wte.weight")).unwrap();
    let (vocab, dim) = (table.shape()[0], table.shape()[1]);
    let module = "transformer.wte";
    assert!(name.ends_with("wte.weight"));
    let (a, b) = (format!("{module}.lora_embedding_A"), format!("{module}.lora_embedding_B"));
    let tensors = [part(&a, &[2, vocab]), part(&b, &[dim, 2])];
    let tied = adapter(&json!({"target_modules": ["wte"]}), 1.0, &tensors);
    let text = error(gpt2.path(), &tied, default());
    assert!(
        text.contains("`transformer.wte` is tied to") && text.contains("one tensor cannot be both"),
        "{text}"
    );

    // BERT's pooler is no part of the graph, so it would keep its old weight.
    let bert = directory(&case("bert_dora"));
    let query = "encoder.layer.0.attention.self.query";
    let modules = [query, "pooler.dense"];
    let tensors = modules.map(|module| {
        [
            part(&format!("{module}.lora_A.weight"), &[2, 48]),
            part(&format!("{module}.lora_B.weight"), &[48, 2]),
        ]
    });
    let pooler = adapter(&json!({"target_modules": modules}), 1.0, &tensors.concat());
    let text = error(bert.path(), &pooler, default());
    assert!(text.contains("`pooler.dense.lora_A.weight`") && text.contains("not known here"), "{text}");

    let unbiased = directory(&case("llama_dora"));
    let (mut tensors, outputs) = queries(unbiased.path());
    tensors.extend(
        [0, 1].map(|layer| part(&format!("model.layers.{layer}.self_attn.q_proj.lora_B.bias"), &[outputs])),
    );
    let lora_bias = json!({"target_modules": ["q_proj"], "lora_bias": true});
    let text = error(unbiased.path(), &adapter(&lora_bias, 1.0, &tensors), default());
    assert!(text.contains("no tensor for `model.layers.0.self_attn.q_proj.bias`"), "{text}");

    assert!(error(&llama, &q(&llama, 1e6), to(FloatType::F16)).contains("is no finite f16"));
    fs::create_dir(&output).unwrap();
    fs::write(output.join("x"), "").unwrap();
    let taken = merge(&llama, &[&q(&llama, 1.0)], &output, default()).unwrap_err();
    assert!(matches!(taken, MergeError::OutputExists { .. }), "{taken}");
    fs::remove_file(output.join("x")).unwrap();
    merge(&llama, &[&q(&llama, 1.0)], &output, default()).unwrap();
}

/// A gain of zero wipes a row out.
#[test]
fn what_is_lost_is_not_unmerged() {
    let (base, place) = (model("llama_linear_f16"), tempfile::tempdir().unwrap());
    let (factors, outputs) = queries(&base);
    let named =
        factors.iter().map(|(name, shape)| (format!("base_model.model.{name}"), numbers(name, shape)));
    let mut tensors: Weights = named.collect();
    for layer in 0..2 {
        let mut m = vec![1.0; outputs];
        m[5] = 0.0;
        let name = format!("base_model.model.model.layers.{layer}.self_attn.q_proj.lora_magnitude_vector");
        tensors.insert(name, Tensor::f32(&[outputs], m).unwrap());
    }
    let config =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "use_dora": true});
    let adapter = PeftAdapter::new(LoraConfig::parse(&config.to_string()).unwrap(), &tensors).unwrap();
    let merged = place.path().join("merged");
    merge(&base, &[&adapter], &merged, default()).unwrap();
    let error = unmerge(&merged, &[&adapter], place.path().join("x"), default()).unwrap_err();
    assert!(matches!(error, MergeError::Lost { output: 5, .. }), "{error}");
}

/// A file with a parameter twice, or without one.
#[test]
fn files_that_are_not_the_models_are_refused() {
    let place = directory(&case("llama_dora"));
    let (file, output) = (place.path().join("model.safetensors"), place.path().join("out"));
    let adapter = PeftAdapter::open(case("llama_dora")).unwrap();
    let weights = read_weights(case("llama_dora").join("base.safetensors")).unwrap();
    let q = "model.layers.0.self_attn.q_proj.weight";
    let without: Vec<_> =
        weights.iter().filter(|(name, _)| *name != q).map(|(name, t)| (name, (**t).clone())).collect();
    write(&file, &without).unwrap();
    let error = merge(place.path(), &[&adapter], &output, default()).unwrap_err();
    assert!(error.to_string().contains(&format!("there is no tensor for `{q}`")), "{error}");
    let short = Tensor::f32(&[1], vec![1.0]).unwrap();
    write(&file, &[&without[..], &[(q, short)]].concat()).unwrap();
    let error = merge(place.path(), &[&adapter], &output, default()).unwrap_err();
    assert!(error.to_string().contains("has 1 elements, expected 48 x 48"), "{error}");
    let whole = Tensor::i64(&[48, 48], vec![1; 48 * 48]).unwrap();
    write(&file, &[&without[..], &[(q, whole)]].concat()).unwrap();
    let error = merge(place.path(), &[&adapter], &output, default()).unwrap_err();
    assert!(error.to_string().contains("is I64, expected F32, F16 or BF16"), "{error}");
    let named = [&without[..], &[(q, (**weights.get(q).unwrap()).clone())]].concat();
    let twice = [
        &named[..],
        &[("model.model.layers.0.self_attn.q_proj.weight", Tensor::f32(&[1], vec![1.0]).unwrap())],
    ];
    write(&file, &twice.concat()).unwrap();
    assert!(merge(place.path(), &[&adapter], &output, default()).is_ok(), "that is no name of the model's");
    fs::remove_dir_all(&output).unwrap();
    let whole = fs::read(case("llama_dora").join("base.safetensors")).unwrap();
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    let error = merge(place.path(), &[&adapter], &output, default()).unwrap_err();
    assert!(matches!(error, MergeError::Safetensors(_) | MergeError::Directory(_)), "{error}");
    fs::write(&file, &whole).unwrap();
    fs::write(place.path().join("modules.json"), "{").unwrap();
    let error = merge(place.path(), &[&adapter], &output, default()).unwrap_err();
    assert!(matches!(error, MergeError::Sentence(_)), "{error}");
    assert!(!output.exists() && data("peft").exists());
}

/// A checkpoint with the same parameter under two names, and one with a row that DoRA cannot normalise.
#[test]
fn weights_that_mean_two_things_or_none_are_refused() {
    let place = directory(&case("bert_dora"));
    let (file, output) = (place.path().join("model.safetensors"), place.path().join("out"));
    let adapter = PeftAdapter::open(case("bert_dora")).unwrap();
    let weights = read_weights(case("bert_dora").join("base.safetensors")).unwrap();
    let mut all: Vec<_> = weights.iter().map(|(name, tensor)| (name, (**tensor).clone())).collect();
    let query = "encoder.layer.0.attention.self.query.weight";
    let wrapped = format!("bert.{query}");
    all.push((&wrapped, (**weights.get(query).unwrap()).clone()));
    write(&file, &all).unwrap();
    let error = merge(place.path(), &[&adapter], &output, default()).unwrap_err();
    assert!(matches!(error, MergeError::Twice { .. }), "{error}");
    all.pop();
    let infinite = Tensor::f32(&[48, 48], vec![f32::INFINITY; 48 * 48]).unwrap();
    all.iter_mut().find(|(name, _)| *name == query).unwrap().1 = infinite;
    write(&file, &all).unwrap();
    let error = merge(place.path(), &[&adapter], &output, default()).unwrap_err();
    assert!(matches!(error, MergeError::Form(_)), "{error}");
    assert!(!output.exists());
}

#[test]
fn a_directory_with_too_many_files_is_refused() {
    let place = directory(&case("bert_dora"));
    for index in 0..10_000 {
        fs::write(place.path().join(format!("{index}")), "").unwrap();
    }
    let adapter = PeftAdapter::open(case("bert_dora")).unwrap();
    let error = merge(place.path(), &[&adapter], place.path().join("out"), default()).unwrap_err();
    assert!(matches!(error, MergeError::TooManyFiles { .. }), "{error}");
}

/// What adapters would do is what they do: the norms and the angle of the changes, and the gains.
#[test]
fn effects_are_those_of_the_merged_files() {
    let (base, place) = (directory(&case("gpt2_dora")), tempfile::tempdir().unwrap());
    let dora = PeftAdapter::open(case("gpt2_dora")).unwrap();
    let h = "transformer.h.1.attn.c_attn";
    let tensors =
        [part(&format!("{h}.lora_A.weight"), &[2, 48]), part(&format!("{h}.lora_B.weight"), &[144, 2])];
    let lora = adapter(&json!({"target_modules": [h]}), 0.5, &tensors);
    let directories = ["dora", "lora"].map(|name| place.path().join(name));
    for (adapter, directory) in [&dora, &lora].into_iter().zip(&directories) {
        merge(base.path(), &[adapter], directory, default()).unwrap();
        check(base.path(), &[adapter]).unwrap();
    }
    let read = |directory: &Path| read_weights(directory.join("model.safetensors")).unwrap();
    let (original, merged) = (read(base.path()), directories.each_ref().map(|directory| read(directory)));
    let gains = read_weights(directories[0].join("engraft/merged.safetensors")).unwrap();

    let effects = effects(base.path(), &[&dora, &lora]).unwrap();
    assert_eq!(effects.len(), 6);
    for effect in &effects {
        let name = format!("{}.weight", effect.module);
        let find = |weights: &Weights| -> Vec<f64> {
            let (_, tensor) = weights.iter().find(|(tensor, _)| name.ends_with(tensor)).unwrap();
            tensor.as_f32().unwrap().iter().map(|&x| x.into()).collect()
        };
        let w = find(&original);
        let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
        assert!((effect.weight - dot(&w, &w).sqrt()).abs() < 1e-9 * effect.weight);
        let changes =
            merged.each_ref().map(|m| find(m).iter().zip(&w).map(|(m, w)| m - w).collect::<Vec<_>>());
        for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let expected = dot(&changes[i], &changes[j]);
            let size = dot(&w, &w);
            assert!((effect.products[i][j] - expected).abs() < 1e-5 * size, "{name} {i} {j}: {expected}");
        }
        assert_eq!(effect.change(1) > 0.0, effect.module == h);
        assert_eq!(effect.change(2), 0.0);
        let gains = gains.get(&format!("0.{}", effect.module)).unwrap().as_f32().unwrap();
        let (least, largest) = effect.gains[0].unwrap();
        let extreme = |better: fn(f32, f32) -> f32| f64::from(gains.iter().copied().reduce(better).unwrap());
        assert!((least - extreme(f32::min)).abs() < 1e-6 && (largest - extreme(f32::max)).abs() < 1e-6);
        assert_eq!(effect.gains[1], None);
    }
}

/// DoRA after LoRA and before it, out of the weights again: each gain is kept on its own.
#[test]
fn dora_and_lora_together_come_out_again() {
    let (base, place) = (directory(&case("bert_dora")), tempfile::tempdir().unwrap());
    let dora = PeftAdapter::open(case("bert_dora")).unwrap();
    let query = "encoder.layer.0.attention.self.query";
    let tensors = [
        part(&format!("{query}.lora_A.weight"), &[2, 48]),
        part(&format!("{query}.lora_B.weight"), &[48, 2]),
    ];
    let lora = adapter(&json!({"target_modules": [query]}), 0.3, &tensors);
    let read = |directory: &Path| read_weights(directory.join("model.safetensors")).unwrap();
    let mut merged = Vec::new();
    for (name, adapters) in [("a", [&dora, &lora]), ("b", [&lora, &dora]), ("c", [&dora, &dora])] {
        let (once, back) = (place.path().join(name), place.path().join(format!("{name}-back")));
        merge(base.path(), &adapters, &once, default()).unwrap();
        unmerge(&once, &adapters, &back, default()).unwrap();
        let (original, back) = (read(base.path()), read(&back));
        for (name, tensor) in original.iter() {
            let back = back.get(name).unwrap();
            // The smallest gain is near 0.01, so rounding is a hundred times as large.
            for (x, y) in tensor.as_f32().unwrap().iter().zip(back.as_f32().unwrap()) {
                assert!((x - y).abs() <= 1e-5, "{name}: {y}, expected {x}");
            }
        }
        let error = unmerge(&once, &[&lora], place.path().join("x"), default()).unwrap_err();
        assert!(matches!(error, MergeError::OtherAdapters { .. }), "{error}");
        merged.push(read(&once).get(&format!("{query}.weight")).unwrap().clone());
    }
    assert_ne!(merged[0], merged[1], "the order matters");
}
