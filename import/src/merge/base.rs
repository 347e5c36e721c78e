//! The directory that is merged into: its graph, its files of tensors, and which tensor is which parameter.

use super::error::MergeError;
use crate::models::directory::{CONFIG_FILE, INDEX_FILE, TENSORS_FILE, files, read_config};
use crate::models::{Architecture, GraphOptions};
use crate::peft::{Composition, PeftAdapter};
use crate::safetensors::{FloatType, SafetensorsFile, StoredTensor};
use crate::sentence::SentenceConfig;
use serde_json::{Map, Value as Json, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A model's directory.
pub(super) struct BaseFiles {
    /// What was named.
    pub(super) directory: PathBuf,
    /// Where the network is: the same, or inside it.
    pub(super) network: PathBuf,
    pub(super) files: Vec<SafetensorsFile>,
    config: Map<String, Json>,
    architecture: Architecture,
}

impl BaseFiles {
    pub(super) fn open(directory: &Path) -> Result<Self, MergeError> {
        let found = directory.metadata();
        let found = found.map_err(|source| MergeError::Io { path: directory.to_owned(), source })?;
        if !found.is_dir() {
            return Err(MergeError::NotADirectory { path: directory.to_owned() });
        }
        let network = SentenceConfig::read(directory)?.transformer;
        let (config, architecture) = read_config(&network)?;
        let files = files(&network)?;
        Ok(Self { directory: directory.to_owned(), network, files, config, architecture })
    }

    /// Where the network is in the directory.
    pub(super) fn inner(&self) -> PathBuf {
        self.network.strip_prefix(&self.directory).map(Path::to_owned).unwrap_or_default()
    }

    /// The adapters on the model's graph.
    pub(super) fn compose(&self, adapters: &[&PeftAdapter]) -> Result<Composition, MergeError> {
        let graph = self.architecture.graph(GraphOptions::default())?;
        let fitted = adapters.iter().enumerate().map(|(index, adapter)| {
            let number = index + 1;
            let fitted = self.architecture.fit_adapter(adapter);
            let (fitted, outside) = fitted.map_err(|source| MergeError::Names { adapter: number, source })?;
            if outside.is_empty() {
                return Ok(fitted);
            }
            Err(MergeError::Outside { adapter: number, tensors: outside })
        });
        let fitted: Vec<PeftAdapter> = fitted.collect::<Result<_, _>>()?;
        Ok(Composition::new(&graph, &fitted.iter().collect::<Vec<_>>())?)
    }

    /// The name of a tensor in the graph, if it is one of its parameters.
    pub(super) fn parameter(&self, tensor: &str) -> String {
        self.architecture.parameter(tensor)
    }

    /// The tensor of a parameter.
    pub(super) fn find(&self, param: &str) -> Result<Option<StoredTensor<'_>>, MergeError> {
        let tensors = self.files.iter().flat_map(SafetensorsFile::tensors);
        let mut found = tensors.filter(|tensor| self.parameter(tensor.name) == param);
        let first = found.next();
        if let (Some(first), Some(second)) = (first, found.next()) {
            let (first, second) = (first.name.to_owned(), second.name.to_owned());
            return Err(MergeError::Twice { first, second, param: param.to_owned() });
        }
        Ok(first)
    }

    /// Writes the index of the shards, if there are any, for tensors of so many bytes.
    pub(super) fn write_index(&self, network: &Path, bytes: u64) -> Result<(), MergeError> {
        let named = |file: &SafetensorsFile| Some(file.path().file_name()?.to_str()?.to_owned());
        if self.files.iter().any(|file| file.path().ends_with(TENSORS_FILE)) {
            return Ok(());
        }
        let shards = self.files.iter().filter_map(|file| Some((file, named(file)?)));
        let entries = shards.flat_map(|(file, shard)| {
            file.tensors().map(move |tensor| (tensor.name.to_owned(), json!(shard)))
        });
        let weight_map: Map<String, Json> = entries.collect();
        let index = json!({"metadata": {"total_size": bytes}, "weight_map": weight_map});
        write_json(&network.join(INDEX_FILE), &index)
    }

    /// Writes the config that says in which type the weights are, where it says so.
    pub(super) fn write_config(&self, network: &Path, dtype: FloatType) -> Result<(), MergeError> {
        let name = match dtype {
            FloatType::F32 => "float32",
            FloatType::F16 => "float16",
            FloatType::Bf16 => "bfloat16",
        };
        let mut config = self.config.clone();
        for field in ["dtype", "torch_dtype"] {
            if let Some(value) = config.get_mut(field) {
                *value = json!(name);
            }
        }
        if config == self.config {
            return Ok(());
        }
        write_json(&network.join(CONFIG_FILE), &Json::Object(config))
    }
}

/// Writes a file anew: what was copied there may be as read-only as what it was copied from.
fn write_json(path: &Path, json: &Json) -> Result<(), MergeError> {
    // If it cannot be removed, writing says why.
    let _ = fs::remove_file(path);
    let written = fs::write(path, format!("{json:#}\n"));
    written.map_err(|source| MergeError::Io { path: path.to_owned(), source })
}
