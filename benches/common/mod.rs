//! What the benchmarks share: graphs with random values, loaded on one thread, and calls without allocations.
#![allow(dead_code, clippy::unwrap_used, reason = "each benchmark uses a part; benchmarks may panic")]

use criterion::Bencher;
use engraft::Merging;
use engraft::compiler::values::to_tensor;
use engraft::ir::{Bindings, Symbol, sample};
use engraft::prelude::*;
use engraft::runtime::{self, Context, Model, Weights, abi};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Features in and out, and r.
pub type Sizes = (usize, usize, usize);

/// The layers that are timed.
pub const LAYERS: [Sizes; 4] = [(768, 768, 8), (768, 3072, 8), (3072, 768, 8), (4096, 4096, 16)];

/// When A, B and m are known: with an adapter, or with each call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Factors {
    Loaded,
    Live,
}

/// `y = x Wᵀ + bias`
pub fn dense((inputs, outputs, _): Sizes) -> Graph {
    let g = GraphBuilder::new("dense");
    let x = g.input("x", F32, dims!["batch", inputs]);
    let w = g.param("weight", F32, dims![outputs, inputs]);
    g.output("y", x.dense(w, Some(g.param("bias", F32, dims![outputs]))));
    g.finish().unwrap()
}

/// The same layer with DoRA.
pub fn dora((inputs, outputs, rank): Sizes, factors: Factors) -> Graph {
    let g = GraphBuilder::new("dora");
    let x = g.input("x", F32, dims!["batch", inputs]);
    let w = g.param("weight", F32, dims![outputs, inputs]);
    let bias = g.param("bias", F32, dims![outputs]);
    let [a, b, m] =
        [("lora_A", dims![rank, inputs]), ("lora_B", dims![outputs, rank]), ("magnitude", dims![outputs])]
            .map(|(name, shape)| {
                let param = g.param(name, F32, shape);
                if factors == Factors::Live { param.live() } else { param.adapter() }
            });
    let direction = (w + Tensor::lora_delta(a, b, 16.0 / rank as f64)).normalize(Axis::IN);
    g.output("y", x.dense(direction.magnitude(m, Axis::OUT), Some(bias)));
    g.finish().unwrap()
}

/// Random values of a graph's inputs and parameters.
pub fn values(graph: &Graph, batch: usize) -> Weights {
    let bindings = Bindings::from([(Symbol::new("batch"), batch as u64)]);
    let values = sample::values(graph, &bindings, 1).unwrap();
    let mut tensors = Weights::new();
    for (name, ty) in graph.inputs().into_iter().map(|input| (input.name, input.ty)) {
        tensors.insert(&name, to_tensor(&values[&name], &ty).unwrap());
    }
    for param in graph.params() {
        tensors.insert(&param.name, to_tensor(&values[&param.name], &param.ty).unwrap());
    }
    tensors
}

/// One thread with the fastest kernels.
pub fn context() -> Arc<Context> {
    let options = runtime::Options { threads: Some(NonZeroUsize::MIN), ..runtime::Options::default() };
    Arc::new(Context::new(options).unwrap())
}

/// A graph, compiled and loaded.
pub fn model(graph: &Graph, merge: bool, values: &Weights) -> Model {
    let program =
        compile(graph, &Options { merge: Merging::all(merge), ..Options::default() }).unwrap().program;
    program.load_base(values, context()).unwrap().load_adapter(values).unwrap()
}

/// Times calls of a model of one output.
pub fn calls(bencher: &mut Bencher, model: &Model, values: &Weights) {
    let spec = model.program().spec();
    let arriving = spec.arriving(abi::Stage::Call).map(|(_, spec)| &**values.get(&spec.name).unwrap());
    let inputs: Vec<&runtime::Tensor> = arriving.collect();
    let (mut session, mut output) = (model.session(), [runtime::Tensor::empty(runtime::DType::F32)]);
    bencher.iter(|| session.run_into(&inputs, &mut output).unwrap());
}
