//! Batches in slices: which graphs have items, that each item of those is computed from itself alone, and that a call that
//! is too large for the caches, and is run in slices, gives what each item gives alone.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bindings, program, run, run_in, weights};
use engraft_compiler::plan::{PlanOptions, plan};
use engraft_ir::DType::{F32, I64};
use engraft_ir::eval::Values;
use engraft_ir::ops::Attention;
use engraft_ir::value::Value;
use engraft_ir::{Dim, Graph, GraphBuilder, Stage, Symbol, Tensor, dims, sample};
use engraft_runtime::{AdapterWeights, Bank, Context, LayerWeights, Options, Rows, Update};
use engraft_testing::arb_graph;
use ndarray::{Axis, Slice};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::sync::Arc;

/// The symbol of the batch that a graph may be run in slices of.
fn items(graph: &Graph) -> Option<Symbol> {
    let plan = plan(graph, PlanOptions::default()).unwrap();
    plan.items.map(|items| plan.symbols[items].symbol.clone())
}

/// Values with one item of each input that has any.
fn item(graph: &Graph, values: &Values, symbol: &Symbol, index: usize) -> Values {
    let mut values = values.clone();
    for input in graph.inputs().iter().filter(|input| input.ty.shape.symbols().contains(symbol)) {
        let (axis, slice) = (Axis(0), Slice::from(index..=index));
        let value = values.get_mut(&input.name).unwrap();
        *value = match value {
            Value::Real(all) => all.slice_axis(axis, slice).to_owned().into(),
            Value::Int(all) => all.slice_axis(axis, slice).to_owned().into(),
        };
    }
    values
}

/// Requires that each item of the outputs is, to the last bit, what it is alone.
fn assert_items_are_alone(graph: &Graph, values: &Values, symbol: &Symbol, batch: usize) {
    let program = program(graph, true);
    let whole = run(&program, graph, values);
    let context = Context::new(Options::default()).unwrap();
    let base = program.load_base(&weights(graph, values, Stage::Base), context).unwrap();
    let mut session = base.load_adapter(&weights(graph, values, Stage::Adapter)).unwrap().session();
    for index in 0..batch {
        let alone = run_in(&mut session, graph, &item(graph, values, symbol, index));
        for (name, alone) in &alone {
            let (whole, alone) = (whole[name].as_real().unwrap(), alone.as_real().unwrap());
            let own = whole.slice_axis(Axis(0), Slice::from(index..=index));
            let same = own.iter().zip(alone).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()));
            assert!(same && own.shape() == alone.shape(), "`{name}`, item {index}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        rng_seed: RngSeed::Fixed(11),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn an_item_depends_on_itself_alone(graph in arb_graph(), seq in 1..4_u64, seed in 0..100_u64) {
        if let Some(symbol) = items(&graph) {
            let values = sample::values(&graph, &bindings(&[("batch", 3), ("seq", seq)]), seed).unwrap();
            assert_items_are_alone(&graph, &values, &symbol, 3);
        }
    }
}

type Write = for<'g> fn(&'g GraphBuilder, Tensor<'g>) -> Tensor<'g>;

#[test]
fn what_has_items_and_what_has_none() {
    let of = |write: Write| {
        let g = GraphBuilder::new("items");
        let x = g.input("x", F32, dims!["batch", "seq", 4]);
        g.output("y", write(&g, x));
        items(&g.finish().unwrap()).map(|symbol| symbol.to_string())
    };
    let heads = Attention { heads: 2, kv_heads: 2, scale: 0.5, causal: false, window: None };
    let have: &[(&str, Write)] = &[
        ("layers", |g, x| x.dense(g.param("w", F32, dims![3, 4]), None).gelu().layer_norm(None, None, 1e-5)),
        ("positions", |g, x| x + g.param("p", F32, dims![9, 4]).gather(g.input("at", I64, dims!["seq"]))),
        ("heads", |_, x| x.reshape(dims!["batch", "seq", 2, 2]).transpose(&[0, 2, 1, 3]).softmax(-1)),
        ("pooled", |_, x| x.mean(&[1])),
        ("batched", |_, x| x.matmul(x.transpose(&[0, 2, 1]))),
    ];
    for (name, write) in have {
        assert_eq!(of(*write).as_deref(), Some("batch"), "{name}");
    }
    let have_none: &[(&str, Write)] = &[
        ("sum over the batch", |_, x| x.sum(&[0])),
        ("softmax over the batch", |_, x| x.softmax(0)),
        ("rows that mix items", |_, x| x.reshape(dims![Dim::from("batch") * &Dim::from("seq"), 4])),
        ("the batch last", |_, x| x.transpose(&[1, 2, 0])),
        ("a shift along the batch", |_, x| x.concat(&[x], 0)),
        ("a layer whose rows have other adapters", |g, x| {
            let (z, w) = (g.input("z", F32, dims![3, 4]), g.param("w", F32, dims![4, 4]));
            x + z.adaptable("fc", w, None).mean(&[0])
        }),
        ("a norm for all items", |g, x| {
            let (w, b) = (g.param("w", F32, dims![4, 4]), g.param("b", F32, dims![4, 1]).live());
            x.dense(w, None) / w.lora_norm(g.param("a", F32, dims![1, 4]).live(), b, 1.0)
        }),
        ("an output of all items", |g, x| {
            g.output("scale", g.input("s", F32, dims![4]).exp());
            x.tanh()
        }),
    ];
    for (name, write) in have_none {
        assert_eq!(of(*write), None, "{name}");
    }
    let g = GraphBuilder::new("decoder");
    let x = g.input("x", F32, dims!["batch", 1, 4]);
    let past = g.append(g.carried("past", F32, dims!["past", "batch", 4]), x.transpose(&[1, 0, 2]));
    let keys = past.transpose(&[1, 0, 2]);
    g.output("y", x.attention(keys, keys, None, heads));
    assert_eq!(items(&g.finish().unwrap()), None);
}

/// 24 MB of scratch: six slices of four megabytes, of 6 and 7 items.
#[test]
fn a_large_call_is_each_item_alone() {
    let g = GraphBuilder::new("large");
    let x = g.input("x", F32, dims!["batch", 77_000]);
    let bias = g.param("bias", F32, dims![77_000]);
    g.output("y", (x.softmax(-1) + bias).layer_norm(None, None, 1e-5).softmax(-1));
    g.output("mean", x.rms_norm(None, 1e-5).mean(&[-1]));
    let graph = g.finish().unwrap();
    let values = sample::values(&graph, &bindings(&[("batch", 40)]), 3).unwrap();
    assert_items_are_alone(&graph, &values, &items(&graph).unwrap(), 40);
}

/// The adapters of a batch that is run in slices, and an id out of range in its last slice.
#[test]
fn slices_have_their_own_adapters_and_faults() {
    let g = GraphBuilder::new("large");
    let ids = g.input("ids", I64, dims!["batch", 2048]);
    let h = g.param("table", F32, dims![5, 16]).gather(ids).softmax(-1);
    let y = h.adaptable("fc", g.param("w", F32, dims![48, 16]), None).softmax(-1);
    g.output("y", y.adaptable("out", g.param("v", F32, dims![3, 48]), None).mean(&[1]));
    let graph = g.finish().unwrap();
    let values = sample::values(&graph, &bindings(&[("batch", 60)]), 3).unwrap();
    let base = program(&graph, true)
        .load_base(&weights(&graph, &values, Stage::Base), Context::new(Options::default()).unwrap())
        .unwrap();
    let model = base.load_adapter(&engraft_runtime::Weights::new()).unwrap();
    let bank = Bank::new(base);
    for rank in 1..4_usize {
        let filled = |shape: [usize; 2], value: f32| {
            let data = (0..shape[0] * shape[1]).map(|i| value * ((i % 7) as f32 - 3.0)).collect();
            Arc::new(engraft_runtime::Tensor::f32(&shape, data).unwrap())
        };
        let (a, b) = (filled([rank, 16], 0.5), filled([48, rank], rank as f32));
        let updates = vec![Update { a, b, scale: 1.0, magnitude: None, bias_of_b: None }];
        let weights =
            AdapterWeights::from([("fc".to_owned(), LayerWeights { updates, ..LayerWeights::default() })]);
        bank.load(&rank.to_string(), &weights).unwrap();
    }
    let name = |item: usize| (!item.is_multiple_of(4)).then(|| (item % 4).to_string());
    let ids: Vec<i64> = (0..60 * 2048_i64).map(|i| i * 31 % 5).collect();
    let mut session = model.session();
    let mut call = |ids: &[i64], rows: &Rows| {
        let ids = engraft_runtime::Tensor::i64(&[ids.len() / 2048, 2048], ids.to_vec()).unwrap();
        session.run_rows(&[("ids", &ids)], rows).map(|mut outputs| outputs.remove(0).1)
    };
    let rows = bank.rows(&(0..60).map(name).collect::<Vec<_>>()).unwrap();
    let whole = call(&ids, &rows).unwrap();
    for item in 0..60 {
        let alone = call(&ids[item * 2048..(item + 1) * 2048], &bank.rows(&[name(item)]).unwrap()).unwrap();
        assert_eq!(whole.as_f32().unwrap()[item * 3..(item + 1) * 3], *alone.as_f32().unwrap(), "{item}");
    }
    let mut wrong = ids;
    wrong[60 * 2048 - 1] = 5;
    let error = call(&wrong, &rows).unwrap_err().to_string();
    assert!(error.contains("id 5 is out of range, expected 0..5"), "{error}");
}
