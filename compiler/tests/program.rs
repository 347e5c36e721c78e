//! Compiled programs from outside: one program serves every batch, thread, adapter and set of kernels; what cannot be
//! run is refused by name.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bindings, difference, run_in, weights};
use engraft_compiler::pipeline::PipelineError;
use engraft_compiler::plan::PlanError;
use engraft_compiler::{CompileError, Options, compile};
use engraft_ir::DType::{F32, F64, I64};
use engraft_ir::eval::{Values, eval};
use engraft_ir::ops::{Input, Unary};
use engraft_ir::{Dim, Graph, GraphBuilder, Shape, Stage, dims, sample};
use engraft_runtime::{CallError, Context, KernelSet, Model, StageError, Tensor};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// A DoRA layer with an epilogue, a norm and a softmax.
fn layer() -> Graph {
    let g = GraphBuilder::new("layer");
    let x = g.input("x", F32, dims!["batch", 37]);
    let w = g.param("w", F32, dims![67, 37]);
    let a = g.param("a", F32, dims!["rank", 37]).adapter();
    let b = g.param("b", F32, dims![67, "rank"]).adapter();
    let m = g.param("m", F32, dims![67]).adapter();
    let y = x.dora(w, a, b, m / w.lora_norm(a, b, 0.5), Some(g.param("bias", F32, dims![67])), 0.5);
    g.output("y", y.gelu().layer_norm(None, None, 1e-5));
    g.output("probabilities", y.softmax(-1));
    g.finish().unwrap()
}

fn context(threads: usize, kernels: Option<KernelSet>) -> Context {
    Context::new(engraft_runtime::Options { threads: NonZeroUsize::new(threads), kernels }).unwrap()
}

/// Random values of everything; those of the adapter from a seed of their own.
fn values(graph: &Graph, batch: u64, adapter: u64) -> Values {
    let symbols = bindings(&[("batch", batch), ("rank", adapter)]);
    let mut values = sample::values(graph, &symbols, 1).unwrap();
    let adapters = sample::values(graph, &symbols, adapter).unwrap();
    for param in graph.params().iter().filter(|param| param.stage == Stage::Adapter) {
        values.insert(param.name.clone(), adapters[&param.name].clone());
    }
    values
}

/// A model of the layer with the adapter of this seed, which is also its rank.
fn model(graph: &Graph, context: Context, adapter: u64) -> Model {
    let values = values(graph, 1, adapter);
    let program = compile(graph, &Options::default()).unwrap_or_else(|e| panic!("{e}")).program;
    let base = program.load_base(&weights(graph, &values, Stage::Base), context).unwrap();
    base.load_adapter(&weights(graph, &values, Stage::Adapter)).unwrap()
}

#[test]
fn threads_share_a_model() {
    let graph = layer();
    let model = model(&graph, context(2, None), 3);
    let given: Vec<_> = (0..4).map(|thread| values(&graph, 1 + 29 * thread, 3)).collect();
    let serial: Vec<_> = given.iter().map(|values| run_in(&mut model.session(), &graph, values)).collect();
    std::thread::scope(|scope| {
        for (given, serial) in given.iter().zip(&serial) {
            let (graph, mut session) = (&graph, model.session());
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(run_in(&mut session, graph, given), *serial);
                }
            });
        }
    });
}

#[test]
fn kernels_agree_and_threads_do_not_matter() {
    let graph = layer();
    let given = values(&graph, 101, 5);
    let reference = eval(&graph, &given).unwrap();
    for set in KernelSet::ALL.into_iter().filter(|set| set.kernels().is_some()) {
        let run =
            |threads| run_in(&mut model(&graph, context(threads, Some(set)), 5).session(), &graph, &given);
        let one = run(1);
        let worst = difference(&one, &reference);
        assert!(worst <= 1.0, "{set} is off by {worst} tolerances");
        for threads in [2, 3] {
            assert_eq!(run(threads), one, "{set} with {threads} threads");
        }
    }
}

/// Bit for bit: however many rows there are, the arithmetic of one is the same.
#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let graph = layer();
    let mut session = model(&graph, context(2, None), 3).session();
    let x: Vec<f32> = (0..101 * 37).map(|i: i32| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    let mut run = |rows: &[f32]| {
        let x = Tensor::f32(&[rows.len() / 37, 37], rows.to_vec()).unwrap();
        session.run(&[("x", &x)]).unwrap()
    };
    let together = run(&x);
    for (first, count) in [(0, 1), (1, 2), (5, 7), (99, 2), (3, 97)] {
        let alone = run(&x[first * 37..(first + count) * 37]);
        for ((name, alone), (_, together)) in alone.iter().zip(&together) {
            let rows = &together.as_f32().unwrap()[first * 67..(first + count) * 67];
            assert_eq!(alone.as_f32().unwrap(), rows, "rows {first}.. of `{name}`");
        }
    }
}

/// W, A, B and the magnitude live on as panels and gain; the bias is read where it lies.
#[test]
fn only_what_a_later_stage_reads_is_kept() {
    let graph = layer();
    let given = values(&graph, 7, 3);
    let program = compile(&graph, &Options::default()).unwrap().program;
    let [base, adapter] = [Stage::Base, Stage::Adapter].map(|stage| weights(&graph, &given, stage));
    let watch = |(name, tensor): (&str, &Arc<Tensor>)| (name.to_owned(), Arc::downgrade(tensor));
    let watched: Vec<_> = base.iter().chain(adapter.iter()).map(watch).collect();
    let kept = || -> Vec<&str> {
        let kept = watched.iter().filter(|(_, tensor)| tensor.upgrade().is_some());
        kept.map(|(name, _)| name.as_str()).collect()
    };
    assert_eq!(kept(), ["bias", "w", "a", "b", "m"]);
    let loaded = program.load_base(&base, context(1, None)).unwrap();
    drop(base);
    assert_eq!(kept(), ["bias", "a", "b", "m"]);
    let model = loaded.load_adapter(&adapter).unwrap();
    drop((adapter, loaded));
    assert_eq!(kept(), ["bias"]);
    let worst = difference(&run_in(&mut model.session(), &graph, &given), &eval(&graph, &given).unwrap());
    assert!(worst <= 1.0, "off by {worst} tolerances");
}

#[test]
fn code_lives_as_long_as_a_session() {
    let graph = layer();
    let given = values(&graph, 7, 2);
    // Compiled program, base and model are gone when the session first runs.
    let mut session = model(&graph, context(1, None), 2).session();
    let others: Vec<_> = (0..4).map(|_| compile(&layer(), &Options::default()).unwrap()).collect();
    drop(others);
    let worst = difference(&run_in(&mut session, &graph, &given), &eval(&graph, &given).unwrap());
    assert!(worst <= 1.0, "off by {worst} tolerances");
}

#[test]
fn ids_out_of_range_are_refused_by_name() {
    let g = GraphBuilder::new("embedding");
    let ids = g.input("ids", I64, dims!["batch"]);
    let table = g.param("table", F32, dims![5, 3]);
    g.output("y", table.gather(ids).named("rows").scale(2.0));
    let graph = g.finish().unwrap();
    let values = sample::values(&graph, &bindings(&[("batch", 2)]), 1).unwrap();
    let program = compile(&graph, &Options::default()).unwrap().program;
    let base = program.load_base(&weights(&graph, &values, Stage::Base), context(2, None)).unwrap();
    let mut session = base.load_adapter(&weights(&graph, &values, Stage::Adapter)).unwrap().session();
    let mut run = |ids: &[i64]| {
        let ids = Tensor::i64(&[ids.len()], ids.to_vec()).unwrap();
        session.run(&[("ids", &ids)]).map(|outputs| outputs[0].1.as_f32().unwrap().to_vec())
    };
    let good = run(&[4, 0]).unwrap();
    for bad in [-1, 5, i64::MAX, i64::MIN] {
        let expected = StageError::IdOutOfRange { step: "rows".to_owned(), found: bad, limit: 5 };
        assert_eq!(run(&[0, bad, 1]), Err(CallError::Stage(expected)));
        assert_eq!(run(&[4, 0]).as_ref(), Ok(&good), "the session goes on");
    }
}

#[test]
fn f64_is_refused_by_name() {
    let g = GraphBuilder::new("double");
    g.output("y", g.input("x", F64, dims!["batch", 3]).relu());
    let graph = g.finish().unwrap();
    let error = compile(&graph, &Options::default()).err().unwrap();
    assert!(matches!(error, CompileError::Plan(PlanError::Unsupported { .. })));
    assert_eq!(
        error.to_string(),
        "`x` is f64[batch, 3]: compiled programs compute in f32 (f64 is for the reference interpreter only)"
    );
}

#[test]
fn a_symbol_that_nothing_binds_is_refused_by_name() {
    let mut graph = Graph::new("unbound").unwrap();
    let x = graph
        .add(
            "x",
            Input {
                dtype: F32,
                shape: Shape::new(vec![Dim::symbol("batch") * 2, Dim::fixed(3)]),
                carries: None,
            },
            &[],
        )
        .unwrap();
    let y = graph.add("y", Unary::Relu, &[Some(x)]).unwrap();
    graph.add_output("y", y).unwrap();
    let error = compile(&graph, &Options::default()).err().unwrap();
    assert!(matches!(error, CompileError::Pipeline(PipelineError::Input { .. })));
    assert!(error.to_string().contains("dim `batch` of `x` is unknown"), "{error}");
}
