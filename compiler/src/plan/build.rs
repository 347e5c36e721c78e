//! From graph to steps: which kernels compute each node, on which buffers. Where buffers live is decided afterwards, in
//! `storage.rs`; which elementwise nodes share a loop is decided before, in `fuse.rs`. Matrix products have a file of
//! their own, `build/products.rs`.

mod products;

use products::Packed;

use super::fuse::{Fusion, LoopBuilder};
use super::kernel::{Attention, Cast, Gather, Kernel, Loop, Row, RowOp};
use super::storage::{Draft, carries};
use super::{Buffer, BufferId, Plan, PlanError, stage_index};
use engraft_ir::ops;
use engraft_ir::{DType, Dim, Graph, Node, NodeId, Op, Shape, Stage, Stages, Symbol, TensorType, verify};
use std::collections::BTreeMap;

/// How to plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Whether elementwise nodes share loops and run as epilogues of matrix products.
    pub fuse: bool,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { fuse: true }
    }
}

/// Plans a graph.
///
/// # Errors
/// The graph is not valid, or has a type that compiled programs do not compute in, or a number that they cannot hold.
pub fn plan(graph: &Graph, options: PlanOptions) -> Result<Plan, PlanError> {
    verify(graph).map_err(|errors| PlanError::Invalid { graph: graph.name().to_owned(), errors })?;
    let is_unsupported = |node: &&Node| node.ty().dtype == DType::F64;
    if let Some(node) = graph.nodes().find(is_unsupported) {
        return Err(PlanError::Unsupported { node: node.name().to_owned(), ty: node.ty().clone() });
    }
    graph.nodes().try_for_each(check_numbers)?;
    let stages = Stages::of(graph);
    check_adaptable(graph, &stages)?;
    let fusion = Fusion::of(graph, &stages, options.fuse);
    let mut planner = Planner {
        graph,
        stages,
        fusion,
        draft: Draft::new(graph),
        values: BTreeMap::new(),
        packs: Vec::new(),
    };
    for id in graph.order() {
        planner.node(id);
    }
    for output in graph.outputs() {
        planner.output(&output.name, output.node);
    }
    let plan = planner.draft.finish(graph, &planner.stages);
    unbound(graph, &plan).map_or(Ok(plan), Err)
}

/// Refuses a symbol that only what is carried could bind, which has no extents before the first call.
fn unbound(graph: &Graph, plan: &Plan) -> Option<PlanError> {
    plan.carried.iter().find_map(|carried| {
        let Buffer { name, ty, .. } = plan.buffer(plan.inputs[carried.input]);
        let is_bound = |symbol: &Symbol| plan.symbols.iter().any(|bound| bound.symbol == *symbol);
        let symbol = ty.shape.symbols().into_iter().find(|symbol| !is_bound(symbol))?;
        Some(PlanError::CarriedSymbol { graph: graph.name().to_owned(), symbol, input: name.clone() })
    })
}

/// Refuses numbers that f32 cannot hold.
fn check_numbers(node: &Node) -> Result<(), PlanError> {
    // The elements of constants have their type already.
    let attributes = if matches!(node.op(), Op::Constant(_)) { None } else { Some(node.op().attributes()) };
    for (attribute, value) in attributes.into_iter().flatten() {
        let Some(value) = value.as_f64() else { continue };
        let single = value as f32;
        if single.is_infinite() || (single == 0.0 && value != 0.0) {
            return Err(PlanError::Number { node: node.name().to_owned(), attribute, value });
        }
    }
    Ok(())
}

/// Refuses adaptable layers whose weight the base does not know: adapters are loaded onto its panels.
fn check_adaptable(graph: &Graph, stages: &Stages) -> Result<(), PlanError> {
    for id in graph.order() {
        let Op::Adaptable(ops::Adaptable { module }) = graph.node(id).op() else { continue };
        let Some(weight) = graph.operand(id, ops::Adaptable::WEIGHT) else { continue };
        if stages.node(id) < Stage::Call {
            let (node, stage) = (graph.node(id).name().to_owned(), stages.node(id));
            return Err(PlanError::AdaptableStage { node, module: module.clone(), stage });
        }
        let stage = stages.node(weight);
        if stage > Stage::Base {
            let (node, weight) = (graph.node(id).name().to_owned(), graph.node(weight).name().to_owned());
            return Err(PlanError::AdaptableWeight { node, module: module.clone(), weight, stage });
        }
    }
    Ok(())
}

struct Planner<'g> {
    graph: &'g Graph,
    stages: Stages,
    fusion: Fusion,
    draft: Draft,
    values: BTreeMap<NodeId, BufferId>,
    /// What was packed already, so that a weight used twice is packed once.
    packs: Vec<Packed>,
}

impl Planner<'_> {
    /// The stage at which a node's code runs.
    fn stage(&self, id: NodeId) -> Stage {
        super::STAGES[stage_index(self.stages.node(id))]
    }

    fn name(&self, id: NodeId) -> &str {
        self.graph.node(id).name()
    }

    fn shape(&self, id: NodeId) -> &Shape {
        self.graph.node(id).shape()
    }

    fn operand(&self, id: NodeId, slot: usize) -> NodeId {
        self.graph.operand(id, slot).expect("the verifier checked that required operands are there")
    }

    fn value(&self, id: NodeId) -> BufferId {
        self.values[&id]
    }

    /// A new buffer for a node's result.
    fn result(&mut self, id: NodeId) -> BufferId {
        let node = self.graph.node(id);
        self.draft.buffer(node.name(), node.ty().clone(), self.stage(id))
    }

    fn scratch(&mut self, name: &str, shape: Shape, stage: Stage) -> BufferId {
        self.draft.buffer(name, TensorType::new(DType::F32, shape), stage)
    }

    fn step(&mut self, id: NodeId, kernel: Kernel, reads: Vec<BufferId>, write: BufferId) {
        let (stage, name) = (self.stage(id), self.name(id).to_owned());
        self.draft.step(stage, name, kernel, reads, write);
    }

    fn node(&mut self, id: NodeId) {
        if self.fusion.is_inlined(id) || self.fusion.is_epilogued(id) {
            return;
        }
        if let Some(merged) = self.fusion.merges.at(id) {
            let buffer = self.merge(id, merged);
            self.values.insert(id, buffer);
            return;
        }
        let buffer = match self.graph.node(id).op().clone() {
            Op::Input(_) => self.draft.input(self.graph.node(id).name(), self.graph.node(id).ty().clone()),
            Op::Param(param) => {
                let node = self.graph.node(id);
                self.draft.param(node.name(), node.ty().clone(), param.binding)
            }
            Op::Constant(constant) => self.draft.constant(self.graph.node(id).name(), constant.values),
            Op::Reshape(_) => self.value(self.operand(id, 0)),
            Op::Dense(_) | Op::Adaptable(_) | Op::Lora(_) | Op::Dora(_) => {
                let write = self.result(id);
                self.linear(id, id, write, None)
            }
            Op::OutputDora(op) => self.output_dora(id, op),
            Op::LoraApply(op) => self.lora_apply(id, op),
            Op::LoraDelta(op) => self.lora_delta(id, op),
            Op::LoraNorm(op) => self.lora_norm(id, op),
            Op::Matmul(_) => {
                let write = self.result(id);
                self.matmul(id, id, write, None)
            }
            Op::Reduce(op) => self.reduce(id, &op),
            Op::Softmax(op) => self.row(id, RowOp::Softmax, op.axis, &[]),
            Op::Normalize(op) => {
                let row_op = RowOp::Normalize { epsilon: op.epsilon as f32, epsilon_at: op.epsilon_at };
                self.row(id, row_op, op.axis, &[])
            }
            Op::LayerNorm(op) => {
                let vectors = [ops::LayerNorm::WEIGHT, ops::LayerNorm::BIAS];
                self.row(id, RowOp::LayerNorm { epsilon: op.epsilon as f32 }, self.last_axis(id), &vectors)
            }
            Op::RmsNorm(op) => {
                let row_op = RowOp::RmsNorm { epsilon: op.epsilon as f32 };
                self.row(id, row_op, self.last_axis(id), &[ops::RmsNorm::WEIGHT])
            }
            Op::Gather(_) => self.gather(id),
            Op::Concat(op) => self.concat(id, op.axis),
            Op::Cast(_) => self.cast(id),
            Op::Attention(op) => self.attention(id, op),
            Op::Binary(_)
            | Op::Scale(_)
            | Op::Unary(_)
            | Op::Magnitude(_)
            | Op::Broadcast(_)
            | Op::Transpose(_)
            | Op::Slice(_) => self.elementwise(id),
        };
        self.values.insert(id, buffer);
    }

    fn last_axis(&self, id: NodeId) -> usize {
        self.shape(id).len() - 1
    }

    // --- elementwise -------------------------------------------------------------------------------------------------

    fn elementwise(&mut self, id: NodeId) -> BufferId {
        if let Some(product) = self.fusion.product_of(id) {
            let write = self.result(id);
            return match self.graph.node(product).op() {
                Op::Matmul(_) => self.matmul(id, product, write, Some(id)),
                _ => self.linear(id, product, write, Some(id)),
            };
        }
        let mut builder = LoopBuilder::new(self.graph, &self.fusion, &self.values, None);
        let (reads, kernel) = builder.whole(id);
        let write = self.result(id);
        self.step(id, Kernel::Loop(kernel), reads, write);
        write
    }

    fn concat(&mut self, id: NodeId, axis: usize) -> BufferId {
        let write = self.result(id);
        let mut start = Dim::fixed(0);
        for part in self.graph.operands(id).into_iter().flatten() {
            let mut builder = LoopBuilder::new(self.graph, &self.fusion, &self.values, None);
            let (reads, kernel) = builder.part(part, self.shape(id), axis, &start);
            self.step(id, Kernel::Loop(kernel), reads, write);
            start = start + &self.shape(part)[axis];
        }
        write
    }

    // --- rows --------------------------------------------------------------------------------------------------------

    fn row(&mut self, id: NodeId, op: RowOp, axis: usize, vectors: &[usize]) -> BufferId {
        let x = self.operand(id, 0);
        let vector = |index: usize| vectors.get(index).and_then(|&slot| self.graph.operand(id, slot));
        let (weight, bias) = (vector(0), vector(1));
        let (outer, n, inner) = split(self.shape(x), axis, axis + 1);
        let kernel = Row { op, outer, n, inner, weight: weight.is_some(), bias: bias.is_some() };
        let reads = std::iter::once(x).chain(weight).chain(bias).map(|node| self.value(node)).collect();
        let write = self.result(id);
        self.step(id, Kernel::Row(kernel), reads, write);
        write
    }

    /// One kernel per run of neighbouring axes, from the last, so that the earlier axes keep their numbers. A mean of
    /// means over equally many is the mean.
    fn reduce(&mut self, id: NodeId, op: &ops::Reduce) -> BufferId {
        let x = self.operand(id, 0);
        let mut dims = self.shape(x).to_vec();
        let mut source = self.value(x);
        let mut axes = op.axes.clone();
        while let Some(last) = axes.pop() {
            let mut first = last;
            while first > 0 && axes.last() == Some(&(first - 1)) {
                first -= 1;
                axes.pop();
            }
            let (outer, n, inner) = split(&dims, first, last + 1);
            dims.drain(first..=last);
            let write = if axes.is_empty() {
                self.result(id)
            } else {
                self.scratch(&format!("{}.partial", self.name(id)), Shape::new(dims.clone()), self.stage(id))
            };
            let op = RowOp::Reduce(op.reduction);
            let kernel = Row { op, outer, n, inner, weight: false, bias: false };
            self.step(id, Kernel::Row(kernel), vec![source], write);
            source = write;
        }
        source
    }

    fn gather(&mut self, id: NodeId) -> BufferId {
        let (table, ids) = (self.operand(id, ops::Gather::TABLE), self.operand(id, ops::Gather::IDS));
        let (_, rows, width) = split(self.shape(table), 0, 1);
        let from_panels = self.is_kept_as_panels(table, self.stage(id));
        let kernel = Gather {
            from_panels,
            dtype: self.graph.node(table).ty().dtype,
            ids: self.graph.node(ids).ty().dtype,
            count: self.shape(ids).elements(),
            rows,
            width,
        };
        let write = self.result(id);
        let table = if from_panels { self.panels(table) } else { self.value(table) };
        let reads = vec![table, self.value(ids)];
        self.step(id, Kernel::Gather(kernel), reads, write);
        write
    }

    fn cast(&mut self, id: NodeId) -> BufferId {
        let x = self.operand(id, 0);
        let kernel = Cast { from: self.graph.node(x).ty().dtype, count: self.shape(x).elements() };
        let write = self.result(id);
        self.step(id, Kernel::Cast(kernel), vec![self.value(x)], write);
        write
    }

    // --- attention ---------------------------------------------------------------------------------------------------

    fn attention(&mut self, id: NodeId, op: ops::Attention) -> BufferId {
        let [q, k, v] =
            [ops::Attention::Q, ops::Attention::K, ops::Attention::V].map(|slot| self.operand(id, slot));
        let mask = self.graph.operand(id, ops::Attention::MASK);
        let width = |node, heads| {
            let width = self.shape(node)[2].as_fixed().expect("the verifier checked that the width is fixed");
            width / heads
        };
        let (d, e) = (width(q, op.heads), width(v, op.kv_heads));
        let view = |node| LoopBuilder::new(self.graph, &self.fusion, &self.values, None).view(node);
        let [(q_buffer, q_view), (k_buffer, k_view), (v_buffer, v_view)] = [view(q), view(k), view(v)];
        let kernel = Attention {
            batch: self.shape(q)[0].clone(),
            queries: self.shape(q)[1].clone(),
            keys: self.shape(k)[1].clone(),
            heads: op.heads,
            kv_heads: op.kv_heads,
            d,
            e,
            scale: op.scale as f32,
            causal: op.causal,
            window: op.window,
            mask: mask.map(|mask| self.graph.node(mask).ty().dtype),
            q: q_view,
            k: k_view,
            v: v_view,
        };
        let reads = [q_buffer, k_buffer, v_buffer].into_iter().chain(mask.map(|mask| self.value(mask)));
        let reads = reads.collect();
        let write = self.result(id);
        self.step(id, Kernel::Attention(kernel), reads, write);
        write
    }

    // --- outputs -----------------------------------------------------------------------------------------------------

    /// An output is written where the caller wants it; what is no fresh value of the call is copied there.
    fn output(&mut self, name: &str, id: NodeId) {
        let value = self.value(id);
        if !self.is_carried_as_other(name, value)
            && self.draft.claim_output(name, value, self.graph.node(id).ty())
        {
            return;
        }
        let ty = self.graph.node(id).ty().clone();
        let kernel = Loop::copy(&ty);
        let write = self.draft.buffer(name, ty.clone(), Stage::Call);
        self.draft.step(Stage::Call, name.to_owned(), Kernel::Loop(kernel), vec![value], write);
        self.draft.claim_output(name, write, &ty);
    }

    /// Whether the value is an output of another name, which an input carries: what is appended to must lie there.
    fn is_carried_as_other(&self, name: &str, value: BufferId) -> bool {
        let others = self.graph.outputs().iter().filter(|output| output.name != name);
        let mut shared = others.filter(|output| self.value(output.node) == value);
        shared.any(|output| {
            let mut inputs = self.graph.order().into_iter();
            inputs.any(|id| carries(self.graph, id) == Some(&output.name))
        })
    }
}

/// The extents before, within and after the axes `first .. end`.
fn split(dims: &[Dim], first: usize, end: usize) -> (Dim, Dim, Dim) {
    let product = |dims: &[Dim]| dims.iter().fold(Dim::fixed(1), |product, dim| product * dim);
    (product(&dims[..first]), product(&dims[first..end]), product(&dims[end..]))
}
