//! Staging: regroups products and sums so that more of them is computed before the call, then writes down every value
//! that is kept for a later stage. It knows nothing of where such values are held.

use super::rule::{Rule, rewrite};
use super::{Editor, Pass, PassError};
use crate::trace::Staged;
use engraft_ir::ops::{Binary, Magnitude};
use engraft_ir::{GraphError, NodeId, Op};

/// The pass.
pub const PASS: Pass<'static> =
    Pass { name: "stage", summary: "compute each value as early as it can be", run: &run };

const RULES: &[Rule] = &[
    Rule { name: "gains", apply: gains },
    Rule { name: "scaled_gain", apply: scaled_gain },
    Rule { name: "biases", apply: biases },
];

fn run(editor: &mut Editor) -> Result<(), PassError> {
    rewrite(editor, RULES)?;
    for id in editor.order() {
        let node = editor.graph().node(id);
        let is_source = matches!(node.op(), Op::Input(_) | Op::Param(_) | Op::Constant(_));
        let consumer = editor.users(id).into_iter().map(|user| editor.stage(user)).max();
        let stage = editor.stage(id);
        let Some(consumer) = consumer.filter(|&consumer| consumer > stage && !is_source) else { continue };
        let staged = Staged { node: node.name().to_owned(), stage, ty: node.ty().clone(), consumer };
        editor.staged(staged);
    }
    Ok(())
}

type Replacement = Result<Option<NodeId>, GraphError>;

/// Two gains known before the value are multiplied before it is known.
///
/// ```text
/// a = magnitude(v, g) {axis: 1}       ->    b.gain = mul(g, h)
/// b = magnitude(a, h) {axis: 1}             b = magnitude(v, b.gain) {axis: 1}
/// ```
fn gains(editor: &mut Editor, id: NodeId) -> Replacement {
    let Some((axis, a, h)) = gain_of(editor, id) else { return Ok(None) };
    let Some((inner, v, g)) = gain_of(editor, a).filter(|_| editor.is_used_once(a)) else { return Ok(None) };
    if inner != axis || !earlier(editor, g, v) || !earlier(editor, h, v) {
        return Ok(None);
    }
    let name = editor.graph().node(id).name().to_owned();
    let gain = editor.intern(&format!("{name}.gain"), Binary::Mul, &[Some(g), Some(h)])?;
    editor.add(&format!("{name}.magnitude"), Magnitude { axis }, &[Some(v), Some(gain)]).map(Some)
}

/// A scale beside a gain known before the value scales the gain.
///
/// ```text
/// a = magnitude(v, g) {axis: 1}       ->    b.gain = scale(g) {factor: 2}
/// b = scale(a) {factor: 2}                  b = magnitude(v, b.gain) {axis: 1}
/// ```
fn scaled_gain(editor: &mut Editor, id: NodeId) -> Replacement {
    let graph = editor.graph();
    let found = match graph.node(id).op() {
        Op::Scale(scale) => graph.operand(id, 0).and_then(|inner| {
            let (axis, v, g) = gain_of(editor, inner)?;
            Some((inner, axis, v, g, *scale))
        }),
        Op::Magnitude(_) => gain_of(editor, id).and_then(|(axis, inner, g)| match graph.node(inner).op() {
            Op::Scale(scale) => Some((inner, axis, graph.operand(inner, 0)?, g, *scale)),
            _ => None,
        }),
        _ => None,
    };
    let Some((inner, axis, v, g, scale)) = found else { return Ok(None) };
    if !editor.is_used_once(inner) || !earlier(editor, g, v) {
        return Ok(None);
    }
    let name = graph.node(id).name().to_owned();
    let gain = editor.intern(&format!("{name}.gain"), scale, &[Some(g)])?;
    editor.add(&format!("{name}.magnitude"), Magnitude { axis }, &[Some(v), Some(gain)]).map(Some)
}

/// Two vectors known before the value are added before it is known.
///
/// ```text
/// a = add(v, b)                       ->    y.bias = add(b, c)
/// y = add(a, c)                             y = add(v, y.bias)
/// ```
fn biases(editor: &mut Editor, id: NodeId) -> Replacement {
    let Some((a, c)) = sum_of(editor, id) else { return Ok(None) };
    let Some((v, b)) = sum_of(editor, a).filter(|_| editor.is_used_once(a)) else { return Ok(None) };
    let graph = editor.graph();
    let same = graph.node(b).ty() == graph.node(c).ty() && graph.node(v).ty() == graph.node(id).ty();
    if !same || !earlier(editor, b, v) || !earlier(editor, c, v) {
        return Ok(None);
    }
    let name = graph.node(id).name().to_owned();
    let bias = editor.intern(&format!("{name}.bias"), Binary::Add, &[Some(b), Some(c)])?;
    editor.add(&format!("{name}.add"), Binary::Add, &[Some(v), Some(bias)]).map(Some)
}

fn earlier(editor: &Editor, a: NodeId, b: NodeId) -> bool {
    editor.stage(a) < editor.stage(b)
}

/// The axis, the value and the gain of a magnitude.
fn gain_of(editor: &Editor, id: NodeId) -> Option<(usize, NodeId, NodeId)> {
    let graph = editor.graph();
    match graph.node(id).op() {
        Op::Magnitude(Magnitude { axis }) => {
            Some((*axis, graph.operand(id, Magnitude::V)?, graph.operand(id, Magnitude::M)?))
        }
        _ => None,
    }
}

/// The value and the vector of a sum of both.
fn sum_of(editor: &Editor, id: NodeId) -> Option<(NodeId, NodeId)> {
    let graph = editor.graph();
    if !matches!(graph.node(id).op(), Op::Binary(Binary::Add)) {
        return None;
    }
    let (a, b) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
    match (graph.node(a).ty().rank(), graph.node(b).ty().rank()) {
        (1, rank) if rank > 1 => Some((b, a)),
        (rank, 1) if rank > 1 => Some((a, b)),
        _ => None,
    }
}
