//! One compilation serves every batch and every adapter. The only test of its process, because it counts.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bindings, difference, run_in, weights};
use engraft_compiler::{Options, compilations, compile};
use engraft_ir::DType::F32;
use engraft_ir::eval::eval;
use engraft_ir::{GraphBuilder, Stage, dims, sample};
use engraft_runtime::Context;

#[test]
fn one_compilation_serves_all() {
    let g = GraphBuilder::new("layer");
    let x = g.input("x", F32, dims!["batch", 21]);
    let w = g.param("w", F32, dims![35, 21]);
    let a = g.param("a", F32, dims!["rank", 21]).adapter();
    let b = g.param("b", F32, dims![35, "rank"]).adapter();
    let m = g.param("m", F32, dims![35]).adapter();
    g.output("y", x.dora(w, a, b, m / w.lora_norm(a, b, 2.0), None, 2.0).relu());
    let graph = g.finish().unwrap();

    let before = compilations();
    let program = compile(&graph, &Options::default()).unwrap().program;
    let values = |batch, rank, seed| {
        sample::values(&graph, &bindings(&[("batch", batch), ("rank", rank)]), seed).unwrap()
    };
    // One base; its weights are in the values of seed 1.
    let base_values = values(1, 1, 1);
    let context = Context::new(engraft_runtime::Options::default()).unwrap();
    let base = program.load_base(&weights(&graph, &base_values, Stage::Base), context).unwrap();
    // Adapters of other ranks take turns; batches of every size go through each session.
    let mut sessions: Vec<_> = (1..5)
        .map(|rank| {
            let adapter = weights(&graph, &values(1, rank, rank), Stage::Adapter);
            (rank, base.load_adapter(&adapter).unwrap().session())
        })
        .collect();
    for batch in 1..=64 {
        for (rank, session) in &mut sessions {
            let mut given = values(batch, *rank, *rank);
            given.insert("w".to_owned(), base_values["w"].clone());
            let worst = difference(&run_in(session, &graph, &given), &eval(&graph, &given).unwrap());
            assert!(worst <= 1.0, "batch {batch}, rank {rank}: off by {worst} tolerances");
        }
    }
    assert_eq!(compilations() - before, 1);
}
