//! Which elementwise nodes share a loop, and which loops run as the epilogue of a matrix product; and how a group of
//! nodes becomes one loop. Knows nothing about buffers' places or about code.
//!
//! A node is *inlined* into its only user when both are elementwise (or only move data) and known at the same stage,
//! and nothing would be computed twice, up to [`MAX_INLINED`] nodes a chain. What is left are roots: one loop each. A
//! root whose loop walks a matrix product of its own shape element for element, as the product's only user, becomes the
//! product's epilogue.
//!
//! Movement that only attention and packing read is no loop at all: they read what it moves where it lies. Nor is what
//! merges an adapter into a weight (`merges.rs`).

use super::BufferId;
use super::kernel::{Access, Expr, Loop, View};
use super::merges::Merges;
use engraft_ir::ops::{self, Binary};
use engraft_ir::{DType, Dim, Graph, NodeId, Op, Shape, Stages, TensorType};
use std::collections::{BTreeMap, BTreeSet};

/// The most nodes, and values they read, that are inlined into one operand of a node. Beyond it a loop has more
/// pointers and values than registers many times over, and a value of its own costs next to nothing; and what is
/// recursive here stays shallow.
const MAX_INLINED: usize = 64;

/// What is fused with what.
#[derive(Default)]
pub(super) struct Fusion {
    inlined: BTreeSet<NodeId>,
    /// Of the inlined nodes, those through which attention looks at their operand.
    viewed: BTreeSet<NodeId>,
    /// Root of an epilogue -> the product it belongs to.
    products: BTreeMap<NodeId, NodeId>,
    /// The products of `products`.
    epilogued: BTreeSet<NodeId>,
    /// Which weights are merged; they exist only as panels.
    pub(super) merges: Merges,
}

impl Fusion {
    pub(super) fn of(graph: &Graph, stages: &Stages, fuse: bool) -> Self {
        let viewed = views(graph);
        let merges = if fuse { Merges::of(graph, stages) } else { Merges::default() };
        let mut fusion = Self { inlined: viewed.clone(), viewed, merges, ..Self::default() };
        // How much is inlined into each node that is inlined itself, with the node.
        let mut sizes: BTreeMap<NodeId, usize> = BTreeMap::new();
        for id in graph.order() {
            let operands = graph.operands(id).into_iter().flatten();
            let size = 1 + operands.map(|operand| sizes.get(&operand).copied().unwrap_or(1)).sum::<usize>();
            // What a view shows has a buffer of its own.
            let is_shown = graph.users(id).iter().any(|(user, _)| fusion.viewed.contains(user));
            // So has what is merged.
            let is_merged = graph.users(id).iter().any(|(user, _)| fusion.merges.has(*user));
            let is_alone = is_shown || is_merged || size > MAX_INLINED;
            if fusion.merges.is_inside(id) || is_packed_transpose(graph, &fusion.merges, id) {
                fusion.inlined.insert(id);
            } else if fuse && !is_alone && inlines(graph, stages, id) {
                fusion.inlined.insert(id);
                sizes.insert(id, size);
            }
        }
        if fuse {
            for id in graph.order() {
                let is_root = is_pointwise(graph.node(id).op())
                    && !fusion.is_inlined(id)
                    && fusion.merges.at(id).is_none();
                if is_root && let Some(product) = fusion.find_product(graph, stages, id) {
                    fusion.products.insert(id, product);
                    fusion.epilogued.insert(product);
                }
            }
        }
        fusion
    }

    /// Whether the node exists only inside its user.
    pub(super) fn is_inlined(&self, id: NodeId) -> bool {
        self.inlined.contains(&id)
    }

    /// Whether the node is a product that is computed at the root of its epilogue.
    pub(super) fn is_epilogued(&self, id: NodeId) -> bool {
        self.epilogued.contains(&id)
    }

    /// The product whose epilogue this root is.
    pub(super) fn product_of(&self, root: NodeId) -> Option<NodeId> {
        self.products.get(&root).copied()
    }

    /// A leaf of the root's loop that can take the loop as its epilogue: the loop reads it where it writes.
    fn find_product(&self, graph: &Graph, stages: &Stages, root: NodeId) -> Option<NodeId> {
        let values = BTreeMap::new();
        let mut open = vec![root];
        while let Some(id) = open.pop() {
            for operand in graph.operands(id).into_iter().flatten() {
                if self.is_inlined(operand) {
                    open.push(operand);
                    continue;
                }
                let is_product = matches!(
                    graph.node(operand).op(),
                    Op::Dense(_) | Op::Adaptable(_) | Op::Lora(_) | Op::Dora(_) | Op::Matmul(_)
                );
                let fits = is_product
                    && graph.use_count(operand) == 1
                    && stages.node(operand) == stages.node(root)
                    && graph.node(operand).ty() == graph.node(root).ty()
                    && !self.is_epilogued(operand);
                if fits {
                    let mut builder = LoopBuilder::new(graph, self, &values, Some(operand));
                    builder.dry = true;
                    let (_, body) = builder.whole_uncollapsed(root);
                    if body.body.contains(&Expr::Load(0)) && collapse_to_rows(body).is_some() {
                        return Some(operand);
                    }
                }
            }
        }
        None
    }
}

/// Arithmetic or movement of one element to one place.
fn is_pointwise(op: &Op) -> bool {
    matches!(op, Op::Binary(_) | Op::Scale(_) | Op::Unary(_) | Op::Magnitude(_)) || is_movement(op)
}

fn is_movement(op: &Op) -> bool {
    matches!(op, Op::Broadcast(_) | Op::Transpose(_) | Op::Slice(_))
}

fn inlines(graph: &Graph, stages: &Stages, id: NodeId) -> bool {
    let node = graph.node(id);
    let users = graph.users(id);
    let &[(user, _)] = users.as_slice() else { return false };
    if !is_pointwise(node.op()) || graph.use_count(id) != 1 || stages.node(id) != stages.node(user) {
        return false;
    }
    let user = graph.node(user);
    match user.op() {
        Op::Concat(_) => true,
        op if is_pointwise(op) => {
            is_movement(node.op()) || node.shape().elements() == user.shape().elements()
        }
        _ => false,
    }
}

/// A transposed weight that only matrix products read: packing reads it where it lies.
fn is_packed_transpose(graph: &Graph, merges: &Merges, id: NodeId) -> bool {
    let node = graph.node(id);
    let is_weight = |&(user, slot): &(NodeId, usize)| match graph.node(user).op() {
        Op::Dense(_) | Op::Adaptable(_) => slot == 1,
        Op::Lora(_) | Op::Dora(_) | Op::OutputDora(_) => (1..=3).contains(&slot),
        Op::LoraApply(_) => slot >= 1,
        Op::LoraNorm(_) => true,
        _ => merges.adds_to(user, slot),
    };
    let source_is_materialised = || {
        let source = graph.operand(id, 0).map(|source| graph.node(source).op());
        source.is_some_and(|op| !is_pointwise(op))
    };
    matches!(node.op(), Op::Transpose(_))
        && node.shape().len() == 2
        && graph.use_count(id) == graph.users(id).len()
        && graph.users(id).iter().all(is_weight)
        && source_is_materialised()
}

/// The movement through which attention looks at its operands.
fn views(graph: &Graph) -> BTreeSet<NodeId> {
    let mut viewed = BTreeSet::new();
    // Users first.
    for &id in graph.order().iter().rev() {
        if is_viewed(graph, id, &viewed) {
            viewed.insert(id);
        }
    }
    viewed
}

/// Movement that leaves rows in one piece and that only attention reads, as q, k or v.
fn is_viewed(graph: &Graph, id: NodeId, viewed: &BTreeSet<NodeId>) -> bool {
    let node = graph.node(id);
    let leaves_rows = || match node.op() {
        Op::Slice(_) => true,
        Op::Transpose(op) => op.permutation.last() == Some(&(op.permutation.len() - 1)),
        Op::Broadcast(_) => {
            graph.operand(id, 0).is_some_and(|from| graph.node(from).shape().last() == node.shape().last())
        }
        _ => false,
    };
    let looks = |&(user, slot): &(NodeId, usize)| match graph.node(user).op() {
        Op::Attention(_) => slot < ops::Attention::MASK,
        _ => viewed.contains(&user),
    };
    let users = graph.users(id);
    graph.use_count(id) == users.len() && !users.is_empty() && users.iter().all(looks) && leaves_rows()
}

/// Where an axis of a node lies in the space: along an axis of the space, if any, from an offset.
#[derive(Clone)]
struct AxisMap {
    along: Option<usize>,
    offset: Dim,
}

/// Makes one loop of a root and what is inlined into it.
pub(super) struct LoopBuilder<'a> {
    graph: &'a Graph,
    fusion: &'a Fusion,
    values: &'a BTreeMap<NodeId, BufferId>,
    /// The product that the loop is an epilogue of: its value is the written buffer itself, access 0.
    product: Option<NodeId>,
    /// Whether only the shape of the loop matters, and buffers do not exist yet.
    dry: bool,
    /// Whether a constant of one element is a buffer like any other.
    views: bool,
    buffers: Vec<BufferId>,
    reads: Vec<(NodeId, Access)>,
    body: Vec<Expr>,
}

impl<'a> LoopBuilder<'a> {
    pub(super) fn new(
        graph: &'a Graph,
        fusion: &'a Fusion,
        values: &'a BTreeMap<NodeId, BufferId>,
        product: Option<NodeId>,
    ) -> Self {
        let (buffers, reads, body) = (Vec::new(), Vec::new(), Vec::new());
        Self { graph, fusion, values, product, dry: false, views: false, buffers, reads, body }
    }

    /// The loop that computes a whole node.
    pub(super) fn whole(&mut self, root: NodeId) -> (Vec<BufferId>, Loop) {
        let (buffers, whole) = self.whole_uncollapsed(root);
        (buffers, collapse(whole))
    }

    /// The same with the node's own axes.
    pub(super) fn whole_uncollapsed(&mut self, root: NodeId) -> (Vec<BufferId>, Loop) {
        let ty = self.graph.node(root).ty();
        let write = Access { strides: row_major(&ty.shape), offset: Dim::fixed(0) };
        if let Some(product) = self.product {
            self.reads.push((product, write.clone()));
        }
        self.root(root, ty, write, true)
    }

    /// The buffer that holds a node `[batch, rows, width]`, and how.
    pub(super) fn view(&mut self, id: NodeId) -> (BufferId, View) {
        self.views = true;
        let is_inlined = self.fusion.is_inlined(id);
        let ty = self.graph.node(id).ty();
        let write = Access { strides: row_major(&ty.shape), offset: Dim::fixed(0) };
        let (buffers, Loop { reads, .. }) = self.root(id, ty, write, is_inlined);
        let read = buffers.first().zip(reads.into_iter().next());
        let (&buffer, Access { strides, offset }) = read.expect("a view reads one buffer");
        let [batch_stride, row_stride] = [0, 1].map(|axis| strides[axis].clone());
        (buffer, View { offset, batch_stride, row_stride })
    }

    /// The loop that computes one part of a concatenation, into its place in the whole.
    pub(super) fn part(
        &mut self,
        part: NodeId,
        whole: &Shape,
        axis: usize,
        start: &Dim,
    ) -> (Vec<BufferId>, Loop) {
        let strides = row_major(whole);
        let offset = start.clone() * &strides[axis];
        let ty = self.graph.node(part).ty();
        let is_inlined = self.fusion.is_inlined(part);
        let (buffers, part) = self.root(part, ty, Access { strides, offset }, is_inlined);
        (buffers, collapse(part))
    }

    fn root(&mut self, id: NodeId, ty: &TensorType, write: Access, expand: bool) -> (Vec<BufferId>, Loop) {
        let map: Vec<_> =
            (0..ty.rank()).map(|axis| AxisMap { along: Some(axis), offset: Dim::fixed(0) }).collect();
        let rank = ty.rank();
        if expand {
            self.expand(id, &map, rank);
        } else {
            self.leaf(id, &map, rank);
        }
        let reads = self.reads.drain(..).map(|(_, access)| access).collect();
        let body = std::mem::take(&mut self.body);
        let whole = Loop { space: ty.shape.to_vec(), dtype: ty.dtype, reads, write, body };
        (std::mem::take(&mut self.buffers), whole)
    }

    fn push(&mut self, expr: Expr) -> usize {
        self.body.push(expr);
        self.body.len() - 1
    }

    fn value(&mut self, id: NodeId, map: &[AxisMap], rank: usize) -> usize {
        if self.fusion.is_inlined(id) { self.expand(id, map, rank) } else { self.leaf(id, map, rank) }
    }

    /// The value of an elementwise node, from its operands'.
    fn expand(&mut self, id: NodeId, map: &[AxisMap], rank: usize) -> usize {
        let graph = self.graph;
        let operand =
            |slot| graph.operand(id, slot).expect("the verifier checked that required operands are there");
        match graph.node(id).op() {
            Op::Unary(function) => {
                let x = self.value(operand(0), map, rank);
                self.push(Expr::Unary(*function, x))
            }
            Op::Scale(op) => {
                let x = self.value(operand(0), map, rank);
                let factor = self.push(Expr::Number(op.factor as f32));
                self.push(Expr::Binary(Binary::Mul, x, factor))
            }
            Op::Binary(function) => {
                let [a, b] = [0, 1].map(|slot| {
                    let map = self.broadcast_map(operand(slot), id, map);
                    self.value(operand(slot), &map, rank)
                });
                self.push(Expr::Binary(*function, a, b))
            }
            Op::Magnitude(op) => {
                let v = self.value(operand(0), map, rank);
                let m = self.value(operand(1), &[map[op.axis].clone()], rank);
                self.push(Expr::Binary(Binary::Mul, v, m))
            }
            Op::Broadcast(_) => {
                let map = self.broadcast_map(operand(0), id, map);
                self.value(operand(0), &map, rank)
            }
            Op::Transpose(op) => {
                let mut source = map.to_vec();
                for (axis, &from) in op.permutation.iter().enumerate() {
                    source[from] = map[axis].clone();
                }
                self.value(operand(0), &source, rank)
            }
            Op::Slice(op) => {
                let mut source = map.to_vec();
                let offset = &mut source[op.axis].offset;
                *offset = offset.clone() + &op.start;
                self.value(operand(0), &source, rank)
            }
            _ => self.leaf(id, map, rank),
        }
    }

    /// Axes align from the last; an axis that is repeated lies along none of the space's.
    fn broadcast_map(&self, operand: NodeId, user: NodeId, map: &[AxisMap]) -> Vec<AxisMap> {
        let (from, to) = (self.graph.node(operand).shape(), self.graph.node(user).shape());
        let skipped = to.len() - from.len();
        let axis_map = |(axis, dim): (usize, &Dim)| {
            let user_axis = &map[axis + skipped];
            if *dim == to[axis + skipped] {
                user_axis.clone()
            } else {
                AxisMap { along: None, offset: Dim::fixed(0) }
            }
        };
        from.iter().enumerate().map(axis_map).collect()
    }

    /// The value of a node that has a buffer of its own, or is a number.
    fn leaf(&mut self, id: NodeId, map: &[AxisMap], rank: usize) -> usize {
        let node = self.graph.node(id);
        if !self.views
            && let Op::Constant(constant) = node.op()
            && let engraft_ir::ops::Elements::F32(values) = &constant.values
            && let &[value] = values.as_slice()
        {
            return self.push(Expr::Number(value));
        }
        let mut access = Access { strides: vec![Dim::fixed(0); rank], offset: Dim::fixed(0) };
        for (axis, stride) in map.iter().zip(row_major(node.shape())) {
            access.offset = access.offset + axis.offset.clone() * &stride;
            if let Some(along) = axis.along {
                access.strides[along] = access.strides[along].clone() + stride;
            }
        }
        let read = (id, access);
        let index = self.reads.iter().position(|known| *known == read).unwrap_or_else(|| {
            if !self.dry {
                self.buffers.push(self.values[&id]);
            }
            self.reads.push(read);
            self.reads.len() - 1
        });
        self.push(Expr::Load(index))
    }
}

/// Elements per step along each axis of a contiguous tensor.
pub(super) fn row_major(shape: &[Dim]) -> Vec<Dim> {
    let mut strides = vec![Dim::fixed(1); shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].clone() * &shape[axis];
    }
    strides
}

impl Loop {
    /// The copy of a contiguous tensor.
    pub(super) fn copy(ty: &TensorType) -> Self {
        let access = Access { strides: vec![Dim::fixed(1)], offset: Dim::fixed(0) };
        Self {
            space: vec![ty.shape.elements()],
            dtype: ty.dtype,
            reads: vec![access.clone()],
            write: access,
            body: vec![Expr::Load(0)],
        }
    }

    fn accesses(&self) -> impl Iterator<Item = &Access> {
        self.reads.iter().chain(std::iter::once(&self.write))
    }

    fn accesses_mut(&mut self) -> impl Iterator<Item = &mut Access> {
        self.reads.iter_mut().chain(std::iter::once(&mut self.write))
    }

    /// Whether `axis` and the next are one axis to every access.
    fn merges(&self, axis: usize) -> bool {
        let extent = &self.space[axis + 1];
        self.accesses().all(|a| a.strides[axis] == a.strides[axis + 1].clone() * extent)
    }

    /// Makes one axis of `axis` and the next.
    fn merge(&mut self, axis: usize) {
        let inner = self.space.remove(axis + 1);
        self.space[axis] = self.space[axis].clone() * inner;
        for access in self.accesses_mut() {
            access.strides.remove(axis);
        }
    }

    /// Drops an axis of extent 1.
    fn drop_axis(&mut self, axis: usize) {
        self.space.remove(axis);
        for access in self.accesses_mut() {
            access.strides.remove(axis);
        }
    }

    fn drop_ones(&mut self) {
        for axis in (0..self.space.len()).rev() {
            if self.space[axis] == Dim::fixed(1) {
                self.drop_axis(axis);
            }
        }
    }

    fn add_outer_axis(&mut self) {
        self.space.insert(0, Dim::fixed(1));
        for access in self.accesses_mut() {
            access.strides.insert(0, Dim::fixed(0));
        }
    }
}

/// The same loop over as few axes as its accesses allow, at least one.
fn collapse(mut whole: Loop) -> Loop {
    whole.drop_ones();
    for axis in (0..whole.space.len().saturating_sub(1)).rev() {
        if whole.merges(axis) {
            whole.merge(axis);
        }
    }
    if whole.space.is_empty() {
        whole.add_outer_axis();
    }
    whole
}

/// The same loop over `[rows, out]`, `out` its last axis, if its accesses allow; so a tile can be cut from it.
pub(super) fn collapse_to_rows(mut whole: Loop) -> Option<Loop> {
    if whole.space.len() < 2 {
        whole.add_outer_axis();
    }
    for axis in (0..whole.space.len() - 2).rev() {
        if whole.space[axis] == Dim::fixed(1) {
            whole.drop_axis(axis);
        } else if whole.space[axis + 1] == Dim::fixed(1) {
            whole.drop_axis(axis + 1);
        } else if whole.merges(axis) {
            whole.merge(axis);
        } else {
            return None;
        }
    }
    (whole.dtype == DType::F32).then_some(whole)
}
