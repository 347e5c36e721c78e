//! An adapter back to a directory as PEFT writes it. Knows nothing about what the adapter computes.

use super::adapter::{AdapterError, CONFIG_FILE, PREFIX, PeftAdapter, TENSORS_FILE};
use super::config::LoraConfig;
use crate::safetensors::write_with_metadata;
use engraft_runtime::Tensor;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What `PyTorch`'s tools ask of a safetensors file.
pub(crate) const METADATA: (&str, &str) = ("format", "pt");

impl PeftAdapter {
    /// Writes an `adapter_config.json` and an `adapter_model.safetensors` that PEFT loads: the config as it was read, the
    /// tensors under PEFT's names. What PEFT saved in `f32` comes out byte for byte; what it saved in half precision
    /// comes out in `f32`, with the same numbers. The directory is made if there is none.
    ///
    /// # Errors
    /// A file cannot be written, or a field of the config was changed after it was read.
    pub fn save(&self, directory: impl AsRef<Path>) -> Result<(), AdapterError> {
        let directory = directory.as_ref();
        let path = directory.join(CONFIG_FILE);
        let read = LoraConfig::parse(self.config().json());
        let read = read.map_err(|source| AdapterError::Config { path: path.clone(), source })?;
        if !read.says_the_same(self.config()) {
            return Err(AdapterError::Changed { path });
        }
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| AdapterError::Io { path, source }
        };
        fs::create_dir_all(directory).map_err(io(directory))?;
        let named: Vec<(String, &Tensor)> =
            self.tensors().iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), &**tensor)).collect();
        let named: Vec<_> = named.iter().map(|(name, tensor)| (name.as_str(), *tensor)).collect();
        let (key, value) = METADATA;
        let metadata = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        write_with_metadata(directory.join(TENSORS_FILE), &named, &metadata)?;
        fs::write(&path, self.config().json()).map_err(io(&path))
    }
}
