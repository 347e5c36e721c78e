//! GGUF files, good and bad. What they are compared with was recorded from llama.cpp and its `gguf` package; how, says
//! `data/gguf/make.py`.
#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod blocks;
mod config;
mod container;
mod smollm2;
mod tokenizer;
mod writer;

use engraft_import::gguf::Gguf;
use std::path::PathBuf;

/// A recorded file.
fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf").join(name)
}

/// Opens a file of these bytes; it stays mapped when its name is gone.
fn open(bytes: &[u8]) -> Result<Gguf, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("some.gguf");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(path).map_err(|error| error.to_string())
}

/// Requires that a message names the file and these.
#[track_caller]
fn assert_names(message: &str, parts: &[&str]) {
    for part in parts.iter().chain(&["some.gguf: "]) {
        assert!(message.contains(part), "{message:?} should contain {part:?}");
    }
}
