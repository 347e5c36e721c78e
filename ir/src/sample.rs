//! Random values to try a graph with: floats in `-1 .. 1`, ids that are in range wherever they are used, the same on
//! every platform. Knows nothing about how the graph is run.

use crate::eval::Values;
use crate::ops::Gather;
use crate::random::{Stream, integers, reals};
use crate::{Bindings, DimError, Graph, NodeId, Op, TensorType};
use std::collections::BTreeMap;
use thiserror::Error;

/// Integers that nothing uses as ids are below this.
const ANY_INTEGER: u64 = 100;

/// Why there are no random values.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SampleError {
    /// A dim has no value, or is absurd.
    #[error("`{node}`: {source}")]
    Dim {
        /// The node.
        node: String,
        /// What is wrong.
        source: DimError,
    },
    /// A value does not fit into memory.
    #[error("`{node}` {ty} does not fit into memory")]
    TooLarge {
        /// The node.
        node: String,
        /// Its type.
        ty: TensorType,
    },
    /// No id is in range.
    #[error("`{ids}` holds ids of `{table}`, which has no rows under these bindings")]
    NoRows {
        /// The source of the ids.
        ids: String,
        /// The table.
        table: String,
    },
}

/// Random values of every input and parameter.
///
/// Floats are uniform in `-1 .. 1`, rounded to the element type. Integers that reach a `gather` as its ids, also
/// through other ops, are below the rows of every table they index.
///
/// # Errors
/// A symbol without a value, or a size that is absurd; see [`SampleError`].
pub fn values(graph: &Graph, bindings: &Bindings, seed: u64) -> Result<Values, SampleError> {
    let limits = id_limits(graph, bindings)?;
    let mut values = Values::new();
    for id in graph.order() {
        let node = graph.node(id);
        if !matches!(node.op(), Op::Input(_) | Op::Param(_)) {
            continue;
        }
        let name = || node.name().to_owned();
        let shape =
            node.shape().eval(bindings).map_err(|source| SampleError::Dim { node: name(), source })?;
        let mut stream = Stream::new(seed, node.name());
        let value = if node.ty().dtype.is_float() {
            reals(node.ty().dtype, &shape, || 2.0 * stream.uniform() - 1.0)
        } else {
            let (limit, table) = limits.get(&id).copied().unwrap_or((ANY_INTEGER, id));
            if limit == 0 && !shape.contains(&0) {
                return Err(SampleError::NoRows { ids: name(), table: graph.node(table).name().to_owned() });
            }
            integers(&shape, || stream.below(limit) as i64)
        };
        let value = value.ok_or_else(|| SampleError::TooLarge { node: name(), ty: node.ty().clone() })?;
        values.insert(name(), value);
    }
    Ok(values)
}

/// For every node that ids come from: the fewest rows of a table that they index, and that table.
fn id_limits(graph: &Graph, bindings: &Bindings) -> Result<BTreeMap<NodeId, (u64, NodeId)>, SampleError> {
    let mut limits: BTreeMap<NodeId, (u64, NodeId)> = BTreeMap::new();
    for id in graph.order() {
        if !matches!(graph.node(id).op(), Op::Gather(_)) {
            continue;
        }
        let (Some(table), Some(ids)) = (graph.operand(id, Gather::TABLE), graph.operand(id, Gather::IDS))
        else {
            continue;
        };
        let node = graph.node(table);
        let rows = node.shape()[0]
            .eval(bindings)
            .map_err(|source| SampleError::Dim { node: node.name().to_owned(), source })?;
        // Ids reach a gather as they are, or moved about by ops that keep them whole.
        let mut sources = graph.ancestors(ids);
        sources.insert(ids);
        for source in sources {
            let limit = limits.entry(source).or_insert((rows, table));
            *limit = (*limit).min((rows, table));
        }
    }
    Ok(limits)
}
