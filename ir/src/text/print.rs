//! Prints a graph as text. Knows nothing about reading it back.

use super::VERSION;
use crate::{Graph, NodeId, Op, Stages};
use std::fmt::Write as _;

/// Prints a graph.
pub fn print(graph: &Graph) -> String {
    let stages = Stages::of(graph);
    let mut text = format!("engraft {VERSION}\ngraph {}\n\n", graph.name());
    for id in graph.order() {
        let node = graph.node(id);
        let _ =
            writeln!(text, "{}: {} @{} = {}", node.name(), node.ty(), stages.node(id), expression(graph, id));
    }
    text.push('\n');
    for output in graph.outputs() {
        let _ = writeln!(text, "output {} = {}", output.name, graph.node(output.node).name());
    }
    text
}

/// What stands right of a node's `=`: `dense(x, fc.weight)`.
pub fn expression(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    let operand = |o: &Option<NodeId>| o.map_or("_", |o| graph.node(o).name());
    let operands: Vec<_> = graph.operands(id).iter().map(operand).collect();
    let implied: &[&str] = match node.op() {
        Op::Input(_) | Op::Param(_) => &["dtype", "shape", "binding"],
        _ => &[],
    };
    let mut attributes = node.op().attributes();
    attributes.retain(|key, _| !implied.contains(&key.as_str()));
    let mut text = format!("{}({})", node.op().name(), operands.join(", "));
    if !attributes.is_empty() {
        let list: Vec<_> = attributes.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        let _ = write!(text, " {{{}}}", list.join(", "));
    }
    text
}
