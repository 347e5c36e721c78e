//! A model's directory as Hugging Face lays it out: `config.json`, and the tensors in one safetensors file or in shards with
//! an index. Knows nothing about tokenizers; they find their files by its path.

use super::Architecture;
use super::config::{self, ConfigError};
use super::tensors::{Normalised, TensorsError};
use crate::json::{parse_object, read_limited};
use crate::safetensors::{SafetensorsError, SafetensorsFile};
use engraft_runtime::Weights;
use serde_json::{Map, Value as Json};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use thiserror::Error;

pub(crate) const CONFIG_FILE: &str = "config.json";
pub(crate) const TENSORS_FILE: &str = "model.safetensors";
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
const PICKLE_FILES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// The longest config, in bytes; real ones have a few thousand.
const MAX_CONFIG: u64 = 1 << 24;
/// The longest index, in bytes; real ones have a hundred for each tensor.
const MAX_INDEX: u64 = 1 << 28;

/// Why a model's directory could not be opened.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is longer than any real one.
    #[error("{}: the file has more than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most it may have.
        limit: u64,
    },
    /// The config was refused.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ConfigError,
    },
    /// There are no tensors.
    #[error("{}: there is neither `{TENSORS_FILE}` nor `{INDEX_FILE}`", path.display())]
    NoTensors {
        /// The directory.
        path: PathBuf,
    },
    /// The tensors are pickled, and unpickling runs whatever code the file holds.
    #[error(
        "{}: pickled tensors are not read; expected {TENSORS_FILE}: load the model with transformers and save it with \
         `save_pretrained`, which writes that",
        path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// The index is malformed.
    #[error("{}: the index is malformed: {source}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The index has no list of tensors.
    #[error("{}: expected `weight_map`, an object of file names by tensor", path.display())]
    WeightMap {
        /// The file.
        path: PathBuf,
    },
    /// A shard's name is not that of a safetensors file in the directory.
    #[error("{}: `{shard}` is not the name of a safetensors file beside it", path.display())]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The name.
        shard: String,
    },
    /// A shard lacks a tensor that the index says is in it.
    #[error("{}: tensor `{tensor}` is missing; the index says that it is here", shard.display())]
    NotInShard {
        /// The shard.
        shard: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A shard holds a tensor that the index says is elsewhere, or does not know.
    #[error(
        "{}: tensor `{tensor}` is here, but the index says that it is {}",
        shard.display(),
        elsewhere.as_ref().map_or_else(|| "nowhere".to_owned(), |shard| format!("in `{shard}`"))
    )]
    NotInIndex {
        /// The shard.
        shard: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the index says that it is, if anywhere.
        elsewhere: Option<String>,
    },
    /// A file of tensors could not be read.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// The tensors are not the model's.
    #[error("{}: {source}", path.display())]
    Tensors {
        /// The file that holds the tensor, or says which tensors there are, or which model they are of.
        path: PathBuf,
        /// Why.
        source: TensorsError,
    },
}

/// A model that lies in a directory.
#[derive(Clone, Debug)]
pub struct ModelDirectory {
    path: PathBuf,
    config: Map<String, Json>,
    architecture: Architecture,
    tensors: Normalised,
}

impl ModelDirectory {
    /// Opens a directory with a `config.json` and a `model.safetensors`, or a `model.safetensors.index.json` and the
    /// shards it names. Of both, the one file is read, as transformers does. The files are mapped, see
    /// [`SafetensorsFile`].
    ///
    /// # Errors
    /// A file is absent or malformed, the config asks for something that is not supported, or the tensors are not those
    /// that the config means; the error names the file and the field or tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DirectoryError> {
        let path = path.as_ref();
        let (config, architecture) = read_config(path)?;
        let files = files(path)?;
        let tensors = architecture.normalise(&weights(&files)?);
        let tensors = tensors.map_err(|source| tensors_error(path, &files, source))?;
        Ok(Self { path: path.to_owned(), config, architecture, tensors })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole `config.json`, for what the graph does not depend on.
    pub fn config(&self) -> &Map<String, Json> {
        &self.config
    }

    /// The model.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// A tensor for each parameter of the model's graph, under its name.
    pub fn weights(&self) -> &Weights {
        &self.tensors.weights
    }

    /// The tensors of the files that are no part of the graph: heads, poolers, buffers.
    pub fn left_out(&self) -> &[String] {
        &self.tensors.left_out
    }
}

/// The `config.json` of a directory, and the model that it describes.
pub(crate) fn read_config(directory: &Path) -> Result<(Map<String, Json>, Architecture), DirectoryError> {
    let file = directory.join(CONFIG_FILE);
    let text = read(&file, MAX_CONFIG)?;
    let in_file = |source| DirectoryError::Config { path: file.clone(), source };
    let config = config::parse(&text).map_err(in_file)?;
    let architecture = Architecture::from_config(&config).map_err(in_file)?;
    Ok((config, architecture))
}

/// A file's text.
fn read(path: &Path, limit: u64) -> Result<String, DirectoryError> {
    let text =
        read_limited(path, limit).map_err(|source| DirectoryError::Io { path: path.to_owned(), source })?;
    text.ok_or_else(|| DirectoryError::TooLarge { path: path.to_owned(), limit })
}

/// The error names the file that holds the tensor, or says which are there; or the config, if that makes no graph.
fn tensors_error(directory: &Path, files: &[SafetensorsFile], source: TensorsError) -> DirectoryError {
    if let TensorsError::Build(_) = source {
        return DirectoryError::Tensors { path: directory.join(CONFIG_FILE), source };
    }
    let holds = |file: &&SafetensorsFile| {
        files.len() == 1 || file.tensors().any(|tensor| Some(tensor.name) == source.tensor())
    };
    let file = files.iter().find(holds).map(|file| file.path().to_owned());
    DirectoryError::Tensors { path: file.unwrap_or_else(|| directory.join(INDEX_FILE)), source }
}

/// Every tensor of the files.
fn weights(files: &[SafetensorsFile]) -> Result<Weights, DirectoryError> {
    let mut weights = Weights::new();
    for file in files {
        for (tensor, data) in file.weights()?.iter() {
            weights.insert(tensor, data.clone());
        }
    }
    Ok(weights)
}

/// The files of tensors of a directory, which together hold each tensor once.
pub(crate) fn files(directory: &Path) -> Result<Vec<SafetensorsFile>, DirectoryError> {
    let (single, index) = (directory.join(TENSORS_FILE), directory.join(INDEX_FILE));
    if single.exists() {
        return Ok(vec![SafetensorsFile::open(single)?]);
    }
    if index.exists() {
        return shards(directory, &index);
    }
    let pickle = PICKLE_FILES.iter().map(|file| directory.join(file)).find(|file| file.exists());
    Err(match pickle {
        Some(path) => DirectoryError::Pickle { path },
        None => DirectoryError::NoTensors { path: directory.to_owned() },
    })
}

/// All shards. Each tensor is in the one that the index says, and there is no other.
fn shards(directory: &Path, index: &Path) -> Result<Vec<SafetensorsFile>, DirectoryError> {
    let shards = read_index(index)?;
    let files: BTreeSet<&String> = shards.values().collect();
    let open = |file: &String| {
        let shard = directory.join(file);
        let opened = SafetensorsFile::open(&shard)?;
        let tensors: BTreeSet<&str> = opened.tensors().map(|tensor| tensor.name).collect();
        for &tensor in &tensors {
            match shards.get(tensor) {
                Some(expected) if expected == file => {}
                elsewhere => {
                    let (tensor, elsewhere) = (tensor.to_owned(), elsewhere.cloned());
                    return Err(DirectoryError::NotInIndex { shard, tensor, elsewhere });
                }
            }
        }
        let mut here = shards.iter().filter(|(_, expected)| *expected == file).map(|(tensor, _)| tensor);
        match here.find(|tensor| !tensors.contains(tensor.as_str())) {
            Some(tensor) => Err(DirectoryError::NotInShard { shard, tensor: tensor.clone() }),
            None => Ok(opened),
        }
    };
    files.into_iter().map(open).collect()
}

/// The shard of each tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, DirectoryError> {
    let text = read(path, MAX_INDEX)?;
    let index =
        parse_object(&text).map_err(|source| DirectoryError::Index { path: path.to_owned(), source })?;
    let malformed = || DirectoryError::WeightMap { path: path.to_owned() };
    let map = index.get("weight_map").and_then(Json::as_object).ok_or_else(malformed)?;
    let entry = |(tensor, shard): (&String, &Json)| {
        let shard = shard.as_str().ok_or_else(malformed)?;
        if is_shard_name(shard) {
            return Ok((tensor.clone(), shard.to_owned()));
        }
        Err(DirectoryError::ShardName { path: path.to_owned(), shard: shard.to_owned() })
    };
    map.iter().map(entry).collect()
}

/// Whether a name is that of a file in the same directory.
fn is_shard_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let is_one = matches!(components.next(), Some(Component::Normal(one)) if one == name);
    is_one && components.next().is_none() && name.ends_with(".safetensors") && !name.contains('\\')
}
