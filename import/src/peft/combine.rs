//! Weighted combinations of LoRA adapters, exactly, as one adapter that PEFT loads. Knows nothing about bases and files.

use super::adapter::{AdapterError, PREFIX, PeftAdapter};
use super::config::{ConfigError, Init, LoraConfig};
use super::factors::{Contents, Factors, FactorsError};
use super::form::{FormError, FormTensors, LinearForm};
use super::modules::Layer;
use super::tensors::quoted;
use engraft_runtime::{Tensor, TensorError, Weights};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use thiserror::Error;

/// Why adapters have no weighted combination. They are counted from 1.
#[derive(Debug, Error)]
pub enum CombineError {
    /// There is none.
    #[error("there is no adapter to combine")]
    Nothing,
    /// An adapter's tensors are not usable.
    #[error("adapter {adapter}: {source}")]
    Factors {
        /// Which.
        adapter: usize,
        /// Why.
        source: FactorsError,
    },
    /// An adapter's update of a module has no place in a weighted sum.
    #[error("{source}")]
    Weighted {
        /// Which.
        adapter: usize,
        /// Why.
        source: FormError,
    },
    /// The sum itself cannot be written.
    #[error(transparent)]
    Form(#[from] FormError),
    /// An adapter replaces parts of the base.
    #[error(
        "adapter {adapter} replaces {} of the base, and a weighted combination has no place for that: only updates \
         s B A can be added up", quoted(.tensors)
    )]
    Replaced {
        /// Which.
        adapter: usize,
        /// The tensors.
        tensors: Vec<String>,
    },
    /// An adapter is an update of a base of its own.
    #[error(
        "adapter {adapter} was initialised by `{init}`, so it is an update of a changed base, and adapters of different \
         bases have no sum"
    )]
    ResidualBase {
        /// Which.
        adapter: usize,
        /// The method.
        init: String,
    },
    /// A module is an embedding to one adapter and a linear layer to another.
    #[error("module `{module}` is an embedding to one adapter and a linear layer to another")]
    Layer {
        /// The module.
        module: String,
    },
    /// The combination's own config could not be read back.
    #[error("the combination's config: {0}")]
    Config(#[from] ConfigError),
    /// The combination's own config could not be put together.
    #[error("the combination's config: {0}")]
    Json(#[from] serde_json::Error),
    /// A tensor could not be made.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The combination is no adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

impl CombineError {
    /// Which adapter is refused, from 1, if it is one alone.
    pub fn adapter(&self) -> Option<usize> {
        match self {
            Self::Factors { adapter, .. }
            | Self::Weighted { adapter, .. }
            | Self::Replaced { adapter, .. }
            | Self::ResidualBase { adapter, .. } => Some(*adapter),
            _ => None,
        }
    }
}

/// Σ w s B A of LoRA adapters, as one adapter with s = 1: its A's are theirs put below each other, its B's are w s B beside
/// each other, so its rank is the sum of theirs. The numbers are rounded once, when w s B becomes `f32`.
///
/// # Errors
/// A combination that has no exact meaning: of DoRA, of replaced parts of a base, of bases that differ; see
/// [`CombineError`].
pub fn combine(parts: &[(f64, &PeftAdapter)]) -> Result<PeftAdapter, CombineError> {
    let Some((_, first)) = parts.first() else { return Err(CombineError::Nothing) };
    let contents = parts.iter().enumerate().map(|(index, (_, adapter))| contents(index + 1, adapter));
    let contents: Vec<Contents> = contents.collect::<Result<_, _>>()?;
    let mut modules: BTreeMap<&str, Parts> = BTreeMap::new();
    for (index, ((weight, _), contents)) in parts.iter().zip(&contents).enumerate() {
        for factors in &contents.factors {
            let module = modules.entry(factors.module()).or_default();
            module.adapters.push(index + 1);
            module.weighted.push((*weight, factors));
        }
    }
    let lora_bias = parts.iter().any(|(_, adapter)| adapter.config().lora_bias);
    let (mut tensors, mut ranks) = (Weights::new(), BTreeMap::new());
    for (module, parts) in &modules {
        ranks.insert(*module, insert(&mut tensors, module, parts, lora_bias)?);
    }
    let config = config(&parts.iter().map(|(_, adapter)| *adapter).collect::<Vec<_>>(), &ranks, lora_bias)?;
    let mut combined = PeftAdapter::new(LoraConfig::parse(&config)?, &tensors)?;
    if first.is_on_residual_base() {
        combined = combined.on_residual_base();
    }
    Ok(combined)
}

/// What is added up for one module.
#[derive(Default)]
struct Parts<'f> {
    /// Which adapter each part is of.
    adapters: Vec<usize>,
    /// The updates, each with its weight.
    weighted: Vec<(f64, &'f Factors)>,
}

/// The factors of an adapter that is nothing but updates of the original base.
fn contents(number: usize, adapter: &PeftAdapter) -> Result<Contents, CombineError> {
    if let Init::Residual(init) = &adapter.config().init {
        return Err(CombineError::ResidualBase { adapter: number, init: init.clone() });
    }
    let contents = adapter.contents();
    let contents = contents.map_err(|source| CombineError::Factors { adapter: number, source })?;
    if !contents.replaced.is_empty() {
        return Err(CombineError::Replaced { adapter: number, tensors: contents.replaced });
    }
    Ok(contents)
}

/// Adds a module's combined tensors, and returns its rank.
fn insert(
    tensors: &mut Weights,
    module: &str,
    Parts { adapters, weighted }: &Parts<'_>,
    lora_bias: bool,
) -> Result<usize, CombineError> {
    let Some((_, first)) = weighted.first() else { return Err(CombineError::Nothing) };
    let embedding = first.layer() == Some(Layer::Embedding);
    if weighted.iter().any(|(_, factors)| (factors.layer() == Some(Layer::Embedding)) != embedding) {
        return Err(CombineError::Layer { module: module.to_owned() });
    }
    let form = LinearForm::weighted(module, (first.inputs(), first.outputs()), weighted);
    let form =
        form.map_err(|error| CombineError::Weighted { adapter: adapters[error.part], source: error.source })?;
    let names =
        if embedding { ["lora_embedding_A", "lora_embedding_B"] } else { ["lora_A.weight", "lora_B.weight"] };
    let name = |part: &str| format!("{PREFIX}{module}.{part}");
    let FormTensors { a, b, shift, .. } = form.tensors()?;
    tensors.insert(name(names[0]), a);
    tensors.insert(name(names[1]), b);
    if lora_bias {
        // An adapter without such a bias adds none.
        let none = || Tensor::f32(&[form.outputs()], vec![0.0; form.outputs()]);
        tensors.insert(name("lora_B.bias"), shift.map_or_else(none, Ok)?);
    }
    Ok(form.rank())
}

/// The fields that say which modules are adapted.
const TARGETS: [&str; 4] = ["target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"];

/// The config of a combination: that of the first adapter, but for what the combination changes.
fn config(
    adapters: &[&PeftAdapter],
    ranks: &BTreeMap<&str, usize>,
    lora_bias: bool,
) -> Result<String, CombineError> {
    let read = |adapter: &&PeftAdapter| serde_json::from_str(adapter.config().json());
    let configs: Vec<Map<String, Json>> = adapters.iter().map(read).collect::<Result<_, _>>()?;
    let mut combined = configs[0].clone();
    // Most of the modules have a rank in common; the others are named.
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for rank in ranks.values() {
        *counts.entry(*rank).or_default() += 1;
    }
    let usual = counts.iter().max_by_key(|(_, count)| **count).map_or(1, |(rank, _)| *rank);
    let others: Map<String, Json> = ranks
        .iter()
        .filter(|(_, rank)| **rank != usual)
        .map(|(module, rank)| (format!("^{}", fancy_regex::escape(module)), json!(rank)))
        .collect();
    for (field, value) in [
        ("r", json!(usual)),
        ("lora_alpha", json!(usual)),
        ("rank_pattern", Json::Object(others.clone())),
        ("alpha_pattern", Json::Object(others)),
        ("use_rslora", json!(false)),
        ("use_dora", json!(false)),
        ("lora_bias", json!(lora_bias)),
        ("init_lora_weights", json!(true)),
    ] {
        combined.insert(field.to_owned(), value);
    }
    for (field, value) in TARGETS.into_iter().zip(targets(&configs, ranks)) {
        combined.insert(field.to_owned(), value);
    }
    Ok(serde_json::to_string_pretty(&combined)?)
}

/// What [`TARGETS`] say of exactly the modules that any of the adapters targets.
fn targets(configs: &[Map<String, Json>], ranks: &BTreeMap<&str, usize>) -> [Json; 4] {
    let of = |config: &Map<String, Json>| TARGETS.map(|field| config.get(field).cloned().unwrap_or_default());
    let first = of(&configs[0]);
    if configs.iter().all(|config| of(config) == first) {
        return first;
    }
    // Lists of names and nothing else: what any of them ends is what their union ends.
    let lists = configs.iter().map(|config| {
        let alone = TARGETS[1..].iter().all(|field| config.get(*field).is_none_or(is_nothing));
        config["target_modules"].as_array().filter(|_| alone)
    });
    let union = if let Some(lists) = lists.collect::<Option<Vec<_>>>() {
        let names: std::collections::BTreeSet<_> =
            lists.into_iter().flatten().filter_map(Json::as_str).collect();
        json!(names)
    } else {
        let names: Vec<_> = ranks.keys().map(|module| fancy_regex::escape(module).into_owned()).collect();
        json!(names.join("|"))
    };
    [union, Json::Null, Json::Null, Json::Null]
}

fn is_nothing(value: &Json) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty) || value.as_str() == Some("")
}
