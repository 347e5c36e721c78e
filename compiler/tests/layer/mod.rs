//! What the tests of the passes share: a layer to write adapters on, and the check that nothing changed its meaning.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use engraft_compiler::check::check_trace;
use engraft_compiler::pipeline::{Optimized, Options, optimize};
use engraft_ir::ops::Reduction;
use engraft_ir::{Bindings, DType::F32, Graph, GraphBuilder, Shape, Symbol, Tensor, dims};
use std::collections::BTreeMap;

pub const SCALE: f64 = 2.0;

/// The sources of one adapted layer, 6 in and 6 out: square, so that a wrong axis type-checks.
#[derive(Clone, Copy)]
pub struct Layer<'g> {
    pub g: &'g GraphBuilder,
    pub x: Tensor<'g>,
    /// Another input.
    pub z: Tensor<'g>,
    /// `[out, in]`.
    pub w: Tensor<'g>,
    /// Another weight.
    pub v: Tensor<'g>,
    /// `[r, in]`.
    pub a: Tensor<'g>,
    /// `[out, r]`.
    pub b: Tensor<'g>,
    /// `[out]`.
    pub m: Tensor<'g>,
    pub bias: Tensor<'g>,
}

impl<'g> Layer<'g> {
    pub fn one(&self) -> Tensor<'g> {
        self.g.constant(engraft_ir::ops::Constant::scalar(F32, 1.0))
    }

    /// `W + s B A`.
    pub fn adapted(&self) -> Tensor<'g> {
        self.w + Tensor::lora_delta(self.a, self.b, SCALE)
    }

    /// DoRA's gain, `[out]`.
    pub fn gain(&self) -> Tensor<'g> {
        self.m / norms(self.adapted())
    }

    /// The low-rank update of x.
    pub fn update(&self) -> Tensor<'g> {
        self.x.lora_apply(self.a, self.b, SCALE)
    }
}

/// The norms of the rows of a matrix, `[out]`.
pub fn norms(v: Tensor<'_>) -> Tensor<'_> {
    v.square().sum(&[1]).sqrt()
}

/// A vector as a column.
pub fn column(v: Tensor<'_>) -> Tensor<'_> {
    v.reshape(dims![6, 1])
}

/// The sum of squares over an axis, which stays.
pub fn squares(v: Tensor<'_>, axis: i64) -> Tensor<'_> {
    v.square().reduce(Reduction::Sum, &[axis], true)
}

pub type Write = for<'g> fn(Layer<'g>) -> Tensor<'g>;

/// The layer of one form, on x of this shape.
pub fn layer(x: Shape, write: Write) -> Graph {
    let g = GraphBuilder::new("layer");
    let layer = Layer {
        g: &g,
        x: g.input("x", F32, x.clone()),
        z: g.input("z", F32, x),
        w: g.param("weight", F32, dims![6, 6]),
        v: g.param("other", F32, dims![6, 6]),
        a: g.param("lora_A", F32, dims![2, 6]).adapter(),
        b: g.param("lora_B", F32, dims![6, 2]).adapter(),
        m: g.param("magnitude", F32, dims![6]).adapter(),
        bias: g.param("bias", F32, dims![6]),
    };
    g.output("y", write(layer).named("fc"));
    g.finish().unwrap()
}

/// The shapes that a layer must work on.
pub fn shapes() -> [Shape; 2] {
    [dims!["batch", 6], dims!["batch", "seq", 6]]
}

pub fn optimized(graph: &Graph) -> Optimized {
    optimize(graph, &Options::default()).unwrap()
}

/// Checks that each pass kept the meaning, for batches of 1 and 3.
pub fn same(name: &str, optimized: &Optimized) {
    for batch in [1, 3] {
        let bindings = Bindings::from([(Symbol::new("batch"), batch), (Symbol::new("seq"), 2)]);
        for check in check_trace(&optimized.trace, &bindings, 7).unwrap() {
            let limit = if check.pass == "constant_fold" { 1e-6 } else { 1e-9 };
            assert!(check.difference < limit, "{name}: {check:?}\n{}", optimized.trace);
        }
    }
}

/// The ops of a graph without its sources.
pub fn ops(graph: &Graph) -> BTreeMap<&'static str, usize> {
    let mut counts = graph.op_counts();
    counts.retain(|op, _| !["input", "param", "constant"].contains(op));
    counts
}
