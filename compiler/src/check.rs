//! Translation validation: whether two graphs compute the same, by evaluating both in the reference interpreter on the
//! same random values. It knows no pass, so it can catch any that is wrong.

use crate::trace::{Event, PassTrace, Trace};
use engraft_ir::eval::{Values, eval_nodes};
use engraft_ir::sample::{self, SampleError};
use engraft_ir::value::{EvalError, Value};
use engraft_ir::{Bindings, Graph, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// Why two graphs could not be compared, or differ in kind.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum CheckError {
    /// A graph could not be evaluated.
    #[error("the graph {side} cannot be evaluated: {source}")]
    Eval {
        /// Which graph: `before` or `after`.
        side: &'static str,
        /// Why.
        source: EvalError,
    },
    /// There are no values to try the graph with.
    #[error("no values to try the graph with: {0}")]
    Sample(#[from] SampleError),
    /// An output is missing, or has another shape or kind.
    #[error("output `{output}` is {before} before and {after} after")]
    Output {
        /// The output.
        output: String,
        /// What it is before.
        before: String,
        /// What it is after.
        after: String,
    },
}

/// What the check of one pass found.
#[derive(Clone, Debug, PartialEq)]
pub struct PassCheck {
    /// The pass.
    pub pass: &'static str,
    /// What the check of each of its rewrites found, in order.
    pub rewrites: Vec<RewriteCheck>,
    /// The largest relative difference between the outputs of its graph and of the one it was given.
    pub difference: f64,
}

/// What the check of one rewrite found.
#[derive(Clone, Debug, PartialEq)]
pub struct RewriteCheck {
    /// The rule.
    pub rule: &'static str,
    /// The node that was replaced.
    pub node: String,
    /// The largest relative difference between the node's value before the pass and after it; `None` where a later
    /// rewrite of the pass left no such node.
    pub difference: Option<f64>,
}

/// Evaluates both graphs on the same random values, and returns the largest difference of any output's element,
/// relative to that output's largest magnitude: about 1e-15 for graphs that mean the same, infinite where one has a
/// NaN or an infinity that the other has not. Symbols that `bindings` leaves open get small sizes of their own.
///
/// # Errors
/// [`CheckError`].
pub fn compare(before: &Graph, after: &Graph, bindings: &Bindings, seed: u64) -> Result<f64, CheckError> {
    compare_on(before, after, &sample(before, bindings, seed)?)
}

/// Evaluates both graphs on these values of their inputs and parameters, and returns the difference that [`compare`]
/// does.
///
/// # Errors
/// [`CheckError`].
pub fn compare_on(before: &Graph, after: &Graph, values: &Values) -> Result<f64, CheckError> {
    Evaluated::both(before, after, values).and_then(|[before, after]| before.compare_outputs(&after))
}

/// Compares the graph before and after a pass, and the value of each node that it replaced, on these values of the
/// inputs and parameters.
///
/// # Errors
/// [`CheckError`].
pub fn check_pass(pass: &PassTrace, values: &Values) -> Result<PassCheck, CheckError> {
    let [before, after] = Evaluated::both(&pass.before, &pass.after, values)?;
    let rewrite_check = |event: &Event| match event {
        Event::Rewrite(rewrite) => Some(RewriteCheck {
            rule: rewrite.rule,
            node: rewrite.node.clone(),
            difference: before.compare_node(&after, &rewrite.node),
        }),
        Event::Refusal(_) | Event::Staged(_) | Event::Decided(_) => None,
    };
    let rewrites = pass.events.iter().filter_map(rewrite_check).collect();
    Ok(PassCheck { pass: pass.pass, rewrites, difference: before.compare_outputs(&after)? })
}

/// Compares the graph before and after each pass of a trace.
///
/// # Errors
/// As [`compare`].
pub fn check_trace(trace: &Trace, bindings: &Bindings, seed: u64) -> Result<Vec<PassCheck>, CheckError> {
    let Some(first) = trace.passes.first() else { return Ok(Vec::new()) };
    let values = sample(&first.before, bindings, seed)?;
    trace.passes.iter().map(|pass| check_pass(pass, &values)).collect()
}

/// A graph with the values of its nodes.
struct Evaluated<'g> {
    graph: &'g Graph,
    values: BTreeMap<NodeId, Value>,
}

impl<'g> Evaluated<'g> {
    fn both(before: &'g Graph, after: &'g Graph, values: &Values) -> Result<[Self; 2], CheckError> {
        let evaluated = |graph, side| match eval_nodes(graph, values) {
            Ok(values) => Ok(Self { graph, values }),
            Err(source) => Err(CheckError::Eval { side, source }),
        };
        Ok([evaluated(before, "before")?, evaluated(after, "after")?])
    }

    fn output(&self, name: &str) -> Option<&Value> {
        let output = self.graph.outputs().iter().find(|output| output.name == name)?;
        self.values.get(&output.node)
    }

    fn compare_outputs(&self, after: &Self) -> Result<f64, CheckError> {
        let mut worst = 0.0f64;
        for output in self.graph.outputs().iter().chain(after.graph.outputs()) {
            let (old, new) = (self.output(&output.name), after.output(&output.name));
            let difference = old.zip(new).and_then(|(old, new)| difference(old, new));
            let difference = difference.ok_or_else(|| CheckError::Output {
                output: output.name.clone(),
                before: describe(old),
                after: describe(new),
            })?;
            worst = worst.max(difference);
        }
        Ok(worst)
    }

    /// The difference in a node's value, if both graphs have the node.
    fn compare_node(&self, after: &Self, name: &str) -> Option<f64> {
        let value = |side: &Self| side.graph.find(name).and_then(|id| side.values.get(&id).cloned());
        difference(&value(self)?, &value(after)?)
    }
}

/// The largest difference relative to the largest magnitude; `None` if shapes or kinds differ.
fn difference(old: &Value, new: &Value) -> Option<f64> {
    if old.shape() != new.shape() {
        return None;
    }
    match (old, new) {
        (Value::Int(old), Value::Int(new)) => Some(if old == new { 0.0 } else { f64::INFINITY }),
        (Value::Real(old), Value::Real(new)) => {
            let finite = old.iter().chain(new).filter(|v| v.is_finite());
            let scale = finite.fold(f64::MIN_POSITIVE, |scale, v| scale.max(v.abs()));
            let pairs = old.iter().zip(new);
            Some(pairs.map(|(&a, &b)| element(a, b) / scale).fold(0.0, f64::max))
        }
        _ => None,
    }
}

fn element(a: f64, b: f64) -> f64 {
    let same = a == b || (a.is_nan() && b.is_nan());
    match (same, (a - b).abs()) {
        (true, _) => 0.0,
        (false, distance) if distance.is_finite() => distance,
        _ => f64::INFINITY,
    }
}

fn describe(value: Option<&Value>) -> String {
    match value {
        None => "missing".to_owned(),
        Some(Value::Real(v)) => format!("floats {:?}", v.shape()),
        Some(Value::Int(v)) => format!("integers {:?}", v.shape()),
    }
}

/// A random value for every input and parameter; symbols that are open get small sizes of their own.
fn sample(graph: &Graph, bindings: &Bindings, seed: u64) -> Result<Values, CheckError> {
    let mut bindings = bindings.clone();
    let symbols: BTreeSet<_> = graph.nodes().flat_map(|node| node.shape().symbols()).collect();
    for (symbol, size) in symbols.into_iter().zip(2..) {
        bindings.entry(symbol).or_insert(size);
    }
    Ok(sample::values(graph, &bindings, seed)?)
}
