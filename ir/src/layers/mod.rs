//! Layers: parameters and ops that belong together, one layer a file, written with the builder's public vocabulary
//! only. Nothing else in this crate knows them; they are also examples of how to write one's own.
//!
//! A layer of the name `fc` makes parameters `fc.weight`, `fc.bias` and so on, and its result is the node `fc`.

mod conv1d;
pub mod dora;
mod embedding;
mod factors;
mod linear;
pub mod lora;

pub use conv1d::conv1d;
pub use dora::{DoraConfig, DoraMeaning, DoraOptions, dora_layer};
pub use embedding::embedding;
pub use linear::linear;
pub use lora::{LoraConfig, LoraOptions, lora_delta, lora_layer};

use crate::{Axis, Cause, DType, Dim, GraphBuilder, Tensor};

/// What a layer needs, or else the failed tensor to return; its error is reported.
type Checked<'g, T> = Result<T, Tensor<'g>>;

/// The element type and the last dim of a layer's input.
#[track_caller]
fn features(x: Tensor<'_>) -> Checked<'_, (DType, Dim)> {
    let Some(ty) = x.ty() else { return Err(x) };
    match Axis::LAST.resolve(&ty) {
        Ok(axis) => Ok((ty.dtype, ty.shape[axis].clone())),
        Err(source) => Err(x.builder().fail(Cause::Argument { node: x.name().unwrap_or_default(), source })),
    }
}

/// Requires an option of 1 or more.
#[track_caller]
fn positive<'g>(
    g: &'g GraphBuilder,
    layer: &str,
    option: &'static str,
    found: impl Into<Dim>,
) -> Checked<'g, ()> {
    let found = found.into();
    if found != Dim::fixed(0) {
        return Ok(());
    }
    let (layer, found) = (layer.to_owned(), found.to_string());
    Err(g.fail(Cause::LayerOption { layer, option, found, expected: "1 or more" }))
}
