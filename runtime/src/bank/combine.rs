//! Several adapters as one: in order, as PEFT runs them when several are active, or as a weighted sum. Both are exact: the
//! updates stay apart until a layer's normal form is made of them.

use super::adapter::AdapterWeights;
use super::form::{LayerWeights, Update};

/// Why adapters make no one adapter.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CombineError {
    /// Two adapters replace one bias.
    #[error(
        "adapters {first} and {second} both replace the bias of `{module}`, and only one can stand in its place"
    )]
    Bias {
        /// The layer.
        module: String,
        /// The first of them, counted from 0.
        first: usize,
        /// The second.
        second: usize,
    },
    /// A `DoRA` in a sum.
    #[error(
        "adapter {adapter} is DoRA on `{module}`: its gain multiplies the layer, so a weighted sum with others has no exact \
         meaning; let them follow each other instead"
    )]
    Magnitude {
        /// The layer.
        module: String,
        /// The adapter, counted from 0.
        adapter: usize,
    },
    /// A replaced bias in a sum.
    #[error("adapter {adapter} replaces the bias of `{module}`, which cannot be weighted")]
    WeightedBias {
        /// The layer.
        module: String,
        /// The adapter, counted from 0.
        adapter: usize,
    },
    /// A weight that is no number.
    #[error("the weight of adapter {adapter} is {weight}, expected a finite number")]
    Weight {
        /// The adapter, counted from 0.
        adapter: usize,
        /// Its weight.
        weight: f64,
    },
}

/// Adapters one after the other: with `D = s B A`, `LoRA` after `LoRA` is `W + D1 + D2`, and `DoRA` after `DoRA`
/// `g2 (g1 (W + D1) + D2)`, where each norm is of the unmerged W and its own update alone. The order matters as soon as one
/// of them is `DoRA`.
///
/// # Errors
/// Two of them replace one bias.
pub fn in_order<'a>(
    adapters: impl IntoIterator<Item = &'a AdapterWeights>,
) -> Result<AdapterWeights, CombineError> {
    let mut all = AdapterWeights::new();
    let mut biases = std::collections::BTreeMap::new();
    for (index, adapter) in adapters.into_iter().enumerate() {
        for (module, LayerWeights { updates, bias }) in adapter {
            let layer = all.entry(module.clone()).or_default();
            layer.updates.extend(updates.iter().cloned());
            if let Some(bias) = bias {
                if let Some(first) = biases.insert(module.clone(), index) {
                    return Err(CombineError::Bias { module: module.clone(), first, second: index });
                }
                layer.bias = Some(bias.clone());
            }
        }
    }
    Ok(all)
}

/// The sum of `LoRA` adapters, each times its weight: `W + w1 s1 B1 A1 + w2 s2 B2 A2`, whatever their ranks and scales. The
/// factors are put side by side, not added up.
///
/// # Errors
/// One of them is `DoRA` or replaces a bias, or a weight is not finite.
pub fn weighted<'a>(
    adapters: impl IntoIterator<Item = (&'a AdapterWeights, f64)>,
) -> Result<AdapterWeights, CombineError> {
    let mut sum = AdapterWeights::new();
    for (index, (adapter, weight)) in adapters.into_iter().enumerate() {
        if !weight.is_finite() {
            return Err(CombineError::Weight { adapter: index, weight });
        }
        for (module, LayerWeights { updates, bias }) in adapter {
            if bias.is_some() {
                return Err(CombineError::WeightedBias { module: module.clone(), adapter: index });
            }
            if updates.iter().any(|update| update.magnitude.is_some()) {
                return Err(CombineError::Magnitude { module: module.clone(), adapter: index });
            }
            let scaled =
                updates.iter().map(|update| Update { scale: weight * update.scale, ..update.clone() });
            sum.entry(module.clone()).or_default().updates.extend(scaled);
        }
    }
    Ok(sum)
}
