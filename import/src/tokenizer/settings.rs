//! What `tokenizer_config.json` says beside a `tokenizer.json`. There, transformers finds a class and its arguments, and some
//! of them replace what the tokenizer itself says: a normaliser is set up again, a token put in front. We follow
//! `tokenizer.json`, and refuse a directory in which the two contradict each other. Knows nothing about texts.
//!
//! What has an effect was found by experiment with transformers 5.24 and 4.57, on the tokenizers of BERT, `RoBERTa`, GPT-2, Llama and
//! Qwen2. They differ: `add_bos_token` is obeyed by the latter alone, `cls_token` by the former. Where either obeys, a contradiction is
//! refused; where a field is not there, the class's default counts if both obey it.

use super::schema::{File, Metaspace, Model, Normalizer, Piece, PostProcessor, PreTokenizer, PrependScheme};
use serde_json::{Map, Value as Json};
use thiserror::Error;

/// A field of `tokenizer_config.json` that `tokenizer.json` contradicts.
#[derive(Debug, Error)]
pub enum SettingError {
    /// A field is of another type.
    #[error("`{field}` is {found}, expected {expected}")]
    Type {
        /// The field.
        field: &'static str,
        /// Its value.
        found: Json,
        /// What there may be.
        expected: &'static str,
    },
    /// The two files say different things.
    #[error(
        "`{field}` is {found}, but `tokenizer.json` beside it has {stated} as {part}: expected that both say the same, \
         since {class} of transformers may follow either"
    )]
    Contradiction {
        /// The field.
        field: &'static str,
        /// Its value, or the one that the class takes where there is none.
        found: String,
        /// What `tokenizer.json` says.
        stated: String,
        /// Where it says so.
        part: &'static str,
        /// The class that has the field.
        class: &'static str,
    },
    /// A token that `tokenizer.json` does not add.
    #[error(
        "`{field}` has the token {token:?}, which transformers adds to the special ones; expected one of the `added_tokens` \
         of `tokenizer.json` beside it"
    )]
    NoToken {
        /// The field.
        field: &'static str,
        /// The token.
        token: String,
    },
    /// A field asks for something that is not supported.
    #[error("`{field}` is {found}, which is not supported: {meaning}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// Its value.
        found: Json,
        /// What it would mean.
        meaning: &'static str,
    },
}

/// Something that is on or off in both files.
struct Switch {
    class: &'static str,
    field: &'static str,
    /// What the class takes where the field is not there or null.
    default: fn(&File) -> Option<bool>,
    part: &'static str,
    /// What `tokenizer.json` says, if it says anything of it.
    stated: fn(&File) -> Option<bool>,
}

const SWITCHES: [Switch; 10] = [
    Switch {
        class: "BertTokenizer",
        field: "do_lower_case",
        default: |_| Some(true),
        part: "`lowercase` of BertNormalizer",
        stated: |file| bert(file).map(|bert| bert.lowercase),
    },
    Switch {
        class: "BertTokenizer",
        field: "strip_accents",
        default: |file| bert(file).map(|bert| bert.lowercase),
        part: "`strip_accents` of BertNormalizer, or null and so `lowercase`,",
        stated: |file| bert(file).map(|bert| bert.strip_accents),
    },
    Switch {
        class: "BertTokenizer",
        field: "tokenize_chinese_chars",
        default: |_| Some(true),
        part: "`handle_chinese_chars` of BertNormalizer",
        stated: |file| bert(file).map(|bert| bert.chinese),
    },
    byte_level("GPT2Tokenizer", |_| Some(false)),
    byte_level("RobertaTokenizer", |_| Some(false)),
    byte_level("Qwen2Tokenizer", |_| None),
    byte_level("PreTrainedTokenizer", |_| None),
    Switch {
        class: "LlamaTokenizer",
        field: "add_prefix_space",
        default: |_| None,
        part: "the effect of its Metaspace and Prepend",
        stated: metaspace_prefix,
    },
    Switch {
        class: "LlamaTokenizer",
        field: "add_bos_token",
        default: |_| None,
        part: "the effect of its post_processor",
        stated: |file| Some(!around(file).0.is_empty()),
    },
    Switch {
        class: "LlamaTokenizer",
        field: "add_eos_token",
        default: |_| None,
        part: "the effect of its post_processor",
        stated: |file| Some(!around(file).1.is_empty()),
    },
];

const fn byte_level(class: &'static str, default: fn(&File) -> Option<bool>) -> Switch {
    let part = "`add_prefix_space` of ByteLevel";
    let stated = |file: &File| file.pre_tokenizer.as_ref().and_then(byte_level_prefix);
    Switch { class, field: "add_prefix_space", default, part, stated }
}

/// A token that has its place in both files.
struct Place {
    class: &'static str,
    field: &'static str,
    part: &'static str,
    /// The tokens that stand there in `tokenizer.json`.
    stated: fn(&File) -> Vec<&str>,
}

const PLACES: [Place; 5] = [
    Place { class: "BertTokenizer", field: "cls_token", part: FIRST, stated: |file| around(file).0 },
    Place { class: "BertTokenizer", field: "sep_token", part: LAST, stated: |file| around(file).1 },
    Place {
        class: "BertTokenizer",
        field: "unk_token",
        part: "`unk_token`",
        stated: |file| match &file.model {
            Model::WordPiece { unk_token, .. } => vec![unk_token],
            Model::Bpe { unk_token, .. } => unk_token.iter().map(String::as_str).collect(),
        },
    },
    Place { class: "RobertaTokenizer", field: "cls_token", part: FIRST, stated: |file| around(file).0 },
    Place { class: "RobertaTokenizer", field: "sep_token", part: LAST, stated: |file| around(file).1 },
];

const FIRST: &str = "what its post_processor puts before a text";
const LAST: &str = "what its post_processor puts after a text";

/// Fields that hold tokens: one, a list, or objects by id.
const TOKENS: [&str; 10] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
    "extra_special_tokens",
    "added_tokens_decoder",
];

/// The class of models whose files name none, by `model_type`.
const CLASSES: [(&str, &str); 4] = [
    ("bert", "BertTokenizer"),
    ("roberta", "RobertaTokenizer"),
    ("gpt2", "GPT2Tokenizer"),
    ("qwen2", "Qwen2Tokenizer"),
];

/// Checks that the fields of `tokenizer_config.json`, and of the model's `config.json` if there is one, are none that give
/// other ids than `tokenizer.json` does.
pub(super) fn check(
    settings: &Map<String, Json>,
    model: Option<&Map<String, Json>>,
    file: &File,
) -> Result<(), SettingError> {
    let classes = classes(settings, model)?;
    for switch in SWITCHES.iter().filter(|switch| classes.contains(&switch.class)) {
        switch.check(settings, file)?;
    }
    for place in PLACES.iter().filter(|place| classes.contains(&place.class)) {
        place.check(settings, file)?;
    }
    if boolean(settings, "split_special_tokens")? == Some(true) {
        let meaning = "special tokens that stand in a text are taken apart";
        return Err(SettingError::Unsupported { field: "split_special_tokens", found: true.into(), meaning });
    }
    for field in TOKENS {
        for token in tokens(settings, field)? {
            if !file.added_tokens.iter().any(|added| added.content == token) {
                return Err(SettingError::NoToken { field, token: token.to_owned() });
            }
        }
    }
    Ok(())
}

/// The classes that may read the directory, without the `Fast` at the end: the one that is named there or in the model's
/// configuration, or else its architecture's; and for Qwen2 always its own, which transformers 5 takes whatever is named.
fn classes<'a>(
    settings: &'a Map<String, Json>,
    model: Option<&'a Map<String, Json>>,
) -> Result<Vec<&'a str>, SettingError> {
    let field = "tokenizer_class";
    let set = |map: &'a Map<String, Json>| map.get(field).filter(|value| !value.is_null());
    let named = match set(settings).or_else(|| model.and_then(set)) {
        Some(Json::String(class)) => Some(class.strip_suffix("Fast").unwrap_or(class)),
        Some(other) => {
            let expected = "the name of a class";
            return Err(SettingError::Type { field, found: other.clone(), expected });
        }
        None => None,
    };
    let model_type = model.and_then(|model| model.get("model_type")).and_then(Json::as_str);
    let own = CLASSES.iter().find(|(kind, _)| model_type == Some(kind)).map(|(_, class)| *class);
    let always = own.filter(|_| model_type == Some("qwen2"));
    Ok(named.or(own).into_iter().chain(always).collect())
}

impl Switch {
    fn check(&self, settings: &Map<String, Json>, file: &File) -> Result<(), SettingError> {
        let set = boolean(settings, self.field)?;
        let taken = set.or_else(|| (self.default)(file));
        match (taken, (self.stated)(file)) {
            (Some(taken), Some(stated)) if taken != stated => Err(SettingError::Contradiction {
                field: self.field,
                found: if set.is_some() { taken.to_string() } else { format!("not set and so {taken}") },
                stated: stated.to_string(),
                part: self.part,
                class: self.class,
            }),
            _ => Ok(()),
        }
    }
}

impl Place {
    fn check(&self, settings: &Map<String, Json>, file: &File) -> Result<(), SettingError> {
        let stated = (self.stated)(file);
        match tokens(settings, self.field)?.first() {
            Some(token) if stated != [*token] => Err(SettingError::Contradiction {
                field: self.field,
                found: format!("{token:?}"),
                stated: format!("{stated:?}"),
                part: self.part,
                class: self.class,
            }),
            _ => Ok(()),
        }
    }
}

fn boolean(settings: &Map<String, Json>, field: &'static str) -> Result<Option<bool>, SettingError> {
    match settings.get(field) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(SettingError::Type { field, found: other.clone(), expected: "true or false" }),
    }
}

/// The tokens of a field. Each is a text, or an object with its `content`.
fn tokens<'a>(settings: &'a Map<String, Json>, field: &'static str) -> Result<Vec<&'a str>, SettingError> {
    let token = |value: &'a Json| {
        let text = value.as_str().or_else(|| value.get("content")?.as_str());
        let expected = "a token, as a text or as an object with `content`, or several";
        text.ok_or_else(|| SettingError::Type { field, found: value.clone(), expected })
    };
    match settings.get(field) {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::Array(list)) => list.iter().map(token).collect(),
        // Either one token, or several by their ids or names.
        Some(Json::Object(map)) if !map.contains_key("content") => map.values().map(token).collect(),
        Some(one) => Ok(vec![token(one)?]),
    }
}

/// What `BertNormalizer` does.
struct Bert {
    lowercase: bool,
    strip_accents: bool,
    chinese: bool,
}

fn bert(file: &File) -> Option<Bert> {
    fn find(part: &Normalizer) -> Option<Bert> {
        match part {
            &Normalizer::BertNormalizer { handle_chinese_chars, strip_accents, lowercase, .. } => {
                Some(Bert {
                    lowercase,
                    strip_accents: strip_accents.unwrap_or(lowercase),
                    chinese: handle_chinese_chars,
                })
            }
            Normalizer::Sequence { normalizers } => normalizers.iter().find_map(find),
            _ => None,
        }
    }
    file.normalizer.as_ref().and_then(find)
}

fn byte_level_prefix(part: &PreTokenizer) -> Option<bool> {
    match part {
        PreTokenizer::ByteLevel { add_prefix_space, .. } => Some(*add_prefix_space),
        PreTokenizer::Sequence { pretokenizers } => pretokenizers.iter().find_map(byte_level_prefix),
        _ => None,
    }
}

/// Whether a space is put before a text, by the normaliser or the pre-tokeniser, as Llama's do. Byte-level tokenizers under
/// Llama's name have nothing of the kind, and transformers reads them from their file alone.
fn metaspace_prefix(file: &File) -> Option<bool> {
    fn prepends(part: &Normalizer) -> bool {
        match part {
            Normalizer::Prepend { .. } => true,
            Normalizer::Sequence { normalizers } => normalizers.iter().any(prepends),
            _ => false,
        }
    }
    fn prefixes(part: &PreTokenizer) -> bool {
        match part {
            PreTokenizer::Metaspace(Metaspace { prepend_scheme: Some(scheme), .. }) => {
                !matches!(scheme, PrependScheme::Never)
            }
            PreTokenizer::Metaspace(Metaspace { add_prefix_space, .. }) => *add_prefix_space != Some(false),
            PreTokenizer::Sequence { pretokenizers } => pretokenizers.iter().any(prefixes),
            _ => false,
        }
    }
    let (normalizer, pre_tokenizer) = (file.normalizer.as_ref(), file.pre_tokenizer.as_ref());
    match pre_tokenizer.and_then(byte_level_prefix) {
        Some(_) => None,
        None => Some(normalizer.is_some_and(prepends) || pre_tokenizer.is_some_and(prefixes)),
    }
}

/// The tokens that are put before and after a text.
fn around(file: &File) -> (Vec<&str>, Vec<&str>) {
    fn special(piece: &Piece) -> Option<&str> {
        match piece {
            Piece::SpecialToken { id, .. } => Some(id),
            Piece::Sequence { .. } => None,
        }
    }
    fn find(part: &PostProcessor) -> (Vec<&str>, Vec<&str>) {
        match part {
            PostProcessor::TemplateProcessing { single, .. } => {
                let mut sides = single.split(|piece| matches!(piece, Piece::Sequence { .. }));
                let mut side = || sides.next().into_iter().flatten().filter_map(special).collect();
                (side(), side())
            }
            PostProcessor::BertProcessing { sep, cls }
            | PostProcessor::RobertaProcessing { sep, cls, .. } => (vec![&cls.0], vec![&sep.0]),
            // What stands before the last one adds nothing.
            PostProcessor::Sequence { processors } => processors.last().map(find).unwrap_or_default(),
            PostProcessor::ByteLevel { .. } => Default::default(),
        }
    }
    file.post_processor.as_ref().map(find).unwrap_or_default()
}
