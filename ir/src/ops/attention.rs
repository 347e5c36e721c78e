//! `attention`: softmax(q kᵀ) v by heads, with the masks that models use.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, finite, optional, required};
use crate::value::{EvalError, Value};
use crate::{DType, Dim, Shape, TensorType};
use ndarray::{Array3, ArrayView3, Ix3};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// Scaled dot-product attention (Vaswani et al., 2017) with grouped heads (Ainslie et al., 2023):
/// `y[b, i, h] = Σ_j p_j v[b, j, h']`, `p = softmax_j(s q[b, i, h] · k[b, j, h'])` over the keys that query i sees, with
/// `h' = h / (heads / kv_heads)`. q `[batch, queries, heads·d]`, k `[batch, keys, kv_heads·d]`,
/// v `[batch, keys, kv_heads·e]`, y `[batch, queries, heads·e]`.
///
/// The queries are the last of the keys: query i stands at key `p = keys - queries + i`. It sees key j where
/// `mask[b, j]` is not 0, where `j <= p` if it is causal, and where `j > p - window` if there is a window. A query that
/// sees no key gives 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Heads of q.
    pub heads: u64,
    /// Heads of k and v; divides `heads`.
    pub kv_heads: u64,
    /// s, usually `1 / sqrt(d)`.
    pub scale: f64,
    /// Whether a query sees no key after its own.
    #[serde(default, skip_serializing_if = "is_false")]
    pub causal: bool,
    /// How many keys up to its own a query sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Attention {
    /// The queries.
    pub const Q: usize = 0;
    /// The keys.
    pub const K: usize = 1;
    /// The values.
    pub const V: usize = 2;
    /// Which keys are there, optional.
    pub const MASK: usize = 3;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "attention",
        formula: "y = softmax(s q kᵀ) v by heads, over the keys that a query sees: q [batch, queries, heads·d], \
                  k [batch, keys, kv_heads·d], v [batch, keys, kv_heads·e], mask i32 or i64 [batch, keys], \
                  y [batch, queries, heads·e]; query i stands at key keys - queries + i; without a key y is 0",
        slots: &[required("q"), required("k"), required("v"), optional("mask")],
        variadic: false,
        attributes: &[
            ("heads", "heads of q, 1 or more"),
            ("kv_heads", "heads of k and v, a divisor of heads"),
            ("scale", "s, finite"),
            ("causal", "whether a query sees no key after its own, default false"),
            ("window", "how many keys up to its own a query sees, 1 or more, optional"),
        ],
        decode: decode::<Self>,
    }];

    /// Whether a query at key `at` may see key `key`, but for the mask.
    pub fn sees(&self, at: i64, key: i64) -> bool {
        (!self.causal || key <= at)
            && self.window.is_none_or(|window| key.saturating_add_unsigned(window) > at)
    }

    fn check(&self) -> Result<(), RuleError> {
        finite("scale", self.scale)?;
        let bad = |attribute, found: u64, expected: &str| {
            Err(RuleError::Attribute { attribute, found: found.to_string(), expected: expected.to_owned() })
        };
        if self.heads == 0 {
            return bad("heads", 0, "1 or more");
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return bad("kv_heads", self.kv_heads, &format!("a divisor of the {} heads", self.heads));
        }
        if self.window == Some(0) {
            return bad("window", 0, "1 or more");
        }
        Ok(())
    }
}

/// The width of one head of an operand.
fn head(found: &TensorType, operand: &'static str, heads: u64) -> Result<u64, RuleError> {
    let fixed = found.shape[2].as_fixed();
    fixed.filter(|width| width.is_multiple_of(heads)).map(|width| width / heads).ok_or_else(|| {
        RuleError::Attribute {
            attribute: if operand == "q" { "heads" } else { "kv_heads" },
            found: heads.to_string(),
            expected: format!("a divisor of the last dim of `{operand}` {found}, which is fixed"),
        }
    })
}

impl Operator for Attention {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        self.check()?;
        let (q, k, v) = (operands.required(Self::Q), operands.required(Self::K), operands.required(Self::V));
        for slot in [Self::Q, Self::K, Self::V] {
            operands.rank(slot, 3, "three axes, [batch, length, heads·width]")?;
            operands.float(slot)?;
            if operands.required(slot).dtype != q.dtype {
                return Err(operands.mismatch(Self::Q, slot, "all have one element type"));
            }
            operands.equal_dims((Self::Q, 0), (slot, 0), "the batch is the same")?;
        }
        operands.equal_dims((Self::K, 1), (Self::V, 1), "there are as many keys as values")?;
        if head(q, "q", self.heads)? != head(k, "k", self.kv_heads)? {
            return Err(operands.mismatch(Self::Q, Self::K, "a head of q is as wide as one of k"));
        }
        let width = head(v, "v", self.kv_heads)?;
        if let Some(mask) = operands.optional(Self::MASK) {
            operands.rank(Self::MASK, 2, "two axes, [batch, keys]")?;
            if !matches!(mask.dtype, DType::I32 | DType::I64) {
                let expected = "i32 or i64".to_owned();
                return Err(RuleError::DType { operand: "mask", expected, found: mask.clone() });
            }
            operands.equal_dims((Self::K, 0), (Self::MASK, 0), "the batch is the same")?;
            operands.equal_dims((Self::K, 1), (Self::MASK, 1), "the mask has an element for each key")?;
        }
        let out = Dim::fixed(width) * Dim::fixed(self.heads);
        Ok(TensorType::new(q.dtype, Shape::new(vec![q.shape[0].clone(), q.shape[1].clone(), out])))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let view = |slot| -> Result<ArrayView3<'_, f64>, EvalError> {
            Ok(args.real(slot)?.view().into_dimensionality::<Ix3>()?)
        };
        let (q, k, v) = (view(Self::Q)?, view(Self::K)?, view(Self::V)?);
        let mask = match args.values.get(Self::MASK).copied().flatten() {
            Some(mask) => Some(mask.as_int()?),
            None => None,
        };
        let (batch, queries, keys) = (q.dim().0, q.dim().1, k.dim().1);
        let (heads, group) = (self.heads as usize, (self.heads / self.kv_heads) as usize);
        let (d, e) = (q.dim().2 / heads, v.dim().2 / self.kv_heads as usize);
        let mut y = Array3::<f64>::zeros((batch, queries, heads * e));
        for (b, i, h) in ndarray::indices((batch, queries, heads)) {
            let at = (keys + i) as i64 - queries as i64;
            let is_there = |j: usize| mask.is_none_or(|mask| mask[[b, j]] != 0);
            let seen: Vec<usize> = (0..keys).filter(|&j| self.sees(at, j as i64) && is_there(j)).collect();
            let shared = h / group;
            let score = |&j: &usize| {
                self.scale * (0..d).map(|p| q[[b, i, h * d + p]] * k[[b, j, shared * d + p]]).sum::<f64>()
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (&j, weight) in seen.iter().zip(&weights) {
                for c in 0..e {
                    y[[b, i, h * e + c]] += weight / sum * v[[b, j, shared * e + c]];
                }
            }
        }
        Ok(y.into_dyn().into())
    }
}
