//! DoRA: every way to write a layer with its low-rank update and a gain becomes one `dora`, whose gain is a value of
//! its own, computed as early as its operands are known.
//!
//! ```text
//! v = add(weight, delta)              ->    y.norm = lora_norm(weight, lora_A, lora_B) {scale: 2}
//! n = normalize(v) {axis: 1}                y.gain = div(magnitude, y.norm)
//! w = magnitude(n, m) {axis: 0}             y = dora(x, weight, lora_A, lora_B, y.gain, bias) {scale: 2}
//! y = dense(x, w, bias)
//! ```
//!
//! The weight form (Liu et al., 2024) divides by the norm of the adapted weight's rows, without epsilon, and never
//! scales the bias. The output form (Edifice) divides by the norm of the layer's own output, bias included, with
//! epsilon inside the root; it becomes `output_dora`. They are two meanings, and no rewrite turns one into the other:
//! in the algebra of `linear.rs` the one norm is of weights and the other of values.

use super::adapted::{self, Adapted, Bias, Split, Vectors};
use super::expand::Linear;
use super::linear::{Atom, Combination, Factor, Monomial, Norm, Term};
use super::rule::MAX_ROUNDS;
use super::{Editor, Pass, PassError, is_factor};
use crate::trace::Reason;
use engraft_ir::ops::{Binary, Dense, Dora, LoraNorm, OutputDora};
use engraft_ir::{NodeId, Op};
use std::collections::BTreeSet;

/// The pass.
pub const PASS: Pass<'static> =
    Pass { name: "fuse_dora", summary: "join layers with their update and their gain", run: &run };

const WEIGHT_FORM: &str = "dora";
const OUTPUT_FORM: &str = "output_dora";

fn run(editor: &mut Editor) -> Result<(), PassError> {
    // First, so that a gain that somebody named is the gain that fusion looks for.
    norms(editor)?;
    for _ in 0..MAX_ROUNDS {
        if !layers(editor)? {
            break;
        }
    }
    Ok(())
}

/// A layer to fuse: the normal form inside, and what its output is multiplied with.
struct Plan {
    layer: Adapted,
    /// The vectors that make the magnitude.
    magnitude: Vectors,
    /// A number that the magnitude is multiplied with.
    factor: f64,
    bias: Bias,
}

impl Plan {
    /// The plan, if magnitude and bias can be written down.
    fn new(layer: Adapted, magnitude: &Monomial, factor: f64) -> Option<Box<Self>> {
        let (magnitude, bias) = (Vectors::of(magnitude)?, layer.plain_bias().filter(|_| is_factor(factor))?);
        Some(Box::new(Self { layer, magnitude, factor, bias }))
    }
}

/// What a node is, seen as DoRA.
enum Form {
    /// The weight form.
    Weight(Box<Plan>),
    /// The output form, with its epsilon.
    Output(Box<Plan>, f64),
    /// Nearly one of them.
    Near(&'static str, Reason),
    /// Neither.
    Other,
}

/// Fuses layers; whether any was. Users first, so that the largest expression wins.
fn layers(editor: &mut Editor) -> Result<bool, PassError> {
    let graph = editor.graph().clone();
    let linear = Linear::of(&graph);
    let mut changed = false;
    let mut refused = Vec::new();
    for id in editor.order().into_iter().rev() {
        if editor.is_retired(id) {
            continue;
        }
        let (rule, plan, epsilon) = match recognise(&linear, editor, id) {
            Form::Other => continue,
            Form::Near(rule, reason) => {
                refused.push((id, rule, reason));
                continue;
            }
            Form::Weight(plan) => (WEIGHT_FORM, plan, None),
            Form::Output(plan, epsilon) => (OUTPUT_FORM, plan, Some(epsilon)),
        };
        if let Some(reason) = plan.layer.shared(&linear, editor, id) {
            refused.push((id, rule, reason));
            continue;
        }
        match epsilon {
            None => fuse_weight(editor, &linear, id, &plan)?,
            Some(epsilon) => fuse_output(editor, &linear, id, &plan, epsilon)?,
        }
        changed = true;
    }
    // Whatever was fused changes who is shared with whom; the last round has the last word.
    if !changed {
        report(editor, &linear, refused);
    }
    Ok(changed)
}

/// Writes down each refusal where it first shows, and not again at the sums that contain it.
fn report(editor: &mut Editor, linear: &Linear<'_>, mut refused: Vec<(NodeId, &'static str, Reason)>) {
    let mut explained: BTreeSet<NodeId> = BTreeSet::new();
    for id in editor.order() {
        let operands = linear.graph.operands(id);
        let inherits = !linear.is_leaf(id) && operands.iter().flatten().any(|o| explained.contains(o));
        if let Some(at) = refused.iter().position(|(node, ..)| *node == id) {
            let (_, rule, reason) = refused.swap_remove(at);
            if !inherits {
                editor.refuse(rule, id, reason);
            }
            explained.insert(id);
        } else if inherits {
            explained.insert(id);
        }
    }
}

fn recognise(linear: &Linear<'_>, editor: &Editor, id: NodeId) -> Form {
    let sum = linear.combination(id);
    if matches!(linear.graph.node(id).op(), Op::Dense(_)) && linear.is_leaf(id) {
        return odd_weight(linear, editor, id);
    }
    let Some(norm) = sum.terms().flat_map(|(term, _)| term.norms()).next() else { return Form::Other };
    if let Some(form) = output_form(linear, editor, sum) {
        return form;
    }
    match adapted::split(linear, editor, sum) {
        Split::Adapted(layer) => weight_form(linear, layer),
        Split::OtherInput(layer, update) => Form::Near(rule_of(norm), other_input(linear, layer, update)),
        Split::Other => Form::Other,
    }
}

fn other_input(linear: &Linear<'_>, layer: Factor, update: Factor) -> Reason {
    let name = |factor: Factor| linear.graph.node(factor.node).name().to_owned();
    Reason::OtherInput { layer: name(layer), update: name(update) }
}

/// Whether a norm's subject has a product beside one with a factor more, as `W + B A` and `x W + x A B` have.
fn is_adapted(of: &Combination) -> bool {
    let lengths: BTreeSet<_> = of.terms().filter_map(|(term, _)| Some(term.chain()?.len())).collect();
    lengths.len() >= 2
}

/// Which form a norm belongs to: weights are single factors, values are products with an input.
fn rule_of(norm: &Norm) -> &'static str {
    let weights = norm.of.terms().any(|(term, _)| term.chain().is_some_and(|chain| chain.len() == 1));
    if weights { WEIGHT_FORM } else { OUTPUT_FORM }
}

/// `m / ‖W + s B A‖ ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) + bias`, or why it is not quite that.
fn weight_form(linear: &Linear<'_>, layer: Adapted) -> Form {
    let near = |reason| Form::Near(WEIGHT_FORM, reason);
    let Some((norm, magnitude)) = take_norm(&layer.last) else { return Form::Other };
    let product = layer.weight_sum();
    let describe = |sum: &Combination| sum.describe(linear.graph);
    if norm.of.is_same(&product.transposed()) && !norm.of.is_same(&product) {
        return near(Reason::NormAxis { norm: describe(&product), expected: "input" });
    }
    if norm.of.terms().any(|(term, _)| term.chain().is_none()) {
        return near(Reason::BiasInNorm { norm: describe(&norm.of) });
    }
    if !norm.of.is_same(&product) {
        return near(Reason::OtherNorm { norm: describe(&norm.of), product: describe(&product) });
    }
    if norm.epsilon.0 != 0.0 {
        return near(epsilon(norm, "the norm of weight DoRA has none"));
    }
    if layer.bias.terms().any(|(term, _)| term.norms().next().is_some()) {
        return near(Reason::ScaledBias { bias: describe(&layer.bias) });
    }
    // Values along the lanes are not the layer's; a gain without a magnitude is mere normalisation.
    let (plain, factor) = (layer.lanes.is_one(), layer.coefficient);
    Plan::new(layer, &magnitude, factor).filter(|_| plain).map_or(Form::Other, Form::Weight)
}

/// A gain as its only norm, below the line, and the rest.
fn take_norm(gain: &Monomial) -> Option<(&Norm, Monomial)> {
    let mut norms = gain.under.iter().filter_map(|(atom, count)| match atom {
        Atom::Norm(norm) if *count == 1 => Some((atom, norm.as_ref())),
        _ => None,
    });
    let (atom, norm) = norms.next()?;
    let rest = gain.without(&Monomial::under(atom.clone()))?;
    if rest.norms().next().is_some() { None } else { Some((norm, rest)) }
}

fn epsilon(norm: &Norm, expected: &'static str) -> Reason {
    Reason::Epsilon { epsilon: norm.epsilon.0, inside: norm.inside, expected }
}

/// `m ∘ c / sqrt(Σ_last c² + ε)` with `c = x Wᵀ + s (x Aᵀ) Bᵀ + bias`, or why it is not quite that; `None` if it is
/// not divided by a norm of values.
fn output_form(linear: &Linear<'_>, editor: &Editor, sum: &Combination) -> Option<Form> {
    let near = |reason| Some(Form::Near(OUTPUT_FORM, reason));
    let (outer, coefficient) = sum.terms().find(|(term, _)| term.chain().is_some())?;
    let value_norm = |monomial| take_norm(monomial).filter(|(norm, _)| rule_of(norm) == OUTPUT_FORM);
    let (norm, over_lanes, of) = match (value_norm(&outer.lanes), value_norm(&outer.last)) {
        (Some((norm, rest)), _) => (norm, rest, norm.of.clone()),
        // The norm sums over the batch: it is of the value's transpose.
        (None, Some((norm, rest))) => (norm, rest, norm.of.transposed()),
        (None, None) => return None,
    };
    let factor = coefficient / of.coefficient(&Term::bare(outer.product.clone())).unwrap_or(1.0);
    let inner = divide(sum, outer, factor)?;
    let layer = match adapted::split(linear, editor, &inner) {
        Split::Adapted(layer) => layer,
        Split::OtherInput(layer, update) => return near(other_input(linear, layer, update)),
        Split::Other => return None,
    };
    let describe = |sum: &Combination| sum.describe(linear.graph);
    if !of.is_same(&inner) {
        return near(Reason::OtherNorm { norm: describe(&of), product: describe(&inner) });
    }
    if value_norm(&outer.lanes).is_none() {
        return near(Reason::NormAxis { norm: describe(&inner), expected: "output" });
    }
    if let Some(Atom::Vector(m)) = over_lanes.atoms().next() {
        return near(Reason::MagnitudeAxis { magnitude: linear.graph.node(*m).name().to_owned() });
    }
    if !norm.inside {
        return near(epsilon(norm, "that of output DoRA is inside the root"));
    }
    let plain = layer.lanes.is_one() && layer.last.is_one() && layer.coefficient == 1.0;
    let plan = Plan::new(layer, &outer.last, factor).filter(|_| plain)?;
    Some(Form::Output(plan, norm.epsilon.0))
}

/// A sum without the vectors of one of its terms and without a factor; `None` if another term lacks the vectors.
fn divide(sum: &Combination, by: &Term, factor: f64) -> Option<Combination> {
    let mut rest = Combination::default();
    for (term, c) in sum.terms() {
        let (lanes, last) = (term.lanes.without(&by.lanes)?, term.last.without(&by.last)?);
        rest.add_term(Term { product: term.product.clone(), lanes, last }, c / factor);
    }
    Some(rest)
}

/// A dense layer whose weight the algebra cannot take apart: why, if the weight is nearly DoRA's.
fn odd_weight(linear: &Linear<'_>, editor: &Editor, id: NodeId) -> Form {
    let Some(weight) = linear.graph.operand(id, Dense::WEIGHT) else { return Form::Other };
    let near = |reason| Form::Near(WEIGHT_FORM, reason);
    let sum = linear.combination(weight);
    let describe = |sum: &Combination| sum.describe(linear.graph);
    let of_weights = |norm: &&Norm| {
        let chains = norm.of.terms().filter_map(|(term, _)| term.chain()).flatten();
        is_adapted(&norm.of) && chains.into_iter().all(|factor| editor.is_weight(factor.node))
    };
    let along = |pick: fn(&Term) -> &Monomial| {
        sum.terms().flat_map(move |(term, _)| pick(term).norms()).find(of_weights)
    };
    let (out, input) = (along(|term| &term.lanes), along(|term| &term.last));
    if let Some(norm) = out.or(input).filter(|n| n.of.terms().any(|(term, _)| term.chain().is_none())) {
        return near(Reason::BiasInNorm { norm: describe(&norm.of) });
    }
    if let Some(norm) = input {
        return near(Reason::NormAxis { norm: describe(&norm.of.transposed()), expected: "input" });
    }
    let magnitude = sum.terms().flat_map(|(term, _)| term.last.over.keys()).find_map(|atom| match atom {
        Atom::Vector(m) => Some(linear.graph.node(*m).name().to_owned()),
        Atom::Norm(_) => None,
    });
    match (out, magnitude) {
        (Some(_), Some(magnitude)) => near(Reason::MagnitudeAxis { magnitude }),
        _ => Form::Other,
    }
}

fn fuse_weight(
    editor: &mut Editor,
    linear: &Linear<'_>,
    root: NodeId,
    Plan { layer, magnitude, factor, bias }: &Plan,
) -> Result<(), PassError> {
    let name = linear.graph.node(root).name();
    let mut ids = layer.operands(editor)?.to_vec();
    let norm = LoraNorm { scale: layer.scale };
    let norm = editor.intern(&format!("{name}.norm"), norm, &ids[Dora::WEIGHT..=Dora::B])?;
    let gain = format!("{name}.gain");
    let numerator = adapted::product(editor, &gain, magnitude, *factor)?;
    ids.push(Some(editor.intern(&gain, Binary::Div, &[Some(numerator), Some(norm)])?));
    ids.push(adapted::sum(editor, &format!("{name}.bias"), bias)?);
    let new = editor.add(&format!("{name}.dora"), Dora { scale: layer.scale }, &ids)?;
    let conditions = vec![
        format!("the product is with {}", layer.weight_sum().describe(linear.graph)),
        "the norm is of the same, over its input axis, without epsilon".to_owned(),
        "the magnitude runs along the output axis and leaves the bias alone".to_owned(),
    ];
    editor.replace(WEIGHT_FORM, root, new, conditions)?;
    Ok(())
}

fn fuse_output(
    editor: &mut Editor,
    linear: &Linear<'_>,
    root: NodeId,
    Plan { layer, magnitude, factor, bias }: &Plan,
    epsilon: f64,
) -> Result<(), PassError> {
    let name = linear.graph.node(root).name();
    let mut ids = layer.operands(editor)?.to_vec();
    ids.push(Some(adapted::product(editor, &format!("{name}.magnitude"), magnitude, *factor)?));
    ids.push(adapted::sum(editor, &format!("{name}.bias"), bias)?);
    let op = OutputDora { scale: layer.scale, epsilon };
    let new = editor.add(&format!("{name}.output_dora"), op, &ids)?;
    let conditions = vec![
        format!("the layer is x·Wᵀ with W = {}", layer.weight_sum().describe(linear.graph)),
        "the norm is of its output, bias included, over the output axis".to_owned(),
        format!("epsilon, {epsilon:?}, is inside the root"),
        "the magnitude runs along the output axis".to_owned(),
    ];
    editor.replace(OUTPUT_FORM, root, new, conditions)?;
    Ok(())
}

/// The norm of an adapted weight's rows is `lora_norm`, which needs no adapted weight.
fn norms(editor: &mut Editor) -> Result<(), PassError> {
    let graph = editor.graph().clone();
    let linear = Linear::of(&graph);
    for id in editor.order().into_iter().rev() {
        let node = graph.node(id);
        if matches!(node.op(), Op::LoraNorm(_)) || node.ty().rank() != 1 || editor.is_retired(id) {
            continue;
        }
        let Some((weight, a, b, scale)) = lora_norm(&linear, editor, id) else { continue };
        let (weight, a) = (adapted::factor(editor, weight)?, adapted::factor(editor, a)?);
        let operands = [Some(weight), Some(a), Some(adapted::factor(editor, b)?)];
        let new = editor.intern(&format!("{}.lora_norm", node.name()), LoraNorm { scale }, &operands)?;
        editor.replace("lora_norm", id, new, Vec::new())?;
    }
    Ok(())
}

/// W, A, B and s, if the node is `‖W + s B A‖` without epsilon.
fn lora_norm(linear: &Linear<'_>, editor: &Editor, id: NodeId) -> Option<(Factor, Factor, Factor, f64)> {
    let (term, _) = linear.combination(id).only().filter(|(_, c)| *c == 1.0)?;
    let norm = term.last.norms().next()?;
    let only = Monomial::of(Atom::Norm(Box::new(norm.clone())));
    if term.chain().is_some() || !term.lanes.is_one() || term.last != only || norm.epsilon.0 != 0.0 {
        return None;
    }
    let chains: Vec<_> = norm.of.terms().map(|(term, c)| (term.is_bare(), term.chain(), c)).collect();
    let find = |length| {
        chains
            .iter()
            .find_map(|&(bare, chain, c)| Some((chain.filter(|chain| bare && chain.len() == length)?, c)))
    };
    let ((base, c), (update, scale)) = (find(1)?, find(2)?);
    let weights = base.iter().chain(update).all(|factor| editor.is_weight(factor.node));
    (chains.len() == 2 && weights && c == 1.0).then_some((base[0], update[1], update[0], scale))
}
