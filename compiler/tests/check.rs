//! The checker catches passes that are wrong.

#![allow(clippy::unwrap_used, reason = "a test")]

mod layer;

use engraft_compiler::check::{CheckError, PassCheck, check_trace, compare};
use engraft_compiler::passes::{Editor, Pass, PassError};
use engraft_compiler::pipeline::{PipelineError, default_passes, run};
use engraft_ir::ops::{Constant, Dora, Normalize};
use engraft_ir::{Bindings, DType::F32, Graph, GraphBuilder, NodeId, Op, dims};
use layer::{SCALE, layer, shapes};

/// DoRA in weight space with a bias.
fn graph() -> Graph {
    layer(shapes()[0].clone(), |l| l.x.dense(l.adapted().normalize(1).magnitude(l.m, 0), Some(l.bias)))
}

/// The first node whose op `wanted` likes.
fn find(editor: &Editor, wanted: fn(&Op) -> bool) -> NodeId {
    editor.order().into_iter().find(|&id| wanted(editor.graph().node(id).op())).unwrap()
}

fn norm_over_the_wrong_axis(editor: &mut Editor) -> Result<(), PassError> {
    let id = find(editor, |op| matches!(op, Op::Normalize(_)));
    let Op::Normalize(op) = *editor.graph().node(id).op() else { return Ok(()) };
    let v = editor.graph().operand(id, 0);
    let new = editor.add("wrong", Normalize { axis: 0, ..op }, &[v])?;
    Ok(editor.replace("wrong", id, new, Vec::new())?)
}

fn dropped_bias(editor: &mut Editor) -> Result<(), PassError> {
    let id = find(editor, |op| matches!(op, Op::Dora(_)));
    let (op, mut operands) = (editor.graph().node(id).op().clone(), editor.graph().operands(id));
    operands.truncate(Dora::BIAS);
    let new = editor.add("wrong", op, &operands)?;
    Ok(editor.replace("wrong", id, new, Vec::new())?)
}

fn missing_scale(editor: &mut Editor) -> Result<(), PassError> {
    let id = find(editor, |op| matches!(op, Op::Dora(_)));
    let operands = editor.graph().operands(id);
    let new = editor.add("wrong", Dora { scale: SCALE / 2.0 }, &operands)?;
    Ok(editor.replace("wrong", id, new, Vec::new())?)
}

/// The checks of the default passes with a wrong one in the given place.
fn checks(at: usize, wrong: fn(&mut Editor) -> Result<(), PassError>) -> Vec<PassCheck> {
    let mut passes = default_passes();
    passes.insert(at, Pass { name: "wrong", summary: "break the graph", run: &wrong });
    let optimized = run(&graph(), &passes).unwrap();
    check_trace(&optimized.trace, &Bindings::new(), 1).unwrap()
}

#[test]
fn wrong_passes_are_caught_and_named() {
    let last = default_passes().len();
    for (name, checks) in [
        ("norm over the wrong axis", checks(0, norm_over_the_wrong_axis)),
        ("dropped bias", checks(last, dropped_bias)),
        ("missing scale", checks(last, missing_scale)),
    ] {
        for check in &checks {
            assert_eq!(check.difference > 1e-3, check.pass == "wrong", "{name}: {check:?}");
            let of_rewrites: Vec<_> = check.rewrites.iter().map(|rewrite| rewrite.difference).collect();
            if check.pass == "wrong" {
                assert!(
                    matches!(of_rewrites[..], [Some(difference)] if difference > 1e-3),
                    "{name}: {check:?}"
                );
            } else {
                assert!(
                    of_rewrites.iter().flatten().all(|&difference| difference < 1e-9),
                    "{name}: {check:?}"
                );
            }
        }
    }
}

#[test]
fn a_pass_that_breaks_the_graph_is_named() {
    // A node of another type cannot take a place.
    fn mistyped(editor: &mut Editor) -> Result<(), PassError> {
        let id = find(editor, |op| matches!(op, Op::Dense(_)));
        let new = editor.add("wrong", Constant::scalar(F32, 1.0), &[])?;
        Ok(editor.replace("wrong", id, new, Vec::new())?)
    }
    let wrong = Pass { name: "mistyped", summary: "break the graph", run: &mistyped };
    let error = run(&graph(), &[wrong]).unwrap_err();
    assert!(matches!(error, PipelineError::Pass { pass: "mistyped", .. }), "{error}");
}

#[test]
fn a_broken_graph_is_refused() {
    assert!(matches!(run(&Graph::default(), &[]), Err(PipelineError::Input { .. })));
}

fn scaled(name: &str, factor: f64) -> Graph {
    let g = GraphBuilder::new("scaled");
    g.output(name, g.input("x", F32, dims!["batch", 2]).scale(factor));
    g.finish().unwrap()
}

#[test]
fn differences_are_relative() {
    let difference = compare(&scaled("y", 2.0), &scaled("y", 3.0), &Bindings::new(), 3).unwrap();
    assert!((difference - 1.0 / 3.0).abs() < 1e-12, "{difference}");
    let tiny = compare(&scaled("y", 2e-200), &scaled("y", 3e-200), &Bindings::new(), 3).unwrap();
    assert!((tiny - 1.0 / 3.0).abs() < 1e-12, "{tiny}");
}

#[test]
fn outputs_must_be_the_same() {
    let error = compare(&scaled("y", 2.0), &scaled("z", 2.0), &Bindings::new(), 3).unwrap_err();
    let text = "output `y` is floats [2, 2] before and missing after";
    assert_eq!(error.to_string(), text);
    assert!(matches!(error, CheckError::Output { .. }));
}

#[test]
fn an_infinity_is_a_difference() {
    let g = GraphBuilder::new("infinite");
    let x = g.input("x", F32, dims!["batch", 2]);
    g.output("y", x / (x - x));
    let infinite = g.finish().unwrap();
    assert_eq!(compare(&infinite, &infinite, &Bindings::new(), 3), Ok(0.0));
    assert_eq!(compare(&infinite, &scaled("y", 2.0), &Bindings::new(), 3), Ok(f64::INFINITY));
}

/// Ids stay within their table.
#[test]
fn ids_are_in_range() {
    let g = GraphBuilder::new("embedding");
    let ids = g.input("ids", engraft_ir::DType::I64, dims!["batch", 64]);
    g.output("y", g.param("table", F32, dims![3, 4]).gather(ids));
    let graph = g.finish().unwrap();
    assert_eq!(compare(&graph, &graph, &Bindings::new(), 5), Ok(0.0));
}
