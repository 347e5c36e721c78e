//! Merging: an adapter that is known at load becomes part of its layer's weight, so that a call runs the plain layer.
//! Not in the default list, since it takes a weight of its own for every adapter; `Options::merge` asks for it.
//! What cannot be merged is an error, because the caller asked.

use super::{Editor, Pass, PassError};
use engraft_ir::ops::{Binary, Dense, Dora, Lora, LoraDelta, Magnitude, OutputDora};
use engraft_ir::{NodeId, Op, Stage};
use thiserror::Error;

/// The pass.
pub const PASS: Pass = Pass { name: "merge", summary: "put each adapter into its layer's weight", run };

/// Why an adapter cannot be merged.
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
}

fn run(editor: &mut Editor) -> Result<(), PassError> {
    for id in editor.order() {
        match *editor.graph().node(id).op() {
            Op::Dora(Dora { scale }) => merge(editor, id, scale, Some(Dora::GAIN), Dora::BIAS)?,
            Op::Lora(Lora { scale }) => merge(editor, id, scale, None, Lora::BIAS)?,
            Op::OutputDora(OutputDora { .. }) => {
                let node = editor.graph().node(id).name().to_owned();
                return Err(MergeError::OutputDora { node }.into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// `W' = gain[:, None] (W + s B A)`, with x, W, A and B in the slots that `lora` and `dora` share.
fn merge(
    editor: &mut Editor,
    id: NodeId,
    scale: f64,
    gain: Option<usize>,
    bias: usize,
) -> Result<(), PassError> {
    for slot in [Some(Dora::WEIGHT), Some(Dora::A), Some(Dora::B), gain].into_iter().flatten() {
        check_loaded(editor, id, slot)?;
    }
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

fn check_loaded(editor: &Editor, id: NodeId, slot: usize) -> Result<(), MergeError> {
    let graph = editor.graph();
    let Some(operand) = graph.operand(id, slot).filter(|&o| editor.stage(o) == Stage::Call) else {
        return Ok(());
    };
    Err(MergeError::Live {
        node: graph.node(id).name().to_owned(),
        operand: graph.node(id).op().info().slots[slot].name,
        name: graph.node(operand).name().to_owned(),
    })
}
