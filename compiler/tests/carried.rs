//! Inputs that a session carries from call to call: a small causal attention, a few rows at a time, against all rows at
//! once; and what sessions do with what they carry.
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod common;

use common::{agree, bindings, difference, program, weights};
use engraft_compiler::plan::check::{CheckError, check};
use engraft_compiler::plan::kernel::Kernel;
use engraft_compiler::plan::{Carried, PlanError, PlanInvariant, PlanOptions, plan, verify};
use engraft_compiler::values::to_value;
use engraft_ir::DType::{F32, I64};
use engraft_ir::eval::{Values, eval};
use engraft_ir::{Dim, Graph, GraphBuilder, Stage, dims, sample};
use engraft_runtime::{Context, DType, Model, Options, Tensor};

const WIDTH: usize = 6;

/// `softmax(q kᵀ + mask) v` over keys and values that are appended to; the mask says what each row may look at. One
/// more output names the same keys, and one reads only those that were there before.
fn decoder() -> Graph {
    let g = GraphBuilder::new("decoder");
    let x = g.input("x", F32, dims!["new", WIDTH]);
    let mask = g.input("mask", F32, dims!["new", Dim::symbol("past") + Dim::symbol("new")]);
    let [q, k, v] = ["q", "k", "v"].map(|name| x.dense(g.param(name, F32, dims![WIDTH, WIDTH]), None));
    let past = g.carried("keys", F32, dims!["past", WIDTH]);
    let keys = past.concat(&[k], 0);
    g.output("copied_keys", keys.reshape(dims![(Dim::symbol("past") + Dim::symbol("new")) * WIDTH]));
    g.output("keys", keys);
    let values = g.append(g.carried("values", F32, dims!["past", WIDTH]), v);
    g.output("y", (q.matmul(keys.t()) + mask).softmax(-1).matmul(values));
    g.output("before", past.scale(2.0));
    g.finish().unwrap_or_else(|e| panic!("{e}"))
}

fn values(rows: u64) -> Values {
    sample::values(&decoder(), &bindings(&[("past", 0), ("new", rows)]), 11).unwrap()
}

fn model(fuse: bool) -> Model {
    let (graph, values) = (decoder(), values(1));
    let context = Context::new(Options::default()).unwrap();
    let base = program(&graph, fuse).load_base(&weights(&graph, &values, Stage::Base), context).unwrap();
    base.load_adapter(&engraft_runtime::Weights::new()).unwrap()
}

/// The causal mask of `new` rows after `past` others.
fn mask(past: usize, new: usize) -> Tensor {
    let seen = |at: usize| if at % (past + new) <= past + at / (past + new) { 0.0 } else { -1e9 };
    Tensor::f32(&[new, past + new], (0..new * (past + new)).map(seen).collect()).unwrap()
}

/// Rows of x, the same whoever asks.
fn x(from: usize, rows: usize) -> Tensor {
    let number = |at: usize| ((from * WIDTH + at) as f32 * 0.37).sin();
    Tensor::f32(&[rows, WIDTH], (0..rows * WIDTH).map(number).collect()).unwrap()
}

fn step(session: &mut engraft_runtime::Session, new: usize) -> Tensor {
    let past = session.carried_len();
    let outputs = session.run(&[("x", &x(past, new)), ("mask", &mask(past, new))]).unwrap();
    let names: Vec<_> = outputs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["copied_keys", "y", "before"]);
    assert_eq!(outputs[0].1.as_f32().unwrap(), session.carried("keys").unwrap().as_f32().unwrap());
    let keys = session.carried("keys").unwrap();
    let doubled: Vec<_> = keys.as_f32().unwrap()[..past * WIDTH].iter().map(|key| key * 2.0).collect();
    assert_eq!(outputs[2].1.as_f32().unwrap(), doubled);
    outputs[1].1.clone()
}

/// All rows at once, by the interpreter.
fn reference(rows: usize) -> Values {
    let mut values = values(rows as u64);
    values.insert("x".to_owned(), to_value(&x(0, rows)).unwrap());
    values.insert("mask".to_owned(), to_value(&mask(0, rows)).unwrap());
    eval(&decoder(), &values).unwrap()
}

#[test]
fn rows_one_after_the_other_are_rows_at_once() {
    let expected = reference(37);
    let y: Vec<f64> = expected["y"].as_real().unwrap().iter().copied().collect();
    for fuse in [true, false] {
        let mut session = model(fuse).session();
        let mut past = 0;
        // Memory grows on the way, more than once.
        for new in [1, 3, 1, 1, 2, 1, 8, 1, 1, 1, 16, 1] {
            let found = step(&mut session, new);
            for (found, expected) in found.as_f32().unwrap().iter().zip(&y[past * WIDTH..]) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} instead of {expected}");
            }
            past += new;
            assert_eq!(session.carried_len(), past);
        }
        assert_eq!(past, 37);
        let carried = ["keys", "values"]
            .map(|name| (name.to_owned(), to_value(&session.carried(name).unwrap()).unwrap()));
        let theirs = ["keys", "values"].map(|name| (name.to_owned(), expected[name].clone()));
        assert!(difference(&carried.into(), &theirs.into()) <= 1.0);
    }
}

/// Seeded with random keys and values, at every size, against the interpreter.
#[test]
fn what_is_set_is_carried() {
    for (past, new) in [(0, 1), (1, 1), (7, 2), (64, 5), (3, 0)] {
        agree(&decoder(), &[("past", past), ("new", new)], past + new);
    }
}

#[test]
fn a_session_is_rolled_back() {
    let model = model(true);
    let mut session = model.session();
    let first = [step(&mut session, 4), step(&mut session, 1)];
    session.truncate(4).unwrap();
    assert_eq!((session.carried_len(), step(&mut session, 1)), (4, first[1].clone()));
    session.reset();
    assert_eq!((session.carried_len(), session.carried("keys").unwrap().shape()), (0, [0, WIDTH].as_slice()));
    assert_eq!([step(&mut session, 4), step(&mut session, 1)], first);
    let error = session.truncate(6).unwrap_err().to_string();
    assert_eq!(
        (error.as_str(), session.carried_len()),
        ("`keys` has 5 rows, fewer than the 6 to be kept", 5)
    );

    // Another session of the model carries its own, and begins where the first is.
    let mut other = model.session();
    assert_eq!(other.carried_len(), 0);
    let kept = ["values", "keys"].map(|name| (name, session.carried(name).unwrap()));
    other.set_carried(&kept.each_ref().map(|(name, tensor)| (*name, tensor))).unwrap();
    let next = [&mut session, &mut other].map(|session| step(session, 2));
    assert_eq!(next[0], next[1]);
    assert_eq!((step(&mut other, 1).shape()[0], session.carried_len(), other.carried_len()), (1, 7, 8));
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let mut session = model(true).session();
    step(&mut session, 2);
    let kept = session.carried("keys").unwrap();
    let rows = |rows: usize, width: usize| Tensor::zeros(DType::F32, &[rows, width]).unwrap();
    let (two, three, wide) = (rows(2, WIDTH), rows(3, WIDTH), rows(2, 7));
    let mut refused = |tensors: &[(&str, &Tensor)]| session.set_carried(tensors).unwrap_err().to_string();
    assert_eq!(
        refused(&[("keys", &two)]),
        "`values` is missing, which is carried too and must be f32[past, 6]"
    );
    assert_eq!(refused(&[("keys", &two), ("keys", &two)]), "`keys` is given twice");
    assert_eq!(refused(&[("x", &two)]), "nothing called `x` is carried; carried are: keys, values");
    assert_eq!(
        refused(&[("keys", &two), ("values", &wide)]),
        "`values` must be f32[past, 6] with 6 for axis 1, found shape [2, 7]"
    );
    assert_eq!(
        refused(&[("keys", &two), ("values", &three)]),
        "`values` must be f32[past, 6] with 2 for axis 0, found shape [3, 6]"
    );
    let integers = Tensor::i64(&[0, WIDTH], vec![]).unwrap();
    assert_eq!(
        refused(&[("keys", &integers), ("values", &two)]),
        "`keys` must be f32[past, 6], found elements of i64"
    );
    assert_eq!(
        session.carried("x").unwrap_err().to_string(),
        "nothing called `x` is carried; carried are: keys, values"
    );
    let passed = session.run(&[("x", &two), ("mask", &mask(2, 2)), ("keys", &two)]).unwrap_err().to_string();
    assert_eq!(passed, "there is no input `keys`; the inputs are x, mask");
    let error = session.run(&[("x", &two), ("mask", &mask(3, 2))]).unwrap_err().to_string();
    assert!(error.contains("`mask` must be f32[new, new+past]"), "{error}");
    assert!(error.contains("past = 2 (axis 0 of `keys`)"), "{error}");
    session.reserve(usize::MAX);
    let error = session.run(&[("x", &two), ("mask", &mask(2, 2))]).unwrap_err().to_string();
    assert!(error.starts_with("there is no memory for what `keys` carries"), "{error}");
    assert_eq!((session.carried("keys").unwrap(), session.carried_len()), (kept, 2));
    session.reserve(0);
    step(&mut session, 1);
}

/// A call that fails in compiled code, after it has appended.
#[test]
fn a_failed_call_appends_nothing() {
    let g = GraphBuilder::new("ids");
    let ids = g.input("ids", I64, dims!["new"]);
    let seen = g.append(g.carried("seen", I64, dims!["past"]), ids);
    g.output("y", g.param("table", F32, dims![4, 3]).gather(seen));
    let graph = g.finish().unwrap();
    let table = Tensor::f32(&[4, 3], (0..12_u8).map(f32::from).collect()).unwrap();
    let context = Context::new(Options::default()).unwrap();
    let base = program(&graph, true).load_base(&[("table", table)].into_iter().collect(), context).unwrap();
    let mut session = base.load_adapter(&engraft_runtime::Weights::new()).unwrap().session();
    let mut run = |id| {
        let y = session.run(&[("ids", &Tensor::i64(&[1], vec![id]).unwrap())]);
        (
            y.map(|y| y[0].1.as_f32().unwrap().to_vec()).map_err(|e| e.to_string()),
            session.carried("seen").unwrap(),
        )
    };
    assert_eq!(run(1).0, Ok(vec![3.0, 4.0, 5.0]));
    let (error, seen) = run(4);
    assert!(error.unwrap_err().contains("id 4 is out of range, expected 0..4"));
    assert_eq!(seen.as_i64().unwrap(), [1]);
    assert_eq!(run(0), (Ok(vec![3.0, 4.0, 5.0, 0.0, 1.0, 2.0]), Tensor::i64(&[2], vec![1, 0]).unwrap()));
}

/// Another batch while there are rows is refused by name; once there are none, any batch will do.
#[test]
fn another_batch_needs_another_beginning() {
    let g = GraphBuilder::new("batched");
    let x = g.input("x", F32, dims!["new", "batch", 3]);
    g.output("y", g.append(g.carried("kept", F32, dims!["past", "batch", 3]), x).scale(2.0));
    let context = Context::new(Options::default()).unwrap();
    let none = engraft_runtime::Weights::new();
    let base = program(&g.finish().unwrap(), true).load_base(&none, context).unwrap();
    let mut session = base.load_adapter(&none).unwrap().session();
    let x = |batch: usize| Tensor::f32(&[1, batch, 3], vec![1.0; 3 * batch]).unwrap();
    for batch in [2, 3] {
        session.run(&[("x", &x(batch))]).unwrap();
        assert_eq!(session.carried("kept").unwrap(), x(batch));
        let error = session.run(&[("x", &x(5))]).unwrap_err().to_string();
        let carried = format!(
            "`kept` is carried with shape [1, {batch}, 3], but this call needs f32[past, batch, 3] with "
        );
        assert!(error.starts_with(&carried), "{error}");
        assert!(error.contains("past = 1 (axis 0 of `kept`)"), "{error}");
        assert!(error.contains("batch = 5 (axis 1 of `x`)"), "{error}");
        session.reset();
    }
}

#[test]
fn a_symbol_that_only_carried_inputs_have_is_refused() {
    let g = GraphBuilder::new("unbound");
    let kept = g.carried("kept", F32, dims!["past", "batch"]);
    let _ = g.append(kept, g.constant(&[1.0][..]).broadcast(dims![1, "batch"]));
    let error = plan(&g.finish().unwrap(), PlanOptions::default()).unwrap_err();
    assert!(matches!(error, PlanError::CarriedSymbol { .. }));
    assert_eq!(
        error.to_string(),
        "graph `unbound`: dim `batch` of `kept`, which is carried and empty before the first call, must be an axis of \
         another input or parameter too"
    );
}

/// A plan that writes over what is carried, or pairs what does not belong together, is caught by both proofs.
#[test]
fn a_plan_that_writes_over_what_is_carried_is_caught() {
    let good = plan(&decoder(), PlanOptions::default()).unwrap();
    assert_eq!(good.carried, [Carried { input: 2, output: 1 }, Carried { input: 3, output: 2 }]);
    let appends = |step: &engraft_compiler::plan::Step| match &step.kernel {
        Kernel::Loop(body) => step.write == good.outputs[1].1 && !body.is_identity(),
        _ => false,
    };
    let index = good.steps.iter().position(appends).unwrap();
    let mut early = good.clone();
    let Kernel::Loop(body) = &mut early.steps[index].kernel else { panic!() };
    body.write.offset = Dim::fixed(0);
    assert_eq!(verify(&early), Err(vec![PlanInvariant::Overwrites { step: index, input: 2 }]));
    let errors = check(&early, &bindings(&[("past", 2), ("new", 3)])).unwrap_err();
    let overwrites = |error: &CheckError| matches!(error, CheckError::OverwritesCarried { step, at: 0, .. } if step.index == index);
    assert!(errors.iter().any(overwrites), "{errors:?}");

    for carried in [
        vec![Carried { input: 0, output: 1 }],
        vec![Carried { input: 2, output: 9 }],
        vec![Carried { input: 2, output: 0 }],
        vec![Carried { input: 2, output: 1 }, Carried { input: 3, output: 1 }],
    ] {
        let wrong = engraft_compiler::plan::Plan { carried: carried.clone(), ..good.clone() };
        let errors = verify(&wrong).unwrap_err();
        assert!(
            errors
                .iter()
                .any(|e| matches!(e, PlanInvariant::Carried { .. } | PlanInvariant::Overwrites { .. })),
            "{carried:?}: {errors:?}"
        );
    }
}
