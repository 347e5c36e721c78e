//! Several texts as one rectangle of ids, as a model takes them. Knows nothing about models.

use super::{Encoded, TextTokenizer, TokenizerError};
use engraft_runtime::{Tensor, TensorError};

/// Texts of different lengths, padded on the right to the longest: three tensors of I64 `[batch, seq]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The ids; where there is no token, the tokenizer's id for padding.
    pub input_ids: Tensor,
    /// 1 where there is a token, 0 where there is none.
    pub attention_mask: Tensor,
    /// The segment of each token; 0 where there is none.
    pub token_type_ids: Tensor,
}

impl Batch {
    /// Pads texts, with `pad_id` where there is no token.
    ///
    /// # Errors
    /// Never for texts that fit in memory: the tensors are made to their shape.
    ///
    /// ```
    /// use engraft_import::tokenizer::{Batch, Encoded};
    /// let text = |ids: &[u32]| Encoded { ids: ids.to_vec(), type_ids: vec![0; ids.len()] };
    /// let batch = Batch::pad(&[text(&[5, 6, 7]), text(&[8])], 1)?;
    /// assert_eq!(batch.input_ids.as_i64()?, [5, 6, 7, 8, 1, 1]);
    /// assert_eq!(batch.attention_mask.as_i64()?, [1, 1, 1, 1, 0, 0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pad(texts: &[Encoded], pad_id: u32) -> Result<Self, TensorError> {
        let longest = texts.iter().map(|text| text.ids.len()).max().unwrap_or(0);
        let shape = [texts.len(), longest];
        let tensor = |row: &dyn Fn(&Encoded) -> Vec<i64>, padding: i64| {
            let mut elements = Vec::new();
            for (index, text) in texts.iter().enumerate() {
                elements.extend(row(text));
                elements.resize((index + 1) * longest, padding);
            }
            Tensor::i64(&shape, elements)
        };
        Ok(Self {
            input_ids: tensor(&|text| text.ids.iter().copied().map(i64::from).collect(), i64::from(pad_id))?,
            attention_mask: tensor(&|text| vec![1; text.ids.len()], 0)?,
            token_type_ids: tensor(&|text| text.type_ids.iter().copied().map(i64::from).collect(), 0)?,
        })
    }
}

impl TextTokenizer {
    /// The ids of several texts, padded on the right to the longest.
    ///
    /// # Errors
    /// A text cannot be taken apart.
    pub fn encode_batch<S: AsRef<str>>(&self, texts: &[S]) -> Result<Batch, TokenizerError> {
        let encoded: Vec<_> =
            texts.iter().map(|text| self.encode(text.as_ref())).collect::<Result<_, _>>()?;
        self.pad(&encoded)
    }

    /// Texts that were taken apart before, padded on the right to the longest.
    ///
    /// # Errors
    /// Never for texts that fit in memory.
    pub fn pad(&self, texts: &[Encoded]) -> Result<Batch, TokenizerError> {
        let padded = Batch::pad(texts, self.pad_id);
        padded.map_err(|source| self.failed("padding texts", source.into()))
    }
}
