//! What the tests of the whole product share: the recorded cases, and graphs of the bases they were recorded on.
#![allow(dead_code, clippy::unwrap_used, reason = "each test binary uses a part; tests unwrap")]

use engraft::import::safetensors::read_weights;
use engraft::ir::layers::{conv1d, embedding, linear};
use engraft::prelude::*;
use engraft::runtime::{self, Weights};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use tempfile::TempDir;

/// A file or directory of the recorded data.
pub fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The directory of a case that PEFT recorded.
pub fn case(name: &str) -> PathBuf {
    data("peft").join(name)
}

/// A recorded base as a model's directory.
pub fn model_directory(recorded: &Path) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let json = std::fs::read_to_string(recorded.join("case.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    std::fs::write(directory.path().join("config.json"), json["base_config"].to_string()).unwrap();
    std::fs::copy(recorded.join("base.safetensors"), directory.path().join("model.safetensors")).unwrap();
    directory
}

/// A tensor's elements, to be compared.
pub fn reals(tensor: &runtime::Tensor) -> Vec<f64> {
    tensor.as_f32().unwrap().iter().map(|&x| f64::from(x)).collect()
}

/// A file of a case.
pub fn file(name: &str, file: &str) -> Weights {
    read_weights(case(name).join(file)).unwrap()
}

/// The graph of the base that a case was recorded on, as `case.json` says.
pub fn base(name: &str) -> Graph {
    let json = std::fs::read_to_string(case(name).join("case.json")).unwrap();
    let case: serde_json::Value = serde_json::from_str(&json).unwrap();
    let g = GraphBuilder::new(case["base"].as_str().unwrap());
    let x = || g.input("x", F32, dims!["batch", 24]);
    let y = match case["base"].as_str().unwrap() {
        "mlp" => linear(linear(x(), "fc1", 40, true).relu(), "fc2", 16, true),
        "mlp_nobias" => linear(linear(x(), "fc1", 40, false).relu(), "fc2", 16, false),
        "mlp_square" => linear(linear(x(), "fc1", 24, true).relu(), "fc2", 24, true),
        "conv1d" => conv1d(conv1d(x(), "fc1", 40).gelu(), "fc2", 16),
        "emb" => {
            let ids = g.input("ids", I64, dims!["batch", "seq"]);
            linear(embedding(ids, "emb", 50, 24), "fc", 16, true)
        }
        other => panic!("there is no base `{other}`"),
    };
    g.output("y", y);
    g.finish().unwrap()
}

/// Those of a recording's inputs that a call takes.
pub fn given(io: &Weights) -> Weights {
    let names = ["input_ids", "attention_mask", "token_type_ids", "position_ids"];
    io.iter().filter(|(name, _)| names.contains(name)).map(|(name, t)| (name, Arc::clone(t))).collect()
}

/// What a successful command prints, which says nothing to standard error.
#[track_caller]
pub fn printed(arguments: &[&str], output: Output) -> String {
    let Output { status, stdout, stderr } = output;
    assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
    assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Requires exit code 1 and one line of error that says all of this.
#[track_caller]
pub fn refused(arguments: &[&str], output: Output, parts: &[&str]) {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr:?}");
    for part in parts {
        assert!(stderr.contains(part), "{stderr:?} should contain {part:?}");
    }
}
