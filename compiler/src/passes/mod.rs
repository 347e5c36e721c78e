//! The passes, one a file, and what they share: the editor, the algebra of linear layers, the driver of local rules.
//! A pass knows no other pass; `pipeline.rs` alone knows their order.

mod adapted;
pub mod canonicalize;
pub mod constant_fold;
pub mod cse;
pub mod dead_code;
mod editor;
mod expand;
pub mod fuse_dora;
pub mod fuse_lora;
mod linear;
pub mod merge;
mod rule;
pub mod stage;

pub use editor::{Editor, Outcome};
pub use merge::MergeError;

use engraft_ir::GraphError;
use engraft_ir::value::EvalError;
use thiserror::Error;

/// A step of the pipeline.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// The name, unique in a pipeline.
    pub name: &'static str,
    /// What the pass is for, in a few words.
    pub summary: &'static str,
    /// What it does.
    pub run: fn(&mut Editor) -> Result<(), PassError>,
}

/// Whether compiled code, which computes in f32, can multiply by a number that a pass has computed: by itself it must
/// neither overflow nor vanish, even if what it is a part of does not.
fn is_factor(number: f64) -> bool {
    (number as f32).is_normal()
}

/// Why a pass stopped.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum PassError {
    /// An edit broke a rule of the graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A value known at compile time could not be computed.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// An adapter cannot be merged.
    #[error(transparent)]
    Merge(#[from] MergeError),
}
