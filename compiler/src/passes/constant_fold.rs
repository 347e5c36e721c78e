//! Constant folding: what is known from the graph alone becomes a constant, if it is small, fixed in shape and finite.
//!
//! The folded value is computed in f64 by the reference interpreter and rounded once to the node's own type, because
//! that is the type in which compiled code holds it; only values that something other than folding uses are written
//! out, so nothing is rounded twice.

use super::{Editor, Pass, PassError};
use crate::trace::Reason;
use engraft_ir::op::Args;
use engraft_ir::ops::{Constant, Elements, MAX_CONSTANT};
use engraft_ir::value::Value;
use engraft_ir::{Bindings, DType, NodeId, Op, Stage};
use std::collections::BTreeMap;

/// The pass.
pub const PASS: Pass<'static> =
    Pass { name: "constant_fold", summary: "compute what the graph alone determines", run: &run };

const RULE: &str = "constant";

fn run(editor: &mut Editor) -> Result<(), PassError> {
    let order = editor.order();
    let values = evaluate(editor, &order)?;
    // Users first: a value that only folded values use is gone before its turn comes.
    for id in order.into_iter().rev() {
        let node = editor.graph().node(id);
        let foldable = !matches!(node.op(), Op::Constant(_)) && !editor.is_retired(id);
        let Some(value) = values.get(&id).filter(|_| foldable) else { continue };
        let name = format!("{}.folded", node.name());
        match constant(node.ty().dtype, node.shape().clone(), value) {
            Some(constant) => {
                let new = editor.add(&name, constant, &[])?;
                editor.replace(RULE, id, new, Vec::new())?;
            }
            None => editor.refuse(RULE, id, Reason::NotFinite),
        }
    }
    Ok(())
}

/// The values of small nodes of stage compile, in f64.
fn evaluate(editor: &Editor, order: &[NodeId]) -> Result<BTreeMap<NodeId, Value>, PassError> {
    let mut values: BTreeMap<NodeId, Value> = BTreeMap::new();
    let bindings = Bindings::new();
    for &id in order {
        let node = editor.graph().node(id);
        let small = node.shape().elements().as_fixed().is_some_and(|n| n <= MAX_CONSTANT as u64);
        if editor.stage(id) != Stage::Compile || !small {
            continue;
        }
        let operands = editor.graph().operands(id);
        let args: Vec<_> = operands.iter().map(|o| o.and_then(|o| values.get(&o))).collect();
        if operands.iter().zip(&args).any(|(operand, value)| operand.is_some() && value.is_none()) {
            continue;
        }
        let Ok(shape) = node.shape().eval(&bindings) else { continue };
        let value = node.op().eval(Args { values: &args, shape: &shape, bindings: &bindings })?;
        values.insert(id, value);
    }
    Ok(values)
}

/// The constant of this value; `None` if it is not finite in this type.
fn constant(dtype: DType, shape: engraft_ir::Shape, value: &Value) -> Option<Constant> {
    let values = match (value, dtype) {
        (Value::Real(v), DType::F64) => Elements::F64(v.iter().copied().collect()),
        (Value::Real(v), _) => Elements::F32(v.iter().map(|&x| x as f32).collect()),
        (Value::Int(v), DType::I32) => Elements::I32(v.iter().map(|&x| x as i32).collect()),
        (Value::Int(v), _) => Elements::I64(v.iter().copied().collect()),
    };
    let finite = match &values {
        Elements::F32(v) => v.iter().all(|x| x.is_finite()),
        Elements::F64(v) => v.iter().all(|x| x.is_finite()),
        Elements::I32(_) | Elements::I64(_) => true,
    };
    finite.then_some(Constant { shape, values })
}
