//! Mistral (Jiang et al., 2023): Llama, each of whose layers sees a window of keys.

use super::config::{Config, ConfigError};
use super::decoder::{Biases, Decoder, IGNORED};
use super::{Description, GraphOptions, Model};
use engraft_ir::GraphBuilder;

/// Reads the config of a Mistral.
pub(super) fn read(config: &Config<'_>) -> Result<Box<dyn Model>, ConfigError> {
    let mut decoder = Decoder::read(config, Biases { qkv: false, output: false, mlp: false })?;
    // Their defaults are not Llama's, so they must be there; a window may be null.
    for field in ["num_key_value_heads", "sliding_window"] {
        if !config.has(field) {
            return Err(config.missing(field));
        }
    }
    let window = config.optional_size("sliding_window")?.map(|window| window as u64);
    decoder.windows = vec![window; decoder.layers];
    config.finish_model(IGNORED)?;
    Ok(Box::new(Mistral(decoder)))
}

#[derive(Debug)]
struct Mistral(Decoder);

impl Model for Mistral {
    fn description(&self) -> Description {
        self.0.description()
    }

    fn build(&self, g: &GraphBuilder, options: GraphOptions) {
        self.0.build(g, options);
    }
}
