//! Merging: an adapter that is known at load becomes part of its layer's weight, so that a call runs the plain layer.
//! Not in the default list, since it takes a weight of its own for every adapter; `Options::merge` asks for it, for all
//! layers or some. What cannot be merged though it is asked for is an error; where the cost decides, it stays as it is.

use super::{Editor, Pass, PassError, Run};
use crate::merging::{Merging, survey};
use engraft_ir::ops::{Binary, Dense, Dora, Lora, LoraDelta, Magnitude};
use engraft_ir::{NodeId, Op};
use std::collections::BTreeSet;
use thiserror::Error;

/// The pass's name.
pub const NAME: &str = "merge";

/// The pass, with what is asked of it.
pub fn pass(merging: &Merging) -> Pass<'_> {
    Pass { name: NAME, summary: "put each adapter into its layer's weight", run: merging }
}

/// Why an adapter cannot be merged, or is not known to be worth it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MergeError {
    /// The output form depends on each input.
    #[error(
        "`{node}` normalises each output row by its own norm, which depends on the input, so no weight computes \
         it: output DoRA cannot be merged"
    )]
    OutputDora {
        /// The node.
        node: String,
    },
    /// An operand changes with each call.
    #[error("`{node}` cannot be merged: its {operand} `{name}` is given anew with each call")]
    Live {
        /// The node.
        node: String,
        /// The operand's place.
        operand: &'static str,
        /// The operand.
        name: String,
    },
    /// A dim that the cost depends on.
    #[error("`{node}` has a dim `{dim}` that is open until it is loaded, so its cost is not known")]
    Open {
        /// The node.
        node: String,
        /// The dim.
        dim: String,
    },
    /// Nothing says what it costs.
    #[error("there is no cost model to decide `{node}` by")]
    NoModel {
        /// The node.
        node: String,
    },
    /// A layer that the caller names is not there.
    #[error("there is no adapted layer `{name}`; there are: {}", list(.known))]
    Unknown {
        /// The name.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Run for Merging {
    fn run(&self, editor: &mut Editor) -> Result<(), PassError> {
        let decisions = survey(editor.graph(), self, None)?;
        let merged: BTreeSet<_> = decisions.iter().filter(|d| d.merged).map(|d| d.layer.clone()).collect();
        for decision in decisions {
            editor.decided(decision);
        }
        for id in editor.order() {
            let node = editor.graph().node(id);
            if !merged.contains(node.name()) {
                continue;
            }
            match *node.op() {
                Op::Dora(Dora { scale }) => merge(editor, id, scale, Some(Dora::GAIN), Dora::BIAS)?,
                Op::Lora(Lora { scale }) => merge(editor, id, scale, None, Lora::BIAS)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// `W' = gain[:, None] (W + s B A)`, with x, W, A and B in the slots that `lora` and `dora` share.
fn merge(
    editor: &mut Editor,
    id: NodeId,
    scale: f64,
    gain: Option<usize>,
    bias: usize,
) -> Result<(), PassError> {
    let graph = editor.graph();
    let name = graph.node(id).name().to_owned();
    let operand = |slot| graph.operand(id, slot);
    let (x, weight) = (operand(Dora::X), operand(Dora::WEIGHT));
    let factors = [operand(Dora::A), operand(Dora::B)];
    let (gain, bias) = (gain.and_then(operand), operand(bias));
    let delta = editor.intern(&format!("{name}.delta"), LoraDelta { scale }, &factors)?;
    let mut merged = editor.intern(&format!("{name}.adapted"), Binary::Add, &[weight, Some(delta)])?;
    if gain.is_some() {
        let op = Magnitude { axis: 0 };
        merged = editor.intern(&format!("{name}.weight"), op, &[Some(merged), gain])?;
    }
    let new = editor.add(&format!("{name}.dense"), Dense {}, &[x, Some(merged), bias])?;
    editor.replace("merge", id, new, vec!["weight and adapter are known before the call".to_owned()])?;
    Ok(())
}
