//! Several adapters as one, one after the other, as PEFT runs them when several are active. Exact: the updates stay apart
//! until a layer's normal form is made of them.

use std::collections::BTreeMap;

use super::adapter::AdapterWeights;
use super::form::LayerWeights;

/// Two adapters that cannot follow each other, since both replace one bias.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "adapters {first} and {second} both replace the bias of `{module}`, and only one can stand in its place"
)]
pub struct OrderError {
    /// The layer.
    pub module: String,
    /// The first of them, counted from 0.
    pub first: usize,
    /// The second.
    pub second: usize,
}

/// Adapters one after the other: with `D = s B A`, `LoRA` after `LoRA` is `W + D1 + D2`, and `DoRA` after `DoRA`
/// `g2 (g1 (W + D1) + D2)`, where each norm is of the unmerged W and its own update alone. The order matters as soon as one
/// of them is `DoRA`. A layer that one of them merges is merged.
///
/// # Errors
/// Two of them replace one bias.
pub fn in_order<'a>(
    adapters: impl IntoIterator<Item = &'a AdapterWeights>,
) -> Result<AdapterWeights, OrderError> {
    let (mut all, mut biases) = (AdapterWeights::new(), BTreeMap::new());
    for (index, adapter) in adapters.into_iter().enumerate() {
        for (module, LayerWeights { updates, bias, merge }) in adapter {
            let layer = all.entry(module.clone()).or_default();
            layer.updates.extend(updates.iter().cloned());
            layer.merge |= merge;
            if let Some(bias) = bias {
                if let Some(first) = biases.insert(module.clone(), index) {
                    return Err(OrderError { module: module.clone(), first, second: index });
                }
                layer.bias = Some(bias.clone());
            }
        }
    }
    Ok(all)
}
