//! Canonical forms: of several ways to write the same small thing, one. Later passes and the code generator then have
//! fewer shapes to know. Each rule stands below with an example, before and after.

use super::rule::{Rule, rewrite};
use super::{Editor, Pass, PassError, is_factor};
use engraft_ir::ops::{
    Binary, Constant, Dense, Elements, EpsilonAt, Magnitude, Matmul, Normalize, Reduce, Reduction, Reshape,
    Scale, Slice, Transpose, Unary,
};
use engraft_ir::{Dim, GraphError, NodeId, Op};

/// The pass.
pub const PASS: Pass<'static> =
    Pass { name: "canonicalize", summary: "write the same thing in one way", run: &run };

const RULES: &[Rule] = &[
    Rule { name: "scale_chain", apply: scale_chain },
    Rule { name: "identity", apply: identity },
    Rule { name: "scalar_factor", apply: scalar_factor },
    Rule { name: "transpose_chain", apply: transpose_chain },
    Rule { name: "reshape_chain", apply: reshape_chain },
    Rule { name: "square", apply: square },
    Rule { name: "matmul_by_weight", apply: matmul_by_weight },
    Rule { name: "bias", apply: bias },
    Rule { name: "magnitude", apply: magnitude },
    Rule { name: "normalize", apply: normalize },
];

fn run(editor: &mut Editor) -> Result<(), PassError> {
    rewrite(editor, RULES)
}

type Replacement = Result<Option<NodeId>, GraphError>;

/// Signs and scales in a row are one scale.
///
/// ```text
/// a = scale(x) {factor: 2}            ->    b = scale(x) {factor: -2}
/// b = neg(a)
/// ```
fn scale_chain(editor: &mut Editor, id: NodeId) -> Replacement {
    let Some((outer, inner)) = factor_of(editor, id) else { return Ok(None) };
    let Some((factor, x)) = factor_of(editor, inner) else { return Ok(None) };
    let factor = outer * factor;
    if is_factor(factor) { derived(editor, id, Scale { factor }, &[x]) } else { Ok(None) }
}

/// A node as a number times another.
fn factor_of(editor: &Editor, id: NodeId) -> Option<(f64, NodeId)> {
    let x = editor.graph().operand(id, 0)?;
    match editor.graph().node(id).op() {
        Op::Scale(scale) => Some((scale.factor, x)),
        Op::Unary(Unary::Neg) => Some((-1.0, x)),
        _ => None,
    }
}

/// What changes nothing goes: a scale by 1, a reshape or broadcast to the same shape, a transpose that moves no axis,
/// a slice of everything.
///
/// ```text
/// y = scale(x) {factor: 1}            ->    x
/// ```
#[expect(clippy::unnecessary_wraps, reason = "the signature of a rule")]
fn identity(editor: &mut Editor, id: NodeId) -> Replacement {
    let graph = editor.graph();
    let Some(x) = graph.operand(id, 0) else { return Ok(None) };
    let same = match graph.node(id).op() {
        Op::Scale(scale) => scale.factor == 1.0,
        Op::Reshape(_) | Op::Broadcast(_) => graph.node(x).shape() == graph.node(id).shape(),
        Op::Transpose(transpose) => transpose.permutation.is_sorted(),
        Op::Slice(Slice { axis, start, length }) => {
            *start == Dim::fixed(0) && graph.node(x).shape()[*axis] == *length
        }
        _ => false,
    };
    Ok(same.then_some(x))
}

/// A product with a number that the graph knows is a scale.
///
/// ```text
/// two = constant() {..}               ->    y = scale(x) {factor: 2}
/// y = mul(x, two)
/// ```
fn scalar_factor(editor: &mut Editor, id: NodeId) -> Replacement {
    let Some((op, a, b)) = binary(editor, id) else { return Ok(None) };
    let found = match op {
        Binary::Mul => match (number(editor, a), number(editor, b)) {
            (_, Some(factor)) => Some((a, factor)),
            (Some(factor), None) => Some((b, factor)),
            _ => None,
        },
        Binary::Div => number(editor, b).map(|divisor| (a, 1.0 / divisor)),
        _ => None,
    };
    let graph = editor.graph();
    match found {
        Some((x, factor)) if is_factor(factor) && graph.node(x).ty() == graph.node(id).ty() => {
            derived(editor, id, Scale { factor }, &[x])
        }
        _ => Ok(None),
    }
}

/// Transposes in a row are one.
///
/// ```text
/// a = transpose(x) {permutation: [1,0]}   ->    x
/// b = transpose(a) {permutation: [1,0]}
/// ```
fn transpose_chain(editor: &mut Editor, id: NodeId) -> Replacement {
    let Some((outer, inner)) = transpose_of(editor, id) else { return Ok(None) };
    let Some((first, x)) = transpose_of(editor, inner) else { return Ok(None) };
    let permutation: Vec<_> = outer.iter().map(|&axis| first[axis]).collect();
    if permutation.is_sorted() {
        return Ok(Some(x));
    }
    derived(editor, id, Transpose { permutation }, &[x])
}

fn transpose_of(editor: &Editor, id: NodeId) -> Option<(Vec<usize>, NodeId)> {
    match editor.graph().node(id).op() {
        Op::Transpose(t) => Some((t.permutation.clone(), editor.graph().operand(id, 0)?)),
        _ => None,
    }
}

/// Reshapes in a row are the last one.
///
/// ```text
/// a = reshape(x) {shape: [6]}         ->    b = reshape(x) {shape: [3,2]}
/// b = reshape(a) {shape: [3,2]}
/// ```
fn reshape_chain(editor: &mut Editor, id: NodeId) -> Replacement {
    let graph = editor.graph();
    let (Op::Reshape(outer), Some(inner)) = (graph.node(id).op(), graph.operand(id, 0)) else {
        return Ok(None);
    };
    let (Op::Reshape(_), Some(x)) = (graph.node(inner).op(), graph.operand(inner, 0)) else {
        return Ok(None);
    };
    let outer: Reshape = outer.clone();
    derived(editor, id, outer, &[x])
}

/// A value times itself is its square.
///
/// ```text
/// y = mul(x, x)                       ->    y = square(x)
/// ```
fn square(editor: &mut Editor, id: NodeId) -> Replacement {
    match binary(editor, id) {
        Some((Binary::Mul, a, b)) if a == b => derived(editor, id, Unary::Square, &[a]),
        _ => Ok(None),
    }
}

/// A product of a value of the call with a weight is a dense layer; the weight's transpose is made when it is loaded.
///
/// ```text
/// y = matmul(x, weight)               ->    y.weight = transpose(weight) {permutation: [1,0]}
///                                           y = dense(x, y.weight)
/// ```
fn matmul_by_weight(editor: &mut Editor, id: NodeId) -> Replacement {
    let graph = editor.graph();
    if !matches!(graph.node(id).op(), Op::Matmul(_)) {
        return Ok(None);
    }
    let (Some(x), Some(w)) = (graph.operand(id, Matmul::A), graph.operand(id, Matmul::B)) else {
        return Ok(None);
    };
    if graph.node(w).ty().rank() != 2 || !editor.is_weight(w) || editor.is_weight(x) {
        return Ok(None);
    }
    let name = format!("{}.weight", graph.node(id).name());
    let weight = editor.intern(&name, Transpose { permutation: vec![1, 0] }, &[Some(w)])?;
    derived(editor, id, Dense {}, &[x, weight])
}

/// A vector added to a dense layer that nobody else uses is its bias.
///
/// ```text
/// h = dense(x, weight)                ->    y = dense(x, weight, b)
/// y = add(h, b)
/// ```
fn bias(editor: &mut Editor, id: NodeId) -> Replacement {
    let Some((Binary::Add, a, b)) = binary(editor, id) else { return Ok(None) };
    for (layer, bias) in [(a, b), (b, a)] {
        let graph = editor.graph();
        let is_open = matches!(graph.node(layer).op(), Op::Dense(_))
            && graph.operand(layer, Dense::BIAS).is_none()
            && editor.is_used_once(layer);
        let fits = graph.node(layer).ty() == graph.node(id).ty()
            && graph.node(bias).ty().rank() == 1
            && graph.node(bias).shape().last() == graph.node(layer).shape().last()
            && editor.is_weight(bias);
        if !is_open || !fits {
            continue;
        }
        if let (Some(x), Some(weight)) = (graph.operand(layer, Dense::X), graph.operand(layer, Dense::WEIGHT))
        {
            return derived(editor, id, Dense {}, &[x, weight, bias]);
        }
    }
    Ok(None)
}

/// A product with a vector along one axis is a magnitude.
///
/// ```text
/// column = reshape(m) {shape: [40,1]} ->    y = magnitude(v, m) {axis: 0}
/// y = mul(v, column)
/// ```
fn magnitude(editor: &mut Editor, id: NodeId) -> Replacement {
    let Some((Binary::Mul, a, b)) = binary(editor, id) else { return Ok(None) };
    for (v, vector) in [(a, b), (b, a)] {
        let graph = editor.graph();
        let rank = graph.node(v).ty().rank();
        if rank < 2 || graph.node(v).ty() != graph.node(id).ty() {
            continue;
        }
        let (m, from_end) = column(editor, vector).map_or((vector, 1), |m| (m, 2));
        let along = &graph.node(v).shape()[rank - from_end];
        if graph.node(m).shape()[..] == [along.clone()] && *along != Dim::fixed(1) {
            return derived(editor, id, Magnitude { axis: rank - from_end }, &[v, m]);
        }
    }
    Ok(None)
}

/// The vector `[d]` that a node of shape `[d, 1]` is made of.
fn column(editor: &Editor, id: NodeId) -> Option<NodeId> {
    let graph = editor.graph();
    let Op::Reshape(Reshape { shape }) = graph.node(id).op() else { return None };
    let v = graph.operand(id, 0)?;
    (shape.len() == 2 && shape[1] == Dim::fixed(1) && graph.node(v).ty().rank() == 1).then_some(v)
}

/// Division by the L2 norm, written out, is a normalisation.
///
/// ```text
/// squares = square(v)                 ->    y = normalize(v) {axis: 1, epsilon: 0, ..}
/// total = sum(squares) {axes: [1], keep_dims: true}
/// norm = sqrt(total)
/// y = div(v, norm)
/// ```
fn normalize(editor: &mut Editor, id: NodeId) -> Replacement {
    let Some((op, a, b)) = binary(editor, id) else { return Ok(None) };
    let found = match op {
        Binary::Div => norm(editor, b).map(|(v, op)| (v, op, a)),
        Binary::Mul => [(a, b), (b, a)].into_iter().find_map(|(value, root)| {
            let sum = operand_of(editor, root, Unary::Rsqrt)?;
            let (sum, epsilon) = with_epsilon(editor, sum).unwrap_or((sum, 0.0));
            let (v, axis) = sum_of_squares(editor, sum)?;
            Some((v, Normalize { axis, epsilon, epsilon_at: EpsilonAt::Inside }, value))
        }),
        _ => None,
    };
    match found {
        Some((v, op, value)) if v == value => derived(editor, id, op, &[v]),
        _ => Ok(None),
    }
}

/// What a node is the L2 norm of, and how: `sqrt(Σ v² + ε)` or `sqrt(Σ v²) + ε`.
fn norm(editor: &Editor, id: NodeId) -> Option<(NodeId, Normalize)> {
    if let Some((root, epsilon)) = with_epsilon(editor, id) {
        let (v, op) = norm(editor, root).filter(|(_, op)| op.epsilon == 0.0)?;
        return Some((v, Normalize { epsilon, epsilon_at: EpsilonAt::Outside, ..op }));
    }
    if let Some(vector) = column(editor, id) {
        let sum = operand_of(editor, vector, Unary::Sqrt)?;
        let (v, axis) = sum_over(editor, sum, false).filter(|(_, axis)| *axis == 1)?;
        let is_matrix = editor.graph().node(v).ty().rank() == 2;
        let op = Normalize { axis, epsilon: 0.0, epsilon_at: EpsilonAt::Inside };
        return is_matrix.then_some((v, op));
    }
    let sum = operand_of(editor, id, Unary::Sqrt)?;
    let (sum, epsilon) = with_epsilon(editor, sum).unwrap_or((sum, 0.0));
    let (v, axis) = sum_of_squares(editor, sum)?;
    Some((v, Normalize { axis, epsilon, epsilon_at: EpsilonAt::Inside }))
}

/// `v + ε` taken apart.
fn with_epsilon(editor: &Editor, id: NodeId) -> Option<(NodeId, f64)> {
    let Some((Binary::Add, a, b)) = binary(editor, id) else { return None };
    let epsilon = |id| number(editor, id).filter(|&epsilon| epsilon >= 0.0);
    match (epsilon(a), epsilon(b)) {
        (None, Some(epsilon)) => Some((a, epsilon)),
        (Some(epsilon), None) => Some((b, epsilon)),
        _ => None,
    }
}

fn sum_of_squares(editor: &Editor, id: NodeId) -> Option<(NodeId, usize)> {
    sum_over(editor, id, true)
}

/// v and the axis of `Σ v²` over one axis.
fn sum_over(editor: &Editor, id: NodeId, keep: bool) -> Option<(NodeId, usize)> {
    let graph = editor.graph();
    let Op::Reduce(Reduce { reduction: Reduction::Sum, axes, keep_dims }) = graph.node(id).op() else {
        return None;
    };
    let v = operand_of(editor, graph.operand(id, 0)?, Unary::Square)?;
    match axes.as_slice() {
        &[axis] if *keep_dims == keep => Some((v, axis)),
        _ => None,
    }
}

fn operand_of(editor: &Editor, id: NodeId, function: Unary) -> Option<NodeId> {
    let is_it = *editor.graph().node(id).op() == Op::Unary(function);
    editor.graph().operand(id, 0).filter(|_| is_it)
}

fn binary(editor: &Editor, id: NodeId) -> Option<(Binary, NodeId, NodeId)> {
    let graph = editor.graph();
    match graph.node(id).op() {
        Op::Binary(op) => Some((*op, graph.operand(id, 0)?, graph.operand(id, 1)?)),
        _ => None,
    }
}

/// The number that a constant of one element is.
fn number(editor: &Editor, id: NodeId) -> Option<f64> {
    match editor.graph().node(id).op() {
        Op::Constant(Constant { values: Elements::F32(v), .. }) if v.len() == 1 => Some(f64::from(v[0])),
        Op::Constant(Constant { values: Elements::F64(v), .. }) if v.len() == 1 => Some(v[0]),
        _ => None,
    }
}

/// A new node in the place of `id`.
fn derived(editor: &mut Editor, id: NodeId, op: impl Into<Op>, operands: &[NodeId]) -> Replacement {
    let op = op.into();
    let name = format!("{}.{}", editor.graph().node(id).name(), op.name());
    let operands: Vec<_> = operands.iter().copied().map(Some).collect();
    editor.add(&name, op, &operands).map(Some)
}
