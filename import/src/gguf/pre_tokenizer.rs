//! How text is split into words before BPE merges the bytes of each: what `tokenizer.ggml.pre` names. Knows nothing about
//! vocabularies.
//!
//! The patterns are the published ones of each tokenizer's `tokenizer.json`, and for `default` those of llama.cpp
//! (`llama-vocab.cpp`), which apply one after another, each to what the one before left.

use super::error::TokenizerError as Error;
use super::metadata::{Metadata, missing};
use tokenizers::normalizer::SplitDelimiterBehavior::Isolated;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

/// Words of Llama 3: numbers have at most three digits.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Words of Qwen2: each digit is one.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Words of llama.cpp's `default`.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// How text is split, and what comes with it.
pub(super) struct Splitting {
    pub pre_tokenizer: PreTokenizerWrapper,
    /// Whether a word that is a token becomes it, whatever the merges say.
    pub ignore_merges: bool,
    /// Whether the first token is added, where the file does not say.
    pub add_bos: bool,
    /// Whether text is brought into Unicode's composed form.
    pub nfc: bool,
}

/// What the metadata name.
pub(super) fn splitting(metadata: &Metadata<'_>) -> Result<Splitting, Error> {
    let key = "tokenizer.ggml.model";
    match metadata.string(key)? {
        Some("gpt2") => {}
        Some(found) => return Err(Error::Kind { key, found: found.to_owned(), expected: "`gpt2`" }),
        None => return Err(missing(key, "`gpt2`").into()),
    }
    let key = "tokenizer.ggml.pre";
    let expected = "`smollm`, `gpt-2`, `llama-bpe`, `qwen2` or `default`";
    let words = |words: Vec<PreTokenizerWrapper>| Splitting {
        pre_tokenizer: Sequence::new(words).into(),
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    };
    // `true`: the byte level splits by GPT-2's own pattern as well.
    let gpt2 = || ByteLevel::new(false, true, true).into();
    let bytes = || PreTokenizerWrapper::from(ByteLevel::new(false, true, false));
    Ok(match metadata.string(key)? {
        Some("smollm") => words(vec![Digits::new(true).into(), gpt2()]),
        Some("gpt-2") => words(vec![gpt2()]),
        Some("llama-bpe") => {
            Splitting { ignore_merges: true, add_bos: true, ..words(vec![split(LLAMA3)?, bytes()]) }
        }
        Some("qwen2") => Splitting { nfc: true, ..words(vec![split(QWEN2)?, bytes()]) },
        Some("default") => {
            let patterns = DEFAULT.into_iter().map(split).chain([Ok(bytes())]);
            words(patterns.collect::<Result<_, _>>()?)
        }
        Some(found) => return Err(Error::Kind { key, found: found.to_owned(), expected }),
        None => return Err(missing(key, expected).into()),
    })
}

/// Each match of the pattern is a word, and so is what lies between them.
fn split(pattern: &str) -> Result<PreTokenizerWrapper, Error> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    let split = Split::new(pattern, Isolated, false);
    Ok(split.map_err(|error| Error::Refused { reason: error.to_string() })?.into())
}
