//! Adapters of a bank that are merged, all of them or those that the cost model chooses: beside what PEFT recorded, in the
//! memory that they may take, and with nothing compiled when they are loaded.
#![allow(clippy::unwrap_used, reason = "tests unwrap")]

mod common;

use common::{case, data, given, model_directory, reals};
use engraft::compiler::plan::merge_cost::Workload;
use engraft::compiler::{CostModel, MergeRule, Merging, compilations};
use engraft::import::safetensors::read_weights;
use engraft::ir::Bindings;
use engraft::pretrained::{CompileOptions, CompiledModel, Pretrained};
use engraft::runtime::measure::{Level, Rates};
use engraft_testing::assert_close;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

/// Held by a test that counts compilations, and by one that compiles: they are of the whole process.
static COMPILING: Mutex<()> = Mutex::new(());

/// A machine on which merging pays as soon as an adapter stays.
fn by_cost(memory: Option<u64>) -> Merging {
    let rates = Rates {
        panel: 48,
        block: 128,
        block_inputs: 1024,
        tile: (1..=8).map(|rows| f64::from(rows) * 1e-9).collect(),
        dot: 1e-10,
        merge: 1e-12,
        memory: vec![Level { bytes: 1 << 20, read: 192e9, apart: [1e-9, 8e-9], first: 8e-9, fresh: 1e9 }],
    };
    let workload = Workload { rows: 8, memory, ..Workload::default() };
    Merging::by_cost(CostModel { rates, workload, dims: Bindings::new() })
}

fn model(base: &Path, merge: Merging) -> CompiledModel {
    let options = CompileOptions { bank: true, merge, ..CompileOptions::default() };
    Pretrained::open(base).unwrap().compile(options).unwrap()
}

/// The bytes of each adapter's merged weights.
fn merged_bytes(model: &CompiledModel) -> Vec<usize> {
    model.bank().unwrap().list().iter().map(|(_, adapter)| adapter.merged_bytes()).collect()
}

/// The adapter of each row of the recording; `None` for the base alone.
fn recorded_rows(recorded: &Path) -> Vec<Option<String>> {
    let json = std::fs::read_to_string(recorded.join("case.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let names = json["row_adapters"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
    names.map(|name| (name != "__base__").then(|| name.to_owned())).collect()
}

#[test]
fn each_row_of_a_bert_has_its_own_merged_adapter() {
    let _compiling = COMPILING.lock();
    let recorded = data("mixed/bert");
    let (base, io) = (model_directory(&recorded), read_weights(recorded.join("io.safetensors")).unwrap());
    let all = {
        let model = model(base.path(), Merging::ALWAYS);
        for name in ["a", "b", "c"] {
            model.bank().unwrap().load(name, recorded.join("adapters").join(name)).unwrap();
        }
        merged_bytes(&model)
    };
    assert!(all.iter().all(|&bytes| bytes > 0), "{all:?}");
    let enough = all[0] as u64 + all[1] as u64 / 2;
    for merge in [Merging::ALWAYS, by_cost(None), by_cost(Some(enough)), by_cost(Some(0))] {
        let memory = merge.model().and_then(|model| model.workload.memory);
        let model = model(base.path(), merge);
        let bank = model.bank().unwrap();
        let before = compilations();
        for name in ["a", "b", "c"] {
            bank.load(name, recorded.join("adapters").join(name)).unwrap();
        }
        // One that is replaced gives back what it took.
        bank.replace("a", recorded.join("adapters").join("a")).unwrap();
        assert_eq!(compilations(), before);
        let taken = merged_bytes(&model);
        match memory {
            None => assert_eq!(taken, all),
            Some(memory) => {
                assert!(taken.iter().sum::<usize>() as u64 <= memory, "{taken:?}");
                assert_eq!(taken[0], if memory == 0 { 0 } else { all[0] });
            }
        }
        let rows = bank.rows(&recorded_rows(&recorded)).unwrap();
        let outputs = model.run_rows(&given(&io), &rows).unwrap();
        assert_close(&reals(&outputs[0].1), &reals(io.get("y").unwrap()), 1e-5, 1e-4);
    }
}

#[test]
fn one_layer_may_be_said_to_be_merged_and_must_be_there() {
    let _compiling = COMPILING.lock();
    let base = model_directory(&case("bert_dora"));
    let weights = |merge: Merging| {
        let model = model(base.path(), merge);
        let bank = model.bank().unwrap();
        let mut weights = bank.weights(case("bert_dora")).unwrap();
        bank.decide(&mut weights, None);
        weights
    };
    let name = weights(Merging::NEVER).into_keys().next().unwrap();
    let one = Merging { rule: MergeRule::Never, layers: BTreeMap::from([(name.clone(), true)]) };
    let marked: Vec<_> =
        weights(one).into_iter().filter(|(_, layer)| layer.merge).map(|(name, _)| name).collect();
    assert_eq!(marked, [name]);
    let none = Merging { rule: MergeRule::Never, layers: BTreeMap::from([("fc9".to_owned(), true)]) };
    let options = CompileOptions { bank: true, merge: none, ..CompileOptions::default() };
    let error = Pretrained::open(base.path()).unwrap().compile(options).err().unwrap().to_string();
    assert!(error.starts_with("there is no adapted layer `fc9`; there are: "), "{error}");
}
