//! The tokenizer, against the ids that llama.cpp gives, and what is refused.

use crate::writer::{File, Stored, bool, i32s, text, texts, u32};
use crate::{assert_names, data, open};
use engraft_import::gguf::{Gguf, Tokenizer};
use serde_json::Value as Json;

/// The ways of splitting that were recorded.
pub const WAYS: [&str; 5] = ["smollm", "gpt-2", "llama-bpe", "qwen2", "default"];

/// Compares with what was recorded of the `small` tokenizer or the `whole` one.
#[track_caller]
pub fn assert_recorded(tokenizer: &Tokenizer, size: &str, way: &str) {
    let recorded: Json = serde_json::from_slice(&std::fs::read(data("tokens.json")).unwrap()).unwrap();
    let all = recorded["texts"].as_array().unwrap();
    let ids = recorded[size][way].as_array().unwrap();
    assert!(all.len() > 40 && all.len() == ids.len());
    for (text, expected) in all.iter().zip(ids) {
        let text = text.as_str().unwrap();
        // Qwen2's own tokenizer composes characters first, llama.cpp does not.
        if way == "qwen2" && text.contains('\u{301}') {
            continue;
        }
        let expected: Vec<u32> = serde_json::from_value(expected.clone()).unwrap();
        let found = tokenizer.encode(text, false).unwrap();
        assert_eq!(found.get_ids(), expected, "{way} {size} {text:?}: {:?}", found.get_tokens());
    }
}

#[test]
fn the_ids_are_those_of_llama_cpp() {
    let mut bytes = std::fs::read(data("vocab.gguf")).unwrap();
    // No tensors follow, so the padding may go, and the name of another way may take another length.
    bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1);
    let stored = [&6_u64.to_le_bytes()[..], b"smollm"].concat();
    let at = bytes.windows(stored.len()).position(|window| window == stored).unwrap();
    for way in WAYS {
        let named = [&(way.len() as u64).to_le_bytes()[..], way.as_bytes()].concat();
        let file = [&bytes[..at], &named, &bytes[at + stored.len()..]].concat();
        assert_recorded(&open(&file).unwrap().tokenizer().unwrap(), "small", way);
    }
}

#[test]
fn ids_become_the_text_again() {
    let file = Gguf::open(data("vocab.gguf")).unwrap();
    assert_eq!(file.chat_template().unwrap(), Some("{{ messages }}"));
    let tokenizer = file.tokenizer().unwrap();
    for text in ["Hello  world\n", "the 123 naïve cafés", "<|im_start|>user\nHi<|im_end|>\n"] {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
    }
    let ids = tokenizer.encode("<|im_start|>", false).unwrap();
    assert_eq!((ids.get_ids(), tokenizer.decode(&[1], true).unwrap().as_str()), ([1].as_slice(), ""));
}

fn ids(file: &File, text: &str) -> Vec<u32> {
    let tokenizer = open(&file.bytes()).unwrap().tokenizer().unwrap();
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

#[test]
fn tokens_are_added_where_the_file_asks_for_it() {
    let mut file = File::llama();
    assert_eq!(ids(&file, "abab b"), [5, 4, 2]);
    file.set("tokenizer.ggml.add_bos_token", bool(true));
    assert_eq!(ids(&file, "abab b"), [0, 5, 4, 2]);
    file.set("tokenizer.ggml.add_eos_token", bool(true));
    file.set("tokenizer.ggml.eos_token_id", u32(0));
    assert_eq!(ids(&file, "abab b"), [0, 5, 4, 2, 0]);
    file.set("tokenizer.ggml.eos_token_id", u32(1));
    assert_eq!(ids(&file, "abab b"), [0, 5, 4, 2, 1]);

    let mut llama3 = File::llama();
    llama3.set("tokenizer.ggml.pre", text("llama-bpe"));
    assert_eq!(ids(&llama3, "ab"), [0, 3], "Llama 3 adds its first token unless told otherwise");
    llama3.set("tokenizer.ggml.add_bos_token", bool(false));
    assert_eq!(ids(&llama3, "ab"), [3]);
}

#[test]
fn token_types_are_heeded() {
    let mut file = File::llama();
    file.set("tokenizer.ggml.token_type", i32s(&[3, 1, 1, 4, 1, 1]));
    assert_eq!(ids(&file, "abab"), [3, 3], "a token of the user's is found before anything is merged");
    let mut file = File::llama();
    file.set("tokenizer.ggml.pre", text("llama-bpe"));
    file.set("tokenizer.ggml.add_bos_token", bool(false));
    file.set("tokenizer.ggml.merges", texts(&["a b"]));
    assert_eq!(ids(&file, "abab"), [5], "a word that is a token");
    file.set("tokenizer.ggml.token_type", i32s(&[3, 1, 1, 1, 1, 5]));
    assert_eq!(ids(&file, "abab"), [3, 3], "unless it is unused");
}

#[test]
fn what_is_no_such_tokenizer_is_refused() {
    let longer = "x".repeat(200);
    let cases: [(&str, Stored, &str); 16] = [
        ("model", text("llama"), "`tokenizer.ggml.model` is `llama`, expected `gpt2`"),
        ("pre", text("tekken"), "`tokenizer.ggml.pre` is `tekken`, expected `smollm`"),
        ("pre", u32(1), "`tokenizer.ggml.pre` is 1, expected a text"),
        ("tokens", i32s(&[1]), "`tokenizer.ggml.tokens` is an array of 1, expected an array of texts"),
        (
            "tokens",
            texts(&["<e>", "a", "b", "ab", "a", "abab"]),
            "token 4 is \"a\", expected a text that no token",
        ),
        (
            "tokens",
            texts(&["<e>", "a", "b", "ab", "", "abab"]),
            "token 4 is \"\", expected a text that is not empty",
        ),
        ("token_type", i32s(&[1]), "1 elements in `tokenizer.ggml.token_type`, expected 6"),
        ("token_type", i32s(&[3, 1, 0, 1, 1, 1]), "token 2 \"b\" is of type 0, expected 1 to 6"),
        ("token_type", i32s(&[3, 1, -1, 1, 1, 1]), "is of type -1"),
        ("merges", texts(&["ab"]), "merge 0 is \"ab\", expected two tokens and a space"),
        (
            "merges",
            texts(&["a b", "b a"]),
            "merge 1 is \"b a\", expected two tokens that together are a token",
        ),
        ("merges", texts(&["a b", "a b"]), "merge 1 is \"a b\", expected a pair that no merge before it has"),
        ("merges", texts(&[&format!("a {longer}")]), "merge 0 is \"a xxx"),
        ("add_space_prefix", bool(true), "`tokenizer.ggml.add_space_prefix` is true, which"),
        ("add_sep_token", bool(true), "`tokenizer.ggml.add_sep_token` is true, which"),
        ("normalizer.lowercase", bool(true), "`tokenizer.ggml.normalizer.lowercase` is true, which"),
    ];
    for (key, value, message) in cases {
        let mut file = File::llama();
        file.set(&format!("tokenizer.ggml.{key}"), value);
        let found = open(&file.bytes()).unwrap().tokenizer().unwrap_err().to_string();
        assert_names(&found, &[message]);
    }
    for key in ["model", "pre", "tokens", "merges"] {
        let mut file = File::llama();
        file.remove(&format!("tokenizer.ggml.{key}"));
        let found = open(&file.bytes()).unwrap().tokenizer().unwrap_err().to_string();
        assert_names(&found, &[&format!("`tokenizer.ggml.{key}` is missing, expected")]);
    }
    let mut file = File::llama();
    file.set("tokenizer.ggml.add_bos_token", bool(true));
    file.set("tokenizer.ggml.bos_token_id", u32(6));
    let found = open(&file.bytes()).unwrap().tokenizer().unwrap_err().to_string();
    assert_names(&found, &["`tokenizer.ggml.bos_token_id` is 6, but there are 6 tokens"]);
    file.set("tokenizer.chat_template", u32(6));
    let found = open(&file.bytes()).unwrap().chat_template().unwrap_err().to_string();
    assert_names(&found, &["`tokenizer.chat_template` is 6, expected a text"]);
}
