//! `RoBERTa` (Liu et al., 2019) as an encoder: BERT's, whose positions begin behind that of the padding.

use super::config::{Config, ConfigError};
use super::encoder::{Encoder, IGNORED, LEFT_OUT, RENAMED};
use super::inputs::Positions;
use super::tensors::Naming;
use super::{Description, GraphOptions, Kind, Model};
use engraft_ir::GraphBuilder;

/// Reads the config of a `RoBERTa`.
pub(super) fn read(config: &Config<'_>) -> Result<Box<dyn Model>, ConfigError> {
    let encoder = Encoder::read(config)?;
    let padding = config.integer("pad_token_id", 0, encoder.vocab as u64 - 1)?.unwrap_or(1);
    // The first token stands behind the padding's own position.
    if encoder.positions < padding + 2 {
        return Err(
            config.value("max_position_embeddings", format!("more than {}, `pad_token_id` + 1", padding + 1))
        );
    }
    config.finish_model(IGNORED)?;
    Ok(Box::new(Roberta { encoder, padding }))
}

#[derive(Debug)]
struct Roberta {
    encoder: Encoder,
    /// The id of padding, and its position.
    padding: usize,
}

impl Model for Roberta {
    fn description(&self) -> Description {
        Description {
            kind: Kind::Encoder,
            vocab: self.encoder.vocab,
            hidden: self.encoder.hidden,
            context: self.encoder.positions - self.padding - 1,
            token_types: Some(self.encoder.token_types),
            positions: Positions::BehindPadding { padding: self.padding },
            naming: Naming {
                wrapper: "roberta.",
                prefix: "",
                heads: &[],
                renamed: RENAMED,
                left_out: LEFT_OUT,
                tied: None,
            },
        }
    }

    fn build(&self, g: &GraphBuilder, _: GraphOptions) {
        self.encoder.build(g);
    }
}
