//! Tokenizers: a real one against recorded ids, small ones for what the real one has not, and everything refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use engraft_import::safetensors::read_weights;
use engraft_import::tokenizer::TextTokenizer;
use engraft_testing::{MINILM, model};
use serde_json::{Value as Json, json};
use std::path::Path;

/// A small word-piece tokenizer, as BERT's.
fn word_piece() -> Json {
    json!({
        "version": "1.0",
        "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 1, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 128}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 1,
            "pad_type_id": 3, "pad_token": "[PAD]"},
        "added_tokens": [
            {"id": 0, "content": "[UNK]", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true},
            {"id": 6, "content": "<new>", "single_word": false, "lstrip": true, "rstrip": false,
                "normalized": false, "special": false},
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 2}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 9,
            "vocab": {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "ab": 3, "##c": 4, ".": 5}},
    })
}

/// A byte-level BPE tokenizer, as GPT-2's: every byte a token (its letter in GPT-2's alphabet), and one merge.
fn byte_level() -> Json {
    let is_printable = |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || byte >= 174;
    let mut shifted = 256_u32..;
    let letters = (0..256_u32)
        .map(|byte| if is_printable(byte) { byte } else { shifted.next().unwrap() })
        .map(|code| char::from_u32(code).unwrap().to_string());
    let mut vocab: serde_json::Map<_, _> = letters.enumerate().map(|(id, c)| (c, json!(id))).collect();
    vocab.insert("ab".into(), json!(256));
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{"id": 257, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "vocab": vocab, "merges": ["a b"]},
    })
}

/// A BPE tokenizer that falls back on bytes, as Llama's.
fn byte_fallback() -> Json {
    let mut vocab: serde_json::Map<_, _> =
        (0..=255_u8).map(|byte| (format!("<0x{byte:02X}>"), json!(byte))).collect();
    vocab.extend(
        ["▁", "a", "▁a", "<unk>"].into_iter().zip(256..).map(|(token, id)| (token.to_owned(), json!(id))),
    );
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": [["▁", "a"]]},
    })
}

fn parse(json: &Json) -> TextTokenizer {
    TextTokenizer::parse("some.json", json.to_string().as_bytes()).unwrap()
}

fn refusal(bytes: &[u8]) -> String {
    TextTokenizer::parse("some.json", bytes).map(|_| "accepted").unwrap_err().to_string()
}

#[track_caller]
fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts.iter().chain(&["some.json"]) {
        assert!(message.contains(part), "{message:?} should contain {part:?}");
    }
}

#[test]
fn ids_and_masks_of_minilm_are_those_recorded() {
    let Some(directory) = model(MINILM) else { return };
    let tokenizer =
        TextTokenizer::read(directory.join("tokenizer.json")).unwrap().with_max_length(256).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.id_of("[SEP]")), (30522, Some(102)));

    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/minilm-dora");
    let text = std::fs::read_to_string(case.join("case.json")).unwrap();
    let sentences: Vec<String> =
        serde_json::from_value(serde_json::from_str::<Json>(&text).unwrap()["sentences"].clone()).unwrap();
    let recorded = read_weights(case.join("io.safetensors")).unwrap();
    let batch = tokenizer.encode_batch(&sentences).unwrap();
    assert_eq!(&batch.input_ids, &**recorded.get("input_ids").unwrap());
    assert_eq!(&batch.attention_mask, &**recorded.get("attention_mask").unwrap());
    assert_eq!(batch.token_type_ids.shape(), [12, 45]);
    assert!(batch.token_type_ids.as_i64().unwrap().iter().all(|&id| id == 0));

    let encoded = tokenizer.encode(&sentences[0]).unwrap();
    assert_eq!(tokenizer.decode(&encoded.ids).unwrap(), "i forgot my login details");
    // The file itself cuts off at 128 and pads to 128; what we ask for is what counts.
    let long = "word ".repeat(300);
    let ids = tokenizer.encode(&long).unwrap().ids;
    assert_eq!((ids.len(), ids[0], ids[255]), (256, 101, 102));
    let whole = TextTokenizer::read(directory.join("tokenizer.json")).unwrap();
    assert_eq!(whole.encode(&long).unwrap().ids.len(), 302);
}

#[test]
fn the_files_own_length_and_padding_have_no_effect() {
    let tokenizer = parse(&word_piece());
    let encoded = tokenizer.encode("ABC ab.zz  <new>").unwrap();
    assert_eq!(encoded.ids, [2, 3, 4, 3, 5, 0, 6]);
    assert_eq!(encoded.type_ids, [0, 2, 2, 2, 2, 2, 2]);
    assert_eq!(tokenizer.vocab_size(), 7);
    let batch = tokenizer.encode_batch(&["ab", "abc ab"]).unwrap();
    assert_eq!(batch.input_ids.shape(), [2, 4]);
    // Padded with the file's id, on the right.
    assert_eq!(batch.input_ids.as_i64().unwrap(), [2, 3, 1, 1, 2, 3, 4, 3]);
    assert_eq!(batch.attention_mask.as_i64().unwrap(), [1, 1, 0, 0, 1, 1, 1, 1]);
    assert_eq!(batch.token_type_ids.as_i64().unwrap(), [0, 2, 0, 0, 0, 2, 2, 2]);
    let none = tokenizer.encode_batch::<&str>(&[]).unwrap();
    assert_eq!(none.input_ids.shape(), [0, 0]);

    let short = tokenizer.with_max_length(3).unwrap();
    assert_eq!(short.encode("abc abc abc").unwrap().ids, [2, 3, 4]);
    assert_eq!(short.encode("").unwrap().ids, [2]);
    for length in [0, 1] {
        let error = parse(&word_piece()).with_max_length(length).map(|_| ()).unwrap_err().to_string();
        assert_contains(&error, &[&format!("to {length} tokens: 1 of them are special")]);
    }
}

/// A built tokenizer is taken as it is, but for its length and padding.
#[test]
fn a_tokenizer_built_otherwise_is_taken() {
    let text = word_piece().to_string();
    let built = tokenizers::Tokenizer::from_bytes(text.as_bytes()).unwrap();
    let tokenizer = TextTokenizer::from_built("model.gguf", built).unwrap();
    assert_eq!(tokenizer.encode("abc ab").unwrap(), parse(&word_piece()).encode("abc ab").unwrap());
    assert_eq!(tokenizer.encode("abc ab").unwrap().ids, [2, 3, 4, 3]);
    let error = tokenizer.decode(&[7]).unwrap_err().to_string();
    assert_eq!(error, "model.gguf: there is no token with the id 7, expected less than 7");
}

/// All pieces of a stream, each with the last id that it took.
fn pieces(tokenizer: &TextTokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream();
    let mut pieces: Vec<_> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn a_stream_never_gives_half_a_character() {
    let text = "ab é — 叫🦀 ab\u{fffd}!";
    for json in [byte_level(), byte_fallback()] {
        let tokenizer = parse(&json);
        let ids = tokenizer.encode(text).unwrap().ids;
        assert!(ids.len() >= 20, "one id a byte but for the merges: {ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        let pieces = pieces(&tokenizer, &ids);
        assert_eq!(pieces.concat(), text);
        // Only the character that the text holds as such looks like half of one.
        assert_eq!(pieces.concat().matches('\u{fffd}').count(), 1);
        for piece in ["é", "叫", "🦀"] {
            assert!(pieces.iter().any(|found| found == piece), "{piece} in {pieces:?}");
        }
    }
}

#[test]
fn bytes_that_are_no_text_come_out_once_it_is_sure() {
    // The first three bytes of a crab, then a letter; then half a character at the end.
    let tokenizer = parse(&byte_level());
    let ids = [0xf0, 0x9f, 0xa6, b'a'.into(), 0xe5, 0x8f];
    assert_eq!(pieces(&tokenizer, &ids), ["", "", "", "\u{fffd}a", "", "", "\u{fffd}"]);
    // Here a broken character takes a whole one before it along, which is already given.
    let tokenizer = parse(&byte_fallback());
    let ids = [257, 0xe5, 0x8f, 0xab, 0xe5, 257];
    assert_eq!(pieces(&tokenizer, &ids), ["a", "", "", "叫", "", "\u{fffd}a", ""]);
}

#[test]
fn special_tokens_leave_no_text_and_unknown_ids_are_errors() {
    let tokenizer = parse(&byte_level());
    assert_eq!(tokenizer.encode("ab<|end|>").unwrap().ids, [256, 257]);
    assert_eq!(tokenizer.decode(&[256, 257, 33]).unwrap(), "ab!");
    assert_eq!(pieces(&tokenizer, &[257, 256, 257, 33]), ["", "ab", "", "!", ""]);
    for error in [tokenizer.decode(&[256, 258]).unwrap_err(), tokenizer.stream().push(u32::MAX).unwrap_err()]
    {
        assert_contains(&error.to_string(), &["no token with the id", "less than 258"]);
    }
    // Words are put together with spaces where the words before them say so.
    let tokenizer = parse(&word_piece());
    assert_eq!(tokenizer.decode(&[3, 4, 3, 5]).unwrap(), "abc ab.");
    assert_eq!(pieces(&tokenizer, &[3, 4, 3, 5]), ["ab", "c", " ab", ".", ""]);
}

/// A tokenizer with the value at a place replaced, or added.
fn with(mut json: Json, place: &str, value: Json) -> Json {
    let (parent, field) = place.rsplit_once('/').unwrap();
    match json.pointer_mut(parent).unwrap() {
        Json::Array(list) => list[field.parse::<usize>().unwrap()] = value,
        object => object[field] = value,
    }
    json
}

#[test]
fn kinds_and_fields_that_are_not_supported_are_refused_by_name() {
    let replace = |pattern: Json| json!({"type": "Replace", "pattern": pattern, "content": "x"});
    let split =
        |pattern: Json| json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false});
    let template = || word_piece()["post_processor"].clone();
    let cases: &[(Json, &str, Json, &[&str])] = &[
        (word_piece(), "/model/type", json!("Unigram"), &["`Unigram`", "`WordPiece`", "`BPE`"]),
        (word_piece(), "/model/type", json!("WordLevel"), &["`WordLevel`"]),
        (word_piece(), "/model/speed", json!(1), &["`speed`"]),
        (word_piece(), "/model/vocab", json!({"ab": 3}), &["`unk_token`", "\"[UNK]\""]),
        (word_piece(), "/model/vocab/ab", json!(-1), &["-1", "u32"]),
        (word_piece(), "/model/vocab/ab", json!(5), &["\".\" and \"ab\" both have the id 5"]),
        (byte_level(), "/model/dropout", json!(0.1), &["dropout 0.1", "at random"]),
        (byte_level(), "/model/unk_token", json!("?!"), &["`unk_token`", "\"?!\""]),
        (byte_level(), "/model/continuing_subword_prefix", json!("é"), &["continuing_subword_prefix \"é\""]),
        (byte_level(), "/model/merges", json!(["a b", "ab"]), &["merge 1 is \"ab\""]),
        (byte_level(), "/model/merges", json!(["a b c"]), &["merge 0 is \"a b c\""]),
        (byte_level(), "/model/merges", json!([["a", "zz"]]), &["`merges`", "\"zz\""]),
        (byte_level(), "/model/merges", json!([["ab", "ab"]]), &["`merges`", "\"abab\""]),
        (byte_level(), "/model/merges", json!(7), &["Merges"]),
        (word_piece(), "/version", json!("2.0"), &["`2.0`", "`1.0`"]),
        (word_piece(), "/extra", json!(null), &["`extra`"]),
        (word_piece(), "/padding/pad_id", json!(7), &["no token with the id 7"]),
        (
            word_piece(),
            "/added_tokens/0/id",
            json!(5),
            &["`added_tokens` states the id 5", "\"[UNK]\"", "Some(0)"],
        ),
        (
            word_piece(),
            "/added_tokens/1/id",
            json!(9),
            &["`added_tokens` states the id 9", "\"<new>\"", "Some(6)"],
        ),
        (word_piece(), "/added_tokens/1/content", json!(""), &["`added_tokens` has an empty content"]),
        (word_piece(), "/added_tokens/1/rstrip", json!(true), &["rstrip true for \"<new>\""]),
        (word_piece(), "/added_tokens/1/color", json!(true), &["`color`"]),
        (word_piece(), "/normalizer", json!({"type": "Nmt"}), &["`Nmt`"]),
        (
            word_piece(),
            "/normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "!"}),
            &["`Precompiled`"],
        ),
        (word_piece(), "/normalizer", json!({"type": "NFC", "form": "D"}), &["`form`"]),
        (word_piece(), "/normalizer", replace(json!({"Regex": " +"})), &["`Replace` has the Regex \" +\""]),
        (word_piece(), "/normalizer", replace(json!({"String": ""})), &["`Replace` has an empty pattern"]),
        (word_piece(), "/pre_tokenizer", json!({"type": "UnicodeScripts"}), &["`UnicodeScripts`"]),
        (word_piece(), "/pre_tokenizer", split(json!({"String": ""})), &["`Split` has an empty pattern"]),
        (word_piece(), "/pre_tokenizer", split(json!({"Regex": "("})), &["reading it failed", "parenthes"]),
        (word_piece(), "/decoder", json!({"type": "CTC"}), &["`CTC`"]),
        (word_piece(), "/decoder", replace(json!({"Regex": "x"})), &["`Replace` has the Regex"]),
        (
            word_piece(),
            "/decoder",
            json!({"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 0, "stop": 1}]}),
            &["`Strip` has stop 1"],
        ),
        (word_piece(), "/post_processor/single", json!([]), &["A 0 times and B 0 times"]),
        (word_piece(), "/post_processor/single", template()["pair"].clone(), &["A 1 times and B 1 times"]),
        (word_piece(), "/post_processor/special_tokens", json!({}), &["`TemplateProcessing`", "\"[CLS]\""]),
        (word_piece(), "/post_processor/special_tokens/[CLS]/ids", json!([2, 3]), &["2 ids and 1 tokens"]),
        (
            word_piece(),
            "/post_processor/special_tokens/[CLS]/ids",
            json!([3]),
            &["`TemplateProcessing` states the id 3", "\"[CLS]\"", "Some(2)"],
        ),
        (
            word_piece(),
            "/post_processor",
            json!({"type": "Sequence", "processors": [template(), template()]}),
            &["a part other than ByteLevel before the last one"],
        ),
        (
            word_piece(),
            "/post_processor",
            json!({"type": "BertProcessing", "sep": ["[SEP]", 9], "cls": ["[CLS]", 2]}),
            &["`BertProcessing` states the id 9", "\"[SEP]\"", "None"],
        ),
        (
            word_piece(),
            "/post_processor",
            json!({"type": "RobertaProcessing", "sep": ["[CLS]", 2], "cls": ["[CLS]", 3], "trim_offsets": true,
                "add_prefix_space": true}),
            &["`RobertaProcessing` states the id 3"],
        ),
    ];
    for (json, place, value, parts) in cases {
        let bytes = with(json.clone(), place, value.clone()).to_string();
        assert_contains(&refusal(bytes.as_bytes()), parts);
    }
}

#[test]
fn what_is_no_tokenizer_is_refused() {
    for bytes in [&b""[..], b"{}", b"[]", b"{\"version\": \"1.0\"", &"[".repeat(100_000).into_bytes()] {
        assert_contains(&refusal(bytes), &["malformed"]);
    }
    let text = word_piece().to_string();
    let twice = text.replacen('{', "{\"version\": \"1.0\", ", 1);
    assert_contains(&refusal(twice.as_bytes()), &["duplicate field `version`"]);
    for length in (0..text.len()).step_by(11) {
        refusal(&text.as_bytes()[..length]);
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("some.json");
    let read = || TextTokenizer::read(&path).map(|_| ()).unwrap_err().to_string();
    assert_contains(&read(), &["No such file"]);
    std::fs::File::create(&path).unwrap().set_len((64 << 20) + 1).unwrap();
    assert_contains(&read(), &["more than 67108864 bytes"]);
    assert_contains(&refusal(&vec![b' '; (64 << 20) + 1]), &["more than 67108864 bytes"]);
}
