//! The text form of a graph: a line per node, deterministic.
//!
//! ```text
//! engraft 1
//! graph layer
//!
//! # a comment
//! x: f32[batch, 24] @call = input()
//! fc.weight: f32[40, 24] @base = param()
//! fc: f32[batch, 40] @call = dense(x, fc.weight)
//!
//! output y = fc
//! ```
//!
//! A line is `name: type @stage = op(operands) {attributes}`. An empty optional operand before a filled one is `_`.
//! Attributes are JSON values under bare names; an input's or parameter's type and binding stand in the line itself.
//!
//! [`parse`] reads what [`print()`] writes, and what people write: blank lines and `#` lines are skipped, and the
//! type of a computed node and the stage of any node may be left out. Where they stand they are checked. A parameter's
//! `@stage` is its binding, `@base` if left out. Operands are defined above their users.

mod parse;
mod print;

pub use parse::{TextError, parse};
pub use print::{expression, print};

/// The version of the text and JSON forms.
pub const VERSION: u64 = 1;
