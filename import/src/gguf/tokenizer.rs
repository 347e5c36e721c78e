//! The tokenizer that a file carries: byte-level BPE, as GPT-2's, from the metadata `tokenizer.ggml.*`. Knows nothing about
//! tensors.
//!
//! The keys are those of ggml's `gguf.md`; what each `tokenizer.ggml.pre` means is taken from llama.cpp's
//! `llama-vocab.cpp`. Any other key of the tokenizer is refused, for it might change the tokens.

use super::error::TokenizerError as Error;
use super::metadata::{Metadata, missing, wrong};
use super::pre_tokenizer::{Splitting, splitting};
use super::value::Value;
use std::collections::{HashMap, HashSet};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

/// Keys that are used, or say nothing about how text becomes tokens, after `tokenizer.ggml.`; so is every `*_token_id`.
const KNOWN: [&str; 11] = [
    "model",
    "pre",
    "tokens",
    "token_type",
    "token_type_count",
    "scores",
    "merges",
    "add_bos_token",
    "add_eos_token",
    "add_sep_token",
    "add_space_prefix",
];

/// The types of tokens (`llama_token_type`).
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const TYPES: std::ops::RangeInclusive<i64> = 1..=6;

/// The tokenizer.
pub(super) fn tokenizer(metadata: &Metadata<'_>) -> Result<Tokenizer, Error> {
    check_keys(metadata)?;
    let splitting = splitting(metadata)?;
    let tokens = required_strings(metadata, "tokenizer.ggml.tokens", "the tokens")?;
    let merges = required_strings(metadata, "tokenizer.ggml.merges", "the merges")?;
    let types = types(metadata, tokens.len())?;
    let (vocabulary, added) = vocabulary(tokens, &types)?;
    let merges = read_merges(merges, &vocabulary)?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(splitting.ignore_merges)
        .build()
        .map_err(refused)?;
    let mut tokenizer = Tokenizer::new(model);
    if splitting.nfc {
        tokenizer.with_normalizer(Some(NFC)).map_err(refused)?;
    }
    tokenizer.with_decoder(Some(ByteLevel::new(false, false, false)));
    if let Some(template) = template(metadata, &splitting, tokens)? {
        tokenizer.with_post_processor(Some(template));
    }
    tokenizer.with_pre_tokenizer(Some(splitting.pre_tokenizer));
    tokenizer.add_tokens(added).map_err(refused)?;
    Ok(tokenizer)
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` hands over")]
fn refused(error: tokenizers::Error) -> Error {
    Error::Refused { reason: error.to_string() }
}

fn check_keys(metadata: &Metadata<'_>) -> Result<(), Error> {
    for (key, value) in metadata.iter() {
        let Some(name) = key.strip_prefix("tokenizer.ggml.") else { continue };
        let on = match name {
            "add_space_prefix" | "add_sep_token" => metadata.bool(key)? == Some(true),
            _ => !KNOWN.contains(&name) && !name.ends_with("_token_id"),
        };
        if on {
            let (key, found) = (key.to_owned(), value.to_string());
            return Err(super::error::MetadataError::Unsupported { key, found }.into());
        }
    }
    Ok(())
}

fn required_strings<'a>(
    metadata: &Metadata<'a>,
    key: &'static str,
    expected: &'static str,
) -> Result<&'a [String], Error> {
    let texts = metadata.strings(key)?;
    // An empty list of tokens is no vocabulary; an empty list of merges is one of bytes.
    Ok(texts.ok_or_else(|| missing(key, expected))?)
}

/// The type of each token; all are normal if the file says nothing.
fn types(metadata: &Metadata<'_>, tokens: usize) -> Result<Vec<i64>, Error> {
    let types = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![NORMAL; tokens]);
    if types.len() != tokens {
        return Err(Error::TypeCount { found: types.len(), expected: tokens });
    }
    Ok(types)
}

/// The ids of the tokens, and those tokens that are found in a text before it is split. Unused tokens are left out: they
/// only fill up the embedding, and no text may become one.
fn vocabulary(tokens: &[String], types: &[i64]) -> Result<(Vocab, Vec<AddedToken>), Error> {
    let mut ids = HashMap::new();
    let mut added = Vec::new();
    for (id, (token, &kind)) in tokens.iter().zip(types).enumerate() {
        let wrong = |expected| Error::Token { id, found: token.clone(), expected };
        if !TYPES.contains(&kind) {
            return Err(Error::Type { id, token: token.clone(), found: kind });
        }
        if token.is_empty() {
            return Err(wrong("a text that is not empty"));
        }
        let number = u32::try_from(id).map_err(|_| wrong("an id of 32 bits"))?;
        if kind == UNUSED {
            continue;
        }
        if ids.insert(token.clone(), number).is_some() {
            return Err(wrong("a text that no token before it has"));
        }
        if matches!(kind, CONTROL | USER_DEFINED) {
            added.push(AddedToken::from(token.clone(), kind == CONTROL).normalized(false));
        }
    }
    Ok((ids.into_iter().collect(), added))
}

/// The merges: each two tokens, apart by a space, that together are one.
fn read_merges(merges: &[String], vocabulary: &Vocab) -> Result<Merges, Error> {
    let mut seen = HashSet::new();
    let mut pairs = Vec::new();
    for (index, merge) in merges.iter().enumerate() {
        let wrong = |expected| Error::Merge { index, found: merge.clone(), expected };
        let pair = merge.split_once(' ').ok_or_else(|| wrong("two tokens and a space between them"))?;
        let (left, right) = pair;
        let made = [left, right].concat();
        if ![left, right, &made].iter().all(|&token| vocabulary.contains_key(token)) {
            return Err(wrong("two tokens that together are a token"));
        }
        if !seen.insert(pair) {
            return Err(wrong("a pair that no merge before it has"));
        }
        pairs.push((left.to_owned(), right.to_owned()));
    }
    Ok(pairs)
}

/// What is put before and after the tokens of a text, if anything is.
fn template(
    metadata: &Metadata<'_>,
    splitting: &Splitting,
    tokens: &[String],
) -> Result<Option<TemplateProcessing>, Error> {
    let flag = |key| metadata.bool(key);
    let bos = flag("tokenizer.ggml.add_bos_token")?.unwrap_or(splitting.add_bos);
    let eos = flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let mut pieces = vec!["$A".to_owned()];
    let mut special = Vec::new();
    if bos {
        let (token, id) = token_of(metadata, "tokenizer.ggml.bos_token_id", tokens)?;
        pieces.insert(0, token.clone());
        special.push((token, id));
    }
    if eos {
        let (token, id) = token_of(metadata, "tokenizer.ggml.eos_token_id", tokens)?;
        pieces.push(token.clone());
        special.push((token, id));
    }
    if special.is_empty() {
        return Ok(None);
    }
    special.dedup();
    let pieces = pieces.try_into().map_err(|reason: String| Error::Refused { reason })?;
    let template = TemplateProcessing::builder().single(pieces).special_tokens(special).build();
    template.map(Some).map_err(|error| Error::Refused { reason: error.to_string() })
}

/// The token whose id stands under this key.
fn token_of(metadata: &Metadata<'_>, key: &'static str, tokens: &[String]) -> Result<(String, u32), Error> {
    let found = metadata.integer(key)?.ok_or_else(|| missing(key, "the id of a token that is added"))?;
    let token = usize::try_from(found).ok().and_then(|id| tokens.get(id));
    let token = token.ok_or(Error::Id { key, found, tokens: tokens.len() })?;
    // The template would take what begins so for something else than a token.
    if token.starts_with('$') {
        return Err(wrong(key, &Value::String(token.clone()), "a token that does not begin with `$`").into());
    }
    Ok((token.clone(), found as u32))
}
