//! The command on whole models: what it prints and writes, and what it says of bad input.
#![allow(clippy::unwrap_used, reason = "tests unwrap")]

mod common;

use common::{case, data, file, model_directory, reals};
use engraft::import::safetensors::read_weights;
use engraft_testing::{MINILM, SMOLLM2, assert_close, model};
use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn engraft(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may fail before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
fn succeeds(arguments: &[&str], input: &str) -> String {
    let output = engraft(arguments, input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The one line that a failing command says.
#[track_caller]
fn fails(arguments: &[&str]) -> String {
    let output = engraft(arguments, "");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

fn path(of: &std::path::Path) -> &str {
    of.to_str().unwrap()
}

#[test]
fn run_takes_a_directory_an_adapter_and_inputs() {
    for (name, output) in
        [("bert_dora", "last_hidden_state"), ("llama_dora", "logits"), ("gpt2_dora", "logits")]
    {
        let (base, place) = (model_directory(&case(name)), tempfile::tempdir().unwrap());
        let (input, written) = (case(name).join("io.safetensors"), place.path().join("y.safetensors"));
        let adapter = case(name);
        let printed = succeeds(
            &[
                "run",
                path(base.path()),
                "--adapter",
                path(&adapter),
                "--input",
                path(&input),
                "--output",
                path(&written),
            ],
            "",
        );
        assert!(printed.contains(&format!("{output} f32[3, 11, ")), "{printed}");
        let (ours, theirs) = (read_weights(&written).unwrap(), file(name, "io.safetensors"));
        assert_close(&reals(ours.get(output).unwrap()), &reals(theirs.get("y").unwrap()), 1e-5, 1e-4);
    }
}

#[test]
fn verify_proves_a_whole_model() {
    let base = model_directory(&case("bert_dora"));
    let adapter = case("bert_dora");
    let printed = succeeds(&["verify", path(base.path()), "--adapter", path(&adapter)], "");
    assert!(printed.contains("fuse_dora"), "{printed}");
}

#[test]
fn bad_models_are_one_line_that_names_them() {
    let base = model_directory(&case("bert_dora"));
    let config = base.path().join("config.json");
    let original = fs::read_to_string(&config).unwrap();
    let embed = |adapter: Option<&str>| {
        let mut arguments = vec!["embed", path(base.path())];
        arguments.extend(adapter.into_iter().flat_map(|adapter| ["--adapter", adapter]));
        fails(&arguments)
    };
    assert!(embed(None).contains("tokenizer.json"));
    let adapter = case("llama_dora");
    assert!(embed(Some(path(&adapter))).contains("llama_dora"));
    assert!(fails(&["generate", path(base.path()), "--prompt", "x"]).contains("expected a decoder"));
    fs::write(&config, original.replace("\"gelu\"", "\"swiglu\"")).unwrap();
    let line = embed(None);
    assert!(line.contains("config.json") && line.contains("hidden_act") && line.contains("swiglu"), "{line}");
    fs::write(&config, "{").unwrap();
    assert!(embed(None).contains("config.json"));
    fs::write(&config, &original).unwrap();
    let weights = base.path().join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 4]).unwrap();
    assert!(embed(None).contains("model.safetensors"));
    fs::remove_file(&weights).unwrap();
    assert!(embed(None).contains("model.safetensors"));
    let gguf = base.path().join("broken.gguf");
    fs::write(&gguf, b"GGUF\x03\0\0\0").unwrap();
    assert!(fails(&["generate", path(&gguf), "--prompt", "x"]).contains("broken.gguf"));
}

#[test]
fn embed_prints_lines_of_json_or_writes_an_array() {
    let Some(minilm) = model(MINILM) else { return };
    let (adapter, place) = (data("minilm-dora"), tempfile::tempdir().unwrap());
    let json = fs::read_to_string(adapter.join("case.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let sentences: Vec<String> = serde_json::from_value(json["sentences"].clone()).unwrap();
    let text = sentences.join("\n");
    let printed = succeeds(&["embed", path(&minilm), "--adapter", path(&adapter)], &text);
    let io = read_weights(adapter.join("io.safetensors")).unwrap();
    let theirs = reals(io.get("embeddings").unwrap());
    let mut ours = Vec::new();
    for (line, sentence) in printed.lines().zip(&sentences) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["text"], **sentence);
        ours.extend(line["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()));
    }
    assert_close(&ours, &theirs, 1e-5, 1e-4);

    let (file, npy) = (place.path().join("texts.txt"), place.path().join("v.npy"));
    fs::write(&file, &text).unwrap();
    succeeds(
        &[
            "embed",
            path(&minilm),
            "--adapter",
            path(&adapter),
            "--merge",
            "--text",
            path(&file),
            "--output",
            path(&npy),
        ],
        "",
    );
    let array: ndarray::Array2<f32> = ndarray_npy::read_npy(&npy).unwrap();
    assert_eq!(array.shape(), [12, 384]);
    let array: Vec<f64> = array.iter().map(|&x| f64::from(x)).collect();
    assert_close(&array, &theirs, 1e-5, 1e-4);
}

#[test]
fn generate_prints_text_or_facts() {
    let Some(smollm2) = model(SMOLLM2) else { return };
    let arguments = ["generate", path(&smollm2), "--prompt", "The capital of France is", "--tokens", "4"];
    let printed = succeeds(&arguments, "");
    assert!(printed.starts_with(" Paris.\n"), "{printed}");
    let facts = succeeds(&[arguments.as_slice(), &["--json"]].concat(), "");
    let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
    assert_eq!(facts["tokens"], serde_json::json!([7042, 30, 198, 198]));
    assert_eq!(facts["end"], "token limit");
    let bad = [arguments.as_slice(), &["--temperature=-1"]].concat();
    assert!(fails(&bad).contains("the temperature is -1"));
}
