//! The embedding layer.

use super::positive;
use crate::ops::Init;
use crate::{DType, Tensor, dims};

/// Rows of a table: ids of any shape in `0 .. vocab`, `name.weight` `[vocab, dim]` (frozen, normal 0.02 as in GPT-2),
/// y `[.., dim]` under `name`.
#[track_caller]
pub fn embedding<'g>(ids: Tensor<'g>, name: &str, vocab: usize, dim: usize) -> Tensor<'g> {
    let g = ids.builder();
    for (option, size) in [("vocab", vocab), ("dim", dim)] {
        if let Err(failed) = positive(g, name, option, size) {
            return failed;
        }
    }
    let weight = g.param(&format!("{name}.weight"), DType::F32, dims![vocab, dim]);
    weight.init(Init::Normal { std: 0.02 }).gather(ids).named(name)
}
