//! Matrix products: every linear layer, adapted or not, as one `Linear` on weights that are packed as soon as they are known.

use super::Planner;
use crate::plan::BufferId;
use crate::plan::fuse::{LoopBuilder, collapse_to_rows};
use crate::plan::kernel::{Dot, Kernel, Linear, MatrixLayout, Merge, Pack, Packing, Row, RowNorm, RowOp};
use crate::plan::merges::{MergedWeight, is_layer_of};
use engraft_ir::ops::{self, EpsilonAt};
use engraft_ir::{DType, Dim, NodeId, Op, Shape, Stage};

/// The parts of a linear layer, whatever op it came from.
struct LinearParts {
    x: NodeId,
    weight: NodeId,
    low_rank: Option<(NodeId, NodeId, f64)>,
    gain: Option<NodeId>,
    bias: Option<NodeId>,
}

/// A packed matrix that there is already.
pub(super) struct Packed {
    source: BufferId,
    pack: Pack,
    stage: Stage,
    buffer: BufferId,
}

impl Planner<'_> {
    /// The matrix `[out, k]` that a node holds, and where; a transposed one is read where it lies.
    fn matrix(&self, id: NodeId) -> (NodeId, MatrixLayout) {
        let dims = self.shape(id);
        let (out, k) = (dims[0].clone(), dims[1].clone());
        let node = self.graph.node(id);
        let one = Dim::fixed(1);
        match node.op() {
            Op::Transpose(_) if self.fusion.is_inlined(id) => {
                let layout = MatrixLayout { out: out.clone(), k, out_stride: one, k_stride: out };
                (self.operand(id, 0), layout)
            }
            _ => (id, MatrixLayout { out, k: k.clone(), out_stride: k, k_stride: one }),
        }
    }

    /// A buffer's matrices, packed when the buffer is known.
    fn packed(&mut self, source: BufferId, name: &str, pack: Pack, stage: Stage) -> BufferId {
        // One of a later stage is of no use: what reads it early would read it before it is written.
        let serves = |other: &&Packed| other.source == source && other.pack == pack && other.stage <= stage;
        if let Some(found) = self.packs.iter().find(serves) {
            return found.buffer;
        }
        let name = format!("{name}.{}", pack.packing);
        let packed = self.scratch(&name, Shape::new(vec![pack.floats()]), stage);
        self.draft.step(stage, name, Kernel::Pack(pack.clone()), vec![source], packed);
        self.packs.push(Packed { source, pack, stage, buffer: packed });
        packed
    }

    /// The weight that a node holds, packed as soon as it is known.
    fn packed_weight(&mut self, id: NodeId, packing: Packing, scale: f64) -> BufferId {
        let stage = self.stage(self.matrix(id).0);
        self.packed_weight_at(stage, id, packing, scale)
    }

    /// The panels of a weight, as layers have them.
    pub(super) fn panels(&mut self, id: NodeId) -> BufferId {
        if self.fusion.merges.at(id).is_some() {
            return self.value(id);
        }
        self.packed_weight(id, Packing::Panels, 1.0)
    }

    /// Whether a use of a weight is as panels that are kept from when it is known: in a layer, or to be merged.
    fn uses_panels(&self, (user, slot): (NodeId, usize)) -> bool {
        is_layer_of(self.graph.node(user).op(), slot) || self.fusion.merges.adds_to(user, slot)
    }

    /// The panels of a weight that an adapter is merged into.
    pub(super) fn merge(&mut self, id: NodeId, merged: MergedWeight) -> BufferId {
        let MergedWeight { weight, a, b, scale, gain, .. } = merged;
        let [out, k] = [0, 1].map(|axis| self.shape(weight)[axis].clone());
        let kernel = Merge { out, k, rank: self.shape(a)[0].clone(), gain: gain.is_some() };
        let mut reads = vec![
            self.panels(weight),
            self.packed_weight(a, Packing::Rows, 1.0),
            self.packed_weight(b, Packing::Panels, scale),
        ];
        reads.extend(gain.map(|gain| self.value(gain)));
        let name = format!("{}.{}", self.name(id), Packing::Panels);
        let write = self.scratch(&name, Shape::new(vec![kernel.floats()]), self.stage(id));
        self.step(id, Kernel::Merge(kernel), reads, write);
        write
    }

    /// Whether a table that is looked up at `stage` is there as the panels of a layer that is tied to it, and nothing else
    /// needs it in another form after it is loaded. Then it isn't kept a second time. A norm reads the layer's panels.
    pub(super) fn is_kept_as_panels(&self, table: NodeId, stage: Stage) -> bool {
        let node = self.graph.node(table);
        let is_param =
            matches!(node.op(), Op::Param(_)) && node.ty().dtype == DType::F32 && node.ty().rank() == 2;
        let is_output = self.graph.outputs().iter().any(|output| output.node == table);
        let users = self.graph.users(table);
        let is_layer = |&user: &(NodeId, usize)| self.uses_panels(user);
        let is_gather = |&(user, slot): &(NodeId, usize)| {
            matches!(self.graph.node(user).op(), Op::Gather(_)) && slot == ops::Gather::TABLE
        };
        let is_norm = |&(user, slot): &(NodeId, usize)| {
            matches!(self.graph.node(user).op(), Op::LoraNorm(_)) && slot == ops::LoraNorm::WEIGHT
        };
        is_param
            && !is_output
            && self.stage(table) < stage
            && users.iter().any(is_layer)
            && users.iter().all(|user| is_layer(user) || is_norm(user) || is_gather(user))
    }

    fn packed_weight_at(&mut self, stage: Stage, id: NodeId, packing: Packing, scale: f64) -> BufferId {
        let (source, matrix) = self.matrix(id);
        let name = self.name(source).to_owned();
        let pack = Pack { batch: Dim::fixed(1), matrix, scale: scale as f32, packing };
        self.packed(self.value(source), &name, pack, stage)
    }

    fn parts(&self, id: NodeId) -> LinearParts {
        let operand = |slot| self.operand(id, slot);
        let (x, weight) = (operand(0), operand(1));
        match *self.graph.node(id).op() {
            Op::Lora(ops::Lora { scale }) => LinearParts {
                x,
                weight,
                low_rank: Some((operand(ops::Lora::A), operand(ops::Lora::B), scale)),
                gain: None,
                bias: self.graph.operand(id, ops::Lora::BIAS),
            },
            Op::Dora(ops::Dora { scale }) => LinearParts {
                x,
                weight,
                low_rank: Some((operand(ops::Dora::A), operand(ops::Dora::B), scale)),
                gain: Some(operand(ops::Dora::GAIN)),
                bias: self.graph.operand(id, ops::Dora::BIAS),
            },
            Op::OutputDora(ops::OutputDora { scale, .. }) => LinearParts {
                x,
                weight,
                low_rank: Some((operand(ops::OutputDora::A), operand(ops::OutputDora::B), scale)),
                gain: None,
                bias: self.graph.operand(id, ops::OutputDora::BIAS),
            },
            _ => LinearParts {
                x,
                weight,
                low_rank: None,
                gain: None,
                bias: self.graph.operand(id, ops::Dense::BIAS),
            },
        }
    }

    /// The rows of an activation `[.., k]`.
    fn rows(&self, x: NodeId) -> Dim {
        let dims = self.shape(x);
        dims[..dims.len() - 1].iter().fold(Dim::fixed(1), |rows, dim| rows * dim)
    }

    /// A linear layer; `at` is the node whose value it writes: `id` itself, or the root of its epilogue.
    pub(super) fn linear(
        &mut self,
        at: NodeId,
        id: NodeId,
        write: BufferId,
        epilogue: Option<NodeId>,
    ) -> BufferId {
        let parts = self.parts(id);
        let (rows, k) = (self.rows(parts.x), self.shape(parts.weight)[1].clone());
        let mut kernel = Linear {
            batch: Dim::fixed(1),
            rows: rows.clone(),
            k: k.clone(),
            out: self.shape(parts.weight)[0].clone(),
            rank: None,
            batched_weight: false,
            gain: parts.gain.is_some(),
            bias: parts.bias.is_some(),
            adaptable: None,
            epilogue: None,
        };
        if let Op::Adaptable(ops::Adaptable { module }) = self.graph.node(id).op() {
            let dims = self.shape(parts.x);
            kernel.batch = dims[0].clone();
            kernel.rows = dims[1..dims.len() - 1].iter().fold(Dim::fixed(1), |rows, dim| rows * dim);
            kernel.adaptable = Some(module.as_str().into());
        }
        let mut reads = vec![self.value(parts.x), self.panels(parts.weight)];
        if let Some((a, b, scale)) = parts.low_rank {
            let rank = self.shape(a)[0].clone();
            reads.push(self.hidden(at, id, parts.x, a));
            reads.push(self.packed_weight(b, Packing::Panels, scale));
            kernel.rank = Some(rank);
        }
        reads.extend(parts.gain.map(|gain| self.value(gain)));
        reads.extend(parts.bias.map(|bias| self.value(bias)));
        self.with_epilogue(&mut kernel, &mut reads, id, epilogue);
        self.step(at, Kernel::Linear(kernel), reads, write);
        write
    }

    /// `h = x Aᵀ`, `[rows, r]`.
    fn hidden(&mut self, at: NodeId, id: NodeId, x: NodeId, a: NodeId) -> BufferId {
        let (rows, rank, k) = (self.rows(x), self.shape(a)[0].clone(), self.shape(a)[1].clone());
        let packed = self.packed_weight(a, Packing::Rows, 1.0);
        let name = format!("{}.hidden", self.name(id));
        let hidden = self.scratch(&name, Shape::new(vec![rows.clone(), rank.clone()]), self.stage(id));
        let reads = vec![self.value(x), packed];
        self.step(at, Kernel::Dot(Dot { rows, k, out: rank }), reads, hidden);
        hidden
    }

    fn with_epilogue(
        &mut self,
        kernel: &mut Linear,
        reads: &mut Vec<BufferId>,
        product: NodeId,
        root: Option<NodeId>,
    ) {
        let Some(root) = root else { return };
        let mut builder = LoopBuilder::new(self.graph, &self.fusion, &self.values, Some(product));
        let (buffers, body) = builder.whole_uncollapsed(root);
        let body = collapse_to_rows(body).expect("the fusion chose roots whose loops collapse to rows");
        reads.extend(buffers);
        kernel.epilogue = Some(body);
    }

    pub(super) fn output_dora(&mut self, id: NodeId, op: ops::OutputDora) -> BufferId {
        let combined =
            self.scratch(&format!("{}.combined", self.name(id)), self.shape(id).clone(), self.stage(id));
        self.linear(id, id, combined, None);
        let write = self.result(id);
        let row = Row {
            op: RowOp::Normalize { epsilon: op.epsilon as f32, epsilon_at: EpsilonAt::Inside },
            outer: self.rows(id),
            n: self.shape(id)[self.last_axis(id)].clone(),
            inner: Dim::fixed(1),
            weight: true,
            bias: false,
        };
        let magnitude = self.value(self.operand(id, ops::OutputDora::MAGNITUDE));
        self.step(id, Kernel::Row(row), vec![combined, magnitude], write);
        write
    }

    pub(super) fn lora_apply(&mut self, id: NodeId, op: ops::LoraApply) -> BufferId {
        let (x, a, b) = (self.operand(id, ops::LoraApply::X), self.operand(id, 1), self.operand(id, 2));
        let hidden = self.hidden(id, id, x, a);
        let panels = self.packed_weight(b, Packing::Panels, op.scale);
        let (rank, out) = (self.shape(a)[0].clone(), self.shape(b)[0].clone());
        let kernel = plain_linear(Dim::fixed(1), self.rows(x), rank, out);
        let write = self.result(id);
        self.step(id, Kernel::Linear(kernel), vec![hidden, panels], write);
        write
    }

    /// `s B A` is the product of B `[out, r]` with the transpose of A, packed with s.
    pub(super) fn lora_delta(&mut self, id: NodeId, op: ops::LoraDelta) -> BufferId {
        let (a, b) = (self.operand(id, ops::LoraDelta::A), self.operand(id, ops::LoraDelta::B));
        let (rank, inputs) = (self.shape(a)[0].clone(), self.shape(a)[1].clone());
        let matrix = MatrixLayout {
            out: inputs.clone(),
            k: rank.clone(),
            out_stride: Dim::fixed(1),
            k_stride: inputs.clone(),
        };
        let pack = Pack { batch: Dim::fixed(1), matrix, scale: op.scale as f32, packing: Packing::Panels };
        let name = self.name(a).to_owned();
        let panels = self.packed(self.value(a), &name, pack, self.stage(a));
        let kernel = plain_linear(Dim::fixed(1), self.shape(b)[0].clone(), rank, inputs);
        let write = self.result(id);
        self.step(id, Kernel::Linear(kernel), vec![self.value(b), panels], write);
        write
    }

    pub(super) fn lora_norm(&mut self, id: NodeId, op: ops::LoraNorm) -> BufferId {
        let weight = self.operand(id, ops::LoraNorm::WEIGHT);
        let (a, b) = (self.operand(id, ops::LoraNorm::A), self.operand(id, ops::LoraNorm::B));
        let [out, k] = [0, 1].map(|axis| self.shape(weight)[axis].clone());
        let kernel = RowNorm { out, k, rank: self.shape(a)[0].clone() };
        // The panels of a layer serve its norm, too. Where nothing else needs them, they are scratch: kept from the base's
        // stage on they would be a second copy of W.
        let are_kept = self.graph.users(weight).into_iter().any(|user| self.uses_panels(user));
        let panels_stage = if are_kept { self.stage(self.matrix(weight).0) } else { self.stage(id) };
        let reads = vec![
            self.packed_weight_at(panels_stage, weight, Packing::Panels, 1.0),
            self.packed_weight(a, Packing::Rows, 1.0),
            self.packed_weight(b, Packing::Panels, op.scale),
        ];
        let write = self.result(id);
        self.step(id, Kernel::RowNorm(kernel), reads, write);
        write
    }

    pub(super) fn matmul(
        &mut self,
        at: NodeId,
        id: NodeId,
        write: BufferId,
        epilogue: Option<NodeId>,
    ) -> BufferId {
        let (a, b) = (self.operand(id, ops::Matmul::A), self.operand(id, ops::Matmul::B));
        let (a_dims, b_dims) = (self.shape(a), self.shape(b));
        let (k, n) = (b_dims[b_dims.len() - 2].clone(), b_dims[b_dims.len() - 1].clone());
        let lead = a_dims[..a_dims.len() - 2].iter().fold(Dim::fixed(1), |product, dim| product * dim);
        let m = a_dims[a_dims.len() - 2].clone();
        let batched_weight = b_dims.len() > 2;
        // One matrix for all products: their rows are rows of one product.
        let (batch, rows) = if batched_weight { (lead, m) } else { (Dim::fixed(1), lead * m) };
        let matrix =
            MatrixLayout { out: n.clone(), k: k.clone(), out_stride: Dim::fixed(1), k_stride: n.clone() };
        let pack = Pack { batch: batch.clone(), matrix, scale: 1.0, packing: Packing::Panels };
        let (name, stage) = (self.name(b).to_owned(), self.stage(b));
        let panels = self.packed(self.value(b), &name, pack, stage);
        let mut kernel = Linear { batched_weight, ..plain_linear(batch, rows, k, n) };
        let mut reads = vec![self.value(a), panels];
        self.with_epilogue(&mut kernel, &mut reads, id, epilogue);
        self.step(at, Kernel::Linear(kernel), reads, write);
        write
    }
}

fn plain_linear(batch: Dim, rows: Dim, k: Dim, out: Dim) -> Linear {
    Linear {
        batch,
        rows,
        k,
        out,
        rank: None,
        batched_weight: false,
        gain: false,
        bias: false,
        adaptable: None,
        epilogue: None,
    }
}
