//! BERT (Devlin et al., 2018) as an encoder.

use super::config::{Config, ConfigError};
use super::encoder::{Encoder, IGNORED, LEFT_OUT, RENAMED};
use super::inputs::Positions;
use super::tensors::Naming;
use super::{Description, GraphOptions, Kind, Model};
use engraft_ir::GraphBuilder;

/// Reads the config of a BERT.
pub(super) fn read(config: &Config<'_>) -> Result<Box<dyn Model>, ConfigError> {
    let encoder = Encoder::read(config)?;
    config.finish_model(&[IGNORED, &[("pad_token_id", "is what the mask says, too")]].concat())?;
    Ok(Box::new(Bert(encoder)))
}

#[derive(Debug)]
struct Bert(Encoder);

impl Model for Bert {
    fn description(&self) -> Description {
        Description {
            kind: Kind::Encoder,
            vocab: self.0.vocab,
            hidden: self.0.hidden,
            context: self.0.positions,
            token_types: Some(self.0.token_types),
            positions: Positions::Counted,
            naming: Naming {
                wrapper: "bert.",
                prefix: "",
                heads: &[],
                renamed: RENAMED,
                left_out: LEFT_OUT,
                tied: None,
            },
        }
    }

    fn build(&self, g: &GraphBuilder, _: GraphOptions) {
        self.0.build(g);
    }
}
