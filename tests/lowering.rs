//! What becomes of one DoRA layer at every level, in each of the three ways to write it. A snapshot is a claim: read it
//! before accepting it.
#![allow(clippy::unwrap_used, reason = "tests unwrap, also outside test functions")]

use engraft::ir::ops::EpsilonAt;
use engraft::prelude::*;
use engraft::snapshot::{Level, at, clif};

/// The sources of one adapted layer, 24 in and 40 out, r 4.
#[derive(Clone, Copy)]
struct Layer<'g> {
    x: Tensor<'g>,
    w: Tensor<'g>,
    a: Tensor<'g>,
    b: Tensor<'g>,
    m: Tensor<'g>,
    bias: Tensor<'g>,
}

/// alpha / r
const SCALE: f64 = 4.0;

fn graph(write: for<'g> fn(Layer<'g>) -> Tensor<'g>) -> Graph {
    let g = GraphBuilder::new("layer");
    let layer = Layer {
        x: g.input("x", F32, dims!["batch", 24]),
        w: g.param("weight", F32, dims![40, 24]),
        a: g.param("lora_A", F32, dims![4, 24]).adapter(),
        b: g.param("lora_B", F32, dims![40, 4]).adapter(),
        m: g.param("magnitude", F32, dims![40]).adapter(),
        bias: g.param("bias", F32, dims![40]),
    };
    g.output("y", write(layer).named("fc"));
    g.finish().unwrap()
}

/// Snapshots every level of a form that is the same on every machine.
fn check(form: &str, graph: &Graph) {
    for level in Level::ALL.into_iter().filter(|level| *level != Level::Asm) {
        let text = at(level, graph, &Options::default()).unwrap();
        insta::assert_snapshot!(format!("{form}_{}", level.name()), text);
    }
}

/// The paper's: the adapted weight is normalised, one norm per output.
fn weight() -> Graph {
    graph(|Layer { x, w, a, b, m, bias }| {
        let direction = (w + Tensor::lora_delta(a, b, SCALE)).normalize(Axis::IN);
        x.dense(direction.magnitude(m, Axis::OUT), Some(bias))
    })
}

/// The same on activations: the gain scales what the two products give.
fn activation() -> Graph {
    graph(|Layer { x, w, a, b, m, bias }| {
        let norm = (w + Tensor::lora_delta(a, b, SCALE)).square().sum(&[1]).sqrt();
        (x.dense(w, None) + x.lora_apply(a, b, SCALE)) * (m / norm) + bias
    })
}

/// Edifice's: the output is normalised, sample by sample. Another meaning, so another op.
fn output() -> Graph {
    graph(|Layer { x, w, a, b, m, bias }| {
        let c = x.dense(w, Some(bias)) + x.lora_apply(a, b, SCALE);
        c.normalize_with(Axis::LAST, 1e-8, EpsilonAt::Inside).magnitude(m, Axis::LAST)
    })
}

#[test]
fn weight_form() {
    check("weight", &weight());
}

#[test]
fn activation_form() {
    check("activation", &activation());
}

#[test]
fn output_form() {
    check("output", &output());
}

/// Two ways to write one meaning become the same code.
#[test]
fn weight_and_activation_forms_meet() {
    assert_eq!(clif(&weight()).unwrap(), clif(&activation()).unwrap());
}
