//! The modules of a graph: what `PyTorch` would call `Linear`, `Conv1D` and `Embedding`, found by the names of their weight
//! parameters and by how these are used. Knows nothing about adapters.

use engraft_ir::ops::{Adaptable, Dense, Gather, Matmul, Transpose};
use engraft_ir::{DType, Dim, Graph, NodeId, Op, TensorType};
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;

/// The kind of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// `y = x Wᵀ + bias` with the weight stored as `[out, in]`.
    Linear,
    /// The same with the weight stored as `[in, out]`, as in GPT-2.
    Conv1d,
    /// Rows of the weight `[vocab, dim]` by id.
    Embedding,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear => "linear",
            Self::Conv1d => "linear, stored [in, out]",
            Self::Embedding => "embedding",
        })
    }
}

/// A module of a graph: everything that uses the parameter `<name>.weight`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The name: its weight's without `.weight`.
    pub name: String,
    /// What it is.
    pub layer: Layer,
    /// `in`, or `vocab` of an embedding.
    pub inputs: u64,
    /// `out`, or `dim` of an embedding.
    pub outputs: u64,
    /// The nodes that compute its results, in the graph's order; several if it is used several times.
    pub uses: Vec<String>,
    /// The nodes that use an embedding's weight as a linear layer's, as models with tied weights do. They are no uses
    /// of this module.
    pub tied: Vec<String>,
}

/// Why a parameter called `<name>.weight` is not the weight of a [`Module`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NotAModule {
    /// The weight is not a matrix of fixed size.
    #[error("its weight is {found}, expected f32[out, in] of fixed size")]
    Weight {
        /// The weight's type.
        found: TensorType,
    },
    /// The weight is used in a way that no module uses its weight.
    #[error("its weight is used by `{node}` ({op}), expected linear layers or lookups only")]
    Use {
        /// The node.
        node: String,
        /// Its op.
        op: &'static str,
    },
    /// The weight is used both as `[out, in]` and as `[in, out]`.
    #[error("its weight is used as [out, in] by `{linear}` and as [in, out] by `{conv1d}`")]
    Mixed {
        /// A node of the first kind.
        linear: String,
        /// A node of the second kind.
        conv1d: String,
    },
    /// Nothing uses the weight.
    #[error("nothing uses its weight")]
    Unused,
}

/// The modules of a graph, by name.
pub fn modules(graph: &Graph) -> Vec<Module> {
    candidates(graph).into_values().filter_map(Result::ok).collect()
}

/// Everything that has a `.weight`, by name.
pub(super) fn candidates(graph: &Graph) -> BTreeMap<String, Result<Module, NotAModule>> {
    let order = graph.order();
    let position: BTreeMap<NodeId, usize> = order.iter().copied().zip(0..).collect();
    let module = |&id: &NodeId| {
        let name = graph.node(id).name().strip_suffix(".weight")?;
        let is_param = matches!(graph.node(id).op(), Op::Param(_));
        is_param.then(|| (name.to_owned(), candidate(graph, &position, id, name)))
    };
    order.iter().filter_map(module).collect()
}

fn candidate(
    graph: &Graph,
    position: &BTreeMap<NodeId, usize>,
    weight: NodeId,
    name: &str,
) -> Result<Module, NotAModule> {
    let ty = graph.node(weight).ty();
    let fixed: Option<Vec<u64>> = ty.shape.iter().map(Dim::as_fixed).collect();
    let (DType::F32, Some(&[rows, columns])) = (ty.dtype, fixed.as_deref()) else {
        return Err(NotAModule::Weight { found: ty.clone() });
    };
    let mut uses = uses(graph, weight, false)?;
    uses.sort_by_key(|(_, node)| position[node]);
    let of = |wanted: Layer| -> Vec<String> {
        let nodes = uses.iter().filter(|(layer, _)| *layer == wanted);
        nodes.map(|(_, node)| graph.node(*node).name().to_owned()).collect()
    };
    let (linear, conv1d, lookups) = (of(Layer::Linear), of(Layer::Conv1d), of(Layer::Embedding));
    let (layer, uses, tied) = match (linear.first(), conv1d.first(), lookups.first()) {
        (None, None, None) => return Err(NotAModule::Unused),
        (_, _, Some(_)) => (Layer::Embedding, lookups, [linear, conv1d].concat()),
        (Some(linear), Some(conv1d), None) => {
            return Err(NotAModule::Mixed { linear: linear.clone(), conv1d: conv1d.clone() });
        }
        (Some(_), None, None) => (Layer::Linear, linear, Vec::new()),
        (None, Some(_), None) => (Layer::Conv1d, conv1d, Vec::new()),
    };
    let (inputs, outputs) = if layer == Layer::Linear { (columns, rows) } else { (rows, columns) };
    Ok(Module { name: name.to_owned(), layer, inputs, outputs, uses, tied })
}

const _: () = assert!(Dense::WEIGHT == Adaptable::WEIGHT);

/// The uses of a weight or, if `transposed`, of its transpose: as what, and by which node.
fn uses(graph: &Graph, weight: NodeId, transposed: bool) -> Result<Vec<(Layer, NodeId)>, NotAModule> {
    let mut found = Vec::new();
    for (user, slot) in graph.users(weight) {
        let node = graph.node(user);
        let layer = match (node.op(), slot) {
            (Op::Dense(_) | Op::Adaptable(_), Dense::WEIGHT) if transposed => Layer::Conv1d,
            (Op::Dense(_) | Op::Adaptable(_), Dense::WEIGHT) => Layer::Linear,
            (Op::Matmul(_), Matmul::B) if transposed => Layer::Linear,
            (Op::Matmul(_), Matmul::B) => Layer::Conv1d,
            (Op::Gather(_), Gather::TABLE) if !transposed => Layer::Embedding,
            (Op::Transpose(Transpose { permutation }), _) if !transposed && permutation == &[1, 0] => {
                found.extend(uses(graph, user, true)?);
                continue;
            }
            (op, _) => return Err(NotAModule::Use { node: node.name().to_owned(), op: op.name() }),
        };
        found.push((layer, user));
    }
    Ok(found)
}
