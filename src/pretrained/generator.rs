//! Going on with texts: the prompts in one call, then a token of each at a time on what the session carries. Knows nothing
//! about files and terminals.
//!
//! Prompts are padded in front to the longest, and a text that has ended goes on as padding until all have. The mask hides
//! it, so what becomes of a text does not depend on those beside it.

use super::sampling::{Sampler, SamplingError};
use super::{CompiledModel, PretrainedError};
use crate::import::tokenizer::{TextStream, TextTokenizer};
use crate::runtime::{Rows, Session, Tensor, Weights};
use thiserror::Error;

/// Why a text does not go on.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// The model could not be run.
    #[error(transparent)]
    Model(Box<PretrainedError>),
    /// A prompt could not be made tokens.
    #[error("prompt {prompt}: {source}")]
    Tokenizer {
        /// Which, from 1.
        prompt: usize,
        /// Why.
        source: Box<PretrainedError>,
    },
    /// The logits of a text could not be chosen from.
    #[error("the text of prompt {prompt}: {source}")]
    Sampling {
        /// Which, from 1.
        prompt: usize,
        /// Why.
        source: SamplingError,
    },
    /// There are adapters for other prompts.
    #[error("there are adapters for {found} prompts, expected one for each of {expected}")]
    Rows {
        /// For how many.
        found: usize,
        /// How many prompts there are.
        expected: usize,
    },
    /// A prompt has no token to begin with.
    #[error("prompt {prompt} is empty: the tokenizer makes no token of it, expected at least one")]
    EmptyPrompt {
        /// Which, from 1.
        prompt: usize,
    },
    /// A prompt leaves no room.
    #[error(
        "prompt {prompt} has {found} tokens, but the model's context has {context} and there must be room for one more"
    )]
    LongPrompt {
        /// Which, from 1.
        prompt: usize,
        /// How many tokens it has.
        found: usize,
        /// The model's limit.
        context: usize,
    },
}

impl From<PretrainedError> for GenerateError {
    fn from(source: PretrainedError) -> Self {
        Self::Model(Box::new(source))
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model said so.
    Token,
    /// As many tokens as were asked for.
    Enough,
    /// The context is full.
    Context,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// How many tokens the prompt has.
    pub prompt_tokens: usize,
    /// The new tokens, without one that ends the text.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why there are no more.
    pub end: End,
}

/// A text to go on with, and what chooses its tokens.
pub struct Prompt<'t> {
    /// The text.
    pub text: &'t str,
    /// Its own, so that what is drawn does not depend on other texts.
    pub sampler: &'t mut Sampler,
}

/// Goes on with texts, one session for all of them.
pub struct Generator<'m> {
    model: &'m CompiledModel,
    session: Session,
    tokenizer: TextTokenizer,
    ends: Vec<u32>,
    rows: Rows,
}

impl<'m> Generator<'m> {
    pub(super) fn new(model: &'m CompiledModel) -> Result<Self, PretrainedError> {
        let pretrained = model.pretrained();
        let (tokenizer, ends) = (pretrained.tokenizer()?, pretrained.end_tokens()?);
        Ok(Self { model, session: model.session(), tokenizer, ends, rows: Rows::default() })
    }

    /// Goes on with the adapters of `rows`, which say one for each prompt, or with the model as it is, if they are empty.
    pub fn set_rows(&mut self, rows: Rows) {
        self.rows = rows;
    }

    /// Goes on with a prompt by at most `most` tokens. `emit` gets the text piece by piece, as soon as it is known.
    ///
    /// # Errors
    /// The prompt is empty or too long, or the model cannot be run.
    pub fn generate(
        &mut self,
        prompt: &str,
        most: usize,
        sampler: &mut Sampler,
        mut emit: impl FnMut(&str),
    ) -> Result<Generation, GenerateError> {
        let prompt = Prompt { text: prompt, sampler };
        // One prompt gives one text.
        Ok(self.generate_all(&mut [prompt], most, |_, piece| emit(piece))?.remove(0))
    }

    /// Goes on with several prompts at once, each by at most `most` tokens: the weights are read once for a token of all of
    /// them. `emit` gets a prompt's index and a piece of its text. Each takes the time and the memory of the longest, and until
    /// the last has ended: many prompts, or those of very different lengths, are better given in parts.
    ///
    /// # Errors
    /// A prompt is empty or too long, there are adapters for another number of prompts, or the model cannot be run.
    pub fn generate_all(
        &mut self,
        prompts: &mut [Prompt<'_>],
        most: usize,
        mut emit: impl FnMut(usize, &str),
    ) -> Result<Vec<Generation>, GenerateError> {
        let Self { model, session, tokenizer, ends, rows } = self;
        if !rows.is_empty() && rows.len() != prompts.len() {
            return Err(GenerateError::Rows { found: rows.len(), expected: prompts.len() });
        }
        let limits = Limits { most, context: model.architecture().context(), ends };
        let mut texts = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.iter().enumerate() {
            texts.push(Continuation::new(tokenizer, index, prompt.text, &limits)?);
        }
        let longest = texts.iter().map(|text| text.latest.len()).max().unwrap_or(0);
        for text in &mut texts {
            text.pad(longest);
        }
        session.reset();
        session.reserve(longest + texts.iter().map(|text| text.left(&limits)).max().unwrap_or(0));
        while texts.iter().any(|text| text.end.is_none()) {
            let logits = step(model, session, &texts, rows)?;
            let logits = logits.as_f32().map_err(PretrainedError::from)?;
            let of_each = logits.chunks_exact(logits.len() / texts.len());
            for (index, (text, logits)) in texts.iter_mut().zip(of_each).enumerate() {
                // Of the last token, whether or not the model was compiled to give those of all.
                let last = &logits[logits.len().saturating_sub(model.architecture().vocab())..];
                let token = text.choose(last, prompts[index].sampler);
                let token = token.map_err(|source| GenerateError::Sampling { prompt: index + 1, source })?;
                text.go_on(token, &limits, |piece| emit(index, piece))?;
            }
        }
        Ok(texts.into_iter().map(Continuation::into_generation).collect())
    }
}

/// What ends a text.
struct Limits<'g> {
    most: usize,
    context: usize,
    ends: &'g [u32],
}

/// A text on its way.
struct Continuation<'g> {
    prompt_tokens: usize,
    tokens: Vec<u32>,
    text: String,
    /// While it goes on.
    stream: Option<TextStream<'g>>,
    end: Option<End>,
    /// What the model has not seen yet.
    latest: Vec<i64>,
    /// What of all tokens so far, those not seen included, is no padding.
    mask: Vec<i64>,
}

impl<'g> Continuation<'g> {
    fn new(
        tokenizer: &'g TextTokenizer,
        index: usize,
        prompt: &str,
        limits: &Limits<'_>,
    ) -> Result<Self, GenerateError> {
        let (encoded, prompt, context) = (tokenizer.encode(prompt), index + 1, limits.context);
        let encoded = encoded.map_err(PretrainedError::from);
        let ids =
            encoded.map_err(|source| GenerateError::Tokenizer { prompt, source: Box::new(source) })?.ids;
        match ids.len() {
            0 => return Err(GenerateError::EmptyPrompt { prompt }),
            found if found >= context => return Err(GenerateError::LongPrompt { prompt, found, context }),
            _ => {}
        }
        let mut text = Self {
            prompt_tokens: ids.len(),
            tokens: Vec::new(),
            text: String::new(),
            stream: None,
            end: None,
            mask: vec![1; ids.len()],
            latest: ids.into_iter().map(i64::from).collect(),
        };
        text.end = text.limit(limits);
        text.stream = text.end.is_none().then(|| tokenizer.stream());
        Ok(text)
    }

    /// Puts padding in front, so that there are so many tokens.
    fn pad(&mut self, count: usize) {
        let missing = count - self.latest.len();
        self.latest.splice(..0, std::iter::repeat_n(0, missing));
        self.mask.splice(..0, std::iter::repeat_n(0, missing));
    }

    /// How many tokens may follow.
    fn left(&self, limits: &Limits<'_>) -> usize {
        (limits.most - self.tokens.len()).min(limits.context - self.prompt_tokens - self.tokens.len())
    }

    fn limit(&self, limits: &Limits<'_>) -> Option<End> {
        match self.left(limits) {
            0 if self.tokens.len() == limits.most => Some(End::Enough),
            0 => Some(End::Context),
            _ => None,
        }
    }

    /// The next token, unless the text has ended.
    fn choose(&self, logits: &[f32], sampler: &mut Sampler) -> Result<Option<u32>, SamplingError> {
        self.end.is_none().then(|| Ok(sampler.choose(logits)? as u32)).transpose()
    }

    /// Goes on with a token, or with padding if the text has ended.
    fn go_on(
        &mut self,
        token: Option<u32>,
        limits: &Limits<'_>,
        mut emit: impl FnMut(&str),
    ) -> Result<(), PretrainedError> {
        self.latest.clear();
        if let Some((token, mut stream)) = token.zip(self.stream.take()) {
            if limits.ends.contains(&token) {
                self.end = Some(End::Token);
            } else {
                self.tokens.push(token);
                self.end = self.limit(limits);
                self.told(&stream.push(token)?, &mut emit);
            }
            match self.end {
                None => self.stream = Some(stream),
                Some(_) => self.told(&stream.finish()?, &mut emit),
            }
        }
        let seen = self.tokens.last().filter(|_| self.end.is_none());
        self.latest.push(seen.map_or(0, |&token| i64::from(token)));
        self.mask.push(i64::from(seen.is_some()));
        Ok(())
    }

    fn told(&mut self, piece: &str, emit: &mut impl FnMut(&str)) {
        if !piece.is_empty() {
            emit(piece);
            self.text.push_str(piece);
        }
    }

    fn into_generation(self) -> Generation {
        let Self { prompt_tokens, tokens, text, end, .. } = self;
        Generation { prompt_tokens, tokens, text, end: end.expect("all texts have ended") }
    }
}

/// The logits after the latest tokens of all texts, which come after those that the session carries.
fn step(
    model: &CompiledModel,
    session: &mut Session,
    texts: &[Continuation<'_>],
    rows: &Rows,
) -> Result<Tensor, PretrainedError> {
    let tensor = |of_each: Vec<&[i64]>| Tensor::i64(&[of_each.len(), of_each[0].len()], of_each.concat());
    let ids = tensor(texts.iter().map(|text| &text.latest[..]).collect())?;
    let mask = tensor(texts.iter().map(|text| &text.mask[..]).collect())?;
    let inputs = Weights::from_iter([("input_ids", ids), ("attention_mask", mask)]);
    let outputs = model.run_rows_in(session, &inputs, rows)?;
    let (_, logits) = outputs.into_iter().next().expect("a decoder gives logits");
    Ok(logits)
}
