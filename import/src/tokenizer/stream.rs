//! Text from ids that come one by one. Knows nothing about where they come from.

use super::{TextTokenizer, TokenizerError};

/// What an incomplete character is decoded to.
const REPLACEMENT: char = '\u{fffd}';

/// Decodes ids one by one, and never gives half a character: what ends within one is held back until the rest of it
/// comes, or [`finish`](TextStream::finish) says that none will. Special tokens leave no text. Bytes that are no UTF-8
/// come out as U+FFFD.
///
/// What a token looks like depends on the one before it (a space, say), so each is decoded together with those that made
/// the piece of text before it.
pub struct TextStream<'a> {
    tokenizer: &'a TextTokenizer,
    /// The ids of the last piece of text, then those that wait.
    ids: Vec<u32>,
    /// How many of them made the last piece.
    given: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), given: 0 }
    }

    /// The text that this id adds: nothing, if its last character is incomplete.
    ///
    /// # Errors
    /// There is no such id.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.tokenizer.check_id(id)?;
        self.ids.push(id);
        let text = self.waiting()?;
        if text.ends_with(REPLACEMENT) {
            return Ok(String::new());
        }
        self.keep_last(&text);
        Ok(text)
    }

    /// The text that is still held back: the incomplete character as U+FFFD, and what came after it.
    ///
    /// # Errors
    /// The text cannot be decoded.
    pub fn finish(self) -> Result<String, TokenizerError> {
        self.waiting()
    }

    /// The text of the ids that wait.
    fn waiting(&self) -> Result<String, TokenizerError> {
        let before = self.tokenizer.decode_known(&self.ids[..self.given])?;
        let all = self.tokenizer.decode_known(&self.ids)?;
        match all.strip_prefix(&before) {
            Some(text) => Ok(text.to_owned()),
            // The new ids changed the text before them, which is already given; they stand for themselves.
            None => self.tokenizer.decode_known(&self.ids[self.given..]),
        }
    }

    /// After a piece of text, its ids are what the next one is decoded with.
    fn keep_last(&mut self, text: &str) {
        if !text.is_empty() {
            self.ids.drain(..self.given);
        }
        self.given = self.ids.len();
    }
}
