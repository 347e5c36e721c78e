//! What everybody computes at a point, and how it is called. Knows nothing about who computes it.

use crate::layers::Shape;
use serde::Serialize;
use std::fmt;

/// A workload of a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Workload {
    /// A linear layer.
    Layer {
        /// The layer.
        shape: Shape,
        /// The rows of x.
        batch: usize,
    },
    /// A linear layer, each row with an adapter of its own choice.
    Mixed {
        /// The layer.
        shape: Shape,
        /// The rows of x.
        batch: usize,
    },
    /// A whole encoder.
    Encode {
        /// The model's name.
        model: &'static str,
        /// The rows.
        batch: usize,
        /// The tokens of each row.
        tokens: usize,
    },
    /// One token of a decoder.
    Decode {
        /// The model's name.
        model: &'static str,
        /// The tokens before it.
        past: usize,
        /// The weights that it must touch, in bytes.
        bytes: usize,
    },
}

impl Workload {
    /// What it is, apart from its size.
    pub fn subject(self) -> String {
        match self {
            Self::Layer { shape, .. } | Self::Mixed { shape, .. } => shape.to_string(),
            Self::Encode { model, .. } => format!("{model}, DoRA on all linear layers"),
            Self::Decode { model, bytes, .. } => {
                format!("{model}, one token, {:.1} MB of weights", bytes as f64 / 1e6)
            }
        }
    }

    /// What its size is counted in.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Layer { .. } | Self::Mixed { .. } => "batch",
            Self::Encode { .. } => "tokens",
            Self::Decode { .. } => "tokens before",
        }
    }

    /// Its size: `8`, or rows and their tokens, `8x32`.
    pub fn size(self) -> String {
        match self {
            Self::Layer { batch, .. } | Self::Mixed { batch, .. } => batch.to_string(),
            Self::Encode { batch, tokens, .. } => format!("{batch}x{tokens}"),
            Self::Decode { past, .. } => past.to_string(),
        }
    }

    /// The rows that linear layers see.
    pub fn rows(self) -> usize {
        match self {
            Self::Layer { batch, .. } | Self::Mixed { batch, .. } => batch,
            Self::Encode { batch, tokens, .. } => batch * tokens,
            Self::Decode { .. } => 1,
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} {}", self.subject(), self.unit(), self.size())
    }
}
