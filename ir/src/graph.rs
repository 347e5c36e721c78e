//! The graph: nodes with unique names, operands as edges, outputs in order. Ids are stable and the order is
//! deterministic. It checks each node's shape rule as the node is added; it knows nothing about text forms, passes or
//! how values are computed.

use crate::{Op, RuleError, Shape, TensorType};
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::{EdgeRef, NodeIndexable};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use thiserror::Error;

/// The most nodes a graph may have.
pub const MAX_NODES: usize = 1 << 20;

/// The most outputs a graph may have.
pub const MAX_OUTPUTS: usize = 4096;

/// How many nodes around a rewrite are looked at before the graph is searched.
const NEAR: usize = 64;

/// The most characters of a name.
const MAX_NAME: usize = 512;

/// The most characters of a name before the number that makes it unique.
const MAX_STEM: usize = MAX_NAME - ".1048576".len();

/// A node's identity within its graph; it stays valid while other nodes come and go. Once its own node is pruned it may
/// name a later one.
pub type NodeId = NodeIndex<u32>;

/// An op with its name and the type of its result.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    name: Arc<str>,
    op: Op,
    ty: TensorType,
}

impl Node {
    /// The name, unique in the graph.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The op.
    pub fn op(&self) -> &Op {
        &self.op
    }

    /// The type of the result.
    pub fn ty(&self) -> &TensorType {
        &self.ty
    }

    /// The shape of the result.
    pub fn shape(&self) -> &Shape {
        &self.ty.shape
    }
}

/// A named result of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The name that callers use.
    pub name: String,
    /// The node that computes it.
    pub node: NodeId,
}

/// Why a change to a graph was refused. The graph is as it was.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum GraphError {
    /// A node's name is taken.
    #[error("the name `{name}` is taken by another node ({op})")]
    DuplicateName {
        /// The name.
        name: String,
        /// The op that has it.
        op: &'static str,
    },
    /// A name has characters that names may not have.
    #[error(
        "`{name}` is not a name: expected letters, digits, `_`, `.`, `-`, `/` or `:`, at most {MAX_NAME}, not `:` \
         last, and more than `_` alone"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// An output's name is taken.
    #[error("there is an output `{name}` already")]
    DuplicateOutput {
        /// The name.
        name: String,
    },
    /// A name is not in the graph.
    #[error("there is no node `{name}`")]
    UnknownName {
        /// The name.
        name: String,
    },
    /// A node breaks its op's rule.
    #[error("`{node}` ({op}): {source}")]
    Rule {
        /// The node's name.
        node: String,
        /// Its op.
        op: &'static str,
        /// The rule.
        source: Box<RuleError>,
    },
    /// A node would be replaced by one of another type.
    #[error("`{old}` {old_type} cannot be replaced by `{new}` {new_type}: the types differ")]
    TypeChange {
        /// The node to replace.
        old: String,
        /// Its type.
        old_type: TensorType,
        /// The node to put in its place.
        new: String,
        /// Its type.
        new_type: TensorType,
    },
    /// There are too many outputs.
    #[error("the graph has more than {MAX_OUTPUTS} outputs")]
    TooManyOutputs,
    /// There are too many nodes.
    #[error("the graph has more than {MAX_NODES} nodes")]
    TooLarge,
}

/// A computation: nodes, and which of them are outputs.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    name: String,
    /// An edge points from operand to user; its weight is the operand slot.
    dag: StableDiGraph<Node, usize, u32>,
    by_name: BTreeMap<Arc<str>, NodeId>,
    outputs: Vec<Output>,
}

/// Whether a name may stand in text, JSON and weights files.
pub(crate) fn is_name(name: &str) -> bool {
    name != "_"
        && !name.is_empty()
        && name.len() <= MAX_NAME
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/:".contains(c))
        && !name.ends_with(':')
}

impl Graph {
    /// An empty graph.
    ///
    /// # Errors
    /// [`GraphError::BadName`].
    pub fn new(name: &str) -> Result<Self, GraphError> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), ..Self::default() })
    }

    /// The graph's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.dag.node_count()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a node. Slots that stay empty are `None`; trailing ones may be left out.
    ///
    /// # Errors
    /// The name is taken or ill-formed, or the op's rule is broken.
    ///
    /// # Panics
    /// If an operand is not a node of this graph.
    pub fn add(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        operands: &[Option<NodeId>],
    ) -> Result<NodeId, GraphError> {
        let op = op.into();
        self.check_free(name)?;
        if self.len() >= MAX_NODES {
            return Err(GraphError::TooLarge);
        }
        let ty = self.infer(name, &op, operands)?;
        let shared: Arc<str> = name.into();
        let id = self.dag.add_node(Node { name: Arc::clone(&shared), op, ty });
        for (slot, operand) in operands.iter().enumerate() {
            if let Some(operand) = operand {
                self.dag.add_edge(*operand, id, slot);
            }
        }
        self.by_name.insert(shared, id);
        Ok(id)
    }

    fn infer(&self, name: &str, op: &Op, operands: &[Option<NodeId>]) -> Result<TensorType, GraphError> {
        let types: Vec<_> = operands.iter().map(|id| id.map(|id| self.node(id).ty())).collect();
        op.infer(&types).map_err(|source| GraphError::Rule {
            node: name.to_owned(),
            op: op.name(),
            source: Box::new(source),
        })
    }

    fn check_free(&self, name: &str) -> Result<(), GraphError> {
        check_name(name)?;
        match self.by_name.get(name) {
            Some(&id) => {
                Err(GraphError::DuplicateName { name: name.to_owned(), op: self.node(id).op.name() })
            }
            None => Ok(()),
        }
    }

    /// The node of this id.
    ///
    /// # Panics
    /// If the id is from another graph, or its node was removed.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.dag[id]
    }

    /// Whether the id belongs to a node of this graph.
    pub fn contains(&self, id: NodeId) -> bool {
        self.dag.contains_node(id)
    }

    /// The node of this name.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.by_name.get(name).copied()
    }

    /// `stem`, or `stem.2`, `stem.3`, ...: the first that is free, if no number is free between taken ones, and else
    /// one that is. Of a stem too long for a name, the beginning.
    pub fn fresh_name(&self, stem: &str) -> String {
        let is_taken = |name: &str| self.by_name.contains_key(name);
        if stem.len() <= MAX_NAME && !is_taken(stem) {
            return stem.to_owned();
        }
        let stem = stem.get(..MAX_STEM).unwrap_or(stem);
        let numbered = |number: usize| format!("{stem}.{number}");
        // Twice as far until one is free, then halfway back: thousands of nodes have one stem.
        let (mut taken, mut free) = (1, 2);
        while is_taken(&numbered(free)) {
            (taken, free) = (free, 2 * free);
        }
        while free - taken > 1 {
            let middle = usize::midpoint(taken, free);
            if is_taken(&numbered(middle)) { taken = middle } else { free = middle }
        }
        numbered(free)
    }

    /// The operands by slot; empty optional slots before the last filled one are `None`.
    pub fn operands(&self, id: NodeId) -> Vec<Option<NodeId>> {
        let mut operands = Vec::new();
        for edge in self.dag.edges_directed(id, Direction::Incoming) {
            let slot = *edge.weight();
            if operands.len() <= slot {
                operands.resize(slot + 1, None);
            }
            operands[slot] = Some(edge.source());
        }
        operands
    }

    /// The operand in a slot.
    pub fn operand(&self, id: NodeId, slot: usize) -> Option<NodeId> {
        self.dag.edges_directed(id, Direction::Incoming).find(|e| *e.weight() == slot).map(|e| e.source())
    }

    /// Who uses a node, and in which slot; ascending, once per slot.
    pub fn users(&self, id: NodeId) -> Vec<(NodeId, usize)> {
        let mut users: Vec<_> = self.dag.edges(id).map(|e| (e.target(), *e.weight())).collect();
        users.sort_unstable();
        users
    }

    /// How often a node's value is used: by nodes (once per slot) and as an output.
    pub fn use_count(&self, id: NodeId) -> usize {
        self.dag.edges(id).count() + self.outputs.iter().filter(|o| o.node == id).count()
    }

    /// All nodes, operands before users; among those that are ready, the older first.
    pub fn order(&self) -> Vec<NodeId> {
        let mut waiting = vec![0; self.dag.node_bound()];
        let mut ready = BinaryHeap::new();
        for id in self.dag.node_indices() {
            match self.dag.edges_directed(id, Direction::Incoming).count() {
                0 => ready.push(Reverse(id)),
                operands => waiting[id.index()] = operands,
            }
        }
        let mut order = Vec::with_capacity(self.len());
        while let Some(Reverse(id)) = ready.pop() {
            order.push(id);
            for edge in self.dag.edges(id) {
                let operands = &mut waiting[edge.target().index()];
                *operands -= 1;
                if *operands == 0 {
                    ready.push(Reverse(edge.target()));
                }
            }
        }
        order
    }

    /// The outputs, in order.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// Makes a node an output.
    ///
    /// # Errors
    /// The output's name is taken or ill-formed.
    pub fn add_output(&mut self, name: &str, node: NodeId) -> Result<(), GraphError> {
        check_name(name)?;
        if self.outputs.iter().any(|o| o.name == name) {
            return Err(GraphError::DuplicateOutput { name: name.to_owned() });
        }
        if self.outputs.len() >= MAX_OUTPUTS {
            return Err(GraphError::TooManyOutputs);
        }
        self.outputs.push(Output { name: name.to_owned(), node });
        Ok(())
    }

    /// Gives a node another name.
    ///
    /// # Errors
    /// The name is taken or ill-formed.
    pub fn rename(&mut self, id: NodeId, name: &str) -> Result<(), GraphError> {
        if self.node(id).name() == name {
            return Ok(());
        }
        self.check_free(name)?;
        let name: Arc<str> = name.into();
        let old = std::mem::replace(&mut self.dag[id].name, Arc::clone(&name));
        self.by_name.remove(&old);
        self.by_name.insert(name, id);
        Ok(())
    }

    /// Gives a node another op of the same result type on the same operands.
    ///
    /// # Errors
    /// The op's rule is broken, or the type would change.
    pub fn set_op(&mut self, id: NodeId, op: impl Into<Op>) -> Result<(), GraphError> {
        let op = op.into();
        let node = self.node(id);
        let ty = self.infer(&node.name, &op, &self.operands(id))?;
        if ty != node.ty {
            return Err(GraphError::TypeChange {
                old: node.name.to_string(),
                old_type: node.ty.clone(),
                new: op.name().to_owned(),
                new_type: ty,
            });
        }
        self.dag[id].op = op;
        Ok(())
    }

    /// Makes every use of `old` a use of `new`, outputs included, except the uses that `new` itself is computed from;
    /// so a node can be wrapped, and no cycle can arise.
    ///
    /// # Errors
    /// [`GraphError::TypeChange`] if their types differ.
    pub fn replace_uses(&mut self, old: NodeId, new: NodeId) -> Result<(), GraphError> {
        let (old_node, new_node) = (self.node(old), self.node(new));
        if old_node.ty != new_node.ty {
            return Err(GraphError::TypeChange {
                old: old_node.name.to_string(),
                old_type: old_node.ty.clone(),
                new: new_node.name.to_string(),
                new_type: new_node.ty.clone(),
            });
        }
        let mut ancestors = if self.is_beside(old, new) { BTreeSet::new() } else { self.ancestors(new) };
        ancestors.insert(new);
        let edges: Vec<_> = self
            .dag
            .edges(old)
            .filter(|e| !ancestors.contains(&e.target()))
            .map(|e| (e.id(), e.target(), *e.weight()))
            .collect();
        for (edge, user, slot) in edges {
            self.dag.remove_edge(edge);
            self.dag.add_edge(new, user, slot);
        }
        for output in self.outputs.iter_mut().filter(|o| o.node == old) {
            output.node = new;
        }
        Ok(())
    }

    /// Whether a look around shows that `new` is not computed from `old`: that all it is computed from is soon a source,
    /// or something that `old` is computed from. A rewrite is mostly of this kind, and need not search the graph.
    fn is_beside(&self, old: NodeId, new: NodeId) -> bool {
        let operands = |id| self.dag.neighbors_directed(id, Direction::Incoming);
        let mut near = BTreeSet::new();
        let mut open = VecDeque::from([old]);
        while let Some(id) = open.pop_front().filter(|_| near.len() < NEAR) {
            open.extend(operands(id).filter(|operand| near.insert(*operand)));
        }
        let mut open = vec![new];
        for _ in 0..NEAR {
            let Some(id) = open.pop() else { return true };
            if id == old {
                return false;
            }
            if !near.contains(&id) {
                open.extend(operands(id));
            }
        }
        false
    }

    /// Everything that a node is computed from, without the node.
    pub fn ancestors(&self, id: NodeId) -> BTreeSet<NodeId> {
        self.ancestors_of_all(vec![id])
    }

    fn ancestors_of_all(&self, mut open: Vec<NodeId>) -> BTreeSet<NodeId> {
        let mut found = BTreeSet::new();
        while let Some(id) = open.pop() {
            for operand in self.dag.neighbors_directed(id, Direction::Incoming) {
                if found.insert(operand) {
                    open.push(operand);
                }
            }
        }
        found
    }

    /// Removes what no output needs, and returns the names removed. Inputs stay: they are part of the signature.
    pub fn prune(&mut self) -> Vec<String> {
        let outputs: Vec<_> = self.outputs.iter().map(|o| o.node).collect();
        let mut live = self.ancestors_of_all(outputs.clone());
        live.extend(outputs);
        let dead: Vec<_> = self
            .dag
            .node_indices()
            .filter(|id| !live.contains(id) && !matches!(self.dag[*id].op, Op::Input(_)))
            .collect();
        let remove = |id| self.dag.remove_node(id).map(|node| node.name.to_string());
        let names: Vec<_> = dead.into_iter().filter_map(remove).collect();
        for name in &names {
            self.by_name.remove(name.as_str());
        }
        names
    }

    /// Whether no cycle exists; the graph's own operations cannot make one.
    pub(crate) fn is_acyclic(&self) -> bool {
        self.order().len() == self.len()
    }
}

impl PartialEq for Graph {
    /// The same nodes, by name, in the same order, on the same operands, and the same outputs.
    fn eq(&self, other: &Self) -> bool {
        fn view(g: &Graph) -> impl Iterator<Item = (&Node, Vec<Option<&str>>)> {
            g.order().into_iter().map(|id| {
                let operands = g.operands(id).into_iter().map(|o| o.map(|o| g.node(o).name())).collect();
                (g.node(id), operands)
            })
        }
        fn outputs(g: &Graph) -> impl Iterator<Item = (&str, &str)> {
            g.outputs.iter().map(|o| (o.name.as_str(), g.node(o.node).name()))
        }
        self.name == other.name && view(self).eq(view(other)) && outputs(self).eq(outputs(other))
    }
}

fn check_name(name: &str) -> Result<(), GraphError> {
    if is_name(name) { Ok(()) } else { Err(GraphError::BadName { name: name.to_owned() }) }
}
