//! The files of sentence-transformers: `modules.json`, the pooling's `config.json`, `sentence_bert_config.json` and
//! `config_sentence_transformers.json`, with a line of its own between them.
#![no_main]

use engraft_import::sentence::SentenceConfig;
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

const FILES: [&str; 4] = [
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("engraft-fuzz-sentence-{}", std::process::id()));
    fs::create_dir_all(directory.join("1_Pooling")).expect("there may be temporary directories");
    directory
});

fuzz_target!(|text: &str| {
    let mut texts = text.split("\n---\n");
    for file in FILES {
        let path = DIRECTORY.join(file);
        match texts.next() {
            Some(text) => fs::write(path, text).expect("there is room for temporary files"),
            // It may not have been there.
            None => drop(fs::remove_file(path)),
        }
    }
    let Ok(config) = SentenceConfig::read(&*DIRECTORY) else { return };
    // No file is looked for elsewhere.
    assert!(config.transformer.starts_with(&*DIRECTORY), "{}", config.transformer.display());
    assert!(!config.transformer.iter().any(|part| part == ".."), "{}", config.transformer.display());
});
