//! Ours: the layer as a graph, compiled, loaded and called.

use super::Shape;
use super::arrays::{ALPHA, Layer};
use crate::contender::{Entry, Who};
use crate::error::Error;
use crate::ours::Loaded;
use engraft::Merging;
use engraft::prelude::*;
use engraft::runtime::{self, Context};
use std::sync::Arc;

/// When A, B and m are known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Adapter {
    /// When the adapter is loaded.
    Frozen,
    /// In each call.
    Live,
}

/// The four programs for a shape. Each serves every batch and any number of threads.
pub struct Programs {
    programs: Vec<(Who, Compiled)>,
}

impl Programs {
    /// Compiles them.
    ///
    /// # Errors
    /// None that a sound build gives rise to.
    pub fn new(shape: Shape) -> Result<Self, Error> {
        let options = Options::default();
        let merge = Options { merge: Merging::ALWAYS, ..options };
        let programs = vec![
            (Who::Dense, compile(&base(shape)?, &options)?),
            (Who::Dora, compile(&dora(shape, Adapter::Frozen)?, &options)?),
            (Who::Merged, compile(&dora(shape, Adapter::Frozen)?, &merge)?),
            (Who::Live, compile(&dora(shape, Adapter::Live)?, &options)?),
        ];
        Ok(Self { programs })
    }

    /// Loads the layer into them.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn entries<'a>(
        &self,
        layer: &'a Layer,
        input: &'a runtime::Tensor,
        context: &Arc<Context>,
    ) -> Result<Vec<Entry<'a>>, Error> {
        let entry = |(who, compiled): &(Who, Compiled)| {
            let contender = Box::new(load(compiled, layer, input, context)?);
            Ok(Entry { who: *who, threads: context.workers.threads(), contender })
        };
        self.programs.iter().map(entry).collect()
    }
}

fn base(shape: Shape) -> Result<Graph, BuildErrors> {
    let g = GraphBuilder::new("base");
    let x = g.input("x", F32, dims!["batch", shape.inputs]);
    let w = g.param("weight", F32, dims![shape.outputs, shape.inputs]);
    let bias = g.param("bias", F32, dims![shape.outputs]);
    g.output("y", x.dense(w, Some(bias)));
    g.finish()
}

fn dora(shape: Shape, adapter: Adapter) -> Result<Graph, BuildErrors> {
    let Shape { inputs, outputs, rank } = shape;
    let g = GraphBuilder::new("dora");
    let x = g.input("x", F32, dims!["batch", inputs]);
    let w = g.param("weight", F32, dims![outputs, inputs]);
    let bias = g.param("bias", F32, dims![outputs]);
    let param = |name, shape| {
        let param = g.param(name, F32, shape);
        if adapter == Adapter::Live { param.live() } else { param.adapter() }
    };
    let (a, b) = (param("lora_A", dims![rank, inputs]), param("lora_B", dims![outputs, rank]));
    let m = param("magnitude", dims![outputs]);
    let direction = (w + Tensor::lora_delta(a, b, ALPHA / rank as f64)).normalize(Axis::IN);
    g.output("y", x.dense(direction.magnitude(m, Axis::OUT), Some(bias)));
    g.finish()
}

fn load<'a>(
    compiled: &Compiled,
    layer: &'a Layer,
    input: &'a runtime::Tensor,
    context: &Arc<Context>,
) -> Result<Loaded<'a>, Error> {
    let model = compiled.program.load_base(&layer.weights, Arc::clone(context))?;
    let model = model.load_adapter(&layer.weights)?;
    let find = |name: &str| {
        if name == "x" { Some(input) } else { layer.weights.get(name).map(Arc::as_ref) }
    };
    Loaded::new(&model, find)
}
