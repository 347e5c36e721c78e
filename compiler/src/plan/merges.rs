//! Which weights are another with an adapter merged into it, `W' = gain ∘ (W + s B A)`, so that their panels are made from those
//! of W in one step. Knows nothing about buffers, and not who decided that they are merged.

use engraft_ir::ops::{Binary, LoraDelta, Magnitude};
use engraft_ir::{Graph, NodeId, Op, Stages};
use std::collections::{BTreeMap, BTreeSet};

/// What a merged weight is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct MergedWeight {
    /// W `[out, k]`.
    pub(super) weight: NodeId,
    /// A `[rank, k]`.
    pub(super) a: NodeId,
    /// B `[out, rank]`.
    pub(super) b: NodeId,
    /// s.
    pub(super) scale: f64,
    /// The gain `[out]`, if there is one.
    pub(super) gain: Option<NodeId>,
    /// `s B A`.
    delta: NodeId,
    /// `W + s B A`, and W's slot in it.
    sum: (NodeId, usize),
}

/// The merged weights of a graph.
#[derive(Default)]
pub(super) struct Merges {
    /// By the node that is the weight.
    weights: BTreeMap<NodeId, MergedWeight>,
    /// `s B A` and, if there is a gain, `W + s B A`: they exist only inside the weight.
    inside: BTreeSet<NodeId>,
    /// Where W is read.
    summed: BTreeSet<(NodeId, usize)>,
}

impl Merges {
    pub(super) fn of(graph: &Graph, stages: &Stages) -> Self {
        let mut merges = Self::default();
        for id in graph.order() {
            let Some(merged) = merged(graph, stages, id) else { continue };
            merges.inside.extend([merged.delta, merged.sum.0].into_iter().filter(|&node| node != id));
            merges.summed.insert(merged.sum);
            merges.weights.insert(id, merged);
        }
        merges
    }

    /// What a node is made of, if it is a merged weight.
    pub(super) fn at(&self, id: NodeId) -> Option<MergedWeight> {
        self.weights.get(&id).copied()
    }

    /// Whether a node exists only inside a merged weight.
    pub(super) fn is_inside(&self, id: NodeId) -> bool {
        self.inside.contains(&id)
    }

    /// Whether a node is a part of what is merged in one step.
    pub(super) fn has(&self, id: NodeId) -> bool {
        self.is_inside(id) || self.weights.contains_key(&id)
    }

    /// Whether a node adds an adapter to the weight that is its operand in this slot, and reads its panels.
    pub(super) fn adds_to(&self, user: NodeId, slot: usize) -> bool {
        self.summed.contains(&(user, slot))
    }
}

/// What a node is made of, if it is a merged weight that layers alone read, and nothing in it is needed elsewhere or known
/// earlier.
fn merged(graph: &Graph, stages: &Stages, id: NodeId) -> Option<MergedWeight> {
    let is_own = |node: NodeId| graph.use_count(node) == 1 && stages.node(node) == stages.node(id);
    let users = graph.users(id);
    let is_weight = !users.is_empty() && graph.use_count(id) == users.len();
    if !is_weight || !users.iter().all(|&(user, slot)| is_layer_of(graph.node(user).op(), slot)) {
        return None;
    }
    let (sum, gain) = match graph.node(id).op() {
        Op::Magnitude(Magnitude { axis: 0 }) => {
            (graph.operand(id, 0).filter(|&sum| is_own(sum))?, graph.operand(id, 1))
        }
        _ => (id, None),
    };
    if *graph.node(sum).op() != Op::Binary(Binary::Add) {
        return None;
    }
    let part = |slot: usize| {
        let (weight, delta) = (graph.operand(sum, 1 - slot)?, graph.operand(sum, slot)?);
        let Op::LoraDelta(LoraDelta { scale }) = *graph.node(delta).op() else { return None };
        let (a, b) = (graph.operand(delta, LoraDelta::A)?, graph.operand(delta, LoraDelta::B)?);
        // A sum may also repeat what has fewer rows.
        let is_same_shape = graph.node(weight).shape() == graph.node(delta).shape();
        let merged = MergedWeight { weight, a, b, scale, gain, delta, sum: (sum, 1 - slot) };
        (is_same_shape && is_own(delta)).then_some(merged)
    };
    part(1).or_else(|| part(0))
}

/// Whether an op is a layer whose weight is its operand in this slot.
pub(super) fn is_layer_of(op: &Op, slot: usize) -> bool {
    let is_layer =
        matches!(op, Op::Dense(_) | Op::Adaptable(_) | Op::Lora(_) | Op::Dora(_) | Op::OutputDora(_));
    is_layer && slot == 1
}
