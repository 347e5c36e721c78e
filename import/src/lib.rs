//! Adapters and weights from disk onto graphs: PEFT directories, safetensors, GGUF.
//!
//! This crate knows how others store things. It builds graphs with the public builder only, compiles nothing, and fails
//! closed: what a file says is used, or known not to matter, or refused by name.
#![forbid(unsafe_code)]

pub mod gguf;
pub mod peft;
pub mod safetensors;
