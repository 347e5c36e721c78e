//! Adapters, models and weights from disk onto graphs: PEFT directories, safetensors, GGUF; and what whole models need
//! around the network: tokenizers, and what makes sentences' embeddings of hidden states.
//!
//! This crate knows how others store things. It builds graphs with the public builder only, compiles nothing, and fails
//! closed: what a file says is used, or known not to matter, or refused by name.
#![forbid(unsafe_code)]

pub mod gguf;
mod json;
pub mod merge;
pub mod models;
pub mod peft;
pub mod safetensors;
pub mod sentence;
pub mod tokenizer;
