//! Whether a call's batch may be run in slices: whether the symbol that leads its inputs leads every value that has it, and
//! item i of each such value is computed from item i of others alone. Then a call on some of the items computes these items
//! of the outputs, in the same bits, and a large batch need not leave the caches. What is the same for all items is made
//! again for each slice, so it must be cheap.

use engraft_ir::{Graph, Node, NodeId, Op, Stage, Stages, Symbol, ops};
use std::collections::BTreeMap;

/// How a value relates to the items of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// Its first axis are the items.
    Items,
    /// It is the same for all items.
    All,
}

/// The symbol of a batch that may be run in slices.
pub(super) fn items(graph: &Graph, stages: &Stages) -> Option<Symbol> {
    let leading = |node: &Node| match node.op() {
        Op::Input(input) if input.carries.is_none() => input.shape.first()?.as_symbol().cloned(),
        _ => None,
    };
    let mut candidates: Vec<Symbol> = Vec::new();
    for symbol in graph.order().into_iter().filter_map(|id| leading(graph.node(id))) {
        if !candidates.contains(&symbol) {
            candidates.push(symbol);
        }
    }
    candidates.into_iter().find(|symbol| holds(graph, stages, symbol))
}

fn holds(graph: &Graph, stages: &Stages, symbol: &Symbol) -> bool {
    let mut values = BTreeMap::new();
    for id in graph.order() {
        let Some(of) = value(graph, stages, symbol, id, &values) else { return false };
        values.insert(id, of);
    }
    graph.outputs().iter().all(|output| values[&output.node] == Of::Items)
}

/// What a value is, if it is either.
fn value(
    graph: &Graph,
    stages: &Stages,
    symbol: &Symbol,
    id: NodeId,
    values: &BTreeMap<NodeId, Of>,
) -> Option<Of> {
    let node = graph.node(id);
    let shape = node.shape();
    let has = |dims: &[engraft_ir::Dim]| dims.iter().any(|dim| dim.symbols().contains(symbol));
    let of = if !has(shape) {
        Of::All
    } else if shape[0].as_symbol() == Some(symbol) && !has(&shape[1..]) {
        Of::Items
    } else {
        return None;
    };
    if stages.node(id) < Stage::Call || matches!(node.op(), Op::Input(_)) {
        return (stages.node(id) == Stage::Call || of == Of::All).then_some(of);
    }
    let operands: Vec<Option<NodeId>> = graph.operands(id);
    let of_operand = |slot: usize| operands.get(slot).copied().flatten().map(|operand| values[&operand]);
    let all =
        |slots: std::ops::Range<usize>| slots.into_iter().all(|slot| of_operand(slot) != Some(Of::Items));
    let rank = |slot: usize| operands[slot].map_or(0, |operand| graph.node(operand).ty().rank());
    let count = operands.len();
    match of {
        // What is the same for all items was made of nothing that differs, and is made again for each slice: only what is
        // small, elementwise or moved may be. An adaptable layer's rows differ by their adapters, whatever its input.
        Of::All => (all(0..count) && is_light(node.op())).then_some(Of::All),
        Of::Items => by_item(node, (symbol, count), of_operand, all, rank).then_some(Of::Items),
    }
}

/// Whether an op takes about as long as reading its operands.
fn is_light(op: &Op) -> bool {
    matches!(
        op,
        Op::Param(_)
            | Op::Constant(_)
            | Op::Binary(_)
            | Op::Unary(_)
            | Op::Scale(_)
            | Op::Cast(_)
            | Op::Magnitude(_)
            | Op::Reshape(_)
            | Op::Broadcast(_)
            | Op::Transpose(_)
            | Op::Concat(_)
            | Op::Slice(_)
            | Op::Gather(_)
    )
}

/// Whether an op computes item i of its value from item i of those operands that have items.
fn by_item(
    node: &Node,
    (symbol, count): (&Symbol, usize),
    of: impl Fn(usize) -> Option<Of>,
    all: impl Fn(std::ops::Range<usize>) -> bool,
    rank: impl Fn(usize) -> usize,
) -> bool {
    let own_rank = node.ty().rank();
    // Axes are aligned from the last: only with as many does an operand's first meet the value's.
    let aligned = |slot: usize| of(slot) != Some(Of::Items) || rank(slot) == own_rank;
    match node.op() {
        Op::Binary(_) => aligned(0) && aligned(1),
        Op::Broadcast(_) => aligned(0),
        Op::Unary(_) | Op::Scale(_) | Op::Cast(_) | Op::Reshape(_) => of(0) == Some(Of::Items),
        Op::Dense(_)
        | Op::Adaptable(_)
        | Op::Lora(_)
        | Op::Dora(_)
        | Op::OutputDora(_)
        | Op::LoraApply(_)
        | Op::LayerNorm(_)
        | Op::RmsNorm(_) => rank(0) > 1 && all(1..count),
        Op::Matmul(_) => of(0) == Some(Of::Items) && (all(1..2) || rank(1) > 2),
        Op::Attention(_) => (0..3).all(|slot| of(slot) == Some(Of::Items)),
        Op::Gather(_) => of(ops::Gather::TABLE) == Some(Of::All) && of(ops::Gather::IDS) == Some(Of::Items),
        Op::Softmax(op) => op.axis > 0,
        Op::Normalize(op) => op.axis > 0,
        Op::Magnitude(op) => op.axis > 0 && all(1..2),
        Op::Reduce(op) => !op.axes.contains(&0),
        Op::Transpose(op) => op.permutation.first() == Some(&0),
        Op::Concat(op) => op.axis > 0 && (0..count).all(|slot| of(slot) == Some(Of::Items)),
        Op::Slice(op) => op.axis > 0 && !op.start.symbols().contains(symbol),
        Op::Input(_) | Op::Param(_) | Op::Constant(_) | Op::LoraDelta(_) | Op::LoraNorm(_) => false,
    }
}
