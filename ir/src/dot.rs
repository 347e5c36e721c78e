//! The Graphviz form of a graph, to look at: a box per node, coloured by stage, an edge per operand. Deterministic.
//! There is no reading it back.

use crate::{Graph, Stage, Stages};
use std::fmt::Write as _;

/// The fill colour of each stage.
fn colour(stage: Stage) -> &'static str {
    match stage {
        Stage::Compile => "#e8e8e8",
        Stage::Base => "#cfe2f3",
        Stage::Adapter => "#fce5cd",
        Stage::Call => "#d9ead3",
    }
}

/// Prints a graph in Graphviz's language, for `dot -Tsvg`.
///
/// ```
/// use engraft_ir::{DType::F32, GraphBuilder, dims, dot};
/// let g = GraphBuilder::new("layer");
/// g.output("y", g.input("x", F32, dims!["batch", 2]).relu().named("h"));
/// let text = dot::print(&g.finish()?);
/// assert!(text.contains(r#""x" -> "h""#));
/// # Ok::<(), engraft_ir::BuildErrors>(())
/// ```
pub fn print(graph: &Graph) -> String {
    let stages = Stages::of(graph);
    let mut text = format!("digraph {} {{\n", quoted(graph.name()));
    text.push_str("  node [shape=box, style=filled, fontname=\"monospace\"]\n");
    for id in graph.order() {
        let (node, stage) = (graph.node(id), stages.node(id));
        let op = node.op();
        let mut label = format!("{}\n{}: {}\n@{stage}", node.name(), op.name(), node.ty());
        if !op.info().slots.is_empty() {
            for (key, value) in op.attributes() {
                let _ = write!(label, "\n{key}: {value}");
            }
        }
        let name = quoted(node.name());
        let _ = writeln!(text, "  {name} [label={}, fillcolor=\"{}\"]", quoted(&label), colour(stage));
        for (slot, operand) in graph.operands(id).into_iter().enumerate() {
            let Some(operand) = operand else { continue };
            // A variadic op repeats its one slot.
            let slot =
                op.info().slots.get(slot).map_or_else(|| slot.to_string(), |slot| slot.name.to_owned());
            let from = quoted(graph.node(operand).name());
            let _ = writeln!(text, "  {from} -> {name} [label={}]", quoted(&slot));
        }
    }
    for output in graph.outputs() {
        // A node's name never has a space, so an output's box cannot be taken for a node's.
        let (from, sink) =
            (quoted(graph.node(output.node).name()), quoted(&format!("output {}", output.name)));
        let _ = writeln!(text, "  {sink} [shape=oval, fillcolor=\"white\"]\n  {from} -> {sink}");
    }
    text.push_str("}\n");
    text
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
