//! Models give what transformers and PEFT recorded, in the reference interpreter.
#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod common;

use common::models::{Recorded, data, json};
use engraft_import::models::GraphOptions;
use engraft_import::peft::PeftAdapter;
use ndarray::{ArrayD, Axis};

/// A case that PEFT recorded: the base, and the base with its adapter.
fn check_adapted(name: &str) {
    let case = Recorded::open(data("peft").join(name));
    case.check(None, "y_base");
    let adapter = PeftAdapter::open(data("peft").join(name)).unwrap();
    case.check(Some(&adapter), "y");
}

#[test]
fn bert_dora() {
    check_adapted("bert_dora");
}

/// One adapter at a time, on the rows that were recorded with it.
#[test]
fn bert_with_several_adapters() {
    let directory = data("mixed").join("bert");
    let case = Recorded::open(&directory);
    let rows = json(&directory.join("case.json"))["row_adapters"].clone();
    let rows: Vec<&str> = rows.as_array().unwrap().iter().map(|row| row.as_str().unwrap()).collect();
    let theirs = &case.io["y"];
    let mut compared = 0;
    for name in ["__base__", "a", "b", "c"] {
        let adapter =
            (name != "__base__").then(|| PeftAdapter::open(directory.join("adapters").join(name)).unwrap());
        let ours = case.run(adapter.as_ref(), &case.given, &GraphOptions::default());
        let chosen: Vec<usize> = (0..rows.len()).filter(|&row| rows[row] == name).collect();
        let select = |all: &ArrayD<f64>| all.select(Axis(0), &chosen);
        case.assert_agree(&select(&ours), &select(theirs.as_real().unwrap()));
        compared += chosen.len();
    }
    assert_eq!(compared, rows.len());
}
