//! Several adapters active together on one base, in order: which modules each adapts, and what takes the place of the
//! base's own parameters. What cannot be together is refused. Knows nothing about files.

use super::adapter::PeftAdapter;
use super::attach::{AttachError, Prepared, Resolved, kind, resolve};
use super::factors::{Factors, FactorsError};
use super::form::{BaseWeight, FormError, LinearForm, gain};
use super::modules::Module;
use engraft_ir::Graph;
use engraft_runtime::Weights;
use std::collections::BTreeMap;
use thiserror::Error;

/// Why adapters cannot be active together. They are counted from 1, in the order in which they are applied.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ComposeError {
    /// There is none.
    #[error("there is no adapter to apply")]
    Nothing,
    /// An adapter does not fit the graph.
    #[error("adapter {adapter}: {source}")]
    Attach {
        /// Which.
        adapter: usize,
        /// Why.
        source: Box<AttachError>,
    },
    /// An adapter's numbers cannot be used.
    #[error("adapter {adapter}: {source}")]
    Factors {
        /// Which.
        adapter: usize,
        /// Why.
        source: FactorsError,
    },
    /// Two adapters put something in the place of one parameter.
    #[error("adapters {first} and {second} both replace `{param}`, and there can be only one in its place")]
    ReplacedTwice {
        /// The parameter.
        param: String,
        /// An adapter.
        first: usize,
        /// A later one.
        second: usize,
    },
    /// An adapter replaces a module that another one is an update of.
    #[error(
        "adapter {replacing} replaces `{param}`, but adapter {adapting} was trained as an update of the original"
    )]
    ReplacedAndAdapted {
        /// The parameter.
        param: String,
        /// The adapter that replaces it.
        replacing: usize,
        /// The one that adapts it.
        adapting: usize,
    },
}

impl ComposeError {
    /// Which adapter does not fit, from 1, if it is one alone.
    pub fn adapter(&self) -> Option<usize> {
        match self {
            Self::Attach { adapter, .. } | Self::Factors { adapter, .. } => Some(*adapter),
            Self::Nothing | Self::ReplacedTwice { .. } | Self::ReplacedAndAdapted { .. } => None,
        }
    }

    /// The same of an adapter that is another one to the caller.
    pub(crate) fn of_adapter(mut self, number: usize) -> Self {
        if let Self::Attach { adapter, .. } | Self::Factors { adapter, .. } = &mut self {
            *adapter = number;
        }
        self
    }
}

/// What adapters that are active together do to one module.
#[derive(Clone, Debug)]
pub struct ComposedModule {
    /// The module.
    pub module: Module,
    /// What each adapter has for it, in order, with the adapter's number, from 0.
    pub parts: Vec<(usize, Factors)>,
}

impl ComposedModule {
    /// The gain of each part that is DoRA, on the base's own weight.
    ///
    /// # Errors
    /// A row's norm is zero.
    pub fn gains(&self, weight: &BaseWeight<'_>) -> Result<Vec<Option<Vec<f64>>>, FormError> {
        self.parts.iter().map(|(_, factors)| gain(factors, weight)).collect()
    }

    /// The normal form of all parts with these [`gains`](Self::gains).
    ///
    /// # Errors
    /// [`FormError::ZeroGain`].
    pub fn form(&self, gains: &[Option<Vec<f64>>]) -> Result<LinearForm, FormError> {
        let Module { name, inputs, outputs, .. } = &self.module;
        let identity = LinearForm::identity(name, *inputs as usize, *outputs as usize);
        let parts = self.parts.iter().zip(gains);
        parts.into_iter().try_fold(identity, |form, ((_, factors), gain)| form.then(factors, gain.as_deref()))
    }
}

/// Adapters that are active together, on a graph of their base.
///
/// ```
/// # use engraft_import::peft::{LoraConfig, PeftAdapter};
/// # use engraft_runtime::{Tensor, Weights};
/// use engraft_import::peft::{BaseWeight, Composition};
/// use engraft_import::safetensors::Floats;
/// use engraft_ir::{DType::F32, GraphBuilder, dims};
///
/// let g = GraphBuilder::new("layer");
/// let x = g.input("x", F32, dims!["batch", 2]);
/// g.output("y", x.dense(g.param("fc.weight", F32, dims![1, 2]), None).named("fc"));
/// let base = g.finish()?;
/// # let json = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["fc"], "use_dora": true}"#;
/// # let tensors = Weights::from_iter([
/// #     ("base_model.model.fc.lora_A.weight", Tensor::f32(&[1, 2], vec![1.0, 0.0])?),
/// #     ("base_model.model.fc.lora_B.weight", Tensor::f32(&[1, 1], vec![1.0])?),
/// #     ("base_model.model.fc.lora_magnitude_vector", Tensor::f32(&[1], vec![10.0])?),
/// # ]);
/// # let dora = PeftAdapter::new(LoraConfig::parse(json)?, &tensors)?;
///
/// // `dora` has s B A = [[2, 0]] and m = [10]. Once, and then again:
/// let weight = [1.0, 4.0]; // W + s B A is [[3, 4]], its norm 5
/// let both = Composition::new(&base, &[&dora, &dora])?;
/// let fc = &both.modules[0];
/// let weight = BaseWeight::new(&fc.module, Floats::Values(&weight))?;
/// let form = fc.form(&fc.gains(&weight)?)?;
/// assert_eq!(form.gain(), Some(&[4.0][..])); // 2 x 2
/// let mut merged = [1.0, 4.0];
/// form.merger(&weight)?.merge(0, &mut merged);
/// assert_eq!(merged, [16.0, 16.0]); // 2 (2 (W + D) + D)
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Composition {
    /// The modules that any of them adapts, by name.
    pub modules: Vec<ComposedModule>,
    /// What takes the place of the base's own parameters, under their names.
    pub replaced: Weights,
}

impl Composition {
    /// Finds what adapters do together to a graph, each applied to what those before it give.
    ///
    /// # Errors
    /// One does not fit the graph, or two contradict each other.
    pub fn new(graph: &Graph, adapters: &[&PeftAdapter]) -> Result<Self, ComposeError> {
        if adapters.is_empty() {
            return Err(ComposeError::Nothing);
        }
        let prepared = Prepared::new(graph);
        let mut modules: BTreeMap<String, ComposedModule> = BTreeMap::new();
        let mut replaced_by: BTreeMap<String, usize> = BTreeMap::new();
        let mut replaced = Weights::new();
        for (index, adapter) in adapters.iter().enumerate() {
            let attach = |source| ComposeError::Attach { adapter: index + 1, source: Box::new(source) };
            let Resolved { adapted, replaced: params, weights } =
                resolve(&prepared, adapter).map_err(attach)?;
            for target in &adapted {
                let factors = Factors::of_adapted(target, kind(adapter.config(), target), &weights)
                    .map_err(|source| ComposeError::Factors { adapter: index + 1, source })?;
                let composed = modules.entry(target.module.name.clone());
                let empty = || ComposedModule { module: target.module.clone(), parts: Vec::new() };
                composed.or_insert_with(empty).parts.push((index, factors));
            }
            for param in params {
                if let Some(tensor) = weights.get(&param) {
                    replaced.insert(&param, tensor.clone());
                }
                if let Some(first) = replaced_by.insert(param.clone(), index) {
                    return Err(ComposeError::ReplacedTwice { param, first: first + 1, second: index + 1 });
                }
            }
        }
        for (param, &replacing) in &replaced_by {
            let module = param.strip_suffix(".weight").and_then(|module| modules.get(module));
            let other = module.and_then(|module| module.parts.iter().find(|(index, _)| *index != replacing));
            if let Some((adapting, _)) = other {
                let (replacing, adapting) = (replacing + 1, adapting + 1);
                return Err(ComposeError::ReplacedAndAdapted { param: param.clone(), replacing, adapting });
            }
        }
        Ok(Self { modules: modules.into_values().collect(), replaced })
    }
}
