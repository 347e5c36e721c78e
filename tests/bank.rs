//! Banks: adapters of several kinds and ranks on one base, each row of a batch with its own, beside what PEFT recorded and
//! beside the same adapters attached one at a time.
#![allow(clippy::unwrap_used, reason = "tests unwrap")]

mod common;

use common::{data, model_directory, reals};
use engraft::compiler::compilations;
use engraft::import::peft::{PeftAdapter, adaptable, updates};
use engraft::import::safetensors::read_weights;
use engraft::ir::layers::linear;
use engraft::prelude::*;
use engraft::pretrained::{CompileOptions, CompiledModel, Pretrained};
use engraft::runtime::{self, Bank, Context, Weights};
use engraft_testing::assert_close;
use std::path::Path;
use std::sync::Arc;

/// As the recordings ask: `|ours - theirs| <= 1e-5 max(1, max |theirs|) + 1e-4 |theirs|`.
const ATOL: f64 = 1e-5;
const RTOL: f64 = 1e-4;

/// The adapter of each row of a recording; `None` for the base alone.
fn recorded_rows(recorded: &Path) -> Vec<Option<String>> {
    let json = std::fs::read_to_string(recorded.join("case.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let name = |row: &serde_json::Value| {
        let name = row.as_str().unwrap();
        (name != "__base__").then(|| name.to_owned())
    };
    json["row_adapters"].as_array().unwrap().iter().map(name).collect()
}

/// Those of these inputs that a call takes.
fn given(io: &Weights) -> Weights {
    let names = ["input_ids", "attention_mask", "token_type_ids", "position_ids"];
    io.iter().filter(|(name, _)| names.contains(name)).map(|(name, t)| (name, Arc::clone(t))).collect()
}

fn with_bank(base: &Path) -> CompiledModel {
    let options = CompileOptions { bank: true, ..CompileOptions::default() };
    Pretrained::open(base).unwrap().compile(options).unwrap()
}

/// A user's own graph, with the bank of the runtime.
#[test]
fn each_row_of_an_mlp_has_its_own_adapter() {
    let recorded = data("mixed/mlp");
    let g = GraphBuilder::new("mlp");
    let x = g.input("x", F32, dims!["batch", 24]);
    g.output("y", linear(linear(x, "fc1", 40, true).relu(), "fc2", 16, true));
    let graph = adaptable(&g.finish().unwrap()).unwrap();
    let program = compile(&graph, &Options::default()).unwrap().program;
    let weights = read_weights(recorded.join("base.safetensors")).unwrap();
    let context = Context::new(runtime::Options::default()).unwrap();
    let base = program.load_base(&weights, context).unwrap();
    let (bank, model) = (Bank::new(base.clone()), base.load_adapter(&Weights::new()).unwrap());
    let before = compilations();
    for name in ["a", "b", "c"] {
        let adapter = PeftAdapter::open(recorded.join("adapters").join(name)).unwrap();
        bank.load(name, &updates(&graph, &adapter).unwrap()).unwrap();
    }
    assert_eq!(compilations(), before);
    let io = read_weights(recorded.join("io.safetensors")).unwrap();
    let rows = bank.rows(&recorded_rows(&recorded)).unwrap();
    let outputs = model.session().run_rows(&[("x", io.get("x").unwrap())], &rows).unwrap();
    assert_close(&reals(&outputs[0].1), &reals(io.get("y").unwrap()), ATOL, RTOL);
}

#[test]
fn each_row_of_a_bert_has_its_own_adapter() {
    let recorded = data("mixed/bert");
    let (base, io) = (model_directory(&recorded), read_weights(recorded.join("io.safetensors")).unwrap());
    let model = with_bank(base.path());
    let bank = model.bank().unwrap();
    for name in ["a", "b", "c"] {
        bank.load(name, recorded.join("adapters").join(name)).unwrap();
    }
    let rows = bank.rows(&recorded_rows(&recorded)).unwrap();
    let outputs = model.run_rows(&given(&io), &rows).unwrap();
    assert_close(&reals(&outputs[0].1), &reals(io.get("y").unwrap()), ATOL, RTOL);
}
