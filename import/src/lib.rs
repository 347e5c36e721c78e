//! Models, adapters and weights from disk onto graphs: Hugging Face and PEFT directories, safetensors.
//!
//! This crate knows how others store things. It builds graphs with the public builder only, compiles nothing, and fails
//! closed: what a file says is used, or known not to matter, or refused by name.
#![forbid(unsafe_code)]

mod json;
pub mod models;
pub mod peft;
pub mod safetensors;
