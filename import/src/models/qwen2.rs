//! Qwen2 (Yang et al., 2024) and Qwen2.5: Llama with biases on queries, keys and values, and layers that see a window.

use super::config::{Config, ConfigError, MAX_SIZE};
use super::decoder::{Biases, Decoder, IGNORED};
use super::{Description, GraphOptions, Model};
use engraft_ir::GraphBuilder;

/// `max_window_layers` of configs that do not say it.
const MAX_WINDOW_LAYERS: usize = 28;
/// `sliding_window` of configs that do not say it.
const WINDOW: usize = 4096;

/// Reads the config of a Qwen2.
pub(super) fn read(config: &Config<'_>) -> Result<Box<dyn Model>, ConfigError> {
    let mut decoder = Decoder::read(config, Biases { qkv: true, output: false, mlp: false })?;
    decoder.windows = windows(config, decoder.layers)?;
    config.refuse("use_mrope", "positions have several axes, as in Qwen2-VL")?;
    config.finish_model(IGNORED)?;
    Ok(Box::new(Qwen2(decoder)))
}

/// The window of each layer: `layer_types` says which have one; without it those from `max_window_layers` on do.
fn windows(config: &Config<'_>, layers: usize) -> Result<Vec<Option<u64>>, ConfigError> {
    let is_used = config.flag("use_sliding_window", false)?;
    let stated = config.optional_size("sliding_window")?;
    let first = config.integer("max_window_layers", 0, MAX_SIZE)?.unwrap_or(MAX_WINDOW_LAYERS);
    let types = config.texts("layer_types")?;
    // Null turns it off; absence does not.
    let window = if config.is_null("sliding_window") { None } else { Some(stated.unwrap_or(WINDOW) as u64) };
    let window = window.filter(|_| is_used);
    let Some(types) = types else {
        return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
    };
    if types.len() != layers {
        return Err(config.value("layer_types", format!("one for each of the {layers} layers")));
    }
    let of_type = |name: &&str| match (*name, window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        ("sliding_attention", None) => {
            Err(config.value("layer_types", "full_attention, as no window is used"))
        }
        _ => Err(config.unsupported("layer_types", "supported are full_attention and sliding_attention")),
    };
    types.iter().map(of_type).collect()
}

#[derive(Debug)]
struct Qwen2(Decoder);

impl Model for Qwen2 {
    fn description(&self) -> Description {
        self.0.description()
    }

    fn build(&self, g: &GraphBuilder, options: GraphOptions) {
        self.0.build(g, options);
    }
}
