//! What a run found out. Knows nothing about how it is shown.

use crate::contender::Who;
use crate::machine::Machine;
use crate::rounds::Times;
use crate::targets::Ratio;
use crate::workload::Workload;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Single layers.
    Layers,
    /// Whole models.
    Models,
    /// Layers whose rows have adapters of their own.
    Mixed,
}

impl Suite {
    /// What its files are called.
    pub fn stem(self) -> &'static str {
        match self {
            Suite::Layers => "results",
            Suite::Models => "models",
            Suite::Mixed => "mixed",
        }
    }

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Suite::Layers => "Engraft beside its peers",
            Suite::Models => "Engraft beside its peers: whole models",
            Suite::Mixed => "Engraft beside its peers: an adapter for each row",
        }
    }
}

/// Everything.
#[derive(Debug, Serialize)]
pub struct Results {
    /// What it is about.
    #[serde(skip)]
    pub suite: Suite,
    /// Where.
    pub machine: Machine,
    /// The peers' versions.
    pub versions: BTreeMap<String, String>,
    /// The numbers of threads.
    pub threads: Vec<usize>,
    /// Times, in microseconds.
    pub points: Vec<Point>,
    /// Ratios of them that have targets.
    pub ratios: Vec<Ratio>,
}

/// A workload with everybody's times.
#[derive(Debug, Serialize)]
pub struct Point {
    /// It.
    #[serde(flatten)]
    pub workload: Workload,
    /// Everybody's.
    pub times: Vec<Times>,
    /// What the machine could do at most just then, with one thread.
    pub bounds: Bounds,
}

/// What a core and its memory can do at most.
#[derive(Clone, Debug, Serialize)]
pub struct Bounds {
    /// Of our product's tile, running out of the first-level cache.
    pub flops_per_second: f64,
    /// Of a plain read.
    pub bytes_per_second: f64,
    /// Of registers alone.
    pub peak_flops_per_second: f64,
    /// For each number of threads the least that the base takes with its adapter, in microseconds: the longer of its arithmetic
    /// at the rate of registers alone, spread over the threads, and of a plain read of the weights.
    pub least: BTreeMap<usize, f64>,
}

impl Point {
    /// Whether another point differs in its size only.
    pub fn is_beside(&self, other: &Point) -> bool {
        self.workload.subject() == other.workload.subject()
    }

    /// The median of a contender, in microseconds.
    pub fn median(&self, who: Who, threads: usize) -> Option<f64> {
        self.times.iter().find(|times| times.who == who && times.threads == threads).map(|times| times.median)
    }

    /// The least that anybody can take, as a share of the least median of these: what a ratio to them is at least on this
    /// machine.
    pub fn limit(&self, who: &[Who], threads: usize) -> Option<f64> {
        Some(self.bounds.least.get(&threads)? / self.best(who, threads)?)
    }

    /// The least median of these.
    pub fn best(&self, who: &[Who], threads: usize) -> Option<f64> {
        who.iter().filter_map(|&who| self.median(who, threads)).min_by(f64::total_cmp)
    }
}
