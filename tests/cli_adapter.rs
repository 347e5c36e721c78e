//! `engraft adapter`: what it tells of adapters, what it writes, and what it refuses, and that what it writes computes the
//! same.
#![allow(clippy::unwrap_used, reason = "tests unwrap, also outside test functions")]

mod common;

use common::{case, model_directory, printed, reals, refused};
use engraft::import::safetensors::read_weights;
use engraft_testing::assert_close;
use serde_json::{Value as Json, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// Runs in the directory of the recorded data, so that paths are the same everywhere.
fn engraft(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
    command.args(arguments).current_dir(common::data(""));
    command.output().unwrap()
}

/// What a successful command prints: nothing to standard error, and no wider than the page.
#[track_caller]
fn succeeds(arguments: &[&str]) -> String {
    let text = printed(arguments, engraft(arguments));
    if !arguments.contains(&"--json") {
        // A path may be as long as it likes.
        let temporary = std::env::temp_dir();
        let fits = |line: &str| line.chars().count() <= 80 || line.contains(temporary.to_str().unwrap());
        assert!(text.lines().all(fits), "{text}");
    }
    text
}

#[track_caller]
fn succeeds_as_json(arguments: &[&str]) -> Json {
    serde_json::from_str(&succeeds(&[arguments, &["--json"]].concat())).unwrap()
}

/// Requires exit code 1 and one line of error that says all of this.
#[track_caller]
fn refuses(arguments: &[&str], parts: &[&str]) {
    refused(arguments, engraft(arguments), parts);
}

/// A place for what a test makes.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    /// The adapter of a case with other fields in its config.
    fn adapter(&self, name: &str, changes: Json) -> String {
        let path = self.path(&format!("{name}-changed"));
        fs::create_dir_all(&path).unwrap();
        let mut config: Json =
            serde_json::from_str(&fs::read_to_string(case(name).join("adapter_config.json")).unwrap())
                .unwrap();
        let Json::Object(changes) = changes else { panic!("changes are an object") };
        config.as_object_mut().unwrap().extend(changes);
        let to = |file: &str| PathBuf::from(&path).join(file);
        fs::write(to("adapter_config.json"), config.to_string()).unwrap();
        fs::copy(case(name).join("adapter_model.safetensors"), to("adapter_model.safetensors")).unwrap();
        path
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn inspect_tells_what_is_in_an_adapter() {
    for name in ["lora_rank_alpha_pattern", "lora_modules_to_save", "dora_embedding", "pissa"] {
        insta::assert_snapshot!(name, succeeds(&["adapter", "inspect", &format!("peft/{name}")]));
    }
    insta::assert_snapshot!("lora_json", succeeds(&["adapter", "inspect", "composed/lb", "--json"]));
}

#[test]
fn inspect_tells_what_changes_on_a_base() {
    for name in ["bert_dora", "gpt2_dora"] {
        let base = model_directory(&case(name));
        let arguments = ["adapter", "inspect", &format!("peft/{name}"), "--base", text(base.path())];
        insta::assert_snapshot!(format!("{name}_on_base"), succeeds(&arguments));
        let facts = succeeds_as_json(&arguments);
        let modules = facts["modules"].as_array().unwrap();
        let changes: Vec<_> =
            modules.iter().map(|module| module["relative_change"].as_f64().unwrap()).collect();
        assert!(changes.is_sorted_by(|a, b| a >= b), "{changes:?}");
        let relative = |module: &Json| {
            let [update, weight] = ["norm_update", "norm_weight"].map(|norm| module[norm].as_f64().unwrap());
            (module["relative_update"].as_f64().unwrap() - update / weight).abs()
        };
        assert!(modules.iter().all(|module| relative(module) < 1e-12));
        assert!(modules.iter().all(|module| module["gain"][0].as_f64() <= module["gain"][1].as_f64()));
    }
}

/// A config that is not supported is a fact; no adapter is an error.
#[test]
fn inspect_tells_what_would_be_refused() {
    let place = Place::new();
    let adapter = place.adapter("lora", json!({"use_qalora": true}));
    let printed = succeeds(&["adapter", "inspect", &adapter]);
    assert!(printed.starts_with("refused: ") && printed.contains("`use_qalora` is true"), "{printed}");
    let facts = succeeds_as_json(&["adapter", "inspect", &adapter]);
    assert!(facts["refused"].as_str().unwrap().contains("use_qalora"), "{facts}");
    let facts = succeeds_as_json(&["adapter", "inspect", &place.adapter("lora", json!({"r": 3}))]);
    assert!(
        facts["refused"].as_str().unwrap().contains("expected [3, 24] (r is 3 by the config)"),
        "{facts}"
    );

    let llama = model_directory(&case("llama_dora"));
    let facts = succeeds_as_json(&["adapter", "inspect", "peft/bert_dora", "--base", text(llama.path())]);
    let refusals = facts["would_refuse"].as_array().unwrap();
    let uses: Vec<_> = refusals.iter().map(|refusal| refusal["use"].as_str().unwrap()).collect();
    assert_eq!(uses, ["a weighted combination", "this base"]);
    let place = Place::new();
    refuses(&["adapter", "inspect", &place.path("none")], &["adapter_config.json"]);
    refuses(
        &["adapter", "inspect", "peft/lora", "--base", &place.path("none")],
        &[&format!("{}: No such file", place.path("none"))],
    );
    refuses(
        &["adapter", "inspect", "peft/lora", "--base", "peft/lora/adapter_config.json"],
        &["peft/lora/adapter_config.json: expected a model's directory"],
    );
    refuses(&["adapter", "inspect", "peft/lora", "--base", &place.path("")], &["config.json"]);
}

/// What a model computes for a case's recorded input.
fn output(place: &Place, name: &str, arguments: &[&str]) -> Vec<f64> {
    let (io, written) = (case(name).join("io.safetensors"), place.path("y.safetensors"));
    succeeds(&[&["run"], arguments, &["--input", text(&io), "--output", &written]].concat());
    let output = if name == "bert_dora" { "last_hidden_state" } else { "logits" };
    let outputs = read_weights(&written).unwrap();
    fs::remove_file(&written).unwrap();
    reals(outputs.get(output).unwrap())
}

#[test]
fn a_merged_model_runs_as_the_base_with_the_adapter() {
    for name in ["bert_dora", "llama_dora", "gpt2_dora"] {
        let (base, place, adapter) = (model_directory(&case(name)), Place::new(), case(name));
        let (base, adapter, merged) = (text(base.path()), text(&adapter), place.path("merged"));
        let printed = succeeds(&["adapter", "merge", base, "--adapter", adapter, "--output", &merged]);
        assert!(
            printed.contains(" tensors changed, ") && printed.contains("copied: config.json"),
            "{printed}"
        );
        let theirs = output(&place, name, &[base, "--adapter", adapter]);
        assert_close(&output(&place, name, &[&merged]), &theirs, 1e-5, 1e-4);
        assert_ne!(output(&place, name, &[base]), theirs);

        let back = place.path("back");
        let unmerge = ["adapter", "merge", "--unmerge", &merged, "--adapter", adapter, "--output", &back];
        let facts = succeeds_as_json(&unmerge);
        assert!(facts["changed"][0].get("survival").is_none());
        assert_close(&output(&place, name, &[&back]), &output(&place, name, &[base]), 1e-5, 1e-4);
        assert_eq!(place.names(), ["back", "merged"]);
    }
}

#[test]
fn merge_tells_what_survives_and_refuses_too_little() {
    let (base, place) = (model_directory(&case("bert_dora")), Place::new());
    let out = place.path("out");
    let merge = [
        "adapter",
        "merge",
        text(base.path()),
        "--adapter",
        "peft/bert_dora",
        "--output",
        &out,
        "--dtype",
        "bf16",
    ];
    let strict = [&merge[..], &["--survival", "0.9999"]].concat();
    refuses(
        &strict,
        &["rounded to bf16, only 99.", "`encoder.layer.", "at least 100.0% should", "(4 tensors have less)"],
    );
    assert!(place.names().is_empty());
    let facts = succeeds_as_json(&[&strict[..], &["--force"]].concat());
    let changed = facts["changed"].as_array().unwrap();
    assert_eq!(changed.len(), 4);
    for tensor in changed {
        assert_eq!((&tensor["what"], &tensor["dtype"]), (&json!("adapted"), &json!("bf16")));
        assert!((0.99..0.9999).contains(&tensor["survival"].as_f64().unwrap()), "{tensor}");
    }
    refuses(&merge, &["out: there is something already"]);
    fs::remove_dir_all(&out).unwrap();
    insta::assert_snapshot!("merge", succeeds(&merge).replace(&out, "[out]"));
    let gguf = place.path("model.gguf");
    fs::write(&gguf, "GGUF").unwrap();
    refuses(
        &["adapter", "merge", &gguf, "--adapter", "peft/lora", "--output", "x"],
        &["model.gguf", "not merged into"],
    );
    for wrong in [["--dtype", "f64"], ["--survival", "2"], ["--survival", "x"]] {
        assert_eq!(
            engraft(&[&merge[..6], &["--output", "x"], &wrong].concat()).status.code(),
            Some(2),
            "{wrong:?}"
        );
    }
    assert_eq!(engraft(&[&merge[..], &["--unmerge", "--force"]].concat()).status.code(), Some(2));
}

#[test]
fn export_writes_what_peft_wrote() {
    let place = Place::new();
    for name in ["composed/d1", "peft/lora_embedding", "peft/lora_modules_to_save"] {
        let new = place.path(&name.replace('/', "-"));
        succeeds(&["adapter", "export", "--adapter", name, "--output", &new]);
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let [ours, theirs] = [Path::new(&new), &common::data(name)]
                .map(|directory| fs::read(directory.join(file)).unwrap());
            assert!(ours == theirs, "{name}/{file}");
        }
    }
}

/// `l1` less itself is nothing, and half of it is half.
#[test]
fn export_combines_and_diff_compares() {
    let place = Place::new();
    let [half, none, mixed] = ["half", "none", "mixed"].map(|name| place.path(name));
    let export = |adapters: &[&str], output: &str| {
        let adapters = adapters.iter().flat_map(|adapter| ["--adapter", adapter]);
        succeeds(&[&["adapter", "export"], &adapters.collect::<Vec<_>>()[..], &["--output", output]].concat())
    };
    assert!(export(&["composed/l1*0.5"], &half).starts_with("LoRA on 2 modules in "));
    export(&["composed/l1*1.5", "composed/l1*-1.5"], &none);
    export(&["composed/l1*0.5", "composed/l2*-1.5"], &mixed);

    let diff = |first: &str, second: &str| succeeds_as_json(&["adapter", "diff", first, second]);
    let facts = diff("composed/l1", &half);
    for module in facts["modules"].as_array().unwrap() {
        let near = |field: &str, expected: f64| {
            let found = module[field].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-6, "{field} is {found}");
        };
        near("cosine", 1.0);
        near("relative_difference", 0.5);
    }
    let facts = diff("composed/l1", &none);
    let zero = |module: &Json| module["norms"][1].as_f64().unwrap() < 1e-6;
    assert!(facts["modules"].as_array().unwrap().iter().all(zero), "{facts}");
    let facts = diff("composed/l1", "composed/l1");
    assert_eq!((&facts["same"], &facts["different"]), (&json!(2), &json!(0)));
    assert_eq!(facts["modules"][0]["relative_difference"], 0.0);

    insta::assert_snapshot!("diff_lora", succeeds(&["adapter", "diff", "composed/l1", "composed/l2"]));
    insta::assert_snapshot!("diff_dora", succeeds(&["adapter", "diff", "composed/d1", "composed/d2"]));
    insta::assert_snapshot!(
        "diff_json",
        succeeds(&["adapter", "diff", "composed/l1", "composed/d1", "--json"])
    );
    let other = diff("composed/l1", "peft/lora");
    assert_eq!(other["modules"][0]["shapes"], json!([[8, 6], [40, 24]]));
}

#[test]
fn diff_compares_what_two_make_of_a_base() {
    let base = model_directory(&case("bert_dora"));
    let diff = |second: &str| {
        succeeds_as_json(&["adapter", "diff", "peft/bert_dora", second, "--base", text(base.path())])
    };
    let facts = diff("peft/bert_dora");
    let merged = &facts["modules"][0]["merged"];
    assert_eq!((&facts["same"], &merged["relative_difference"]), (&json!(4), &json!(0.0)));
    assert!((merged["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-12);
    let place = Place::new();
    let doubled = place.adapter("bert_dora", json!({"lora_alpha": 32}));
    let module = &diff(&doubled)["modules"][0];
    assert!((module["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-9, "the updates are twice as long");
    let merged = module["merged"]["cosine"].as_f64().unwrap();
    assert!((0.5..0.999).contains(&merged), "but the weights are normalised: {merged}");
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let place = Place::new();
    let out = place.path("out");
    let export = |adapter: &str, parts: &[&str]| {
        refuses(
            &["adapter", "export", "--adapter", "composed/l1", "--adapter", adapter, "--output", &out],
            parts,
        );
        assert!(place.names().is_empty());
    };
    export("composed/d1", &["composed/d1: module `fc1`: ", "DoRA is none: its gain multiplies W"]);
    export("peft/lora", &["peft/lora: module `fc1`: the adapter is for 24 inputs and 40 outputs"]);
    export("peft/pissa", &["peft/pissa: adapter 2 was initialised by `pissa`"]);
    export("peft/lora_bias_all", &["peft/lora_bias_all: adapter 2 replaces `fc1.base_layer.bias`"]);
    export("peft/none", &["none", "adapter_config.json"]);
    fs::create_dir(&out).unwrap();
    fs::write(place.path("out/x"), "").unwrap();
    refuses(
        &["adapter", "export", "--adapter", "composed/l1", "--output", &out],
        &["there is something already"],
    );
    let bad = ["adapter", "export", "--adapter", "composed/l1*x", "--output", &out];
    assert_eq!(engraft(&bad).status.code(), Some(2));
}

/// The adapter is named by its directory, whichever of several it is.
#[test]
fn what_does_not_fit_is_named() {
    let (base, place) = (model_directory(&case("bert_dora")), Place::new());
    let base = text(base.path());
    let none = ["peft/llama_dora: adapter 2: the adapter's config targets none of the graph's modules"];
    refuses(&["adapter", "diff", "peft/bert_dora", "peft/llama_dora", "--base", base], &none);
    let out = place.path("out");
    let merge = ["adapter", "merge", base, "--adapter", "peft/bert_dora", "--adapter", "peft/llama_dora"];
    refuses(&[&merge[..], &["--output", &out]].concat(), &none);

    let untargeted = place.adapter("dora", json!({"target_modules": ["fc2"]}));
    let parts = [&format!("{untargeted}: "), "module `fc1` has tensors, but the config does not target it"];
    refuses(&["adapter", "diff", "peft/dora", &untargeted], &parts);
    refuses(&["adapter", "export", "--adapter", &untargeted, "--output", &out], &parts);

    let stray = place.path("stray");
    fs::create_dir(&stray).unwrap();
    let file = |name: &str| PathBuf::from(&stray).join(name);
    fs::copy(case("dora").join("adapter_config.json"), file("adapter_config.json")).unwrap();
    fs::copy(case("dora").join("base.safetensors"), file("adapter_model.safetensors")).unwrap();
    let parts = [
        &format!("{stray}/adapter_model.safetensors: "),
        "expected a name that starts with `base_model.model.`",
    ];
    refuses(&["adapter", "export", "--adapter", &stray, "--output", &out], &parts);
}
