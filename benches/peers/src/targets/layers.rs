//! What the times of single layers should be.

use super::{Asked, Bound, Target};
use crate::contender::Who;
use crate::layers::Shape;
use crate::workload::Workload;

/// A layer's shape and batch.
fn layer(workload: Workload) -> Option<(Shape, usize)> {
    if let Workload::Layer { shape, batch } = workload { Some((shape, batch)) } else { None }
}

/// Who is given the adapter folded into the weight.
const PEERS: [Who; 4] = [Who::OnnxRuntime, Who::OpenVino, Who::Torch, Who::TorchCompiled];
/// PEFT, which computes its norms in each call.
const PEFT: [Who; 2] = [Who::Peft, Who::PeftCompiled];

/// The targets.
pub const TARGETS: [Target; 7] = [
    Target {
        measure: "DoRA / our bare layer",
        bound: |workload| match layer(workload)?.1 {
            1 => Some(Bound::AtMost(1.06)),
            8.. => Some(Bound::AtMost(1.03)),
            _ => None,
        },
        ratio: |point, threads| Some(point.median(Who::Dora, threads)? / point.median(Who::Dense, threads)?),
        limit: |_, _| None,
        asked: Asked::Each,
    },
    Target {
        measure: "DoRA / best of ONNX Runtime, OpenVINO, PyTorch",
        bound: |workload| Some(Bound::AtMost(if layer(workload)?.1 <= 8 { 0.75 } else { 0.93 })),
        ratio: |point, threads| Some(point.median(Who::Dora, threads)? / point.best(&PEERS, threads)?),
        limit: |point, threads| point.limit(&PEERS, threads),
        asked: Asked::Each,
    },
    Target {
        measure: "DoRA / PEFT's, the faster of eager and torch.compile",
        bound: |workload| (layer(workload)?.1 <= 8).then_some(Bound::AtMost(0.05)),
        ratio: |point, threads| Some(point.median(Who::Dora, threads)? / point.best(&PEFT, threads)?),
        limit: |point, threads| point.limit(&PEFT, threads),
        asked: Asked::Each,
    },
    Target {
        measure: "DoRA, speed with two threads / with one",
        bound: |workload| (layer(workload)?.1 >= 128).then_some(Bound::AtLeast(1.85)),
        ratio: |point, _| Some(point.median(Who::Dora, 1)? / point.median(Who::Dora, 2)?),
        limit: |_, _| None,
        asked: Asked::Both,
    },
    Target {
        measure: "live norms / frozen",
        bound: |workload| {
            let (shape, batch) = layer(workload)?;
            (shape.inputs == 4096 && batch == 128).then_some(Bound::AtMost(1.25))
        },
        ratio: |point, threads| Some(point.median(Who::Live, threads)? / point.median(Who::Dora, threads)?),
        limit: |_, _| None,
        asked: Asked::Each,
    },
    Target {
        measure: "DoRA, flops a second / the same tile's out of L1",
        bound: |workload| (layer(workload)?.1 >= 32).then_some(Bound::AtLeast(0.95)),
        ratio: |point, threads| {
            let (shape, batch) = layer(point.workload)?;
            let seconds = point.median(Who::Dora, threads)? / 1e6;
            Some(shape.flops(batch) / seconds / point.bounds.flops_per_second)
        },
        limit: |_, _| None,
        asked: Asked::One,
    },
    Target {
        measure: "DoRA, bytes a second / a plain read's",
        bound: |workload| {
            let (shape, batch) = layer(workload)?;
            (shape.inputs == 4096 && batch == 1).then_some(Bound::AtLeast(0.95))
        },
        ratio: |point, threads| {
            let (shape, batch) = layer(point.workload)?;
            let seconds = point.median(Who::Dora, threads)? / 1e6;
            Some(shape.bytes(batch) / seconds / point.bounds.bytes_per_second)
        },
        limit: |_, _| None,
        asked: Asked::One,
    },
];
