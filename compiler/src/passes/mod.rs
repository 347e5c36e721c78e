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
use std::fmt;
use thiserror::Error;

/// A step of the pipeline.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// The name, unique in a pipeline.
    pub name: &'static str,
    /// What the pass is for, in a few words.
    pub summary: &'static str,
    /// What it does.
    pub run: &'a dyn Run,
}

impl fmt::Debug for Pass<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a pass does: a function, or what is asked of a pass that can be asked for different things.
pub trait Run {
    /// Edits a graph.
    ///
    /// # Errors
    /// The graph cannot be edited so.
    fn run(&self, editor: &mut Editor) -> Result<(), PassError>;
}

impl<F: Fn(&mut Editor) -> Result<(), PassError>> Run for F {
    fn run(&self, editor: &mut Editor) -> Result<(), PassError> {
        self(editor)
    }
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
