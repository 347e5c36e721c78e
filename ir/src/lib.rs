//! What an adapter model means: types, ops, graphs, their text forms and their reference meaning.
//!
//! This crate knows no machine code, no files of weights and no threads, and has no `unsafe`.
#![forbid(unsafe_code)]

mod axis;
mod builder;
mod dim;
pub mod dot;
mod dtype;
pub mod eval;
mod graph;
pub mod init;
pub mod json;
pub mod layers;
pub mod op;
pub mod ops;
mod query;
mod random;
mod reader;
pub mod sample;
mod stage;
mod stages;
pub mod text;
mod ty;
pub mod value;
mod verify;

pub use axis::Axis;
pub use builder::{BuildError, BuildErrors, Cause, GraphBuilder, Tensor};
pub use dim::{Bindings, Dim, DimError, MAX_DIM, Symbol};
pub use dtype::DType;
pub use graph::{Graph, GraphError, MAX_NODES, MAX_OUTPUTS, Node, NodeId, Output};
pub use op::RuleError;
pub use ops::Op;
pub use query::{ParamInfo, SourceInfo};
pub use reader::{MAX_BYTES, NodeError};
pub use stage::Stage;
pub use stages::Stages;
pub use ty::{MAX_RANK, Shape, TensorType, TypeSyntaxError};
pub use verify::{VerifyError, verify};
