//! A `tokenizer.json`, and after a line of its own a text, which it takes apart and puts together again.
#![no_main]

use engraft_import::tokenizer::TextTokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let (json, text) = input.split_once("\n---\n").unwrap_or((input, "some text"));
    let Ok(tokenizer) = TextTokenizer::parse("fuzzed", json.as_bytes()) else { return };
    let Ok(encoded) = tokenizer.encode(text) else { return };
    assert_eq!(encoded.ids.len(), encoded.type_ids.len());
    // Every id is one of the tokenizer's own.
    let whole = tokenizer.decode(&encoded.ids).expect("the ids have tokens");
    let mut stream = tokenizer.stream();
    for &id in &encoded.ids {
        stream.push(id).expect("the ids have tokens");
    }
    stream.finish().expect("the ids have tokens");
    let Ok(short) = tokenizer.with_max_length(3) else { return };
    let cut = short.encode(text).expect("a shorter text is no harder");
    assert!(cut.ids.len() <= 3, "{} ids of {whole:?}", cut.ids.len());
});
