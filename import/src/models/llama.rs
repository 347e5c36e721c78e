//! Llama (Touvron et al., 2023) and what is built like it.

use super::config::{Config, ConfigError};
use super::decoder::{Biases, Decoder, IGNORED};
use super::{Description, GraphOptions, Model};
use engraft_ir::GraphBuilder;

/// Reads the config of a Llama.
pub(super) fn read(config: &Config<'_>) -> Result<Box<dyn Model>, ConfigError> {
    let attention = config.flag("attention_bias", false)?;
    let biases = Biases { qkv: attention, output: attention, mlp: config.flag("mlp_bias", false)? };
    let decoder = Decoder::read(config, biases)?;
    config.refuse("sliding_window", "the layers see a window of keys only, as Mistral's do")?;
    config.finish_model(IGNORED)?;
    Ok(Box::new(Llama(decoder)))
}

#[derive(Debug)]
struct Llama(Decoder);

impl Model for Llama {
    fn description(&self) -> Description {
        self.0.description()
    }

    fn build(&self, g: &GraphBuilder, options: GraphOptions) {
        self.0.build(g, options);
    }
}
