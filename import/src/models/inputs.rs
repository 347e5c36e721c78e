//! The inputs of a model's graph, from those that a caller has: defaults, positions, and whether every id is in range.
//! Knows nothing about graphs.

use super::{Description, GraphOptions, Kind, Logits};
use engraft_runtime::{DType, Tensor, TensorError, Weights};
use thiserror::Error;

const INPUT_IDS: &str = "input_ids";
const TOKEN_TYPE_IDS: &str = "token_type_ids";
const POSITION_IDS: &str = "position_ids";
const ATTENTION_MASK: &str = "attention_mask";
const LAST_TOKENS: &str = "last_tokens";

/// Why inputs were refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InputError {
    /// An input that has no default is absent.
    #[error("input `{input}` is missing")]
    Missing {
        /// The input.
        input: &'static str,
    },
    /// The model has no such input.
    #[error("the model has no input `{input}`; it has {}", expected.join(", "))]
    Unknown {
        /// The input.
        input: String,
        /// Those that may be given.
        expected: Vec<&'static str>,
    },
    /// The elements are of another type.
    #[error("input `{input}` is {found}, expected i64 or i32")]
    DType {
        /// The input.
        input: &'static str,
        /// The type.
        found: DType,
    },
    /// The shape is another.
    #[error("input `{input}` is of shape {found:?}, expected {expected}")]
    Shape {
        /// The input.
        input: &'static str,
        /// The shape.
        found: Vec<usize>,
        /// What was expected.
        expected: String,
    },
    /// An element is out of range.
    #[error("input `{input}`, row {row}, token {token}: {found} is out of range, expected 0 to {last}")]
    Range {
        /// The input.
        input: &'static str,
        /// The row.
        row: usize,
        /// The index in the row.
        token: usize,
        /// The element.
        found: i64,
        /// The largest that is allowed.
        last: usize,
    },
    /// A row is longer than the model's context.
    #[error("input `{INPUT_IDS}`, row {row}: {tokens} tokens, but the model's context is {context}")]
    Context {
        /// The row.
        row: usize,
        /// Its tokens so far, without padding in front.
        tokens: usize,
        /// The most there may be.
        context: usize,
    },
    /// An encoder has no past.
    #[error("{past} tokens are said to have been seen before, but an encoder keeps none from call to call")]
    Past {
        /// How many.
        past: usize,
    },
    /// A filled tensor could not be made.
    #[error("input `{input}`: {source}")]
    Tensor {
        /// The input.
        input: &'static str,
        /// Why.
        source: TensorError,
    },
}

/// How a model numbers the tokens of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Positions {
    /// From 0 at the first that the mask does not hide.
    Counted,
    /// Those whose id is not `padding` from `padding + 1`, and padding as `padding`: `create_position_ids_from_input_ids`
    /// of transformers' `RoBERTa`.
    BehindPadding {
        /// The id of padding, and its position.
        padding: usize,
    },
}

impl Positions {
    /// The first position of a token.
    fn first(self) -> usize {
        match self {
            Self::Counted => 0,
            Self::BehindPadding { padding } => padding + 1,
        }
    }
}

/// The rows of a call.
struct Rows {
    batch: usize,
    seq: usize,
    past: usize,
    ids: Vec<i64>,
    /// `[batch, past + seq]`, 0 or 1.
    mask: Vec<i64>,
}

/// All inputs but the carried ones.
pub(super) fn fill(
    model: &Description,
    given: &Weights,
    past: usize,
    options: GraphOptions,
) -> Result<Vec<(&'static str, Tensor)>, InputError> {
    let mut names = vec![INPUT_IDS, ATTENTION_MASK, POSITION_IDS];
    names.extend(model.token_types.map(|_| TOKEN_TYPE_IDS));
    if let Some((input, _)) = given.iter().find(|(input, _)| !names.contains(input)) {
        return Err(InputError::Unknown { input: input.to_owned(), expected: names });
    }
    let rows = rows(model, given, past)?;
    let shape = [rows.batch, rows.seq];
    let tensor = |input, shape: &[usize], data| {
        let tensor = Tensor::i64(shape, data).map_err(|source| InputError::Tensor { input, source })?;
        Ok((input, tensor))
    };
    let mut filled = Vec::new();
    if let Some(types) = model.token_types {
        let given = elements(given, TOKEN_TYPE_IDS, shape, types)?;
        filled.push(tensor(TOKEN_TYPE_IDS, &shape, given.unwrap_or_else(|| vec![0; rows.ids.len()]))?);
    }
    let limit = model.positions.first() + model.context;
    let positions = match elements(given, POSITION_IDS, shape, limit)? {
        Some(positions) => positions,
        None => positions(model, &rows)?,
    };
    filled.push(tensor(POSITION_IDS, &shape, positions)?);
    if (model.kind, options.logits) == (Kind::Decoder, Logits::Last) {
        filled.push(tensor(LAST_TOKENS, &[rows.batch, 1], last_tokens(&rows))?);
    }
    filled.push(tensor(ATTENTION_MASK, &[rows.batch, rows.past + rows.seq], rows.mask)?);
    filled.push(tensor(INPUT_IDS, &shape, rows.ids)?);
    Ok(filled)
}

fn rows(model: &Description, given: &Weights, past: usize) -> Result<Rows, InputError> {
    if model.kind == Kind::Encoder && past != 0 {
        return Err(InputError::Past { past });
    }
    let ids = given.get(INPUT_IDS).ok_or(InputError::Missing { input: INPUT_IDS })?;
    let &[batch, seq] = ids.shape() else {
        return Err(shape_error(INPUT_IDS, ids, "[batch, seq]".to_owned()));
    };
    if batch == 0 || seq == 0 {
        return Err(shape_error(INPUT_IDS, ids, "[batch, seq], 1 or more each".to_owned()));
    }
    let keys = past.saturating_add(seq);
    let mask = match elements(given, ATTENTION_MASK, [batch, keys], 2)? {
        Some(mask) => mask,
        // Nothing is hidden, so all of it must fit.
        None if keys > model.context => {
            return Err(InputError::Context { row: 0, tokens: keys, context: model.context });
        }
        None => vec![1; batch * keys],
    };
    let ids = elements(given, INPUT_IDS, [batch, seq], model.vocab)?;
    Ok(Rows { batch, seq, past, ids: ids.unwrap_or_default(), mask })
}

/// A given input's elements, each from 0 to before `limit`.
fn elements(
    given: &Weights,
    input: &'static str,
    shape: [usize; 2],
    limit: usize,
) -> Result<Option<Vec<i64>>, InputError> {
    let Some(tensor) = given.get(input) else { return Ok(None) };
    if tensor.shape() != shape {
        return Err(shape_error(input, tensor, format!("{shape:?}")));
    }
    let elements = match tensor.dtype() {
        DType::I64 => tensor.as_i64().map(<[i64]>::to_vec),
        DType::I32 => tensor.as_i32().map(|ids| ids.iter().map(|&id| i64::from(id)).collect()),
        found @ DType::F32 => return Err(InputError::DType { input, found }),
    };
    let elements = elements.map_err(|source| InputError::Tensor { input, source })?;
    let in_range = |element: i64| usize::try_from(element).is_ok_and(|element| element < limit);
    match elements.iter().position(|&element| !in_range(element)) {
        None => Ok(Some(elements)),
        Some(at) => {
            let (row, token) = (at / shape[1], at % shape[1]);
            Err(InputError::Range { input, row, token, found: elements[at], last: limit.saturating_sub(1) })
        }
    }
}

fn shape_error(input: &'static str, found: &Tensor, expected: String) -> InputError {
    InputError::Shape { input, found: found.shape().to_vec(), expected }
}

/// Each token's position. What the mask hides stays within the model's positions.
fn positions(model: &Description, rows: &Rows) -> Result<Vec<i64>, InputError> {
    let mut positions = Vec::with_capacity(rows.ids.len());
    let (seq, keys) = (rows.seq, rows.past + rows.seq);
    for (row, (ids, mask)) in rows.ids.chunks(seq).zip(rows.mask.chunks(keys)).enumerate() {
        let hidden = mask.iter().take_while(|&&seen| seen == 0).count();
        let mut tokens = 0;
        for (token, &id) in ids.iter().enumerate() {
            // How many tokens the row has with this one; 0 for padding.
            let number = match model.positions {
                Positions::Counted => (rows.past + token + 1).saturating_sub(hidden).max(1),
                Positions::BehindPadding { padding } if id == padding as i64 => 0,
                Positions::BehindPadding { .. } => {
                    tokens += 1;
                    tokens
                }
            };
            if number > model.context && mask[rows.past + token] != 0 {
                return Err(InputError::Context {
                    row,
                    tokens: count(rows, row, number),
                    context: model.context,
                });
            }
            let position = model.positions.first() + number.min(model.context);
            positions.push(position as i64 - 1);
        }
    }
    Ok(positions)
}

/// How many tokens a row has up to its last visible one, if the one that was too many was the `number`th.
fn count(rows: &Rows, row: usize, number: usize) -> usize {
    let keys = rows.past + rows.seq;
    let mask = &rows.mask[row * keys..][..keys];
    let hidden = mask.iter().take_while(|&&seen| seen == 0).count();
    let last = mask.iter().rposition(|&seen| seen != 0).unwrap_or(0);
    number.max((last + 1).saturating_sub(hidden))
}

/// Of each row the last token that the mask does not hide, as its index in all tokens; the last if it hides all.
fn last_tokens(rows: &Rows) -> Vec<i64> {
    let keys = rows.past + rows.seq;
    let last = |(row, mask): (usize, &[i64])| {
        let last = mask[rows.past..].iter().rposition(|&seen| seen != 0).unwrap_or(rows.seq - 1);
        (row * rows.seq + last) as i64
    };
    rows.mask.chunks(keys).enumerate().map(last).collect()
}
