//! A matrix is packed once for all who read it in one form, and where they read it at different stages, early enough for the
//! first: whatever order the graph names them in.
#![allow(clippy::unwrap_used)]

mod common;

use common::agree;
use engraft_ir::DType::F32;
use engraft_ir::{GraphBuilder, Tensor, dims};

/// The live norm packs B for itself, in each call; the merged layer needs it packed alike when the adapter is loaded.
#[test]
fn a_factor_that_a_live_norm_packs_before_a_merged_layer() {
    let g = GraphBuilder::new("packs");
    let (x, w) = (g.input("x", F32, dims!["batch", 6]), g.param("w", F32, dims![5, 6]));
    let b = g.param("b", F32, dims![5, 4]);
    let live = (g.param("live.a", F32, dims![2, 4]).live(), g.param("live.b", F32, dims![5, 2]).live());
    g.output("norm", b.lora_norm(live.0, live.1, 1.0));
    let a = g.param("a", F32, dims![4, 6]).adapter();
    g.output("y", x.dense(w + Tensor::lora_delta(a, b, 1.0), None));
    agree(&g.finish().unwrap(), &[("batch", 3)], 1);
}

/// No layer keeps W, so each norm packs it for itself.
#[test]
fn a_weight_that_a_live_norm_packs_before_a_staged_one() {
    let g = GraphBuilder::new("norms");
    let w = g.param("w", F32, dims![5, 4]);
    let factors = |name: &str| {
        let factor = |part, shape| g.param(&format!("{name}.{part}"), F32, shape);
        [factor("a", dims![2, 4]), factor("b", dims![5, 2])]
    };
    let ([live_a, live_b], [a, b]) =
        (factors("live").map(Tensor::live), factors("loaded").map(Tensor::adapter));
    g.output("y", w.lora_norm(live_a, live_b, 1.0) * w.lora_norm(a, b, 1.0));
    agree(&g.finish().unwrap(), &[], 1);
}
