//! Which adapters of a graph are merged into their layers' weights when they are loaded: what the caller says, and what is
//! decided of each layer. The rewrite is the pass `merge`; what a layer costs either way is `plan/merge_cost.rs`.

use crate::passes::MergeError;
use crate::plan::merge_cost::{Choice, Estimate, Layer, Workload, choose};
use engraft_ir::ops::{Dora, Lora};
use engraft_ir::{Bindings, Graph, NodeId, Op, Stage, Stages};
use engraft_runtime::measure::Rates;
use engraft_runtime::{AdapterWeights, LayerWeights, Update};
use std::collections::BTreeMap;
use std::fmt;

/// Which adapters are merged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merging {
    /// What holds for all layers.
    pub rule: MergeRule,
    /// Layers by name for which something else holds: whether they are merged.
    pub layers: BTreeMap<String, bool>,
}

/// What holds for all layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum MergeRule {
    /// None is merged.
    #[default]
    Never,
    /// Every one is; one that cannot be is an error.
    Always,
    /// Those are for which it pays, and that can be.
    ByCost(CostModel),
}

/// What a decision is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct CostModel {
    /// The machine.
    pub rates: Rates,
    /// How the graph is used. Its rows are those of a layer whose own depend on dims without a value.
    pub workload: Workload,
    /// Extents of dims.
    pub dims: Bindings,
}

/// What is done with a layer, and why. Prints as one line.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The layer's name.
    pub layer: String,
    /// Whether it is merged.
    pub merged: bool,
    /// Why.
    pub why: Why,
    /// What it costs either way, where that is known.
    pub estimate: Option<Estimate>,
}

/// Why a layer is merged or not.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// It costs less.
    Cost,
    /// Merged weights may take so many bytes together, and others take too much of it.
    Memory(u64),
    /// The caller says so of all layers.
    Rule,
    /// The caller says so of this one.
    Layer,
    /// Merging cannot be chosen.
    Cannot(MergeError),
}

impl Merging {
    /// None is merged.
    pub const NEVER: Merging = Merging { rule: MergeRule::Never, layers: BTreeMap::new() };
    /// Every one is.
    pub const ALWAYS: Merging = Merging { rule: MergeRule::Always, layers: BTreeMap::new() };

    /// Those are for which it pays.
    pub fn by_cost(model: CostModel) -> Merging {
        Merging { rule: MergeRule::ByCost(model), layers: BTreeMap::new() }
    }

    /// Every one is, or none.
    pub fn all(merged: bool) -> Merging {
        if merged { Merging::ALWAYS } else { Merging::NEVER }
    }

    /// Whether nothing is asked for of any graph.
    pub fn is_never(&self) -> bool {
        self.rule == MergeRule::Never && self.layers.is_empty()
    }

    /// What the caller says of a layer, if anything.
    pub fn said(&self, layer: &str) -> Option<(bool, Why)> {
        let named = self.layers.get(layer).map(|&merged| (merged, Why::Layer));
        named.or(match self.rule {
            MergeRule::Never => Some((false, Why::Rule)),
            MergeRule::Always => Some((true, Why::Rule)),
            MergeRule::ByCost(_) => None,
        })
    }

    /// The model that the rule decides by, if it does.
    pub fn model(&self) -> Option<&CostModel> {
        match &self.rule {
            MergeRule::ByCost(model) => Some(model),
            _ => None,
        }
    }

    /// What is done with each of some layers. `memory` is what merged weights may take, and `taken` what others take of it
    /// already; those that the caller asks for take of it first.
    fn decide(&self, layers: Vec<Adapted>, memory: Option<u64>, taken: u64) -> Vec<Decision> {
        let is_open = |layer: &Adapted| self.said(&layer.name).is_none();
        let said = layers.iter().filter(|layer| matches!(self.said(&layer.name), Some((true, _))));
        let said = said.filter_map(|layer| layer.estimate.as_ref().ok()).map(|estimate| estimate.bytes);
        let taken = said.fold(taken, u64::saturating_add);
        let left = memory.map(|memory| memory.saturating_sub(taken));
        let open: Vec<_> = layers.iter().filter(|layer| is_open(layer)).collect();
        let open: Vec<_> = open.iter().filter_map(|layer| layer.estimate.as_ref().ok()).copied().collect();
        let mut choices = choose(&open, left).into_iter();
        let decision = |Adapted { name, estimate }: Adapted| {
            let (merged, why) = match (self.said(&name), &estimate) {
                (Some(said), _) => said,
                (None, Err(why)) => (false, Why::Cannot(why.clone())),
                (None, Ok(_)) => match choices.next() {
                    Some(Choice::Merged) => (true, Why::Cost),
                    Some(Choice::NoMemory) => (false, Why::Memory(memory.unwrap_or(0))),
                    Some(Choice::Factored) | None => (false, Why::Cost),
                },
            };
            Decision { layer: name, merged, why, estimate: estimate.ok() }
        };
        layers.into_iter().map(decision).collect()
    }

    /// Requires that all layers that the caller names are among these.
    ///
    /// # Errors
    /// [`MergeError::Unknown`].
    pub fn check_names<'a>(&self, known: impl Iterator<Item = &'a str> + Clone) -> Result<(), MergeError> {
        match self.layers.keys().find(|name| known.clone().all(|known| known != *name)) {
            Some(name) => {
                Err(MergeError::Unknown { name: name.clone(), known: known.map(str::to_owned).collect() })
            }
            None => Ok(()),
        }
    }

    /// Decides for each layer that an adapter of a bank updates, and says so in its weights. `model` tells what they cost where
    /// the rule has none, `base` are the bytes of the base's weights, and `taken` those that merged weights of other adapters
    /// take already.
    pub fn mark(
        &self,
        adapter: &mut AdapterWeights,
        model: Option<&CostModel>,
        base: u64,
        taken: u64,
    ) -> Vec<Decision> {
        let model = self.model().or(model);
        let updated = || adapter.iter().filter(|(_, layer)| !layer.updates.is_empty());
        let adapted = |(name, weights): (&String, &LayerWeights)| Adapted {
            name: name.clone(),
            estimate: match model {
                None => Err(MergeError::NoModel { node: name.clone() }),
                Some(model) => Ok(model.of_bank(weights, base)),
            },
        };
        let memory = model.and_then(|model| model.workload.memory);
        let decisions = self.decide(updated().map(adapted).collect(), memory, taken);
        for decision in &decisions {
            if let Some(layer) = adapter.get_mut(&decision.layer) {
                layer.merge = decision.merged;
            }
        }
        decisions
    }
}

impl CostModel {
    /// What a layer of a bank costs, whose base has weights of so many bytes.
    fn of_bank(&self, weights: &LayerWeights, base: u64) -> Estimate {
        // Tensors of other shapes are refused when they are loaded.
        let extent = |of: fn(&Update) -> Option<&usize>| {
            weights.updates.first().and_then(of).map_or(0, |&extent| extent as u64)
        };
        let (out, k) = (extent(|update| update.b.shape().first()), extent(|update| update.a.shape().get(1)));
        let layer = Layer { out, k, rank: weights.rank() as u64 };
        let beside =
            self.workload.beside.saturating_add(base.saturating_sub(out.saturating_mul(k).saturating_mul(4)));
        Estimate::new(layer, Workload { beside, ..self.workload }, &self.rates)
    }
}

/// A layer that a decision is about.
#[derive(Clone, Debug)]
pub struct Adapted {
    /// Its name.
    pub name: String,
    /// What it costs either way, or why that is not asked.
    pub estimate: Result<Estimate, MergeError>,
}

/// What is done with each adapted layer of a graph in which they are fused but none is merged yet. `model` tells what they
/// cost where the rule has none.
///
/// # Errors
/// The caller names a layer that there is none of, or asks for one that cannot be merged.
pub fn survey(
    graph: &Graph,
    merging: &Merging,
    model: Option<&CostModel>,
) -> Result<Vec<Decision>, MergeError> {
    let (stages, beside) = (Stages::of(graph), parameters(graph));
    let model = merging.model().or(model);
    let mut layers = Vec::new();
    for id in graph.order() {
        let node = graph.node(id);
        if !matches!(node.op(), Op::Dora(_) | Op::Lora(_) | Op::OutputDora(_)) {
            continue;
        }
        let possible = mergeable(graph, &stages, id);
        if let (Some((true, _)), Err(error)) = (merging.said(node.name()), &possible) {
            return Err(error.clone());
        }
        let estimate = possible.and_then(|()| {
            let layer = extents(graph, id)?;
            let model = model.ok_or_else(|| MergeError::NoModel { node: node.name().to_owned() })?;
            let rows = node.shape();
            let rows = rows[..rows.len().saturating_sub(1)].iter().map(|dim| dim.eval(&model.dims));
            let rows: Option<Vec<_>> = rows.map(Result::ok).collect();
            let rows = rows.map_or(model.workload.rows, |rows| rows.into_iter().fold(1, u64::saturating_mul));
            let own = layer.out.saturating_mul(layer.k).saturating_mul(4);
            let beside = model.workload.beside.saturating_add(beside.saturating_sub(own));
            Ok(Estimate::new(layer, Workload { rows, adapters: 1, beside, ..model.workload }, &model.rates))
        });
        layers.push(Adapted { name: node.name().to_owned(), estimate });
    }
    merging.check_names(layers.iter().map(|layer| layer.name.as_str()))?;
    Ok(merging.decide(layers, model.and_then(|model| model.workload.memory), 0))
}

/// Whether an adapter can be merged: its operands are known before the call, and a weight computes it.
fn mergeable(graph: &Graph, stages: &Stages, id: NodeId) -> Result<(), MergeError> {
    let node = graph.node(id);
    let gain = match node.op() {
        Op::OutputDora(_) => return Err(MergeError::OutputDora { node: node.name().to_owned() }),
        Op::Dora(_) => Some(Dora::GAIN),
        _ => None,
    };
    for slot in [Some(Lora::WEIGHT), Some(Lora::A), Some(Lora::B), gain].into_iter().flatten() {
        let live = graph.operand(id, slot).filter(|&operand| stages.node(operand) == Stage::Call);
        if let Some(operand) = live {
            return Err(MergeError::Live {
                node: node.name().to_owned(),
                operand: node.op().info().slots[slot].name,
                name: graph.node(operand).name().to_owned(),
            });
        }
    }
    Ok(())
}

/// The layer's numbers, where all are known.
fn extents(graph: &Graph, id: NodeId) -> Result<Layer, MergeError> {
    let extent = |slot: usize, axis: usize| {
        let dim = graph.operand(id, slot).and_then(|operand| graph.node(operand).shape().get(axis));
        dim.and_then(engraft_ir::Dim::as_fixed).ok_or_else(|| MergeError::Open {
            node: graph.node(id).name().to_owned(),
            dim: dim.map(ToString::to_string).unwrap_or_default(),
        })
    };
    let (out, k, rank) = (extent(Lora::WEIGHT, 0)?, extent(Lora::WEIGHT, 1)?, extent(Lora::A, 0)?);
    Ok(Layer { out, k, rank })
}

/// The bytes of a graph's parameters, as far as they are known: what a call reads.
pub fn parameters(graph: &Graph) -> u64 {
    let bytes = |elements: Option<u64>, each: u64| elements.unwrap_or(0).saturating_mul(each);
    let params = graph.params();
    let sizes = params.iter().map(|p| bytes(p.ty.shape.elements().as_fixed(), p.ty.dtype.bytes() as u64));
    sizes.fold(0, u64::saturating_add)
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, merged, why, estimate } = self;
        write!(f, "{layer}: {}", if *merged { "merged" } else { "factored" })?;
        match why {
            Why::Cost => {}
            Why::Memory(bytes) => write!(f, " for want of memory ({bytes} bytes)")?,
            Why::Rule | Why::Layer => f.write_str(" as told")?,
            Why::Cannot(error) => write!(f, ", since {error}")?,
        }
        let Some(estimate) = estimate else { return Ok(()) };
        match (why, merged, estimate.saved() > 0.0) {
            (Why::Rule | Why::Layer, true, false) => f.write_str(", though that does not pay")?,
            (Why::Rule | Why::Layer, false, true) => f.write_str(", though merged costs less")?,
            _ => {}
        }
        write!(f, ", {estimate}")
    }
}
