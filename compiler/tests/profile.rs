//! Profiled programs: every step of every stage is told once a run, values stay the same, and code that is not profiled
//! has nothing of it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bindings, run_in, weights};
use engraft_compiler::{Compiled, Options, compile, listings};
use engraft_ir::DType::{F32, I64};
use engraft_ir::eval::Values;
use engraft_ir::{Graph, GraphBuilder, Stage, dims, sample};
use engraft_runtime::{CallError, Context, Model, Profile, StageError, Tensor};
use std::num::NonZeroUsize;
use std::time::Duration;

/// Every kernel: panels, products with an epilogue, norms, loops, rows and ids; two outputs.
fn block() -> Graph {
    let g = GraphBuilder::new("block");
    let ids = g.input("ids", I64, dims!["batch"]);
    let x = g.param("table", F32, dims![9, 20]).gather(ids);
    let (w, m) = (g.param("w", F32, dims![20, 20]), g.param("m", F32, dims![20]).adapter());
    let (a, b) = (g.param("a", F32, dims![3, 20]).adapter(), g.param("b", F32, dims![20, 3]).adapter());
    let y = x.dora(w, a, b, m / w.lora_norm(a, b, 0.5), None, 0.5).gelu();
    g.output("y", y.softmax(-1));
    g.output("transposed", y.t());
    g.finish().unwrap()
}

fn compiled(graph: &Graph, profile: bool) -> Compiled {
    compile(graph, &Options { profile, ..Options::default() }).unwrap()
}

fn model(compiled: &Compiled, graph: &Graph, values: &Values, threads: usize) -> Model {
    let options = engraft_runtime::Options { threads: NonZeroUsize::new(threads), kernels: None };
    let context = Context::new(options).unwrap();
    let base = compiled.program.load_base(&weights(graph, values, Stage::Base), context).unwrap();
    base.load_adapter(&weights(graph, values, Stage::Adapter)).unwrap()
}

/// How often each step has ended, where steps of this stage ended so often and no others.
#[track_caller]
fn assert_calls(compiled: &Compiled, profile: Option<&Profile>, stage: Stage, runs: u64) {
    let expected: Vec<_> =
        compiled.plan.steps.iter().map(|step| if step.stage == stage { runs } else { 0 }).collect();
    let steps = profile.unwrap().steps();
    assert_eq!(steps.iter().map(|step| step.calls).collect::<Vec<_>>(), expected, "{}", compiled.plan);
    assert!(steps.iter().all(|step| step.calls > 0 || step.total == Duration::ZERO));
}

#[test]
fn every_step_is_told_once_a_run_on_any_number_of_threads() {
    let graph = block();
    let compiled = compiled(&graph, true);
    let stages: Vec<_> = compiled.plan.steps.iter().map(|step| step.stage).collect();
    assert!([Stage::Base, Stage::Adapter, Stage::Call].iter().all(|stage| stages.contains(stage)));
    let values = sample::values(&graph, &bindings(&[("batch", 200)]), 1).unwrap();
    for threads in [1, 2] {
        let model = model(&compiled, &graph, &values, threads);
        assert_calls(&compiled, model.base().profile(), Stage::Base, 1);
        assert_calls(&compiled, model.profile(), Stage::Adapter, 1);
        let mut session = model.session();
        assert_calls(&compiled, session.profile(), Stage::Call, 0);
        for runs in 1..4 {
            run_in(&mut session, &graph, &values);
            assert_calls(&compiled, session.profile(), Stage::Call, runs);
        }
    }
}

#[test]
fn values_are_the_same_and_code_that_is_not_profiled_has_nothing_of_it() {
    let graph = block();
    let (plain, profiled) = (compiled(&graph, false), compiled(&graph, true));
    let values = sample::values(&graph, &bindings(&[("batch", 5)]), 1).unwrap();
    let [mut without, mut with] =
        [&plain, &profiled].map(|compiled| model(compiled, &graph, &values, 1).session());
    assert_eq!(run_in(&mut without, &graph, &values), run_in(&mut with, &graph, &values));
    assert!(without.profile().is_none() && without.model().profile().is_none());

    let marks = |compiled: &Compiled| -> usize {
        let functions = listings(&compiled.plan).unwrap();
        let stages = functions.iter().filter(|f| f.name.starts_with("engraft_stage"));
        stages.map(|f| f.clif.matches("call ").count()).sum()
    };
    // A call a step, and as many again that tell of it.
    let steps = plain.plan.steps.len();
    assert_eq!([marks(&plain), marks(&profiled)], [steps, 2 * steps]);
    assert_eq!(plain.plan.to_string().lines().next(), Some("plan block"));
    assert_eq!(profiled.plan.to_string().lines().next(), Some("plan block, profiled"));
}

/// A step that fails never ends.
#[test]
fn a_call_that_fails_tells_of_the_steps_before() {
    let graph = block();
    let compiled = compiled(&graph, true);
    let values = sample::values(&graph, &bindings(&[("batch", 1)]), 1).unwrap();
    let mut session = model(&compiled, &graph, &values, 1).session();
    let ids = Tensor::i64(&[1], vec![9]).unwrap();
    let error = session.run(&[("ids", &ids)]).unwrap_err();
    assert!(matches!(error, CallError::Stage(StageError::IdOutOfRange { found: 9, .. })), "{error}");
    assert_calls(&compiled, session.profile(), Stage::Call, 0);
    run_in(&mut session, &graph, &values);
    assert_calls(&compiled, session.profile(), Stage::Call, 1);
}
