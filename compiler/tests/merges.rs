//! Weights that adapters are merged into: made in one step from the panels of W where a layer alone reads them, and by rows
//! otherwise. Either way they mean what the interpreter says.
#![allow(clippy::unwrap_used)]

mod common;

use common::agree;
use engraft_compiler::plan::kernel::Kernel;
use engraft_compiler::plan::{PlanOptions, plan};
use engraft_ir::DType::{F32, I64};
use engraft_ir::{Axis, Dim, GraphBuilder, Stage, Tensor, dims};

/// A layer's input and weights: if nothing else is said, 50 outputs, which leave a panel of two, and 20 inputs.
#[derive(Clone, Copy)]
struct Layer<'g> {
    g: &'g GraphBuilder,
    x: Tensor<'g>,
    w: Tensor<'g>,
    a: Tensor<'g>,
    b: Tensor<'g>,
    gain: Tensor<'g>,
}

impl<'g> Layer<'g> {
    fn delta(self) -> Tensor<'g> {
        Tensor::lora_delta(self.a, self.b, 0.5)
    }

    fn sum(self) -> Tensor<'g> {
        self.w + self.delta()
    }

    fn merged(self) -> Tensor<'g> {
        self.sum().magnitude(self.gain, Axis::OUT)
    }

    /// A and B of another adapter.
    fn factors(self) -> (Tensor<'g>, Tensor<'g>) {
        let a = self.g.param("a2", F32, dims![3, 20]).adapter();
        (a, self.g.param("b2", F32, dims![50, 3]).adapter())
    }

    fn y(self, y: Tensor<'g>) {
        self.g.output("y", y);
    }
}

/// The extents of a layer's weights.
struct Sizes {
    out: Dim,
    k: Dim,
    rank: Dim,
}

impl Sizes {
    fn usual() -> Self {
        Self { out: Dim::fixed(50), k: Dim::fixed(20), rank: Dim::from("rank") }
    }
}

/// Writes a graph of the usual sizes, and what becomes of it, as [`merges_of`].
fn merges(write: impl for<'g> Fn(Layer<'g>)) -> Vec<Stage> {
    merges_of(&Sizes::usual(), write)
}

/// Writes a graph; plans and runs it fused and as written. How many weights are merged from panels, and at which stage.
fn merges_of(Sizes { out, k, rank }: &Sizes, write: impl for<'g> Fn(Layer<'g>)) -> Vec<Stage> {
    let g = GraphBuilder::new("layer");
    let layer = Layer {
        g: &g,
        x: g.input("x", F32, dims!["batch", k.clone()]),
        w: g.param("w", F32, dims![out.clone(), k.clone()]),
        a: g.param("a", F32, dims![rank.clone(), k.clone()]).adapter(),
        b: g.param("b", F32, dims![out.clone(), rank.clone()]).adapter(),
        gain: g.param("gain", F32, dims![out.clone()]).adapter(),
    };
    write(layer);
    let graph = g.finish().unwrap();
    for (batch, rank) in [(1, 1), (7, 3)] {
        // Also with weights that are stored in another form, as those of half precision are.
        agree(&graph, &[("batch", batch), ("rank", rank), ("out", 50), ("k", 20)], batch);
    }
    let stages = |fuse| {
        let steps = plan(&graph, PlanOptions { fuse }).unwrap().steps;
        let merges = steps.into_iter().filter(|step| matches!(step.kernel, Kernel::Merge(_)));
        merges.map(|step| step.stage).collect::<Vec<_>>()
    };
    assert_eq!(stages(false), [], "as written, every node is a kernel of its own");
    stages(true)
}

#[test]
fn what_layers_alone_read_is_merged_from_panels() {
    let adapter = [Stage::Adapter];
    assert_eq!(merges(|l| l.y(l.x.dense(l.sum(), None))), adapter);
    assert_eq!(merges(|l| l.y(l.x.dense(l.merged(), None))), adapter);
    assert_eq!(merges(|l| l.y(l.x.dense(l.delta() + l.w, None).relu())), adapter);
    // Of two layers, one step; and W may be a layer's own weight beside.
    let shared = merges(|l| {
        let merged = l.merged();
        l.y(l.x.dense(merged, None) + l.x.dense(merged, None).relu() + l.x.dense(l.w, None));
    });
    assert_eq!(shared, adapter);
    // A weight, a gain and a norm that are values of their own.
    let of_values = merges(|l| {
        let w = l.g.param("wide", F32, dims![60, 20]).slice(0, 5, 50).scale(2.0);
        let gain = l.g.param("gains", F32, dims![60]).adapter().slice(0, 3, 50) / w.lora_norm(l.a, l.b, 0.5);
        l.y(l.x.dense((w + l.delta()).magnitude(gain, Axis::OUT), None));
    });
    assert_eq!(of_values, adapter);
    // A transposed weight is packed where it lies.
    let transposed = merges(|l| {
        let w = l.g.param("in_out", F32, dims![20, 50]).t();
        l.y(l.x.dense((w + l.delta()).magnitude(l.gain / w.lora_norm(l.a, l.b, 0.5), Axis::OUT), None));
    });
    assert_eq!(transposed, adapter);
    // A product as a weight stays one, and is no part of the merging.
    let product = merges(|l| {
        let w = l.g.param("left", F32, dims![50, 6]).matmul(l.g.param("right", F32, dims![6, 20]));
        l.y(l.x.dense(w + l.delta(), None));
    });
    assert_eq!(product, adapter);
    let live = merges(|l| l.y(l.x.dense(l.w + Tensor::lora_delta(l.a.live(), l.b, 0.5), None)));
    assert_eq!(live, [Stage::Call]);
}

/// No rank, no inputs, no outputs, and extents that are known when weights are loaded.
#[test]
fn extents_may_be_none_or_symbols() {
    let empty = |of: fn(&mut Sizes) -> &mut Dim| {
        let mut sizes = Sizes::usual();
        *of(&mut sizes) = Dim::fixed(0);
        sizes
    };
    let symbols = Sizes { out: Dim::from("out"), k: Dim::from("k"), rank: Dim::from("rank") };
    let all =
        [empty(|sizes| &mut sizes.rank), empty(|sizes| &mut sizes.k), empty(|sizes| &mut sizes.out), symbols];
    for sizes in all {
        assert_eq!(merges_of(&sizes, |l| l.y(l.x.dense(l.sum(), None))), [Stage::Adapter]);
        assert_eq!(merges_of(&sizes, |l| l.y(l.x.dense(l.merged(), None))), [Stage::Adapter]);
    }
}

/// W and B may have other readers, and W another stage.
#[test]
fn operands_may_have_other_uses() {
    let adapter = [Stage::Adapter];
    // A table that is looked up and, merged, is the output layer.
    let tied = merges(|l| l.y(l.w.gather(l.g.input("ids", I64, dims!["batch"])).dense(l.merged(), None)));
    assert_eq!(tied, adapter);
    let looked_up = merges(|l| {
        let rows = l.b.gather(l.g.input("ids", I64, dims!["batch"]));
        l.y(l.x.dense(l.merged(), None) + rows.sum(&[1]).reshape(dims!["batch", 1]));
    });
    assert_eq!(looked_up, adapter);
    let of_adapter = merges(|l| l.y(l.x.dense(l.w.adapter() + l.delta(), None)));
    assert_eq!(of_adapter, adapter);
    // W is its own B.
    let square = merges_of(&Sizes { out: Dim::fixed(20), rank: Dim::fixed(20), ..Sizes::usual() }, |l| {
        l.y(l.x.dense(l.w + Tensor::lora_delta(l.a, l.w, 0.5), None));
    });
    assert_eq!(square, adapter);
    // A merged weight that is adapted again, unmerged and merged.
    let adapted = merges(|l| {
        let (a, b) = l.factors();
        l.y(l.x.lora(l.merged(), a, b, None, 0.5));
    });
    assert_eq!(adapted, adapter);
    let twice = merges(|l| {
        let (a, b) = l.factors();
        l.y(l.x.dense(l.merged() + Tensor::lora_delta(a, b, 0.5), None));
    });
    assert_eq!(twice, adapter);
}

#[test]
fn what_is_read_otherwise_is_made_by_rows() {
    let none: [Stage; 0] = [];
    let output = merges(|l| {
        let merged = l.merged();
        l.g.output("weight", merged);
        l.y(l.x.dense(merged, None));
    });
    assert_eq!(output, none);
    let normed = merges(|l| {
        let sum = l.sum();
        l.y(l.x.dense(sum.magnitude(l.gain, Axis::OUT), None) + sum.sum(&[1]));
    });
    assert_eq!(normed, none);
    assert_eq!(merges(|l| l.y(l.x.dense(l.sum().relu(), None))), none);
    // A row that the sum repeats, and a gain of the inputs.
    let repeated = merges(|l| {
        let row = l.g.param("row", F32, dims![1, 20]);
        l.y(l.x.dense(row + l.delta(), None));
    });
    assert_eq!(repeated, none);
    let of_inputs = merges(|l| {
        let gain = l.g.param("of_inputs", F32, dims![20]).adapter();
        l.y(l.x.dense(l.sum().magnitude(gain, Axis::IN), None));
    });
    assert_eq!(of_inputs, none);
    // What is known when the adapter is loaded is not computed again in each call.
    let gain = merges(|l| {
        let gain = l.g.param("live", F32, dims![50]).live();
        l.y(l.x.dense(l.sum().magnitude(gain, Axis::OUT), None));
    });
    assert_eq!(gain, none);
    let weight = merges(|l| l.y(l.x.dense(l.g.param("live", F32, dims![50, 20]).live() + l.delta(), None)));
    assert_eq!(weight, none);
}
