//! Attaching an adapter to a graph of its base: which modules, with which tensors, and the adapted graph. It fails closed:
//! every tensor of the file is used, every module that the config means has its tensors, and every shape fits.

use super::adapter::PeftAdapter;
use super::arithmetic::{Kind, adapt, parts};
use super::config::{Init, LoraConfig};
use super::modules::{Layer, Module, NotAModule, candidates};
use super::replaced::{Base, take_replaced};
use super::select::{PatternError, Selection};
use super::tensors::{Ledger, TensorsError, quoted};
use engraft_ir::{BuildErrors, Graph, GraphBuilder, TensorType};
use engraft_runtime::Weights;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use thiserror::Error;

/// Why an adapter does not fit a graph.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum AttachError {
    /// The adapter is an update of other weights than the original ones.
    #[error(
        "the adapter was initialised by `{init}`, which changes the base's weights: it fits only what `{init}` left of \
         them. If that is the base, say so with `PeftAdapter::on_residual_base`"
    )]
    ResidualBase {
        /// The method.
        init: String,
    },
    /// The config means no module of the graph.
    #[error(
        "the adapter's config targets none of the graph's modules: `target_modules` is {targets}, and they are {}",
        quoted(.modules)
    )]
    NoTarget {
        /// What the config targets.
        targets: String,
        /// The modules there are.
        modules: Vec<String>,
    },
    /// The config means something that cannot be adapted.
    #[error("the adapter's config targets `{module}`, but {source}")]
    NotAModule {
        /// The name.
        module: String,
        /// Why.
        source: NotAModule,
    },
    /// The tensors for a module do not fit.
    #[error("module `{module}`: {source}")]
    Tensors {
        /// The module.
        module: String,
        /// Why.
        source: TensorsError,
    },
    /// Tensors are left.
    #[error(transparent)]
    Unused(TensorsError),
    /// An embedding's B has no bias in PEFT.
    #[error("`lora_bias` is true and `{module}` is an embedding, whose B has no bias")]
    EmbeddingBias {
        /// The embedding.
        module: String,
    },
    /// A module is both adapted and replaced as a whole.
    #[error("module `{module}` is targeted, but `{saved}` is replaced as a whole by `modules_to_save`")]
    SavedAndAdapted {
        /// The adapted module.
        module: String,
        /// The replaced one: the same, or one around it.
        saved: String,
    },
    /// A replaced module shares its weight with layers that keep the original.
    #[error("`modules_to_save` replaces `{module}`, but its weight is tied to {}, which would keep the original", quoted(.tied))]
    SavedAndTied {
        /// The module.
        module: String,
        /// The nodes that its weight is tied to.
        tied: Vec<String>,
    },
    /// A replaced parameter is of a type that no tensor of the file fits.
    #[error("the adapter replaces `{param}`, which is {found}; expected f32 of fixed size")]
    Irreplaceable {
        /// The parameter.
        param: String,
        /// Its type.
        found: TensorType,
    },
    /// The adapter changes something that cannot differ between the rows of a batch.
    #[error(
        "the adapter changes `{name}`, which is no adaptable layer: in a bank, an adapter changes linear layers and their \
         biases; attach it, or merge it into the model"
    )]
    NotAdaptable {
        /// The module or parameter.
        name: String,
    },
    /// A pattern of the config takes too long to match.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The adapted graph could not be built, for instance because a name is taken.
    #[error(transparent)]
    Build(#[from] BuildErrors),
}

/// An adapter on its base.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The adapted graph. The adapter's parameters are those of stage `adapter`.
    pub graph: Graph,
    /// A tensor for each of them, under its name.
    pub weights: Weights,
    /// What was done.
    pub report: AttachReport,
}

/// What an adapter does to a module.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptedModule {
    /// The module.
    pub module: Module,
    /// r.
    pub rank: u64,
    /// alpha.
    pub alpha: f64,
    /// s: alpha / r, or alpha / sqrt(r) for rsLoRA.
    pub scale: f64,
    /// Whether it is DoRA rather than LoRA.
    pub dora: bool,
}

/// What attaching an adapter did. Prints a line for each module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttachReport {
    /// The modules that are adapted, by name.
    pub adapted: Vec<AdaptedModule>,
    /// The base's parameters that the adapter replaces, in the graph's order.
    pub replaced: Vec<String>,
}

impl fmt::Display for AttachReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for AdaptedModule { module, rank, alpha, scale, dora } in &self.adapted {
            let kind = if *dora { "DoRA" } else { "LoRA" };
            writeln!(f, "{}: {kind} on {}, r {rank}, alpha {alpha}, s {scale}", module.name, module.layer)?;
        }
        self.replaced.iter().try_for_each(|param| writeln!(f, "{param}: replaced"))
    }
}

/// Attaches an adapter to a graph of its base. The graph's parameters must be named as the tensors of the model that PEFT
/// saw: a module `fc1` is what uses `fc1.weight`.
///
/// The adapter's parameters have stage `adapter` and the names of the file, as `fc1.lora_A.weight`; `fc1.adapted` is the
/// adapted value, which takes the base's place. Biases and modules that the adapter replaces keep their names and become
/// of stage `adapter`.
///
/// # Errors
/// What does not fit, naming module and tensor; see [`AttachError`].
///
/// ```
/// use engraft_import::peft::{LoraConfig, PeftAdapter, attach};
/// use engraft_ir::{DType::F32, GraphBuilder, dims};
/// use engraft_runtime::{Tensor, Weights};
///
/// let g = GraphBuilder::new("layer");
/// let x = g.input("x", F32, dims!["batch", 3]);
/// g.output("y", x.dense(g.param("fc.weight", F32, dims![2, 3]), None).named("fc"));
/// let base = g.finish()?;
///
/// // What `PeftAdapter::open` reads from a directory.
/// let json = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["fc"]}"#;
/// let mut tensors = Weights::new();
/// tensors.insert("base_model.model.fc.lora_A.weight", Tensor::f32(&[1, 3], vec![1.0, 0.0, 0.5])?);
/// tensors.insert("base_model.model.fc.lora_B.weight", Tensor::f32(&[2, 1], vec![1.0, -1.0])?);
/// let adapter = PeftAdapter::new(LoraConfig::parse(json)?, &tensors)?;
///
/// let attached = attach(&base, &adapter)?;
/// assert_eq!(attached.report.to_string(), "fc: LoRA on linear, r 1, alpha 2, s 2\n");
/// assert!(attached.weights.get("fc.lora_A.weight").is_some());
/// assert!(attached.graph.find("fc.adapted").is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn attach(graph: &Graph, adapter: &PeftAdapter) -> Result<Attached, AttachError> {
    let prepared = Prepared::new(graph);
    let Resolved { adapted, replaced, weights } = resolve(&prepared, adapter)?;
    let g = GraphBuilder::edit(prepared.graph);
    for target in &adapted {
        adapt(&g, &target.module, kind(adapter.config(), target));
    }
    for param in &replaced {
        let _ = g.find(param).adapter();
    }
    Ok(Attached { graph: g.finish()?, weights, report: AttachReport { adapted, replaced } })
}

/// A graph of a base, and what in it an adapter could be put on.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    /// Without what nothing uses.
    pub(super) graph: Graph,
    candidates: BTreeMap<String, Result<Module, NotAModule>>,
}

impl Prepared {
    pub(super) fn new(graph: &Graph) -> Self {
        let mut graph = graph.clone();
        graph.prune();
        let candidates = candidates(&graph);
        Self { graph, candidates }
    }
}

/// What an adapter is on a graph, before anything is built.
pub(super) struct Resolved {
    /// The modules that are adapted, by name.
    pub(super) adapted: Vec<AdaptedModule>,
    /// The base's parameters that are replaced.
    pub(super) replaced: Vec<String>,
    /// The adapter's tensors and those in place of the base's, under their parameters' names.
    pub(super) weights: Weights,
}

/// Finds what an adapter's tensors are on a graph. Each is used, and each module that the config means has its own.
pub(super) fn resolve(prepared: &Prepared, adapter: &PeftAdapter) -> Result<Resolved, AttachError> {
    let Prepared { graph, candidates } = prepared;
    let config = adapter.config();
    if let (Init::Residual(init), false) = (&config.init, adapter.is_on_residual_base()) {
        return Err(AttachError::ResidualBase { init: init.clone() });
    }
    let mut ledger = Ledger::new(adapter.tensors());
    let adapted = targets(config, candidates, &ledger)?;
    for target in &adapted {
        take_parts(target, kind(config, target), &mut ledger)?;
    }
    let targeted = adapted.iter().map(|target| target.module.name.clone()).collect::<BTreeSet<_>>();
    let base = Base { graph, candidates, targeted: &targeted };
    let replaced = take_replaced(&base, config, &mut ledger)?;
    let weights = ledger.finish().map_err(AttachError::Unused)?;
    Ok(Resolved { adapted, replaced, weights })
}

/// Names of output layers, which PEFT leaves out of "all-linear" if the model is one of Transformers'.
const OUTPUT_LAYERS: &[&str] = &["lm_head", "embed_out", "score", "classifier"];

/// The modules that the config means, by name.
fn targets(
    config: &LoraConfig,
    candidates: &BTreeMap<String, Result<Module, NotAModule>>,
    ledger: &Ledger,
) -> Result<Vec<AdaptedModule>, AttachError> {
    let mut targets = Vec::new();
    for (name, candidate) in candidates {
        let is_output = OUTPUT_LAYERS.contains(&name.rsplit('.').next().unwrap_or(name));
        let module = match (config.select(name)?, candidate) {
            (Selection::Targeted, Ok(module)) => module,
            (Selection::Targeted, Err(source)) => {
                return Err(AttachError::NotAModule { module: name.clone(), source: source.clone() });
            }
            (Selection::TargetedIfLinear, Ok(module)) if module.layer != Layer::Embedding => {
                if is_output && !ledger.has_any(&format!("{name}.lora_")) {
                    continue;
                }
                module
            }
            (Selection::TargetedIfLinear | Selection::Untouched, _) => continue,
        };
        if config.lora_bias && module.layer == Layer::Embedding {
            return Err(AttachError::EmbeddingBias { module: name.clone() });
        }
        targets.push(AdaptedModule {
            module: module.clone(),
            rank: config.rank(name)?,
            alpha: config.alpha(name)?,
            scale: config.scale(name)?,
            dora: config.use_dora,
        });
    }
    if targets.is_empty() {
        let modules = candidates.iter().filter(|(_, candidate)| candidate.is_ok());
        let modules = modules.map(|(name, _)| name.clone()).collect();
        return Err(AttachError::NoTarget { targets: config.targets().to_string(), modules });
    }
    Ok(targets)
}

pub(super) fn kind(config: &LoraConfig, target: &AdaptedModule) -> Kind {
    Kind { rank: target.rank, scale: target.scale, dora: target.dora, lora_bias: config.lora_bias }
}

fn take_parts(target: &AdaptedModule, kind: Kind, ledger: &mut Ledger) -> Result<(), AttachError> {
    let module = &target.module;
    for part in parts(module, kind) {
        let full = |name: &str| format!("{}.{name}", module.name);
        let names: Vec<_> = [Some(part.name), part.other_name].into_iter().flatten().map(full).collect();
        let rank = Some(target.rank).filter(|_| part.shape.len() == 2);
        ledger
            .take(&names[0], &names, &part.shape, rank)
            .map_err(|source| AttachError::Tensors { module: module.name.clone(), source })?;
    }
    Ok(())
}
