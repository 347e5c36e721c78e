//! The inference of binding times over a whole graph: of symbols, from what binds them, and of nodes, from their
//! operands. Nothing is stored; it follows from the graph.

use crate::{Graph, NodeId, Op, Stage, Symbol};
use std::collections::BTreeMap;

/// When each node and each symbol of a graph is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages {
    nodes: BTreeMap<NodeId, Stage>,
    symbols: BTreeMap<Symbol, Stage>,
}

impl Stages {
    /// Infers the stages of a graph.
    pub fn of(graph: &Graph) -> Self {
        let order = graph.order();
        let mut symbols: BTreeMap<Symbol, Stage> = BTreeMap::new();
        for &id in &order {
            let node = graph.node(id);
            let Some(binding) = source_stage(node.op()) else { continue };
            for symbol in node.shape().iter().filter_map(|dim| dim.as_symbol()) {
                let stage = symbols.entry(symbol.clone()).or_insert(binding);
                *stage = binding.min(*stage);
            }
        }
        let mut nodes: BTreeMap<NodeId, Stage> = BTreeMap::new();
        for id in order {
            let operands = graph.operands(id).into_iter().flatten().map(|operand| nodes[&operand]);
            let latest = operands.max().unwrap_or(Stage::Compile);
            let node = graph.node(id);
            let dims = node.shape().symbols().into_iter().filter_map(|s| symbols.get(&s).copied());
            let stage = dims.fold(node.op().stage(latest), Stage::max);
            nodes.insert(id, stage);
        }
        Self { nodes, symbols }
    }

    /// When a node of the graph is known.
    ///
    /// # Panics
    /// If the node is not of the graph that was inferred.
    pub fn node(&self, id: NodeId) -> Stage {
        self.nodes[&id]
    }

    /// When a symbol is known; `None` if nothing binds it.
    pub fn symbol(&self, symbol: &Symbol) -> Option<Stage> {
        self.symbols.get(symbol).copied()
    }
}

/// When a source's value is known; `None` for any other op. A constant binds no symbols.
fn source_stage(op: &Op) -> Option<Stage> {
    match op {
        Op::Input(_) | Op::Param(_) => Some(op.stage(Stage::Compile)),
        _ => None,
    }
}
