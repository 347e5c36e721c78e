//! Texts that go on together, on a tiny decoder whose words are its tokens.
#![allow(clippy::unwrap_used, reason = "tests unwrap")]

mod common;

use common::{case, model_directory};
use engraft::import::models::Logits;
use engraft::pretrained::sampling::Sampler;
use engraft::pretrained::{
    CompileOptions, CompiledModel, End, GenerateError, Generation, Generator, Pretrained, Prompt,
};
use std::fs;
use tempfile::TempDir;

/// The model's words, and the most tokens that it takes.
const VOCAB: usize = 97;
const CONTEXT: usize = 64;

/// The decoder that PEFT recorded and its files, for a bank, with a tokenizer that takes word `w7` for token 7.
fn decoder() -> (TempDir, CompiledModel) {
    let base = model_directory(&case("llama_dora"));
    let vocab: serde_json::Map<_, _> = (0..VOCAB).map(|id| (format!("w{id}"), id.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": [],
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {"type": "WordPiece", "unk_token": "w0", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 9, "vocab": vocab},
    });
    fs::write(base.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let options = CompileOptions { bank: true, logits: Logits::Last, ..CompileOptions::default() };
    let model = Pretrained::open(base.path()).unwrap().compile(options).unwrap();
    (base, model)
}

/// So many words, from one on.
fn words(from: usize, count: usize) -> String {
    (from..from + count).map(|id| format!("w{}", id % VOCAB)).collect::<Vec<_>>().join(" ")
}

/// The sampler of a prompt: each its own.
fn sampler(index: usize) -> Sampler {
    if index.is_multiple_of(2) { Sampler::greedy() } else { Sampler::seeded(0.8, 0.9, index as u64).unwrap() }
}

fn together(
    generator: &mut Generator<'_>,
    texts: &[String],
    most: usize,
) -> Result<Vec<Generation>, GenerateError> {
    let mut samplers: Vec<_> = (0..texts.len()).map(sampler).collect();
    let prompts = texts.iter().zip(&mut samplers);
    let mut prompts: Vec<_> = prompts.map(|(text, sampler)| Prompt { text, sampler }).collect();
    let mut pieces = vec![String::new(); texts.len()];
    let generations =
        generator.generate_all(&mut prompts, most, |index, piece| pieces[index].push_str(piece))?;
    assert!(generations.iter().map(|generation| &generation.text).eq(&pieces));
    Ok(generations)
}

/// What becomes of a prompt does not depend on those beside it: neither on their lengths, nor on when and why they end, nor on
/// their adapters. There are more tokens side by side than the context has.
#[test]
fn prompts_go_on_together_as_alone() {
    let (_files, model) = decoder();
    let bank = model.bank().unwrap();
    bank.load("a", case("llama_dora")).unwrap();
    let mut generator = model.generator().unwrap();
    let texts = [words(5, CONTEXT - 3), words(40, 2), words(60, 9), words(5, 20)];
    for names in [[None; 4], [Some("a"), None, None, Some("a")]] {
        for most in [12, usize::MAX] {
            let alone = (0..texts.len()).map(|index| {
                generator.set_rows(bank.rows(&names[index..=index]).unwrap());
                generator.generate(&texts[index], most, &mut sampler(index), |_| ()).unwrap()
            });
            let alone: Vec<_> = alone.collect();
            generator.set_rows(bank.rows(&names).unwrap());
            assert_eq!(together(&mut generator, &texts, most).unwrap(), alone);
            let ends: Vec<_> = alone.iter().map(|generation| generation.end).collect();
            assert_eq!((ends[0], alone[0].tokens.len()), (End::Context, 3));
            if most == 12 {
                assert!(ends[1..].contains(&End::Enough), "{ends:?}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_its_number() {
    let (_files, model) = decoder();
    let mut generator = model.generator().unwrap();
    let texts = [words(5, 4), words(9, 3)];
    let expected = together(&mut generator, &texts, 8).unwrap();
    let told = |generator: &mut Generator<'_>, texts: &[String]| {
        together(generator, texts, 8).unwrap_err().to_string()
    };
    let long = [words(5, 4), words(9, CONTEXT)];
    assert_eq!(
        told(&mut generator, &long),
        "prompt 2 has 64 tokens, but the model's context has 64 and there must be room for one more"
    );
    let empty = [words(5, 4), words(9, 3), String::new()];
    assert!(told(&mut generator, &empty).starts_with("prompt 3 is empty"));
    let bank = model.bank().unwrap();
    bank.load("a", case("llama_dora")).unwrap();
    generator.set_rows(bank.rows(&[Some("a"), None, None]).unwrap());
    for texts in [&texts[..], &[]] {
        let told = told(&mut generator, texts);
        let expected = format!("there are adapters for 3 prompts, expected one for each of {}", texts.len());
        assert_eq!(told, expected);
    }
    // Nothing of all that is left.
    generator.set_rows(bank.rows::<&str>(&[]).unwrap());
    assert_eq!(together(&mut generator, &texts, 8).unwrap(), expected);
    assert!(together(&mut generator, &texts, 0).unwrap().iter().all(|text| text.end == End::Enough));
    assert!(together(&mut generator, &[], 8).unwrap().is_empty());
}
