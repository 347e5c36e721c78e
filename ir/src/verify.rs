//! The verifier. It checks, of any graph, that
//! 1. every node's name is well-formed, unique, and found by the graph's index,
//! 2. there are no cycles,
//! 3. every node's type is what its op's rule gives for its operands,
//! 4. every symbol is bound by a whole axis of an input or a parameter, no later than a parameter that uses it,
//! 5. there is an output, output names are unique, and each names a node of the graph,
//! 6. an input that carries an output has a symbol for its first dim, and the output appends to it: a `concat` along
//!    axis 0 that begins with the input.

use crate::ops::Input;
use crate::{Graph, GraphError, NodeId, Op, Stage, Stages, TensorType};
use thiserror::Error;

/// One broken invariant.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum VerifyError {
    /// A name is ill-formed, or a rule is broken.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A node is not found under its name.
    #[error("`{name}` is not in the graph's index, or names another node there")]
    Index {
        /// The name.
        name: String,
    },
    /// Nodes depend on themselves.
    #[error("the graph has a cycle")]
    Cycle,
    /// A node's type is not what its rule gives.
    #[error("`{node}` has type {found}, but its op gives {expected}")]
    Type {
        /// The node's name.
        node: String,
        /// What the rule gives.
        expected: TensorType,
        /// What the node says.
        found: TensorType,
    },
    /// No axis binds a symbol.
    #[error(
        "dim `{symbol}` of `{node}` is unknown: no input or parameter has an axis that is `{symbol}` alone"
    )]
    UnboundSymbol {
        /// The symbol.
        symbol: String,
        /// A node that uses it.
        node: String,
    },
    /// A parameter's shape is known later than its value.
    #[error(
        "parameter `{param}` is given at stage {binding}, but its dim `{symbol}` is known only at stage {known}"
    )]
    LateSymbol {
        /// The parameter.
        param: String,
        /// Its stage.
        binding: Stage,
        /// The symbol.
        symbol: String,
        /// When it is known.
        known: Stage,
    },
    /// An input does not carry what it says.
    #[error("input `{input}` carries `{output}`, but {reason}")]
    Carried {
        /// The input.
        input: String,
        /// The output that it names.
        output: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// There is no output.
    #[error("the graph has no output")]
    NoOutput,
    /// An output is broken.
    #[error("output `{name}` repeats a name, or names a node that does not exist")]
    Output {
        /// The output's name.
        name: String,
    },
}

/// Checks every invariant listed at the top of this file.
///
/// # Errors
/// All that are broken.
pub fn verify(graph: &Graph) -> Result<(), Vec<VerifyError>> {
    if !graph.is_acyclic() {
        return Err(vec![VerifyError::Cycle]);
    }
    let mut errors = Vec::new();
    let stages = Stages::of(graph);
    for id in graph.order() {
        verify_node(graph, &stages, id, &mut errors);
        verify_carried(graph, id, &mut errors);
    }
    if graph.outputs().is_empty() {
        errors.push(VerifyError::NoOutput);
    }
    for (i, output) in graph.outputs().iter().enumerate() {
        let repeats = graph.outputs()[..i].iter().any(|o| o.name == output.name);
        if repeats || !graph.contains(output.node) {
            errors.push(VerifyError::Output { name: output.name.clone() });
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn verify_node(graph: &Graph, stages: &Stages, id: NodeId, errors: &mut Vec<VerifyError>) {
    let node = graph.node(id);
    let name = node.name().to_owned();
    if !crate::graph::is_name(&name) {
        errors.push(GraphError::BadName { name: name.clone() }.into());
    }
    if graph.find(&name) != Some(id) {
        errors.push(VerifyError::Index { name: name.clone() });
    }
    let operands = graph.operands(id);
    let types: Vec<_> = operands.iter().map(|o| o.map(|o| graph.node(o).ty())).collect();
    match node.op().infer(&types) {
        Err(source) => errors.push(
            GraphError::Rule { node: name.clone(), op: node.op().name(), source: Box::new(source) }.into(),
        ),
        Ok(expected) if expected != *node.ty() => {
            errors.push(VerifyError::Type { node: name.clone(), expected, found: node.ty().clone() });
        }
        Ok(_) => {}
    }
    for symbol in node.shape().symbols() {
        match (stages.symbol(&symbol), node.op()) {
            (None, _) => {
                errors.push(VerifyError::UnboundSymbol { symbol: symbol.to_string(), node: name.clone() });
            }
            (Some(known), Op::Param(param)) if known > param.binding => {
                errors.push(VerifyError::LateSymbol {
                    param: name.clone(),
                    binding: param.binding,
                    symbol: symbol.to_string(),
                    known,
                });
            }
            _ => {}
        }
    }
}

fn verify_carried(graph: &Graph, id: NodeId, errors: &mut Vec<VerifyError>) {
    let node = graph.node(id);
    let Op::Input(Input { carries: Some(output), .. }) = node.op() else { return };
    let found = graph.outputs().iter().find(|o| o.name == *output).map(|o| o.node);
    let appends = |end: NodeId| {
        matches!(graph.node(end).op(), Op::Concat(concat) if concat.axis == 0)
            && graph.operand(end, 0) == Some(id)
            && graph.operands(end)[1..].iter().all(|&part| part != Some(id))
    };
    let reason = match found {
        None => "there is no such output",
        Some(_) if node.shape().first().is_none_or(|dim| dim.as_symbol().is_none()) => {
            "its first dim, along which it grows, is not a symbol"
        }
        Some(end) if !graph.contains(end) || !appends(end) => {
            "that is not a concat along axis 0 that begins with the input and has it once"
        }
        Some(_) => return,
    };
    let (input, output) = (node.name().to_owned(), output.to_owned());
    errors.push(VerifyError::Carried { input, output, reason });
}
