//! Texts to vectors: tokens, batches of texts of like length, one vector of each text. Knows nothing about files and
//! terminals.

use super::{CompiledModel, PretrainedError};
use crate::import::sentence::{SentenceConfig, pool};
use crate::import::tokenizer::{Encoded, TextTokenizer, TokenizerError};
use crate::runtime::{Rows, Session, Tensor, Weights};
use ndarray::Array2;
use std::path::PathBuf;

/// The most tokens of a batch, padding included: as many as keep the kernels busy, few enough for the caches.
pub const MAX_TOKENS: usize = 4096;

/// Turns texts into vectors, one session for all of them.
pub struct Embedder<'m> {
    model: &'m CompiledModel,
    session: Session,
    tokenizer: TextTokenizer,
    sentence: SentenceConfig,
}

impl<'m> Embedder<'m> {
    pub(super) fn new(model: &'m CompiledModel) -> Result<Self, PretrainedError> {
        let (pretrained, architecture) = (model.pretrained(), model.architecture());
        let sentence = pretrained.sentence()?;
        let file = |file: &Option<PathBuf>| file.as_deref().unwrap_or(pretrained.path()).to_owned();
        if let Some(said) = sentence.dim.filter(|&said| said != architecture.hidden()) {
            let (path, width) = (file(&sentence.pooling_file), architecture.hidden());
            return Err(PretrainedError::Width { path, said, width });
        }
        let length = sentence.max_length.unwrap_or(usize::MAX).min(architecture.context());
        let tokenizer = pretrained.tokenizer()?.with_max_length(length).map_err(|error| match error {
            TokenizerError::Length { length, special, .. } if sentence.max_length == Some(length) => {
                PretrainedError::MaxLength { path: file(&sentence.length_file), length, special }
            }
            other => other.into(),
        })?;
        Ok(Self { model, session: model.session(), tokenizer, sentence })
    }

    /// One vector a text, `[texts, hidden]`, in the order of the texts.
    ///
    /// # Errors
    /// A text cannot be taken apart, or memory does not suffice.
    pub fn embed<S: AsRef<str>>(&mut self, texts: &[S]) -> Result<Array2<f32>, PretrainedError> {
        self.embed_with(texts, &Rows::default(), |_| ())
    }

    /// As [`embed`](Self::embed), each text with its own adapter, as [`AdapterBank::rows`](super::AdapterBank::rows) says, or
    /// all with the model as it is, if `rows` are empty. `done` is told, after each batch, how many texts it had.
    ///
    /// Texts are sorted by their lengths, so that a batch has little padding.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    pub fn embed_with<S: AsRef<str>>(
        &mut self,
        texts: &[S],
        rows: &Rows,
        mut done: impl FnMut(usize),
    ) -> Result<Array2<f32>, PretrainedError> {
        if !rows.is_empty() && rows.len() != texts.len() {
            return Err(PretrainedError::RowCount { texts: texts.len(), found: rows.len() });
        }
        let encoded = texts.iter().map(|text| self.tokenizer.encode(text.as_ref()));
        let encoded = encoded.collect::<Result<Vec<_>, _>>()?;
        let mut vectors = Array2::zeros((texts.len(), self.model.architecture().hidden()));
        for batch in batches(&encoded) {
            let tokens: Vec<_> = batch.iter().map(|&text| encoded[text].clone()).collect();
            let pooled = self.batch(&tokens, &rows.select(&batch))?;
            for (&text, row) in batch.iter().zip(pooled.view_f32()?.outer_iter()) {
                vectors.row_mut(text).assign(&row);
            }
            done(batch.len());
        }
        Ok(vectors)
    }

    /// One vector a text, `[texts, hidden]`.
    fn batch(&mut self, texts: &[Encoded], rows: &Rows) -> Result<Tensor, PretrainedError> {
        let batch = self.tokenizer.pad(texts)?;
        let mut inputs = Weights::new();
        if self.model.architecture().has_token_types() {
            inputs.insert("token_type_ids", batch.token_type_ids);
        }
        inputs.insert("input_ids", batch.input_ids);
        inputs.insert("attention_mask", batch.attention_mask.clone());
        let outputs = self.model.run_rows_in(&mut self.session, &inputs, rows)?;
        let SentenceConfig { pooling, normalize, .. } = self.sentence;
        Ok(pool(&outputs[0].1, &batch.attention_mask, pooling, normalize)?)
    }
}

/// The texts in batches of [`MAX_TOKENS`] at most (or one text), the longest first.
fn batches(texts: &[Encoded]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&text| std::cmp::Reverse(texts[text].ids.len()));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut longest = 0;
    for text in order {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * longest <= MAX_TOKENS => batch.push(text),
            _ => {
                longest = texts[text].ids.len();
                batches.push(vec![text]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::{MAX_TOKENS, batches};
    use crate::import::tokenizer::Encoded;

    #[test]
    fn batches_are_of_like_length_and_hold_every_text_once() {
        let lengths = [3, MAX_TOKENS, 5, 4096 / 3, 4096 / 3, 4096 / 3, 1, 4096 / 2];
        let texts: Vec<_> =
            lengths.iter().map(|&n| Encoded { ids: vec![0; n], type_ids: vec![0; n] }).collect();
        assert_eq!(batches(&texts), [vec![1], vec![7, 3], vec![4, 5, 2], vec![0, 6]].to_vec());
        assert!(batches(&[]).is_empty());
    }
}
