//! Going on with a text: the prompt in one call, then a token at a time on what the session carries. Knows nothing about
//! files and terminals.

use super::sampling::{Sampler, SamplingError};
use super::{CompiledModel, PretrainedError};
use crate::import::tokenizer::TextTokenizer;
use crate::runtime::{Rows, Session, Tensor, Weights};
use thiserror::Error;

/// Why a text does not go on.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// The model could not be run.
    #[error(transparent)]
    Model(Box<PretrainedError>),
    /// The logits could not be chosen from.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The prompt has no token to begin with.
    #[error("the prompt is empty: the tokenizer makes no token of it, expected at least one")]
    EmptyPrompt,
    /// The prompt leaves no room.
    #[error(
        "the prompt has {found} tokens, but the model's context has {context} and there must be room for one more"
    )]
    LongPrompt {
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

    /// Goes on with the adapter of `rows`, which say one item's, or with the model as it is, if they are empty.
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
        let Self { model, session, tokenizer, ends, rows } = self;
        let prompt = tokenizer.encode(prompt).map_err(PretrainedError::from)?.ids;
        let context = model.architecture().context();
        match prompt.len() {
            0 => return Err(GenerateError::EmptyPrompt),
            found if found >= context => return Err(GenerateError::LongPrompt { found, context }),
            _ => {}
        }
        session.reset();
        session.reserve(context.min(prompt.len() + most));
        let (mut stream, mut text, mut tokens) = (tokenizer.stream(), String::new(), Vec::new());
        let mut latest = prompt.clone();
        let end = loop {
            if tokens.len() == most {
                break End::Enough;
            }
            if prompt.len() + tokens.len() == context {
                break End::Context;
            }
            let logits = step(model, session, &latest, rows)?;
            let logits = logits.as_f32().map_err(PretrainedError::from)?;
            // Of the last token, whether or not the model was compiled to give those of all.
            let last = logits.len().saturating_sub(model.architecture().vocab());
            let token = sampler.choose(&logits[last..])? as u32;
            if ends.contains(&token) {
                break End::Token;
            }
            let piece = stream.push(token).map_err(PretrainedError::from)?;
            emit(&piece);
            text.push_str(&piece);
            tokens.push(token);
            latest = vec![token];
        };
        let rest = stream.finish().map_err(PretrainedError::from)?;
        emit(&rest);
        text.push_str(&rest);
        Ok(Generation { prompt_tokens: prompt.len(), tokens, text, end })
    }
}

/// The logits after these tokens, which come after those that the session carries.
fn step(
    model: &CompiledModel,
    session: &mut Session,
    tokens: &[u32],
    rows: &Rows,
) -> Result<Tensor, PretrainedError> {
    let ids = tokens.iter().map(|&token| i64::from(token)).collect();
    let ids = Tensor::i64(&[1, tokens.len()], ids)?;
    let outputs = model.run_rows_in(session, &Weights::from_iter([("input_ids", ids)]), rows)?;
    let (_, logits) = outputs.into_iter().next().expect("a decoder gives logits");
    Ok(logits)
}
