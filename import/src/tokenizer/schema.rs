//! The part of `tokenizer.json` that is read, as types: what is not named here is refused by name, with the line where it
//! stands. What the parts do is the business of the crate `tokenizers`; this file knows only their fields.
//!
//! Every field is one that the crate reads, so that nothing in a file is passed over in silence.
#![allow(dead_code, reason = "a field that needs no check of its own is named so that it is no unknown one")]
#![allow(
    clippy::enum_variant_names,
    clippy::struct_excessive_bools,
    clippy::upper_case_acronyms,
    reason = "names and fields are the file's"
)]

use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) version: Version,
    /// Replaced by the length that the caller asks for.
    pub(super) truncation: Option<IgnoredAny>,
    /// Switched off, but for the id.
    pub(super) padding: Option<Padding>,
    pub(super) added_tokens: Vec<AddedToken>,
    pub(super) normalizer: Option<Normalizer>,
    pub(super) pre_tokenizer: Option<PreTokenizer>,
    pub(super) post_processor: Option<PostProcessor>,
    pub(super) decoder: Option<Decoder>,
    pub(super) model: Model,
}

#[derive(Deserialize)]
pub(super) enum Version {
    #[serde(rename = "1.0")]
    One,
}

/// How the file would pad. The rest of its fields says how long, which is decided elsewhere.
#[derive(Deserialize)]
pub(super) struct Padding {
    pub(super) pad_id: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    pub(super) normalized: bool,
    pub(super) special: bool,
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum Model {
    WordPiece {
        unk_token: String,
        continuing_subword_prefix: String,
        max_input_chars_per_word: usize,
        vocab: BTreeMap<String, u32>,
    },
    #[serde(rename = "BPE")]
    Bpe {
        dropout: Option<f32>,
        unk_token: Option<String>,
        continuing_subword_prefix: Option<String>,
        end_of_word_suffix: Option<String>,
        fuse_unk: Option<bool>,
        byte_fallback: Option<bool>,
        ignore_merges: Option<bool>,
        vocab: BTreeMap<String, u32>,
        merges: Merges,
    },
}

/// Pairs of tokens, or each pair as one text with a space in it, as older files have them.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Merges {
    Pairs(Vec<(String, String)>),
    Lines(Vec<String>),
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum Normalizer {
    BertNormalizer {
        clean_text: bool,
        handle_chinese_chars: bool,
        strip_accents: Option<bool>,
        lowercase: bool,
    },
    Sequence {
        normalizers: Vec<Normalizer>,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Prepend {
        prepend: String,
    },
    Strip {
        strip_left: bool,
        strip_right: bool,
    },
    StripAccents {},
    Lowercase {},
    NFC {},
    NFD {},
    NFKC {},
    NFKD {},
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum PreTokenizer {
    BertPreTokenizer {},
    ByteLevel { add_prefix_space: bool, trim_offsets: bool, use_regex: Option<bool> },
    Sequence { pretokenizers: Vec<PreTokenizer> },
    Split { pattern: Pattern, behavior: Behavior, invert: bool },
    Digits { individual_digits: bool },
    Metaspace(Metaspace),
    Punctuation { behavior: Option<Behavior> },
    Whitespace {},
    WhitespaceSplit {},
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metaspace {
    pub(super) replacement: char,
    pub(super) prepend_scheme: Option<PrependScheme>,
    pub(super) add_prefix_space: Option<bool>,
    pub(super) split: Option<bool>,
    pub(super) str_rep: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PrependScheme {
    First,
    Never,
    Always,
}

#[derive(Deserialize)]
pub(super) enum Pattern {
    String(String),
    Regex(String),
}

#[derive(Deserialize)]
pub(super) enum Behavior {
    Removed,
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum PostProcessor {
    TemplateProcessing {
        single: Vec<Piece>,
        pair: Vec<Piece>,
        special_tokens: BTreeMap<String, SpecialToken>,
    },
    BertProcessing {
        sep: (String, u32),
        cls: (String, u32),
    },
    RobertaProcessing {
        sep: (String, u32),
        cls: (String, u32),
        trim_offsets: bool,
        add_prefix_space: bool,
    },
    ByteLevel {
        add_prefix_space: bool,
        trim_offsets: bool,
        use_regex: Option<bool>,
    },
    Sequence {
        processors: Vec<PostProcessor>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Piece {
    Sequence { id: Which, type_id: u32 },
    SpecialToken { id: String, type_id: u32 },
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
pub(super) enum Which {
    A,
    B,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecialToken {
    pub(super) id: String,
    pub(super) ids: Vec<u32>,
    pub(super) tokens: Vec<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum Decoder {
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
    ByteLevel {
        add_prefix_space: bool,
        trim_offsets: bool,
        use_regex: Option<bool>,
    },
    #[serde(rename = "BPEDecoder")]
    Bpe {
        suffix: String,
    },
    Metaspace(Metaspace),
    Sequence {
        decoders: Vec<Decoder>,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    Fuse {},
    ByteFallback {},
}
