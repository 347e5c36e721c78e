//! How an adapter graph becomes fast: passes, plan, code.
//!
//! Data flows one way: graph, optimised graph, [`plan`](mod@plan), code, program. Each level prints and is verified.
#![deny(unsafe_code)]

pub mod check;
mod codegen;
mod compile;
mod jit;
pub mod merging;
pub mod passes;
pub mod pipeline;
pub mod plan;
pub mod trace;
pub mod values;

pub use codegen::{CodegenError, Emitted, Listing, SIZES_FUNCTION, STAGE_FUNCTIONS, emit};
pub use compile::{CompileError, Compiled, Options, compilations, compile, optimize, plan};
pub use jit::{JitError, compile as jit, listings};
pub use merging::{CostModel, Decision, MergeRule, Merging};
