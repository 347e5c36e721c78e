//! The reference interpreter: evaluates a graph node by node with each op's own f64 meaning. It is the meaning of the
//! IR; everything else is checked against it. It knows nothing about speed.

use crate::op::Args;
use crate::value::{EvalError, MAX_ELEMENTS, Value};
use crate::{Bindings, Graph, NodeId, Op};
use std::collections::BTreeMap;

/// Values of inputs and parameters by name.
pub type Values = BTreeMap<String, Value>;

/// Evaluates every output, by name.
///
/// # Errors
/// A value is missing or misshapen, or outside an op's domain; the error names the node.
pub fn eval(graph: &Graph, given: &Values) -> Result<Values, EvalError> {
    let nodes = eval_nodes(graph, given)?;
    Ok(graph.outputs().iter().map(|o| (o.name.clone(), nodes[&o.node].clone())).collect())
}

/// Evaluates every node.
///
/// # Errors
/// As [`eval`].
pub fn eval_nodes(graph: &Graph, given: &Values) -> Result<BTreeMap<NodeId, Value>, EvalError> {
    eval_in_order(graph, given, &graph.order())
}

/// Evaluates one node; only what it is computed from needs values.
///
/// # Errors
/// As [`eval`].
///
/// # Panics
/// If the node is not of this graph.
pub fn eval_node(graph: &Graph, given: &Values, id: NodeId) -> Result<Value, EvalError> {
    let mut needed = graph.ancestors(id);
    needed.insert(id);
    let mut order = graph.order();
    order.retain(|id| needed.contains(id));
    Ok(eval_in_order(graph, given, &order)?.remove(&id).expect("the order ends in this node"))
}

/// Evaluates these nodes, each of which stands after its operands.
fn eval_in_order(
    graph: &Graph,
    given: &Values,
    order: &[NodeId],
) -> Result<BTreeMap<NodeId, Value>, EvalError> {
    let bindings = bind(graph, given, order)?;
    let mut values: BTreeMap<NodeId, Value> = BTreeMap::new();
    for &id in order {
        let node = graph.node(id);
        let at_node = |source| EvalError::Node { node: node.name().to_owned(), source: Box::new(source) };
        let value = match node.op() {
            Op::Input(_) | Op::Param(_) => lookup(given, node.name())?.clone(),
            op => {
                let shape = node.shape().eval(&bindings).map_err(|e| at_node(e.into()))?;
                if shape.iter().product::<usize>() > MAX_ELEMENTS {
                    return Err(at_node(EvalError::TooLarge { shape }));
                }
                let operands = graph.operands(id);
                let args: Vec<_> = operands.iter().map(|o| o.map(|o| &values[&o])).collect();
                op.eval(Args { values: &args, shape: &shape, bindings: &bindings }).map_err(at_node)?
            }
        };
        values.insert(id, value);
    }
    Ok(values)
}

fn lookup<'a>(given: &'a Values, name: &str) -> Result<&'a Value, EvalError> {
    given.get(name).ok_or_else(|| EvalError::Missing { name: name.to_owned() })
}

/// Binds symbols from the given values, then checks every given shape and kind.
fn bind(graph: &Graph, given: &Values, order: &[NodeId]) -> Result<Bindings, EvalError> {
    let mut bindings = Bindings::new();
    let is_source = |id: &&NodeId| matches!(graph.node(**id).op(), Op::Input(_) | Op::Param(_));
    for &id in order.iter().filter(is_source) {
        let node = graph.node(id);
        let value = lookup(given, node.name())?;
        for (dim, &length) in node.shape().iter().zip(value.shape()) {
            if let Some(symbol) = dim.as_symbol() {
                bindings.entry(symbol.clone()).or_insert(length as u64);
            }
        }
    }
    for &id in order.iter().filter(is_source) {
        let node = graph.node(id);
        let value = lookup(given, node.name())?;
        match value {
            Value::Int(_) if node.ty().dtype.is_float() => return Err(EvalError::NotReal),
            Value::Real(_) if !node.ty().dtype.is_float() => return Err(EvalError::NotInt),
            _ => {}
        }
        if node.shape().eval(&bindings)? != value.shape() {
            return Err(EvalError::Shape {
                name: node.name().to_owned(),
                expected: node.ty().to_string(),
                found: value.shape().to_vec(),
            });
        }
    }
    Ok(bindings)
}
