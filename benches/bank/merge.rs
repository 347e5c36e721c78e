//! Merged or factored: what the cost model chooses for a layer, beside the better of both as they are measured, on one
//! thread. A point is a shape, a rank, a batch, how many adapters its rows have, and how many calls an adapter serves; what
//! it costs is a call and each call's share of loading. Both ways take turns, and their results are compared before.

use crate::adapters::Numbers;
use crate::findings::{Section, Times};
use crate::layers::{Contender, Layer};
use crate::turns::medians;
use engraft::compiler::plan::merge_cost::{self, Estimate, Workload};
use engraft::runtime::measure::Rates;
use engraft::runtime::{Adapter, Rows};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Inputs and outputs.
const SHAPES: [(usize, usize); 4] = [(768, 768), (768, 3072), (3072, 768), (4096, 4096)];
const RANKS: [usize; 3] = [8, 16, 64];
const BATCHES: [usize; 4] = [1, 8, 32, 128];
/// Of the rows of a batch; as many as there are rows at most.
const ADAPTERS: [usize; 3] = [1, 4, usize::MAX];
const CALLS_PER_SWAP: [f64; 4] = [1.0, 100.0, 10_000.0, f64::INFINITY];
/// What the choice may cost at most, as a multiple of the better one.
const LIMIT: f64 = 1.05;

/// The bytes of merged weights that are there at once: where more adapters are wanted, rows take turns with them, which makes
/// merging look no worse.
const BYTES: usize = 2 << 30;
/// Rounds at least and at most, and loads.
const ROUNDS: [usize; 2] = [5, 101];
const LOADS: usize = 5;

/// What both ways cost at a point, in seconds.
struct Measured {
    what: String,
    estimate: Estimate,
    /// Of a call.
    calls: [f64; 2],
    /// Of loading one adapter.
    loads: [f64; 2],
}

/// The chosen one's cost as a multiple of the better one's.
struct Ratio {
    what: String,
    ratio: f64,
}

/// The numbers of the whole grid, or of its smallest point; each shape and rank is handed over when it is done, and then what
/// all of them say.
pub fn measure(whole: bool, shape: Option<&str>, budget: Duration, done: &mut impl FnMut(Section)) {
    let wanted =
        |&(inputs, outputs): &(usize, usize)| shape.is_none_or(|s| s == format!("{inputs}x{outputs}"));
    let shapes = SHAPES.into_iter().filter(wanted).take(if whole { SHAPES.len() } else { 1 });
    let mut ratios = Vec::new();
    for (inputs, outputs) in shapes {
        let layer = Layer::new(inputs, outputs);
        let rates = Rates::measure(layer.adaptable.base().context()).unwrap();
        for &rank in if whole { &RANKS[..] } else { &RANKS[..1] } {
            let mut section =
                Section::new(format!("Merged or factored, {inputs}x{outputs}, DoRA of rank {rank}"));
            let points = Points::new(&layer, rank, whole);
            for measured in points.measure(&rates, budget, whole) {
                measured.tell(&mut section);
                ratios.extend(measured.ratios(&rates));
            }
            done(section);
        }
    }
    done(summary(&ratios));
}

fn summary(ratios: &[Ratio]) -> Section {
    let mut section = Section::new("Merged or factored: the choice / the better one");
    let above = || ratios.iter().filter(|ratio| ratio.ratio > LIMIT);
    section.add("points", ratios.len() as f64, "");
    section.hold(format!("points above {LIMIT}"), above().count() as f64, "", 0.0);
    if let Some(worst) = ratios.iter().max_by(|a, b| a.ratio.total_cmp(&b.ratio)) {
        section.hold(format!("the worst: {}", worst.what), worst.ratio, "", LIMIT);
    }
    above().for_each(|ratio| section.hold(ratio.what.clone(), ratio.ratio, "", LIMIT));
    section
}

/// A layer and adapters of one rank, both ways.
struct Points<'a> {
    layer: &'a Layer,
    rank: usize,
    batches: &'static [usize],
    /// The same factored and merged.
    adapters: [Vec<Arc<Adapter>>; 2],
    loads: [f64; 2],
}

impl<'a> Points<'a> {
    fn new(layer: &'a Layer, rank: usize, whole: bool) -> Self {
        let batches = if whole { &BATCHES[..] } else { &BATCHES[..2] };
        let most = batches[batches.len() - 1];
        let count = (BYTES / (4 * layer.inputs * layer.outputs)).clamp(4, most);
        let loads = [false, true].map(|merge| {
            let weights = layer.weights(rank, 1, merge).next().unwrap();
            let mut times = Times::default();
            for _ in 0..if whole { LOADS } else { 1 } {
                let begun = Instant::now();
                drop(Adapter::new(layer.adaptable.base(), &weights).unwrap());
                times.push(begun.elapsed());
            }
            times.quantile(0.5) * 1e-3
        });
        let adapters = [false, true].map(|merge| layer.adapters(rank, count, merge));
        Self { layer, rank, batches, adapters, loads }
    }

    fn measure(&self, rates: &Rates, budget: Duration, whole: bool) -> impl Iterator<Item = Measured> {
        let points = self.batches.iter().flat_map(|&batch| {
            let mut counts = ADAPTERS.map(|adapters| adapters.min(batch)).to_vec();
            counts.dedup();
            counts.into_iter().map(move |adapters| (batch, adapters))
        });
        points.map(move |(batch, adapters)| {
            let x = Numbers::new(batch as u64).tensor(&[batch, self.layer.inputs], 1.0);
            let mut contenders = [0, 1].map(|way| {
                let of: &[Arc<Adapter>] = &self.adapters[way];
                // Rows of one adapter lie side by side.
                let row = |row: usize| Some(Arc::clone(&of[row * adapters / batch % of.len()]));
                Contender::new(&self.layer.adaptable, Rows::new((0..batch).map(row).collect()))
            });
            compare(&mut contenders, &x);
            let rounds = if whole { ROUNDS } else { [1, 1] };
            let calls =
                medians(&mut contenders.each_mut().map(|contender| contender.turn(&x)), budget, rounds);
            let workload = Workload { rows: batch as u64, adapters: adapters as u64, ..Workload::default() };
            Measured {
                what: format!("batch {batch}, adapters {adapters}"),
                estimate: Estimate::new(self.numbers(), workload, rates),
                calls: [calls[0] * 1e-3, calls[1] * 1e-3],
                loads: self.loads,
            }
        })
    }

    fn numbers(&self) -> merge_cost::Layer {
        let Layer { inputs, outputs, .. } = *self.layer;
        merge_cost::Layer { out: outputs as u64, k: inputs as u64, rank: self.rank as u64 }
    }
}

/// Both ways compute the same.
fn compare([factored, merged]: &mut [Contender; 2], x: &engraft::runtime::Tensor) {
    let merged = merged.call(x).to_vec();
    let worst = factored.call(x).iter().zip(&merged).map(|(&factored, &merged)| {
        let [factored, merged] = [factored, merged].map(f64::from);
        (factored - merged).abs() / (1e-5 * factored.abs().max(1.0) + 1e-4 * factored.abs())
    });
    let worst = worst.fold(0.0, f64::max);
    assert!(worst <= 1.0, "merged and factored are {worst} tolerances apart");
}

impl Measured {
    fn tell(&self, section: &mut Section) {
        let Self { what, estimate, calls, loads } = self;
        section.add(format!("{what}: factored"), calls[0] * 1e3, "ms");
        section.add(format!("{what}: its estimate / that"), estimate.factored / calls[0], "");
        section.add(format!("{what}: merged / factored"), calls[1] / calls[0], "");
        section.add(format!("{what}: merged, its estimate / that"), estimate.merged / calls[1], "");
        section.add(format!("{what}: loading merged less factored"), (loads[1] - loads[0]) * 1e3, "ms");
        section.add(format!("{what}: its estimate / that"), estimate.merging / (loads[1] - loads[0]), "");
    }

    fn ratios(&self, rates: &Rates) -> Vec<Ratio> {
        let Self { what, estimate: Estimate { layer, workload, .. }, calls, loads } = self;
        let ratio = |calls_per_swap: f64| {
            let chosen = Estimate::new(*layer, Workload { calls_per_swap, ..*workload }, rates).saved() > 0.0;
            let cost = [0, 1].map(|way| calls[way] + workload.adapters as f64 * loads[way] / calls_per_swap);
            let chosen_way = usize::from(chosen);
            Ratio {
                what: format!(
                    "{}x{}:{} {what}, calls {calls_per_swap}: {}",
                    layer.k,
                    layer.out,
                    layer.rank,
                    ["factored", "merged"][chosen_way]
                ),
                ratio: cost[chosen_way] / cost[0].min(cost[1]),
            }
        };
        CALLS_PER_SWAP.into_iter().map(ratio).collect()
    }
}
