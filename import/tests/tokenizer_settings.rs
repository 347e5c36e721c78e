//! What `tokenizer_config.json` says beside a `tokenizer.json`: both files against the ids that two versions of transformers
//! recorded for them, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use engraft_import::tokenizer::TextTokenizer;
use engraft_testing::{MINILM, model};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::fs;
use tempfile::TempDir;

/// A directory's files, and what came of them.
#[derive(Deserialize)]
struct Case {
    tokenizer: String,
    model_type: String,
    settings: Json,
    text: String,
    /// The field that has to be refused.
    refused: Option<String>,
    /// The ids by the version of transformers; none where it does not read the directory.
    ids: BTreeMap<String, Option<Vec<u32>>>,
}

/// `data/tokenizers/cases.json`, which `make.py` there has written.
#[derive(Deserialize)]
struct Recorded {
    tokenizers: BTreeMap<String, Json>,
    cases: Vec<Case>,
}

fn recorded() -> Recorded {
    serde_json::from_str(include_str!("data/tokenizers/cases.json")).unwrap()
}

fn directory(files: &[(&str, &Json)]) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    for (name, json) in files {
        fs::write(place.path().join(name), json.to_string()).unwrap();
    }
    place
}

fn read(place: &TempDir) -> Result<TextTokenizer, String> {
    TextTokenizer::read(place.path().join("tokenizer.json")).map_err(|error| error.to_string())
}

/// What is said of a BERT's directory with these fields, and with this as the model's configuration.
fn refusal(settings: &Json, model: &Json) -> Option<String> {
    let tokenizer = &recorded().tokenizers["bert"];
    let files = [("tokenizer.json", tokenizer), ("tokenizer_config.json", settings), ("config.json", model)];
    read(&directory(&files)).err()
}

/// What is accepted gives the ids of `tokenizer.json`, and where transformers' versions agree these are theirs; what is
/// refused is what one of them gives other ids for.
#[test]
fn what_is_accepted_gives_the_ids_of_transformers() {
    let Recorded { tokenizers, cases } = recorded();
    for case in &cases {
        let (tokenizer, context) =
            (&tokenizers[&case.tokenizer], format!("{}: {}", case.tokenizer, case.settings));
        let model = json!({"model_type": case.model_type});
        let place = directory(&[
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", &case.settings),
            ("config.json", &model),
        ]);
        let own = TextTokenizer::parse("own", tokenizer.to_string().as_bytes()).unwrap();
        let own = own.encode(&case.text).unwrap().ids;
        assert_eq!(case.ids.len(), 2, "{context}");
        let mut ids: Vec<_> = case.ids.values().flatten().collect();
        ids.dedup();
        match (read(&place), &case.refused) {
            (Ok(tokenizer), None) => {
                assert_eq!(tokenizer.encode(&case.text).unwrap().ids, own, "{context}");
                assert!(ids.contains(&&own), "{context}: {ids:?}, not {own:?}");
                let is_default =
                    case.settings.get("add_prefix_space").or(case.settings.get("add_bos_token")).is_none();
                assert!(ids.len() == 1 || is_default, "{context}: {ids:?}");
            }
            (Err(error), Some(field)) => {
                assert!(ids.iter().any(|&ids| *ids != own), "{context}: {ids:?}");
                assert!(error.contains(&format!("tokenizer_config.json: `{field}` ")), "{context}: {error}");
            }
            (read, refused) => panic!("{context}: {:?}, expected {refused:?}", read.err()),
        }
    }
}

#[test]
fn a_contradiction_names_both_files_and_what_they_say() {
    let bert = json!({"model_type": "bert"});
    let refused = |settings: Json| refusal(&settings, &bert).unwrap();
    let parts = |message: &str, parts: &[&str]| {
        for part in parts {
            assert!(message.contains(part), "{message:?} should contain {part:?}");
        }
    };
    parts(
        &refused(json!({"do_lower_case": false})),
        &[
            "tokenizer_config.json: `do_lower_case` is false, but `tokenizer.json` beside it has true as `lowercase` of",
            "BertTokenizer of transformers",
        ],
    );
    parts(
        &refused(json!({"sep_token": "[PAD]"})),
        &[
            "`sep_token` is \"[PAD]\", but `tokenizer.json` beside it has [\"[SEP]\"] as what its post_processor puts after",
        ],
    );
    parts(
        &refused(json!({"pad_token": {"content": "<pad>"}})),
        &["`pad_token` has the token \"<pad>\"", "expected one of the `added_tokens`"],
    );
    parts(
        &refused(json!({"added_tokens_decoder": {"9": {"content": "<new>"}}})),
        &["`added_tokens_decoder` has the token \"<new>\""],
    );
    parts(
        &refused(json!({"split_special_tokens": true})),
        &["`split_special_tokens` is true, which is not supported"],
    );

    let place = directory(&[
        ("tokenizer.json", &recorded().tokenizers["gpt2_prefix=True"]),
        ("tokenizer_config.json", &json!({"tokenizer_class": "GPT2Tokenizer"})),
    ]);
    parts(&read(&place).err().unwrap(), &["`add_prefix_space` is not set and so false", "has true as"]);
}

#[test]
fn the_class_is_the_one_that_is_named_or_the_models() {
    let lower = json!({"do_lower_case": false});
    let refused = |model: Json| refusal(&lower, &model).is_some();
    assert!(refused(json!({"model_type": "bert"})));
    assert!(refused(json!({"model_type": "gpt2", "tokenizer_class": "BertTokenizerFast"})));
    assert!(!refused(json!({"model_type": "gpt2"})));
    assert!(!refused(json!({"model_type": "bert", "tokenizer_class": "PreTrainedTokenizerFast"})));
    assert!(!refused(json!({})));
}

#[test]
fn fields_of_another_type_and_files_that_are_no_objects_are_refused() {
    let bert = json!({"model_type": "bert"});
    for (settings, message) in [
        (json!({"do_lower_case": "yes"}), "`do_lower_case` is \"yes\", expected true or false"),
        (json!({"split_special_tokens": 1}), "`split_special_tokens` is 1, expected true or false"),
        (json!({"tokenizer_class": 1}), "`tokenizer_class` is 1, expected the name of a class"),
        (json!({"pad_token": 3}), "`pad_token` is 3, expected a token"),
        (json!({"added_tokens_decoder": {"9": {}}}), "`added_tokens_decoder` is {}, expected a token"),
        (json!([]), "tokenizer_config.json: malformed: expected an object"),
    ] {
        let error = refusal(&settings, &bert).unwrap();
        assert!(error.contains(message), "{error:?} should contain {message:?}");
    }
    let error = refusal(&json!({}), &json!("bert")).unwrap();
    assert!(error.contains("/config.json: malformed: expected an object"), "{error}");
}

#[test]
fn minilms_own_files_agree() {
    let Some(directory) = model(MINILM) else { return };
    assert!(directory.join("tokenizer_config.json").exists());
    TextTokenizer::read(directory.join("tokenizer.json")).unwrap();
}
