//! A GGUF file: its container, and whatever of it can be had as a model.
#![no_main]

use engraft_import::gguf::Gguf;
use engraft_import::models::{Architecture, GraphOptions};
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::sync::LazyLock;

/// The reader maps files, so the bytes go through one.
static FILE: LazyLock<std::path::PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("engraft-fuzz-{}.gguf", std::process::id())));

fuzz_target!(|bytes: &[u8]| {
    // A new file each time: the mapping of the last one may not change.
    let _ = fs::remove_file(&*FILE);
    fs::write(&*FILE, bytes).expect("there is room for temporary files");
    let Ok(gguf) = Gguf::open(&*FILE) else { return };
    if let Ok(weights) = gguf.weights() {
        // No format has more than three elements a byte.
        let elements: usize = weights.iter().map(|(_, tensor)| tensor.len()).sum();
        assert!(elements <= bytes.len() * 3, "{elements} elements of {} bytes", bytes.len());
        // Floats are made when they are asked for.
        let floats = weights.iter().map(|(_, tensor)| tensor.as_f32().expect("floats").len());
        assert_eq!(floats.sum::<usize>(), elements);
    }
    let _ = gguf.tokenizer();
    if let Ok(architecture) = gguf.config().map(|config| Architecture::from_config(&config)) {
        let small = |architecture: &Architecture| architecture.vocab().max(architecture.hidden()) < 1 << 16;
        let _ =
            architecture.ok().filter(small).map(|architecture| architecture.graph(GraphOptions::default()));
    }
});
