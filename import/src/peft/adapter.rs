//! A directory that PEFT saved: its config and its tensors. Knows nothing about graphs.

use super::config::{ConfigError, LoraConfig};
use crate::json::read_limited;
use crate::safetensors::{SafetensorsError, read_weights};
use engraft_runtime::Weights;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

pub(super) const CONFIG_FILE: &str = "adapter_config.json";
pub(super) const TENSORS_FILE: &str = "adapter_model.safetensors";
const PICKLE_FILE: &str = "adapter_model.bin";

/// What PEFT's wrappers put in front of each module's name.
pub(super) const PREFIX: &str = "base_model.model.";

/// The longest config, in bytes; real ones have a few thousand.
const MAX_CONFIG: u64 = 1 << 24;

/// Why an adapter could not be opened.
#[derive(Debug, Error)]
pub enum AdapterError {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The config is longer than any real one.
    #[error("{}: the config has more than {MAX_CONFIG} bytes", path.display())]
    ConfigTooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The config was refused.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ConfigError,
    },
    /// An adapter is to be written whose config says something else than its text.
    #[error("{}: a field of the config was changed after it was read, so its text no longer says what it means", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The tensors are pickled, and unpickling runs whatever code the file holds.
    #[error("{}: pickled tensors are not read; expected {TENSORS_FILE}, which `safe_serialization=True` writes", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// The tensors could not be read.
    #[error(transparent)]
    Tensors(#[from] SafetensorsError),
    /// A tensor's name is not one that PEFT gives.
    #[error("{}tensor `{tensor}`: expected a name that starts with `{PREFIX}`", in_file(.file.as_deref()))]
    Name {
        /// The file that holds it, if it came from one.
        file: Option<PathBuf>,
        /// The tensor.
        tensor: String,
    },
}

fn in_file(file: Option<&Path>) -> String {
    file.map_or_else(String::new, |file| format!("{}: ", file.display()))
}

/// A LoRA or DoRA adapter as PEFT saved it.
#[derive(Clone, Debug)]
pub struct PeftAdapter {
    config: LoraConfig,
    /// By name, without the prefix.
    tensors: Weights,
    residual_base: bool,
}

impl PeftAdapter {
    /// Opens a directory with an `adapter_config.json` and an `adapter_model.safetensors`.
    ///
    /// # Errors
    /// A file is absent or malformed, or the config asks for something that is not supported; the error names the file
    /// and the field or tensor.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, AdapterError> {
        let directory = directory.as_ref();
        let path = directory.join(CONFIG_FILE);
        let config = LoraConfig::parse(&read_config(&path)?);
        let config = config.map_err(|source| AdapterError::Config { path, source })?;
        let (tensors, pickle) = (directory.join(TENSORS_FILE), directory.join(PICKLE_FILE));
        if !tensors.exists() && pickle.exists() {
            return Err(AdapterError::Pickle { path: pickle });
        }
        Self::named(config, &read_weights(&tensors)?, Some(&tensors))
    }

    /// An adapter of this config and these tensors, under the names that PEFT gives them in a file.
    ///
    /// # Errors
    /// [`AdapterError::Name`].
    pub fn new(config: LoraConfig, tensors: &Weights) -> Result<Self, AdapterError> {
        Self::named(config, tensors, None)
    }

    /// As [`new`](Self::new) for tensors from a file, if there is one.
    fn named(config: LoraConfig, tensors: &Weights, file: Option<&Path>) -> Result<Self, AdapterError> {
        let strip = |name: &str| match name.strip_prefix(PREFIX) {
            Some(stripped) => Ok(stripped.to_owned()),
            None => Err(AdapterError::Name { file: file.map(Path::to_owned), tensor: name.to_owned() }),
        };
        let tensors = tensors.iter().map(|(name, tensor)| Ok((strip(name)?, tensor.clone())));
        let tensors = tensors.collect::<Result<_, AdapterError>>()?;
        Ok(Self { config, tensors, residual_base: false })
    }

    /// States that the base that the adapter is attached to is the *residual* one: what `PiSSA`, `OLoRA`, `CorDA`,
    /// `LoftQ` or LoRA-GA left of the original weights when training began. Such an adapter is an update of that base
    /// and wrong on the original one, so without this statement it is not attached. Others are not concerned.
    #[must_use]
    pub fn on_residual_base(self) -> Self {
        Self { residual_base: true, ..self }
    }

    /// What the adapter says of itself.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The tensors, under the names of the base's modules: `fc1.lora_A.weight`.
    pub fn tensors(&self) -> &Weights {
        &self.tensors
    }

    /// The same with other tensors, under the names of the base's modules.
    pub(crate) fn with_tensors(&self, tensors: Weights) -> Self {
        Self { tensors, ..self.clone() }
    }

    pub(super) fn is_on_residual_base(&self) -> bool {
        self.residual_base
    }
}

fn read_config(path: &Path) -> Result<String, AdapterError> {
    let io = |source| AdapterError::Io { path: path.to_owned(), source };
    let text = read_limited(path, MAX_CONFIG).map_err(io)?;
    text.ok_or_else(|| AdapterError::ConfigTooLarge { path: path.to_owned() })
}
