//! Adapters for a bank: a graph whose linear layers may be adapted, and what an adapter does to each of them, as data.
//! It fails closed, as `attach` does. Knows nothing about how adapters are kept or run.

use super::adapter::PeftAdapter;
use super::attach::{AttachError, Prepared, Resolved, resolve};
use super::modules::{Layer, Module, modules};
use engraft_ir::ops::{Adaptable, Dense, Matmul};
use engraft_ir::{Graph, GraphBuilder, NodeId, Op};
use engraft_runtime::{AdapterWeights, LayerWeights, Update};
use std::collections::BTreeSet;

/// Makes every linear layer of a graph one that a bank may adapt: each use `fc1` of a module `fc1` becomes
/// `fc1.adaptable`, which computes the same as long as no adapter is put on it. Layers whose input has no axis of items stay
/// as they are.
///
/// # Errors
/// A name is taken.
pub fn adaptable(graph: &Graph) -> Result<Graph, AttachError> {
    let modules = modules(graph);
    let mut pruned = graph.clone();
    pruned.prune();
    let g = GraphBuilder::edit(pruned);
    for module in modules.iter().filter(|module| module.layer != Layer::Embedding) {
        let weight = g.find(&format!("{}.weight", module.name));
        let weight = if module.layer == Layer::Linear { weight } else { weight.t() };
        for name in &module.uses {
            let node = g.find(name);
            let Some(x) = node.operand(INPUT) else { continue };
            if x.ty().is_none_or(|ty| ty.rank() < 2) {
                continue;
            }
            let bias = node.op().filter(|op| matches!(op, Op::Dense(_)));
            let bias = bias.and_then(|_| node.operand(Dense::BIAS));
            let layer = x.adaptable(&module.name, weight, bias).named(&format!("{name}.adaptable"));
            g.replace(node, layer);
        }
    }
    Ok(g.finish()?)
}

/// The slot of the input, which `dense`, `matmul` and `adaptable` share.
const INPUT: usize = Dense::X;
const _: () = assert!(Dense::X == Matmul::A && Dense::X == Adaptable::X);

/// What an adapter does to each layer of an [`adaptable`] graph.
///
/// # Errors
/// As [`attach`](super::attach()); also when the adapter changes something that is not an adaptable layer: an embedding, a
/// norm, a module that is replaced as a whole.
///
/// ```
/// use engraft_import::peft::{LoraConfig, PeftAdapter, adaptable, updates};
/// use engraft_ir::{DType::F32, GraphBuilder, dims};
/// use engraft_runtime::{Tensor, Weights};
///
/// let g = GraphBuilder::new("layer");
/// let x = g.input("x", F32, dims!["batch", 3]);
/// g.output("y", x.dense(g.param("fc.weight", F32, dims![2, 3]), None).named("fc"));
/// let graph = adaptable(&g.finish()?)?;
///
/// let json = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["fc"]}"#;
/// let mut tensors = Weights::new();
/// tensors.insert("base_model.model.fc.lora_A.weight", Tensor::f32(&[1, 3], vec![1.0, 0.0, 0.5])?);
/// tensors.insert("base_model.model.fc.lora_B.weight", Tensor::f32(&[2, 1], vec![1.0, -1.0])?);
/// let weights = updates(&graph, &PeftAdapter::new(LoraConfig::parse(json)?, &tensors)?)?;
/// assert_eq!(weights["fc"].updates[0].scale, 2.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn updates(graph: &Graph, adapter: &PeftAdapter) -> Result<AdapterWeights, AttachError> {
    AdaptableLayers::new(graph).updates(adapter)
}

/// The layers of an [`adaptable`] graph, for those who load many adapters: what there is in the graph is found once.
#[derive(Clone, Debug)]
pub struct AdaptableLayers {
    prepared: Prepared,
    modules: BTreeSet<String>,
}

impl AdaptableLayers {
    /// Those of a graph.
    pub fn new(graph: &Graph) -> Self {
        let prepared = Prepared::new(graph);
        let modules = prepared.graph.nodes().filter_map(|node| match node.op() {
            Op::Adaptable(op) => Some(op.module.clone()),
            _ => None,
        });
        let modules = modules.collect();
        Self { prepared, modules }
    }

    /// The names of the modules that they are, in alphabetical order.
    pub fn modules(&self) -> impl Iterator<Item = &str> + Clone {
        self.modules.iter().map(String::as_str)
    }

    /// Whether a module is adaptable wherever it is used.
    fn is_adaptable(&self, module: &Module) -> bool {
        let graph = &self.prepared.graph;
        let is_own = |op: &Op| matches!(op, Op::Adaptable(op) if op.module == module.name);
        module.layer != Layer::Embedding
            && module.uses.iter().all(|name| graph.find(name).is_some_and(|id| is_own(graph.node(id).op())))
    }

    /// Whether a parameter is nothing but the bias of an adaptable module of this name.
    fn is_bias_of(&self, param: &str, module: &str) -> bool {
        let graph = &self.prepared.graph;
        let is_own = |(user, slot): (NodeId, usize)| {
            let is_module = matches!(graph.node(user).op(), Op::Adaptable(op) if op.module == module);
            is_module && slot == Adaptable::BIAS
        };
        graph.find(param).is_some_and(|id| graph.users(id).into_iter().all(is_own))
    }

    /// As [`updates`](fn@updates).
    ///
    /// # Errors
    /// As [`updates`](fn@updates).
    pub fn updates(&self, adapter: &PeftAdapter) -> Result<AdapterWeights, AttachError> {
        let Resolved { adapted, replaced, weights } = resolve(&self.prepared, adapter)?;
        let refuse = |name: &str| Err(AttachError::NotAdaptable { name: name.to_owned() });
        let tensor = |module: &str, part: &str| weights.get(&format!("{module}.{part}")).cloned();
        let mut layers = AdapterWeights::new();
        for target in &adapted {
            let name = &target.module.name;
            if !self.modules.contains(name) || !self.is_adaptable(&target.module) {
                return refuse(name);
            }
            let (Some(a), Some(b)) = (tensor(name, "lora_A.weight"), tensor(name, "lora_B.weight")) else {
                return refuse(name);
            };
            let magnitude = tensor(name, "lora_magnitude_vector");
            let bias_of_b = tensor(name, "lora_B.bias");
            let update = Update { a, b, scale: target.scale, magnitude, bias_of_b };
            layers.entry(name.clone()).or_default().updates.push(update);
        }
        for param in &replaced {
            let module = param.strip_suffix(".bias").filter(|module| self.is_bias_of(param, module));
            let Some((module, bias)) = module.zip(weights.get(param)) else { return refuse(param) };
            let layer: &mut LayerWeights = layers.entry(module.to_owned()).or_default();
            layer.bias = Some(bias.clone());
        }
        Ok(layers)
    }
}
