//! What a `tokenizer.json` must fulfil beyond its fields' types, so that the crate `tokenizers`, which takes it for
//! granted, neither panics nor drops anything. Knows nothing about texts.

use super::schema::{
    AddedToken, Decoder, File, Merges, Model, Normalizer, Pattern, Piece, PostProcessor, Which,
};
use super::schema::{PreTokenizer, SpecialToken};
use std::collections::BTreeMap;
use thiserror::Error;

/// What is wrong with the parts of a tokenizer.
#[derive(Debug, Error)]
pub enum PartError {
    /// A part asks for something that is not supported.
    #[error("`{part}` has {found}, which is not supported: {meaning}")]
    Unsupported {
        /// The part, as the file names it.
        part: &'static str,
        /// The field and its value.
        found: String,
        /// What it would mean.
        meaning: &'static str,
    },
    /// Something names a token that there isn't.
    #[error("`{part}` names the token {token:?}, which is not in the vocabulary")]
    NoToken {
        /// The part.
        part: &'static str,
        /// The token.
        token: String,
    },
    /// A token is stated to have another id than it has.
    #[error("`{part}` states the id {stated} for the token {token:?}, the vocabulary has {found:?}")]
    Id {
        /// The part.
        part: &'static str,
        /// The token.
        token: String,
        /// The id that the part states.
        stated: u32,
        /// The id in the vocabulary, if it is there.
        found: Option<u32>,
    },
    /// Two tokens share an id.
    #[error("the tokens {first:?} and {second:?} both have the id {id}")]
    SameId {
        /// One token.
        first: String,
        /// The other.
        second: String,
        /// Their id.
        id: u32,
    },
    /// A merge is not two tokens with a space between.
    #[error("merge {index} is {found:?}, expected two tokens with one space between them")]
    Merge {
        /// Which one, from 0.
        index: usize,
        /// The merge.
        found: String,
    },
    /// A template does not hold the text exactly once.
    #[error(
        "the template `single` holds the sequence A {found} times and B {pairs} times, expected once and never"
    )]
    Template {
        /// How often it holds A.
        found: usize,
        /// How often it holds B.
        pairs: usize,
    },
}

/// Tokens and their ids.
type Vocab = BTreeMap<String, u32>;

/// Checks what [`File`]'s types do not.
pub(super) fn check(file: &File) -> Result<(), PartError> {
    let vocab = check_model(&file.model)?;
    file.added_tokens.iter().try_for_each(check_added)?;
    file.normalizer.iter().try_for_each(check_normalizer)?;
    file.pre_tokenizer.iter().try_for_each(check_pre_tokenizer)?;
    file.decoder.iter().try_for_each(check_decoder)?;
    let tokens = Tokens { vocab, added: &file.added_tokens };
    file.post_processor.iter().try_for_each(|part| check_post_processor(part, &tokens))
}

fn unsupported(part: &'static str, found: impl Into<String>, meaning: &'static str) -> PartError {
    PartError::Unsupported { part, found: found.into(), meaning }
}

fn check_model(model: &Model) -> Result<&Vocab, PartError> {
    let vocab = match model {
        Model::WordPiece { vocab, unk_token, .. } => {
            in_vocab(vocab, "unk_token", unk_token)?;
            vocab
        }
        Model::Bpe { dropout, unk_token, continuing_subword_prefix, vocab, merges, .. } => {
            if let Some(rate) = dropout.filter(|&rate| rate != 0.0) {
                return Err(unsupported("BPE", format!("dropout {rate}"), "merges are left out at random"));
            }
            if let Some(prefix) = continuing_subword_prefix.as_ref().filter(|prefix| !prefix.is_empty()) {
                let found = format!("continuing_subword_prefix {prefix:?}");
                return Err(unsupported("BPE", found, "merges drop a prefix of their second token"));
            }
            unk_token.iter().try_for_each(|token| in_vocab(vocab, "unk_token", token))?;
            check_merges(vocab, merges)?;
            vocab
        }
    };
    let mut by_id = BTreeMap::new();
    for (token, &id) in vocab {
        if let Some(first) = by_id.insert(id, token) {
            return Err(PartError::SameId { first: first.clone(), second: token.clone(), id });
        }
    }
    Ok(vocab)
}

fn in_vocab(vocab: &Vocab, part: &'static str, token: &str) -> Result<(), PartError> {
    let missing = || PartError::NoToken { part, token: token.to_owned() };
    vocab.contains_key(token).then_some(()).ok_or_else(missing)
}

/// Both tokens of a merge and what they merge into are tokens.
fn check_merges(vocab: &Vocab, merges: &Merges) -> Result<(), PartError> {
    let check = |left: &str, right: &str| {
        let merged = [left, right].concat();
        [left, right, &merged].into_iter().try_for_each(|token| in_vocab(vocab, "merges", token))
    };
    match merges {
        Merges::Pairs(pairs) => pairs.iter().try_for_each(|(left, right)| check(left, right)),
        Merges::Lines(lines) => {
            // The crate passes over such lines, as in a file `merges.txt`.
            let merges = lines.iter().enumerate().filter(|(_, line)| !line.starts_with("#version"));
            merges.into_iter().try_for_each(|(index, line)| match line.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => check(left, right),
                _ => Err(PartError::Merge { index, found: line.clone() }),
            })
        }
    }
}

fn check_added(token: &AddedToken) -> Result<(), PartError> {
    if token.content.is_empty() {
        return Err(unsupported("added_tokens", "an empty content", "nothing would stand for it"));
    }
    if token.rstrip {
        let found = format!("rstrip true for {:?}", token.content);
        return Err(unsupported("added_tokens", found, "the token swallows the spaces after it"));
    }
    Ok(())
}

fn check_pattern(part: &'static str, pattern: &Pattern) -> Result<(), PartError> {
    match pattern {
        Pattern::String(text) | Pattern::Regex(text) if text.is_empty() => {
            Err(unsupported(part, "an empty pattern", "it would be found everywhere"))
        }
        _ => Ok(()),
    }
}

/// A pattern of what is replaced.
fn check_replaced(pattern: &Pattern) -> Result<(), PartError> {
    if let Pattern::Regex(regex) = pattern {
        return Err(unsupported("Replace", format!("the Regex {regex:?}"), "only a String is replaced"));
    }
    check_pattern("Replace", pattern)
}

fn check_normalizer(part: &Normalizer) -> Result<(), PartError> {
    match part {
        Normalizer::Sequence { normalizers } => normalizers.iter().try_for_each(check_normalizer),
        Normalizer::Replace { pattern, .. } => check_replaced(pattern),
        _ => Ok(()),
    }
}

fn check_pre_tokenizer(part: &PreTokenizer) -> Result<(), PartError> {
    match part {
        PreTokenizer::Sequence { pretokenizers } => pretokenizers.iter().try_for_each(check_pre_tokenizer),
        PreTokenizer::Split { pattern, .. } => check_pattern("Split", pattern),
        _ => Ok(()),
    }
}

fn check_decoder(part: &Decoder) -> Result<(), PartError> {
    match part {
        Decoder::Sequence { decoders } => decoders.iter().try_for_each(check_decoder),
        Decoder::Replace { pattern, .. } => check_replaced(pattern),
        Decoder::Strip { stop, .. } if *stop != 0 => {
            Err(unsupported("Strip", format!("stop {stop}"), "the ends of tokens are cut off"))
        }
        _ => Ok(()),
    }
}

/// What tokens there are.
struct Tokens<'a> {
    vocab: &'a Vocab,
    added: &'a [AddedToken],
}

impl Tokens<'_> {
    fn check(&self, part: &'static str, token: &str, stated: u32) -> Result<(), PartError> {
        let added = || self.added.iter().find(|added| added.content == token).map(|added| added.id);
        match self.vocab.get(token).copied().or_else(added) {
            Some(id) if id == stated => Ok(()),
            found => Err(PartError::Id { part, token: token.to_owned(), stated, found }),
        }
    }
}

fn check_post_processor(part: &PostProcessor, tokens: &Tokens) -> Result<(), PartError> {
    match part {
        PostProcessor::TemplateProcessing { single, pair, special_tokens } => {
            check_template(single, pair, special_tokens, tokens)
        }
        PostProcessor::BertProcessing { sep, cls } => {
            [sep, cls].into_iter().try_for_each(|(token, id)| tokens.check("BertProcessing", token, *id))
        }
        PostProcessor::RobertaProcessing { sep, cls, .. } => {
            [sep, cls].into_iter().try_for_each(|(token, id)| tokens.check("RobertaProcessing", token, *id))
        }
        PostProcessor::ByteLevel { .. } => Ok(()),
        PostProcessor::Sequence { processors } => {
            // The crate's template panics on what another one has taken apart.
            let earlier = processors.split_last().map_or(&[][..], |(_, earlier)| earlier);
            if !earlier.iter().all(|part| matches!(part, PostProcessor::ByteLevel { .. })) {
                let found = "a part other than ByteLevel before the last one";
                return Err(unsupported("post_processor", found, "special tokens are added twice"));
            }
            processors.last().into_iter().try_for_each(|last| check_post_processor(last, tokens))
        }
    }
}

fn check_template(
    single: &[Piece],
    pair: &[Piece],
    special_tokens: &BTreeMap<String, SpecialToken>,
    tokens: &Tokens,
) -> Result<(), PartError> {
    const PART: &str = "TemplateProcessing";
    let count = |which| {
        single.iter().filter(|piece| matches!(piece, Piece::Sequence { id, .. } if *id == which)).count()
    };
    let (found, pairs) = (count(Which::A), count(Which::B));
    if (found, pairs) != (1, 0) {
        return Err(PartError::Template { found, pairs });
    }
    for piece in single.iter().chain(pair) {
        if let Piece::SpecialToken { id, .. } = piece
            && !special_tokens.contains_key(id)
        {
            return Err(PartError::NoToken { part: PART, token: id.clone() });
        }
    }
    for special in special_tokens.values() {
        if special.ids.len() != special.tokens.len() {
            let found = format!("{} ids and {} tokens", special.ids.len(), special.tokens.len());
            return Err(unsupported(PART, found, "each id belongs to one token"));
        }
        let stated = special.tokens.iter().zip(&special.ids);
        stated.into_iter().try_for_each(|(token, &id)| tokens.check(PART, token, id))?;
    }
    Ok(())
}
