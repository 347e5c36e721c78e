//! A base and the adapter on it, as their files say: what is known before anything is compiled.

use super::{CompileOptions, CompiledModel, PretrainedError};
use crate::import::gguf::Gguf;
use crate::import::models::{Architecture, GraphOptions, ModelDirectory};
use crate::import::peft::{AttachReport, PeftAdapter, adaptable, attach};
use crate::import::sentence::SentenceConfig;
use crate::import::tokenizer::TextTokenizer;
use crate::runtime::Weights;
use engraft_ir::Graph;
use serde_json::{Map, Value as Json};
use std::path::{Path, PathBuf};

/// Where a base's tokenizer is.
enum Source {
    /// In the directory of the network.
    Directory { network: PathBuf },
    /// In the GGUF file.
    Gguf(Box<Gguf>),
}

/// An adapter, and where it came from.
struct Adapter {
    path: PathBuf,
    adapter: PeftAdapter,
}

/// A pretrained model: its architecture, its weights, and the adapter on it, if there is one.
pub struct Pretrained {
    path: PathBuf,
    source: Source,
    architecture: Architecture,
    config: Map<String, Json>,
    weights: Weights,
    adapter: Option<Adapter>,
}

/// A base's graph with its adapter, and a tensor for each parameter.
pub struct Assembled {
    /// The graph, with the adapter attached.
    pub graph: Graph,
    /// The tensors of the base.
    pub base: Weights,
    /// The tensors of the adapter; those of the base's names take their place.
    pub adapter: Weights,
    /// What attaching the adapter did.
    pub report: AttachReport,
}

impl Pretrained {
    /// Opens a model: a directory with `config.json` and safetensors, or a GGUF file, which is seen from its name. Weights
    /// stay mapped in their file; those in another form than f32 become f32 when they are loaded, one after the other.
    ///
    /// # Errors
    /// A file is missing, broken, or says something that is not supported; the error names it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, PretrainedError> {
        let path = path.as_ref();
        if is_gguf(path) {
            return Self::open_gguf(path);
        }
        // sentence-transformers may keep the network in a directory of its own.
        let network = SentenceConfig::read(path)?.transformer;
        let directory = ModelDirectory::open(&network)?;
        Ok(Self {
            path: path.to_owned(),
            source: Source::Directory { network },
            architecture: directory.architecture().clone(),
            config: directory.config().clone(),
            weights: directory.weights().clone(),
            adapter: None,
        })
    }

    fn open_gguf(path: &Path) -> Result<Self, PretrainedError> {
        let gguf = Gguf::open(path)?;
        let config = gguf.config()?;
        let architecture = Architecture::from_config(&config)
            .map_err(|source| PretrainedError::Config { path: path.to_owned(), source })?;
        let weights = architecture
            .normalise(&gguf.weights()?)
            .map_err(|source| PretrainedError::Tensors { path: path.to_owned(), source })?
            .weights;
        let source = Source::Gguf(Box::new(gguf));
        Ok(Self { path: path.to_owned(), source, architecture, config, weights, adapter: None })
    }

    /// Whether [`open`](Self::open) would read this as a model: a directory, or a file with a name in `.gguf`.
    pub fn is_one(path: &Path) -> bool {
        is_gguf(path) || path.is_dir()
    }

    /// Puts an adapter that PEFT saved in a directory on the base, in place of an earlier one.
    ///
    /// # Errors
    /// The adapter cannot be read. Whether it fits is seen in [`assemble`](Self::assemble).
    pub fn adapter(self, path: impl AsRef<Path>) -> Result<Self, PretrainedError> {
        let adapter = PeftAdapter::open(path.as_ref())?;
        Ok(self.with_adapter(path.as_ref(), adapter))
    }

    /// Puts an adapter that was read before on the base; errors call it `path`.
    #[must_use]
    pub fn with_adapter(mut self, path: &Path, adapter: PeftAdapter) -> Self {
        self.adapter = Some(Adapter { path: path.to_owned(), adapter });
        self
    }

    /// What the model is.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Where the base came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokenizer that lies with the model.
    ///
    /// # Errors
    /// There is none, it is broken or not supported, or it has ids that the model has no embedding for.
    pub fn tokenizer(&self) -> Result<TextTokenizer, PretrainedError> {
        let (tokenizer, path) = match &self.source {
            Source::Gguf(gguf) => {
                let name = self.path.display().to_string();
                (TextTokenizer::from_built(&name, gguf.tokenizer()?)?, self.path.clone())
            }
            Source::Directory { network } => {
                let path = network.join("tokenizer.json");
                (TextTokenizer::read(&path)?, path)
            }
        };
        let (tokens, vocab) = (tokenizer.vocab_size(), self.architecture.vocab());
        if tokens > vocab {
            return Err(PretrainedError::Vocabulary { path, tokens, vocab });
        }
        Ok(tokenizer)
    }

    /// How one vector is made of a text's tokens, as the files of sentence-transformers say.
    ///
    /// # Errors
    /// They are broken or say something that is not supported.
    pub fn sentence(&self) -> Result<SentenceConfig, PretrainedError> {
        Ok(SentenceConfig::read(&self.path)?)
    }

    /// The tokens that end a text: `eos_token_id` of `generation_config.json`, or else of the model's own configuration;
    /// none if neither says one.
    ///
    /// # Errors
    /// A file cannot be read, or the field is neither an id nor a list of ids.
    pub fn end_tokens(&self) -> Result<Vec<u32>, PretrainedError> {
        let Source::Directory { network } = &self.source else { return end_tokens(&self.path, &self.config) };
        let path = network.join("generation_config.json");
        if !path.exists() {
            return end_tokens(network, &self.config);
        }
        let read = |source| PretrainedError::Read { path: path.clone(), source };
        let text = std::fs::read_to_string(&path).map_err(read)?;
        let json = |source| PretrainedError::Json { path: path.clone(), source };
        end_tokens(&path, &serde_json::from_str(&text).map_err(json)?)
    }

    /// The graph with the adapter attached, and the tensors.
    ///
    /// # Errors
    /// The adapter does not fit the model, or the sizes make no graph.
    pub fn assemble(&self, options: GraphOptions) -> Result<Assembled, PretrainedError> {
        let graph = self.architecture.graph(options)?;
        let base = self.weights.clone();
        let Some(Adapter { path, adapter }) = &self.adapter else {
            return Ok(Assembled { graph, base, adapter: Weights::new(), report: AttachReport::default() });
        };
        let fitted = self.architecture.fit_adapter(adapter);
        let (adapter, _) =
            fitted.map_err(|source| PretrainedError::Tensors { path: path.clone(), source })?;
        let attached = attach(&graph, &adapter)
            .map_err(|source| PretrainedError::Attach { path: path.clone(), source: Box::new(source) })?;
        Ok(Assembled { graph: attached.graph, base, adapter: attached.weights, report: attached.report })
    }

    /// The graph with adaptable layers, and the base's tensors.
    pub(super) fn assemble_bank(&self, options: GraphOptions) -> Result<Assembled, PretrainedError> {
        if let Some(Adapter { path, .. }) = &self.adapter {
            return Err(PretrainedError::AttachedInBank { path: path.clone() });
        }
        let graph = adaptable(&self.architecture.graph(options)?).map_err(|source| {
            PretrainedError::Attach { path: self.path.clone(), source: Box::new(source) }
        })?;
        let (adapter, report) = (Weights::new(), AttachReport::default());
        Ok(Assembled { graph, base: self.weights.clone(), adapter, report })
    }

    /// Compiles the model for this machine and loads it.
    ///
    /// # Errors
    /// As [`assemble`](Self::assemble); also when the graph cannot be compiled or loaded.
    pub fn compile(self, options: CompileOptions) -> Result<CompiledModel, PretrainedError> {
        CompiledModel::new(self, options)
    }

    /// Lets go of the weights, once they are loaded.
    pub(super) fn forget_weights(&mut self) {
        self.weights = Weights::new();
        self.adapter = None;
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

fn end_tokens(path: &Path, config: &Map<String, Json>) -> Result<Vec<u32>, PretrainedError> {
    let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match config.get("eos_token_id") {
        None | Some(Json::Null) => Some(Vec::new()),
        Some(Json::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => id(value).map(|id| vec![id]),
    };
    let found = || config["eos_token_id"].to_string();
    ids.ok_or_else(|| PretrainedError::EndTokens { path: path.to_owned(), found: found() })
}
