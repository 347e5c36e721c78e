//! The hot loops of compiled kernels keep everything in registers: no innermost loop touches the stack, but to call a
//! function of the runtime's on many elements. Looked for in the machine code for this machine, if it is an x86-64.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

use engraft_compiler::plan::{PlanOptions, plan};
use engraft_compiler::{Listing, listings};
use engraft_ir::DType::{F32, I32};
use engraft_ir::ops::{EpsilonAt, Reduction, Unary};
use engraft_ir::{Graph, GraphBuilder, Tensor, dims};

fn code(graph: &Graph) -> Vec<Listing> {
    listings(&plan(graph, PlanOptions::default()).unwrap()).unwrap()
}

/// The loops of a function that contain no other: from a block to the branch that goes back to it.
fn innermost_loops(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let mut loops: Vec<(usize, usize)> = Vec::new();
    for (end, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with('j')) {
        for target in line.split("label").skip(1) {
            let number = target.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            let start = lines[..end].iter().position(|line| *line == format!("block{number}:"));
            loops.extend(start.map(|start| (start, end)));
        }
    }
    let contains_other = |&(start, end): &(usize, usize)| {
        loops.iter().any(|&(s, e)| (s, e) != (start, end) && start <= s && e <= end)
    };
    loops
        .iter()
        .filter(|span| !contains_other(span))
        .map(|&(start, end)| lines[start..=end].to_vec())
        .collect()
}

/// Whether there are instructions on floats.
fn computes(innermost: &[&str]) -> bool {
    innermost.iter().any(|line| line.split_whitespace().next().is_some_and(|name| name.ends_with("ps")))
}

/// Checks every function but the stages', which have no loops.
fn has_loops_without_spills(graph: &Graph) {
    let mut found = 0;
    for Listing { name, assembly, .. } in code(graph) {
        for innermost in innermost_loops(&assembly) {
            found += 1;
            // What it does between calls takes no time that shows; what is done to each element is in a loop of its own.
            if innermost.iter().any(|line| line.starts_with("call")) {
                assert!(
                    !computes(&innermost),
                    "`{name}` of `{}` computes between calls: {innermost:#?}",
                    graph.name()
                );
                continue;
            }
            let spills: Vec<_> =
                innermost.iter().filter(|line| line.contains("%rsp") || line.contains("%rbp")).collect();
            assert!(
                spills.is_empty(),
                "`{name}` of `{}` spills: {spills:#?} in\n{innermost:#?}",
                graph.name()
            );
        }
    }
    assert!(found > 0, "`{}` has no loops", graph.name());
}

fn of_input(name: &str, body: impl for<'g> Fn(&'g GraphBuilder, Tensor<'g>) -> Tensor<'g>) {
    let g = GraphBuilder::new(name);
    let x = g.input("x", F32, dims!["batch", 768]);
    g.output("y", body(&g, x));
    has_loops_without_spills(&g.finish().unwrap());
}

#[test]
fn functions() {
    for function in Unary::ALL {
        of_input(&format!("{function:?}"), |_, x| x.unary(function));
    }
}

#[test]
fn chains() {
    of_input("chain", |g, x| {
        let [w, b] = ["w", "b"].map(|name| g.param(name, F32, dims![768]));
        let s = g.param("s", F32, dims![1]);
        ((x * w + b).relu() * 0.5 + x * s) / (x.square() + 1.0)
    });
    of_input("gate", |g, x| {
        let gate = g.input("gate", F32, dims!["batch", 768]);
        (x * 1.5).silu() * gate + x
    });
    of_input("turned", |_, x| x.t().gelu());
}

/// The arguments of the runtime's functions and what is made of their results.
#[test]
fn around_calls() {
    of_input("nested", |g, x| {
        let [w, b] = ["w", "b"].map(|name| g.param(name, F32, dims![768]));
        ((x * w + b).sin() * w).tanh() * 0.5 + x
    });
    of_input("strided", |_, x| (x.t() + 1.0).exp() / x.t());
}

#[test]
fn rows() {
    for reduction in [Reduction::Sum, Reduction::Mean, Reduction::Max] {
        of_input("last", |_, x| x.reduce(reduction, &[-1], false));
        of_input("first", |_, x| x.reduce(reduction, &[0], false));
    }
    for axis in [-1, 0] {
        of_input("softmax", |_, x| x.softmax(axis));
        of_input("normalize", |_, x| x.normalize_with(axis, 1e-8, EpsilonAt::Inside));
    }
}

#[test]
fn gathers() {
    let g = GraphBuilder::new("gather");
    let ids = g.input("ids", I32, dims!["batch"]);
    g.output("y", g.param("table", F32, dims![100, 64]).gather(ids));
    has_loops_without_spills(&g.finish().unwrap());
}

#[test]
fn epilogues() {
    of_input("activation", |g, x| {
        let (w, b) = (g.param("w", F32, dims![768, 768]), g.param("b", F32, dims![768]));
        x.dense(w, Some(b)).gelu() + x
    });
    of_input("scaled", |g, x| {
        let (w, v) = (g.param("w", F32, dims![768, 768]), g.param("v", F32, dims![768]));
        let s = g.input("s", F32, dims!["batch", 1]);
        (x.dense(w, None) * v * 0.5 + x) * s
    });
}
