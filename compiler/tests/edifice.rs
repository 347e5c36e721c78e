//! Edifice's layers, optimised and compiled: which op each meaning becomes, that the code agrees with the reference, and
//! that the output meaning cannot be merged.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bindings, difference, run};
use engraft_compiler::{CompileError, Merging, Options, compile};
use engraft_ir::eval::eval;
use engraft_ir::layers::{DoraConfig, DoraMeaning, DoraOptions, LoraConfig, dora};
use engraft_ir::{DType::F32, Graph, GraphBuilder, dims, sample};

fn wrapped(meaning: DoraMeaning) -> Graph {
    let g = GraphBuilder::new("wrapped");
    let x = g.input("input", F32, dims!["batch", 20]);
    let bias = g.param("dense.bias", F32, dims![12]);
    let dense = x.dense(g.param("dense.weight", F32, dims![12, 20]), Some(bias));
    g.output("output", dora::wrap(dense, &DoraOptions { rank: 4, meaning, ..DoraOptions::default() }));
    g.finish().unwrap()
}

/// Compiles in every way that has a meaning; the graph must become one `op`.
fn becomes(graph: &Graph, op: &str, mergeable: bool) {
    let values = sample::values(graph, &bindings(&[("batch", 5)]), 7).unwrap();
    let theirs = eval(graph, &values).unwrap();
    for (optimize, merge) in [(true, false), (false, false), (true, true), (false, true)] {
        let compiled =
            compile(graph, &Options { optimize, merge: Merging::all(merge), ..Options::default() });
        if merge && !mergeable {
            assert!(matches!(compiled, Err(CompileError::Pipeline(_))), "merging {op} must be refused");
            continue;
        }
        let compiled = compiled.unwrap_or_else(|e| panic!("{e}"));
        if optimize && !merge {
            assert_eq!(compiled.graph.op_counts().get(op), Some(&1), "{}", compiled.trace);
        }
        let worst = difference(&run(&compiled.program, graph, &values), &theirs);
        assert!(worst <= 1.0, "off by {worst} tolerances (optimize {optimize}, merge {merge})");
    }
}

#[test]
fn the_weight_meaning_is_dora_and_merges() {
    becomes(&DoraConfig::new(20, 12).rank(4).build().unwrap(), "dora", true);
    becomes(&wrapped(DoraMeaning::Weight), "dora", true);
}

#[test]
fn the_output_meaning_is_output_dora_and_does_not_merge() {
    becomes(
        &DoraConfig::new(20, 12).rank(4).meaning(DoraMeaning::Output).build().unwrap(),
        "output_dora",
        false,
    );
    becomes(&wrapped(DoraMeaning::Output), "output_dora", false);
}

#[test]
fn lora_is_lora_and_merges() {
    becomes(&LoraConfig::new(20, 12).rank(4).build().unwrap(), "lora", true);
}
