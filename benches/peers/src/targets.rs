//! What the times should be, as ratios of each other, and whether they are. Knows nothing about how they came about.

use crate::contender::Who;
use crate::grid::Shape;
use crate::results::Point;
use serde::Serialize;

/// A ratio that should be small, or a speedup that should be large.
#[derive(Clone, Copy)]
pub struct Target {
    /// What is compared.
    pub measure: &'static str,
    /// Where it applies: `None` where it doesn't, otherwise the bound.
    bound: fn(Shape, usize) -> Option<Bound>,
    /// The ratio at a point with so many threads, if everybody it takes was there.
    ratio: fn(&Point, usize) -> Option<f64>,
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
    pub shape: Shape,
    /// Where.
    pub batch: usize,
    /// With how many threads; none for the measures that compare numbers of threads.
    pub threads: Option<usize>,
    /// What was measured.
    #[serde(rename = "ratio")]
    pub value: f64,
    /// What it should be.
    pub target: Bound,
    /// Whether it is.
    pub met: bool,
}

/// All targets.
pub const TARGETS: [Target; 7] = [
    Target {
        measure: "DoRA / our bare layer",
        bound: |_, batch| match batch {
            1 => Some(Bound::AtMost(1.06)),
            8.. => Some(Bound::AtMost(1.03)),
            _ => None,
        },
        ratio: |point, threads| Some(point.median(Who::Dora, threads)? / point.median(Who::Dense, threads)?),
        asked: Asked::Each,
    },
    Target {
        measure: "DoRA / best of ONNX Runtime, OpenVINO, PyTorch",
        bound: |_, batch| Some(Bound::AtMost(if batch <= 8 { 0.75 } else { 0.93 })),
        ratio: |point, threads| {
            let peers = [Who::OnnxRuntime, Who::OpenVino, Who::Torch, Who::TorchCompiled];
            Some(point.median(Who::Dora, threads)? / point.best(&peers, threads)?)
        },
        asked: Asked::Each,
    },
    Target {
        measure: "DoRA / PEFT's, the faster of eager and torch.compile",
        bound: |_, batch| (batch <= 8).then_some(Bound::AtMost(0.05)),
        ratio: |point, threads| {
            let peers = [Who::Peft, Who::PeftCompiled];
            Some(point.median(Who::Dora, threads)? / point.best(&peers, threads)?)
        },
        asked: Asked::Each,
    },
    Target {
        measure: "DoRA, speed with two threads / with one",
        bound: |_, batch| (batch >= 128).then_some(Bound::AtLeast(1.85)),
        ratio: |point, _| Some(point.median(Who::Dora, 1)? / point.median(Who::Dora, 2)?),
        asked: Asked::Both,
    },
    Target {
        measure: "live norms / frozen",
        bound: |shape, batch| (shape.inputs == 4096 && batch == 128).then_some(Bound::AtMost(1.25)),
        ratio: |point, threads| Some(point.median(Who::Live, threads)? / point.median(Who::Dora, threads)?),
        asked: Asked::Each,
    },
    Target {
        measure: "DoRA, flops a second / the same tile's out of L1",
        bound: |_, batch| (batch >= 32).then_some(Bound::AtLeast(0.95)),
        ratio: |point, threads| {
            let seconds = point.median(Who::Dora, threads)? / 1e6;
            Some(point.shape.flops(point.batch) / seconds / point.bounds.flops_per_second)
        },
        asked: Asked::One,
    },
    Target {
        measure: "DoRA, bytes a second / a plain read's",
        bound: |shape, batch| (shape.inputs == 4096 && batch == 1).then_some(Bound::AtLeast(0.95)),
        ratio: |point, threads| {
            let seconds = point.median(Who::Dora, threads)? / 1e6;
            Some(point.shape.bytes(point.batch) / seconds / point.bounds.bytes_per_second)
        },
        asked: Asked::One,
    },
];

/// Every ratio that has a target at these points.
pub fn ratios(points: &[Point], threads: &[usize]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for target in TARGETS {
        for point in points {
            let Some(bound) = (target.bound)(point.shape, point.batch) else { continue };
            let asked = match target.asked {
                Asked::Each => threads.iter().copied().map(Some).collect(),
                Asked::One => vec![Some(1)],
                Asked::Both => vec![None],
            };
            for threads in asked {
                if let Some(value) = (target.ratio)(point, threads.unwrap_or(1)) {
                    let (measure, shape, batch) = (target.measure, point.shape, point.batch);
                    let met = bound.holds(value);
                    ratios.push(Ratio { measure, shape, batch, threads, value, target: bound, met });
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
    use crate::grid::SHAPES;
    use crate::results::{Bounds, Point};
    use crate::rounds::Times;

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
        let bounds = Bounds { flops_per_second: 1e11, bytes_per_second: 1e10 };
        let points = [1, 4, 8].map(|batch| Point { shape: SHAPES[0], batch, times: times.clone(), bounds });
        let found: Vec<_> =
            ratios(&points, &[1, 2]).into_iter().map(|r| (r.batch, r.value, r.target, r.met)).collect();
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
}
