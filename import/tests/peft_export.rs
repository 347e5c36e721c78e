//! Adapters back to PEFT's files: byte for byte, as weighted combinations, and into PEFT itself where it is installed.
#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod common;

use common::{assert_agree, case, composed, composed_base, config_of, numbers, values, y};
use engraft_import::peft::{AdapterError, CombineError, LoraConfig, PeftAdapter, Selection, attach, combine};
use engraft_import::safetensors::read_weights;
use engraft_runtime::Weights;
use serde_json::{Value as Json, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Every LoRA or DoRA adapter that PEFT recorded.
fn recorded() -> Vec<std::path::PathBuf> {
    let cases = fs::read_dir(case("")).unwrap().map(|entry| entry.unwrap().path());
    let is_lora = |directory: &std::path::PathBuf| {
        let text = fs::read_to_string(directory.join("adapter_config.json")).unwrap();
        serde_json::from_str::<Json>(&text).unwrap()["peft_type"] == "LORA"
    };
    let tiny = ["l1", "l2", "d1", "d2", "lb"].map(composed);
    cases.filter(is_lora).chain(tiny).collect()
}

/// The files are the same to the byte: names, shapes, numbers, order, metadata, fields.
#[test]
fn what_is_saved_is_what_peft_wrote() {
    let directories = recorded();
    assert!(directories.len() > 20, "{directories:?}");
    for directory in directories {
        let place = tempfile::tempdir().unwrap();
        let output = place.path().join("new");
        PeftAdapter::open(&directory).unwrap().save(&output).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let [ours, theirs] =
                [&output, &directory].map(|directory| fs::read(directory.join(file)).unwrap());
            assert!(ours == theirs, "{}", directory.join(file).display());
        }
    }
}

#[test]
fn a_config_that_was_changed_is_not_saved() {
    let mut config = LoraConfig::parse(&config_of("lora").to_string()).unwrap();
    config.use_rslora = true;
    let place = tempfile::tempdir().unwrap();
    let error = PeftAdapter::new(config, &Weights::new()).unwrap().save(place.path()).unwrap_err();
    assert!(matches!(error, AdapterError::Changed { .. }), "{error}");
    assert!(fs::read_dir(place.path()).unwrap().next().is_none());
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    let error = PeftAdapter::open(case("lora")).unwrap().save(&file).unwrap_err();
    assert!(matches!(error, AdapterError::Io { .. }), "{error}");
}

/// An adapter, saved and opened again, on its recorded base and input.
fn output_of(adapter: &PeftAdapter) -> ndarray::ArrayD<f64> {
    let place = tempfile::tempdir().unwrap();
    adapter.save(place.path()).unwrap();
    let attached = attach(&composed_base(), &PeftAdapter::open(place.path()).unwrap()).unwrap();
    let mut given = values(&read_weights(composed("base.safetensors")).unwrap());
    given.extend(values(&attached.weights));
    given.extend(values(&read_weights(composed("io.safetensors")).unwrap()));
    y(&attached.graph, &given)
}

fn tiny(name: &str) -> PeftAdapter {
    PeftAdapter::open(composed(name)).unwrap()
}

fn recorded_y(name: &str) -> ndarray::ArrayD<f64> {
    values(&read_weights(composed("io.safetensors")).unwrap())[name].as_real().unwrap().clone()
}

/// PEFT's `add_weighted_adapter(["l1", "l2"], [0.5, -1.5], combination_type="cat")`, of ranks 2 and 3, one of them rsLoRA and
/// on one module only; and a sum, which is what both do one after the other.
#[test]
fn combinations_are_what_peft_recorded() {
    let (l1, l2) = (tiny("l1"), tiny("l2"));
    assert_agree(&output_of(&combine(&[(0.5, &l1), (-1.5, &l2)]).unwrap()), &recorded_y("y.cat"));
    let sum = combine(&[(1.0, &l1), (1.0, &l2)]).unwrap();
    assert_agree(&output_of(&sum), &recorded_y("y.l1.l2"));
    let (fc1, fc2) = (sum.config().rank("fc1").unwrap(), sum.config().rank("fc2").unwrap());
    assert_eq!((fc1, fc2), (5, 2));
    assert_eq!((sum.config().scale("fc1").unwrap(), sum.config().scale("fc2").unwrap()), (1.0, 1.0));
    // A bias of B is scaled and weighted with its update.
    let (lb, minus) = (tiny("lb"), combine(&[(2.0, &tiny("lb")), (-2.0, &tiny("lb"))]).unwrap());
    assert_agree(&output_of(&minus), &recorded_y("y_base"));
    assert_agree(&output_of(&combine(&[(1.0, &lb), (0.0, &l1)]).unwrap()), &output_of(&lb));
}

/// An adapter of these modules, `(name, in, out)`, with rank 2.
fn adapter(changes: Json, modules: &[(&str, usize, usize)]) -> PeftAdapter {
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2});
    let Json::Object(changes) = changes else { panic!("changes are an object") };
    config.as_object_mut().unwrap().extend(changes);
    let mut tensors = Weights::new();
    for (name, inputs, outputs) in modules {
        let name = |part: &str| format!("base_model.model.{name}.{part}");
        tensors.insert(name("lora_A.weight"), numbers("a", &[2, *inputs]));
        tensors.insert(name("lora_B.weight"), numbers("b", &[*outputs, 2]));
    }
    PeftAdapter::new(LoraConfig::parse(&config.to_string()).unwrap(), &tensors).unwrap()
}

/// The combination targets the modules that its parts do, and no others.
#[test]
fn a_combination_targets_what_its_parts_do() {
    let of = |parts: &[&PeftAdapter]| {
        let parts: Vec<_> = parts.iter().map(|part| (1.0, *part)).collect();
        let combined = combine(&parts).unwrap();
        let json: Json = serde_json::from_str(combined.config().json()).unwrap();
        (json["target_modules"].clone(), json["layers_to_transform"].clone(), combined)
    };
    let q = adapter(json!({"target_modules": ["q"]}), &[("m.h.0.q", 3, 4), ("m.h.1.q", 3, 4)]);
    let v = adapter(json!({"target_modules": ["v"]}), &[("m.h.0.v", 3, 4)]);
    let one = adapter(json!({"target_modules": ["q"], "layers_to_transform": [1]}), &[("m.h.1.q", 3, 4)]);
    let (targets, layers, _) = of(&[&q, &q]);
    assert_eq!((targets, layers), (json!(["q"]), Json::Null));
    let (targets, ..) = of(&[&q, &v]);
    assert_eq!(targets, json!(["q", "v"]));
    let (targets, layers, _) = of(&[&one, &one]);
    assert_eq!((targets, layers), (json!(["q"]), json!([1])));
    // Otherwise the modules are named, all of them and whole.
    let (targets, layers, combined) = of(&[&one, &v]);
    assert_eq!((targets, layers), (json!(r"m\.h\.0\.v|m\.h\.1\.q"), Json::Null));
    let (targeted, untouched) = (Selection::Targeted, Selection::Untouched);
    let expected =
        [("m.h.1.q", targeted), ("m.h.0.v", targeted), ("m.h.0.q", untouched), ("x.m.h.1.q", untouched)];
    for (module, expected) in expected {
        assert_eq!(combined.config().select(module), Ok(expected), "{module}");
    }
}

#[test]
fn combinations_without_an_exact_meaning_are_refused() {
    let (l1, d1) = (tiny("l1"), tiny("d1"));
    let open = |name: &str| PeftAdapter::open(case(name)).unwrap();
    let error = |parts: &[(f64, &PeftAdapter)]| combine(parts).unwrap_err().to_string();
    let second = |weight: f64, adapter: &PeftAdapter| {
        let refused = combine(&[(1.0, &l1), (weight, adapter)]).unwrap_err();
        assert_eq!(refused.adapter(), Some(2), "{refused}");
        refused.to_string()
    };
    assert!(second(1.0, &d1).contains("DoRA is none: its gain multiplies W"), "DoRA");
    assert!(second(1.0, &open("lora")).contains("for 24 inputs and 40 outputs, the module has 6 and 8"));
    assert!(second(f64::NAN, &l1).contains("the weight of an adapter is NaN"));
    assert!(second(1.0, &open("pissa")).contains("adapter 2 was initialised by `pissa`"));
    assert!(
        error(&[(1.0, &open("lora_modules_to_save"))])
            .contains("adapter 1 replaces `fc2.bias`, `fc2.weight`")
    );
    // The part of a module at fault is counted among those that have the module, the adapter among all.
    let fc = |name: &str, inputs| adapter(json!({"target_modules": [name]}), &[(name, inputs, 4)]);
    let (other, fc, longer) = (fc("v", 3), fc("q", 3), fc("q", 5));
    let refused = combine(&[(1.0, &other), (1.0, &fc), (1.0, &longer)]).unwrap_err();
    assert_eq!(refused.adapter(), Some(3), "{refused}");
    assert!(error(&[(1e300, &l1)]).contains("module `fc1`: B has an element that is no finite f32"));
    assert!(matches!(combine(&[]).unwrap_err(), CombineError::Nothing));
    let embedding = open("lora_embedding");
    let linear = adapter(json!({"target_modules": ["emb"]}), &[("emb", 50, 24)]);
    assert!(error(&[(1.0, &embedding), (1.0, &linear)]).contains("`emb` is an embedding to one adapter"));
}

#[test]
fn tensors_that_do_not_fit_together_are_refused() {
    const A: (&str, &[usize]) = ("fc.lora_A.weight", &[2, 3]);
    const B: (&str, &[usize]) = ("fc.lora_B.weight", &[4, 2]);
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["fc"]});
    let error = |config: &Json, tensors: &[(&str, &[usize])]| {
        let named =
            |(name, shape): &(&str, &[usize])| (format!("base_model.model.{name}"), numbers(name, shape));
        let tensors: Weights = tensors.iter().map(named).collect();
        let adapter = PeftAdapter::new(LoraConfig::parse(&config.to_string()).unwrap(), &tensors);
        adapter.unwrap().contents().unwrap_err().to_string()
    };
    assert_eq!(error(&config, &[A]), "module `fc`: tensor `fc.lora_B.weight` is missing");
    assert_eq!(error(&config, &[B]), "module `fc`: tensor `fc.lora_A.weight` is missing");
    let line = error(&config, &[A, ("fc.lora_B.weight", &[4, 3])]);
    assert_eq!(
        line,
        "module `fc`: tensor `fc.lora_B.weight` is [4, 3], expected [4, 2] (r is 2 by the config)"
    );
    let line = error(&config, &[("fc.lora_A.weight", &[2]), B]);
    assert_eq!(line, "module `fc`: tensor `fc.lora_A.weight` is [2], which has too few dims");
    let line = error(&config, &[A, B, ("x.lora_A.weight", &[2, 3])]);
    assert_eq!(line, "module `x` has tensors, but the config does not target it");
    let line = error(&config, &[A, B, ("fc.lora_magnitude_vector", &[4])]);
    assert!(line.contains("nothing uses tensors `fc.lora_magnitude_vector`"), "{line}");
    assert!(error(&config, &[("fc.weight", &[4, 3])]).contains("the adapter has no tensor named"));
    let dora =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["fc"], "use_dora": true});
    let line = error(&dora, &[A, B, ("fc.lora_magnitude_vector", &[3])]);
    assert_eq!(line, "module `fc`: tensor `fc.lora_magnitude_vector` is [3], expected [4]");
}

/// A Python that has PEFT: that of the variable `ENGRAFT_PEFT_PYTHON`, or `python3`.
fn python() -> Option<String> {
    let python = std::env::var("ENGRAFT_PEFT_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python).args(["-c", "import peft, torch, safetensors"]).output();
    found.is_ok_and(|output| output.status.success()).then_some(python)
}

/// What PEFT computes with a directory on the recorded base and input.
fn peft(python: &str, directory: &Path) -> ndarray::ArrayD<f64> {
    let output = directory.join("y.safetensors");
    let mut command = Command::new(python);
    let ran = command.arg(composed("load.py")).arg(directory).arg(&output).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    values(&read_weights(output).unwrap())["y"].as_real().unwrap().clone()
}

/// PEFT loads what we save, knows each key, misses none, and agrees. Without PEFT the tests above stand for it: what was
/// saved is byte for byte what PEFT wrote, and combinations agree with the outputs that it recorded.
#[test]
fn peft_loads_what_is_saved() {
    let Some(python) = python() else {
        eprintln!(
            "skipped: there is no PEFT in `python3`, and ENGRAFT_PEFT_PYTHON names no Python that has it"
        );
        return;
    };
    let (l1, l2, lb) = (tiny("l1"), tiny("l2"), tiny("lb"));
    let combined = combine(&[(0.5, &l1), (-1.5, &l2)]).unwrap();
    let biased = combine(&[(0.5, &lb), (1.0, &l2)]).unwrap();
    for adapter in [&l2, &tiny("d2"), &combined, &biased] {
        let place = tempfile::tempdir().unwrap();
        adapter.save(place.path()).unwrap();
        assert_agree(&output_of(adapter), &peft(&python, place.path()));
    }
}
