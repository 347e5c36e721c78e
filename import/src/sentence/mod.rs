//! What makes one embedding of a sentence's hidden states: what a directory's sentence-transformers files say (`config`),
//! and the arithmetic (`pooling`). Knows nothing about the network in between. The facts are those of
//! sentence-transformers 5.

mod config;
mod pooling;

pub use config::{SentenceConfig, SentenceError};
pub use pooling::{PoolError, Pooling, pool};
