//! Binding times: when a value becomes known. Knows nothing about ops or graphs.

use serde::{Deserialize, Serialize};
use std::fmt;

/// When a value is known. A node's stage is the latest among its operands, its symbolic dims and its own kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Known from the graph alone: constants and what is computed from them.
    Compile,
    /// Known when the frozen base weights are loaded.
    #[default]
    Base,
    /// Known when an adapter is loaded.
    Adapter,
    /// Known only in a call: inputs, live parameters, and what depends on them.
    Call,
}

impl Stage {
    /// All stages, earliest first.
    pub const ALL: [Self; 4] = [Self::Compile, Self::Base, Self::Adapter, Self::Call];

    /// The name used in text and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compile => "compile",
            Self::Base => "base",
            Self::Adapter => "adapter",
            Self::Call => "call",
        }
    }

    /// The stage with this [`name`](Self::name), if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
