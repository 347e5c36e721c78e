//! Text to token ids and back: a model directory's `tokenizer.json`. The work is done by the crate `tokenizers`, which
//! callers don't see; this module decides what of such a file is accepted. Knows nothing about models, but for the class that
//! transformers reads their tokenizers with.
//!
//! A file comes from outside, and the crate trusts it: it ignores fields, guesses types, renumbers tokens with a warning
//! in a log, and panics on some contradictions. So the file is read twice, first strictly by us (`schema`, `check`). What a
//! `tokenizer_config.json` beside it says must not contradict it (`settings`).

mod batch;
mod check;
mod schema;
mod settings;
mod stream;

pub use batch::Batch;
pub use check::PartError;
pub use settings::SettingError;
pub use stream::TextStream;

use crate::json;
use serde_json::{Map, Value as Json};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use thiserror::Error;
use tokenizers::{Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

/// The largest file, in bytes; the largest vocabularies in use take about 35 MB.
const MAX_BYTES: u64 = 64 << 20;

/// Why a tokenizer could not be read, or a text not be taken apart. Each message names the file.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The operating system refused.
    #[error("{name}: {source}")]
    Io {
        /// The file.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than any real one.
    #[error("{name}: the file has more than {MAX_BYTES} bytes, expected a tokenizer or its configuration")]
    TooLarge {
        /// The file.
        name: String,
    },
    /// The file is not JSON of the right form; the reason names the field or the kind of part, and the line.
    #[error("{name}: the tokenizer is malformed or of a kind that is not supported: {source}")]
    Json {
        /// The file.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A part of the tokenizer contradicts another, or is not supported.
    #[error("{name}: {source}")]
    Part {
        /// The file.
        name: String,
        /// Which, and why.
        source: PartError,
    },
    /// A file beside the tokenizer is no JSON object.
    #[error("{name}: malformed: {source}")]
    Object {
        /// The file.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// What stands beside the tokenizer contradicts it.
    #[error("{name}: {source}")]
    Setting {
        /// The `tokenizer_config.json`.
        name: String,
        /// Which field, and how.
        source: SettingError,
    },
    /// The crate that does the work refused the file, or failed on a text.
    #[error("{name}: {action} failed: {source}")]
    Crate {
        /// The file.
        name: String,
        /// What it was doing.
        action: &'static str,
        /// Why.
        source: tokenizers::Error,
    },
    /// The length to truncate to leaves no room for text.
    #[error(
        "{name}: texts cannot be truncated to {length} tokens: {special} of them are special, expected more than that"
    )]
    Length {
        /// The file.
        name: String,
        /// The length.
        length: usize,
        /// The special tokens that are added to every text.
        special: usize,
    },
    /// There is no token of this id.
    #[error("{name}: there is no token with the id {id}, expected less than {vocab_size}")]
    NoId {
        /// The file.
        name: String,
        /// The id.
        id: u32,
        /// One more than the largest id.
        vocab_size: usize,
    },
}

/// A text as token ids, special tokens included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The ids.
    pub ids: Vec<u32>,
    /// The segment of each, as BERT's `token_type_ids`.
    pub type_ids: Vec<u32>,
}

/// A tokenizer: text to ids and back.
///
/// ```no_run
/// use engraft_import::tokenizer::TextTokenizer;
/// let tokenizer = TextTokenizer::read("all-MiniLM-L6-v2/tokenizer.json")?.with_max_length(256)?;
/// let encoded = tokenizer.encode("hello")?; // [CLS] hello [SEP]
/// assert_eq!(encoded.ids, [101, 7592, 102]);
/// assert_eq!(tokenizer.decode(&encoded.ids)?, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TextTokenizer {
    name: String,
    tokenizer: Tokenizer,
    vocab_size: usize,
    pad_id: u32,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`. Its own settings for truncation and padding have no effect. If there is a
    /// `tokenizer_config.json` beside it, that must ask for no other ids.
    ///
    /// # Errors
    /// The file cannot be read, is larger than 64 MiB, or holds anything that is not supported; or what lies beside it
    /// contradicts it.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        if let Err(source) = read {
            return Err(TokenizerError::Io { name, source });
        }
        let (tokenizer, file) = Self::parse_parts(&name, &bytes)?;
        let beside = path.with_file_name("tokenizer_config.json");
        if let Some(settings) = read_object(&beside)? {
            let model = read_object(&path.with_file_name("config.json"))?;
            let name = beside.display().to_string();
            settings::check(&settings, model.as_ref(), &file)
                .map_err(|source| TokenizerError::Setting { name, source })?;
        }
        Ok(tokenizer)
    }

    /// Reads the bytes of a `tokenizer.json`, which errors call `name`, with nothing beside it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, TokenizerError> {
        Self::parse_parts(name, bytes).map(|(tokenizer, _)| tokenizer)
    }

    /// The tokenizer, and what its file says.
    fn parse_parts(name: &str, bytes: &[u8]) -> Result<(Self, schema::File), TokenizerError> {
        let owned = || name.to_owned();
        if bytes.len() as u64 > MAX_BYTES {
            return Err(TokenizerError::TooLarge { name: owned() });
        }
        let file: schema::File =
            serde_json::from_slice(bytes).map_err(|source| TokenizerError::Json { name: owned(), source })?;
        let part = |source| TokenizerError::Part { name: owned(), source };
        check::check(&file).map_err(part)?;
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(|source| TokenizerError::Crate {
            name: owned(),
            action: "reading it",
            source,
        })?;
        for token in &file.added_tokens {
            // The crate numbers added tokens by itself, and only warns if the file says otherwise.
            let found = tokenizer.token_to_id(&token.content);
            if found != Some(token.id) {
                let (token, stated) = (token.content.clone(), token.id);
                return Err(part(PartError::Id { part: "added_tokens", token, stated, found }));
            }
        }
        let pad_id = file.padding.as_ref().map(|padding| padding.pad_id);
        let mut ours = Self::from_built(name, tokenizer)?;
        if let Some(id) = pad_id {
            ours.check_id(id)?;
            ours.pad_id = id;
        }
        Ok((ours, file))
    }

    /// Takes a tokenizer that was built otherwise, from a GGUF file for example; errors call it `name`. Its own settings
    /// for truncation and padding have no effect.
    ///
    /// # Errors
    /// The tokenizer cannot be set up.
    pub fn from_built(name: &str, mut tokenizer: Tokenizer) -> Result<Self, TokenizerError> {
        tokenizer.with_padding(None);
        let truncated = tokenizer.with_truncation(None).map(|_| ());
        truncated.map_err(|source| TokenizerError::Crate {
            name: name.to_owned(),
            action: "switching truncation off",
            source,
        })?;
        let largest = tokenizer.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        Ok(Self { name: name.to_owned(), tokenizer, vocab_size, pad_id: 0 })
    }

    /// Cuts every text off so that it takes no more than this many tokens, the special ones included. Without this, a
    /// text is as long as it is.
    ///
    /// # Errors
    /// There is room for special tokens only.
    pub fn with_max_length(mut self, length: usize) -> Result<Self, TokenizerError> {
        let post_processor = self.tokenizer.get_post_processor();
        let special = post_processor.map_or(0, |part| tokenizers::PostProcessor::added_tokens(part, false));
        if length <= special {
            return Err(TokenizerError::Length { name: self.name, length, special });
        }
        let truncation = TruncationParams {
            max_length: length,
            stride: 0,
            strategy: TruncationStrategy::LongestFirst,
            direction: TruncationDirection::Right,
        };
        match self.tokenizer.with_truncation(Some(truncation)).map(|_| ()) {
            Ok(()) => Ok(self),
            Err(source) => {
                Err(TokenizerError::Crate { name: self.name, action: "setting the longest text", source })
            }
        }
    }

    /// One more than the largest id; a model's embedding needs as many rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The ids of a text, with the special tokens that the tokenizer adds to it.
    ///
    /// # Errors
    /// The text cannot be taken apart.
    pub fn encode(&self, text: &str) -> Result<Encoded, TokenizerError> {
        let encoding = self.tokenizer.encode_fast(text, true);
        let encoding = encoding.map_err(|source| self.failed("taking a text apart", source))?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), type_ids: encoding.get_type_ids().to_vec() })
    }

    /// The text of these ids; special tokens leave none.
    ///
    /// # Errors
    /// There is no token of one of the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        ids.iter().try_for_each(|&id| self.check_id(id))?;
        self.decode_known(ids)
    }

    /// Decodes ids one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    fn decode_known(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.tokenizer.decode(ids, true).map_err(|source| self.failed("putting a text together", source))
    }

    fn check_id(&self, id: u32) -> Result<(), TokenizerError> {
        // The crate leaves out what it doesn't know.
        let (name, vocab_size) = (self.name.clone(), self.vocab_size);
        match self.tokenizer.id_to_token(id) {
            Some(_) => Ok(()),
            None => Err(TokenizerError::NoId { name, id, vocab_size }),
        }
    }

    fn failed(&self, action: &'static str, source: tokenizers::Error) -> TokenizerError {
        TokenizerError::Crate { name: self.name.clone(), action, source }
    }
}

/// The object in a file of JSON, or `None` if there is no such file.
fn read_object(path: &Path) -> Result<Option<Map<String, Json>>, TokenizerError> {
    let name = || path.display().to_string();
    match json::read_limited(path, MAX_BYTES) {
        Ok(Some(text)) => json::parse_object(&text)
            .map(Some)
            .map_err(|source| TokenizerError::Object { name: name(), source }),
        Ok(None) => Err(TokenizerError::TooLarge { name: name() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Io { name: name(), source }),
    }
}
