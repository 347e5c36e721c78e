//! LoRA: every way to write `x Wᵀ + s (x Aᵀ) Bᵀ + bias` becomes one `lora`, in weight space or in activation space
//! and with the scale anywhere.
//!
//! ```text
//! base = dense(x, weight, bias)
//! h = dense(x, lora_A)
//! up = dense(h, lora_B)               ->    y = lora(x, weight, lora_A, lora_B, bias) {scale: 2}
//! scaled = scale(up) {factor: 2}
//! y = add(base, scaled)
//! ```
//!
//! Two dense layers in a row are an update only beside a layer with the same input. Where the layer cannot join them,
//! the update alone becomes `lora_apply`, or `lora_delta` in weight space. It knows nothing of DoRA.

use super::adapted::{self, Adapted, Bias, Split};
use super::expand::Linear;
use super::linear::{Combination, Factor};
use super::rule::MAX_ROUNDS;
use super::{Editor, Pass, PassError, is_factor};
use engraft_ir::ops::{Lora, LoraApply, LoraDelta};
use engraft_ir::{NodeId, Op};
use std::collections::BTreeSet;

/// The pass.
pub const PASS: Pass<'static> =
    Pass { name: "fuse_lora", summary: "join low-rank updates with their layers", run: &run };

fn run(editor: &mut Editor) -> Result<(), PassError> {
    for _ in 0..MAX_ROUNDS {
        if !layers(editor)? {
            break;
        }
    }
    updates(editor)
}

/// Fuses whole layers; whether any was. Users first, so that the largest expression wins.
fn layers(editor: &mut Editor) -> Result<bool, PassError> {
    let graph = editor.graph().clone();
    let linear = Linear::of(&graph);
    let mut changed = false;
    let mut refused = Vec::new();
    for id in editor.order().into_iter().rev() {
        if editor.is_retired(id) || matches!(graph.node(id).op(), Op::Lora(_)) {
            continue;
        }
        let Split::Adapted(layer) = adapted::split(&linear, editor, linear.combination(id)) else { continue };
        let plain = layer.coefficient == 1.0 && layer.lanes.is_one() && layer.last.is_one();
        let Some(bias) = layer.plain_bias().filter(|_| plain) else { continue };
        let operands = graph.operands(id);
        let extends_lora = operands.iter().flatten().any(|&o| matches!(graph.node(o).op(), Op::Lora(_)));
        match layer.shared(&linear, editor, id) {
            // Only a bias stays outside.
            Some(_) if extends_lora => {}
            Some(reason) => refused.push((id, reason)),
            None => {
                fuse(editor, &linear, id, &layer, &bias)?;
                changed = true;
            }
        }
    }
    // Whatever was fused changes who is shared with whom; the last round has the last word.
    if !changed {
        refused.into_iter().rev().for_each(|(id, reason)| editor.refuse("lora", id, reason));
    }
    Ok(changed)
}

fn fuse(
    editor: &mut Editor,
    linear: &Linear<'_>,
    root: NodeId,
    layer: &Adapted,
    bias: &Bias,
) -> Result<(), PassError> {
    let name = linear.graph.node(root).name();
    let mut ids = layer.operands(editor)?.to_vec();
    ids.push(adapted::sum(editor, &format!("{name}.bias"), bias)?);
    let new = editor.add(&format!("{name}.lora"), Lora { scale: layer.scale }, &ids)?;
    let condition = format!("the layer is x·Wᵀ with W = {}", layer.weight_sum().describe(linear.graph));
    editor.replace("lora", root, new, vec![condition])?;
    Ok(())
}

/// Names the updates that stand beside a layer but could not join it.
fn updates(editor: &mut Editor) -> Result<(), PassError> {
    let graph = editor.graph().clone();
    let linear = Linear::of(&graph);
    let beside = beside_layers(&linear, editor);
    for id in editor.order().into_iter().rev() {
        let named = matches!(graph.node(id).op(), Op::LoraApply(_) | Op::LoraDelta(_));
        if named || editor.is_retired(id) {
            continue;
        }
        let Some((chain, scale)) = single_chain(linear.combination(id)) else { continue };
        // As it is written, or with its first factor taken apart.
        let starts =
            [Some(chain[0]), single_chain(linear.combination(chain[0].node)).map(|(inner, _)| inner[0])];
        let mut updates = starts.into_iter().flatten().filter_map(|x| linear.chain_from(x, chain));
        let Some((c, update)) = updates.find(|(_, update)| beside.contains(update)) else { continue };
        let scale = scale * c;
        if !is_factor(scale) {
            continue;
        }
        let leaves: BTreeSet<_> = update.iter().map(|factor| factor.node).collect();
        let rule = if update.len() == 3 { "lora_apply" } else { "lora_delta" };
        if let Some(reason) = adapted::shared(&linear, editor, id, &leaves) {
            editor.refuse(rule, id, reason);
            continue;
        }
        let name = format!("{}.{rule}", graph.node(id).name());
        let new = match *update.as_slice() {
            [x, a, b] => {
                let x = adapted::factor(editor, x)?;
                let (a, b) = (adapted::factor(editor, a.flip())?, adapted::factor(editor, b.flip())?);
                editor.add(&name, LoraApply { scale }, &[Some(x), Some(a), Some(b)])?
            }
            [b, a] => {
                let (a, b) = (adapted::factor(editor, a)?, adapted::factor(editor, b)?);
                editor.add(&name, LoraDelta { scale }, &[Some(a), Some(b)])?
            }
            _ => continue,
        };
        editor.replace(rule, id, new, Vec::new())?;
    }
    Ok(())
}

fn single_chain(sum: &Combination) -> Option<(&[Factor], f64)> {
    let (term, c) = sum.only().filter(|(term, _)| term.is_bare())?;
    Some((term.chain()?, c))
}

/// The products `x Aᵀ Bᵀ` that are added to an `x Wᵀ`, and the `B A` that are added to a weight.
fn beside_layers(linear: &Linear<'_>, editor: &Editor) -> BTreeSet<Vec<Factor>> {
    let is_weight = |factor: &Factor| editor.is_weight(factor.node);
    let mut found = BTreeSet::new();
    for id in editor.order() {
        let sum = linear.combination(id);
        let chains: Vec<_> = sum.terms().filter_map(|(term, _)| term.chain()).collect();
        for chain in &chains {
            match *chain {
                [x, w] if is_weight(w) => {
                    let updates = chains.iter().filter_map(|update| linear.chain_from(*x, update));
                    found.extend(
                        updates
                            .map(|(_, update)| update)
                            .filter(|u| u.len() == 3 && u[1..].iter().all(is_weight)),
                    );
                }
                [w] if is_weight(w) && linear.graph.node(id).ty().rank() == 2 => {
                    let is_update = |u: &&&[Factor]| u.len() == 2 && u.iter().all(is_weight);
                    found.extend(chains.iter().filter(is_update).map(|u| u.to_vec()));
                }
                _ => {}
            }
        }
    }
    found
}
