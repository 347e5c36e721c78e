//! Questions one asks of a finished graph, and the rewriting that needs no pattern: what Axon offers on its models.
//! Built on the graph's own operations only.

use crate::ops::Param;
use crate::{Graph, GraphError, Node, NodeId, Op, Stage, TensorType};
use std::collections::BTreeMap;

/// An input, as a caller sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceInfo {
    /// The name.
    pub name: String,
    /// The type.
    pub ty: TensorType,
}

/// A parameter, as a loader or an optimizer sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamInfo {
    /// The name, which is the tensor's name in a weights file.
    pub name: String,
    /// The type.
    pub ty: TensorType,
    /// When it is given.
    pub stage: Stage,
    /// The label for optimizers.
    pub group: String,
}

impl Graph {
    /// The inputs, in order.
    pub fn inputs(&self) -> Vec<SourceInfo> {
        let is_input = |node: &&Node| matches!(node.op(), Op::Input(_));
        let info = |node: &Node| SourceInfo { name: node.name().to_owned(), ty: node.ty().clone() };
        self.nodes().filter(is_input).map(info).collect()
    }

    /// The parameters, in order.
    pub fn params(&self) -> Vec<ParamInfo> {
        let info = |node: &Node, param: &Param| ParamInfo {
            name: node.name().to_owned(),
            ty: node.ty().clone(),
            stage: param.binding,
            group: param.group.clone(),
        };
        self.nodes()
            .filter_map(|node| match node.op() {
                Op::Param(param) => Some(info(node, param)),
                _ => None,
            })
            .collect()
    }

    /// The outputs' names and types, in order.
    pub fn output_types(&self) -> Vec<(String, TensorType)> {
        self.outputs().iter().map(|o| (o.name.clone(), self.node(o.node).ty().clone())).collect()
    }

    /// How often each op occurs, by name.
    pub fn op_counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for node in self.nodes() {
            *counts.entry(node.op().name()).or_insert(0) += 1;
        }
        counts
    }

    /// The nodes, operands before users.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.order().into_iter().map(|id| self.node(id))
    }

    /// Calls `visit` with every node and its operands, operands before users.
    pub fn walk(&self, mut visit: impl FnMut(&Node, &[Option<&Node>])) {
        for id in self.order() {
            let operands: Vec<_> = self.operands(id).into_iter().map(|o| o.map(|o| self.node(o))).collect();
            visit(self.node(id), &operands);
        }
    }

    /// A graph of the same nodes with each op replaced by what `change` gives for it; types are inferred anew.
    ///
    /// # Errors
    /// An op that does not fit its operands.
    pub fn map(&self, mut change: impl FnMut(&Node) -> Op) -> Result<Self, GraphError> {
        let mut mapped = Self::new(self.name())?;
        let mut ids: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        for id in self.order() {
            let operands: Vec<_> = self.operands(id).into_iter().map(|o| o.map(|o| ids[&o])).collect();
            let node = self.node(id);
            ids.insert(id, mapped.add(node.name(), change(node), &operands)?);
        }
        for output in self.outputs() {
            mapped.add_output(&output.name, ids[&output.node])?;
        }
        Ok(mapped)
    }
}
