//! What the times should be, as ratios of each other, and whether they are. Knows nothing about how they came about.

mod layers;
mod mixed;
mod models;

use crate::results::Point;
use crate::workload::Workload;
use serde::Serialize;

/// All targets.
pub fn all() -> impl Iterator<Item = &'static Target> {
    layers::TARGETS.iter().chain(&models::TARGETS).chain(&mixed::TARGETS)
}

/// A ratio that should be small, or a speedup that should be large.
#[derive(Clone, Copy)]
pub struct Target {
    /// What is compared.
    pub measure: &'static str,
    /// Where it applies: `None` where it doesn't, otherwise the bound.
    bound: fn(Workload) -> Option<Bound>,
    /// The ratio at a point with so many threads, if everybody it takes was there.
    ratio: fn(&Point, usize) -> Option<f64>,
    /// What the ratio would be on this machine if ours took no longer than anybody must, where it compares ours with others.
    limit: fn(&Point, usize) -> Option<f64>,
    /// At which numbers of threads it is asked.
    asked: Asked,
}

/// At which numbers of threads a ratio is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// At each.
    Each,
    /// With one.
    One,
    /// It compares two with one.
    Both,
}

/// What a ratio should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Bound {
    /// Whether a ratio is within it.
    pub fn holds(self, ratio: f64) -> bool {
        match self {
            Bound::AtMost(bound) => ratio <= bound,
            Bound::AtLeast(bound) => ratio >= bound,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bound::AtMost(bound) => write!(f, "<= {bound}"),
            Bound::AtLeast(bound) => write!(f, ">= {bound}"),
        }
    }
}

/// A ratio at a point, beside its target.
#[derive(Debug, Serialize)]
pub struct Ratio {
    /// What is compared.
    pub measure: &'static str,
    /// Where.
    #[serde(flatten)]
    pub workload: Workload,
    /// With how many threads; none for the measures that compare numbers of threads.
    pub threads: Option<usize>,
    /// What was measured.
    #[serde(rename = "ratio")]
    pub value: f64,
    /// What it should be.
    pub target: Bound,
    /// Whether it is.
    pub met: bool,
    /// What it would be if ours took no longer than anybody must on this machine.
    pub limit: Option<f64>,
}

impl Ratio {
    /// Whether the machine keeps it from its target, whoever computes.
    pub fn is_beyond(&self) -> bool {
        !self.met && self.limit.is_some_and(|limit| !self.target.holds(limit))
    }
}

/// Every ratio that has a target at these points.
pub fn ratios(points: &[Point], threads: &[usize]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for target in all() {
        for point in points {
            let Some(bound) = (target.bound)(point.workload) else { continue };
            let asked = match target.asked {
                Asked::Each => threads.iter().copied().map(Some).collect(),
                Asked::One => vec![Some(1)],
                Asked::Both => vec![None],
            };
            for threads in asked {
                if let Some(value) = (target.ratio)(point, threads.unwrap_or(1)) {
                    let (measure, workload) = (target.measure, point.workload);
                    let (met, limit) = (bound.holds(value), (target.limit)(point, threads.unwrap_or(1)));
                    ratios.push(Ratio { measure, workload, threads, value, target: bound, met, limit });
                }
            }
        }
    }
    ratios
}

#[cfg(test)]
mod tests {
    use super::{Bound, ratios};
    use crate::contender::Who;
    use crate::layers::Shape;
    use crate::results::{Bounds, Point};
    use crate::rounds::Times;
    use crate::workload::Workload;

    /// Of a machine on which nobody takes less than so many microseconds.
    fn bounds(least: f64) -> Bounds {
        Bounds {
            flops_per_second: 1e11,
            bytes_per_second: 1e10,
            peak_flops_per_second: 1.1e11,
            least: [(1, least)].into(),
        }
    }

    fn times(who: Who, threads: usize, median: f64) -> Times {
        Times { who, threads, median, quartiles: [median; 2], turns: 1, calls: 1 }
    }

    #[test]
    fn ratios_stand_beside_the_bounds_of_their_batch() {
        let times = vec![
            times(Who::Dense, 1, 100.0),
            times(Who::Dora, 1, 104.0),
            times(Who::OnnxRuntime, 1, 130.0),
            times(Who::Torch, 1, 208.0),
        ];
        let shape = Shape { inputs: 768, outputs: 768, rank: 8 };
        let point = |batch| {
            let workload = Workload::Layer { shape, batch };
            Point { workload, times: times.clone(), bounds: bounds(90.0) }
        };
        let ratios = ratios(&[1, 4, 8].map(point), &[1, 2]);
        let found: Vec<_> =
            ratios.into_iter().map(|r| (r.workload.rows(), r.value, r.target, r.met)).collect();
        let (against_dense, against_peers) = (1.04, 0.8);
        assert_eq!(
            found,
            [
                (1, against_dense, Bound::AtMost(1.06), true),
                (8, against_dense, Bound::AtMost(1.03), false),
                (1, against_peers, Bound::AtMost(0.75), false),
                (4, against_peers, Bound::AtMost(0.75), false),
                (8, against_peers, Bound::AtMost(0.75), false),
            ]
        );
    }

    #[test]
    fn a_target_below_what_the_machine_allows_is_beyond_it() {
        let shape = Shape { inputs: 768, outputs: 768, rank: 8 };
        let found = |least, ours| {
            let times = vec![times(Who::Dora, 1, ours), times(Who::OpenVino, 1, 100.0)];
            let point = Point { workload: Workload::Layer { shape, batch: 1 }, times, bounds: bounds(least) };
            let [ratio] = &ratios(&[point], &[1])[..] else { panic!("one ratio") };
            (ratio.limit, ratio.met, ratio.is_beyond())
        };
        assert_eq!(found(76.0, 90.0), (Some(0.76), false, true));
        assert_eq!(found(74.0, 90.0), (Some(0.74), false, false));
        assert_eq!(found(74.0, 75.0), (Some(0.74), true, false));
    }

    #[test]
    fn mixed_batches_have_targets_of_their_own() {
        let times = vec![
            times(Who::Dense, 1, 100.0),
            times(Who::BankBare, 1, 101.0),
            times(Who::BankDora, 1, 115.0),
            times(Who::BankLora, 1, 105.0),
            times(Who::BankOwn, 1, 120.0),
            times(Who::PeftMixed, 1, 300.0),
        ];
        let workload =
            |(size, rank)| Workload::Mixed { shape: Shape { inputs: size, outputs: size, rank }, batch: 8 };
        let workloads = [(768, 16), (4096, 16), (4096, 8)].map(workload);
        let point = |workload| Point { workload, times: times.clone(), bounds: bounds(90.0) };
        let found: Vec<_> = ratios(&workloads.map(point), &[1])
            .into_iter()
            .map(|r| (r.workload, r.value, r.target, r.met))
            .collect();
        let each = |value, bound, met| workloads.map(|workload| (workload, value, Bound::AtMost(bound), met));
        let own =
            [(workloads[0], 1.2, Bound::AtMost(1.25), true), (workloads[1], 1.2, Bound::AtMost(1.15), false)];
        let expected =
            [&own[..], &each(0.35, 0.35, true), &each(115.0 / 300.0, 0.35, false), &each(1.01, 1.03, true)];
        assert_eq!(found, expected.concat());
    }

    #[test]
    fn models_have_targets_of_their_own() {
        let times = vec![
            times(Who::Dense, 1, 110.0),
            times(Who::Dora, 1, 80.0),
            times(Who::OnnxRuntime, 1, 120.0),
            times(Who::OnnxRuntimeFused, 1, 110.0),
            times(Who::OpenVino, 1, 100.0),
            times(Who::Peft, 1, 400.0),
            times(Who::Read, 1, 100.0),
        ];
        let encode = |(batch, tokens)| Workload::Encode { model: "bert", batch, tokens };
        let decode = Workload::Decode { model: "llama", past: 64, bytes: 1 };
        let workloads = [encode((1, 16)), encode((8, 32)), decode];
        let point = |workload| Point { workload, times: times.clone(), bounds: bounds(90.0) };
        let found: Vec<_> = ratios(&workloads.map(point), &[1])
            .into_iter()
            .map(|r| (r.workload, r.value, r.target, r.met))
            .collect();
        assert_eq!(
            found,
            [
                (workloads[0], 0.8, Bound::AtMost(0.9), true),
                (workloads[1], 0.8, Bound::AtMost(0.9), true),
                (workloads[0], 0.2, Bound::AtMost(0.1), false),
                (workloads[2], 1.1, Bound::AtMost(1.15), true),
            ]
        );
    }
}
