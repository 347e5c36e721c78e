//! What the times of whole models should be.

use super::{Asked, Bound, Target};
use crate::contender::Who;
use crate::workload::Workload;

/// Who is given the adapter merged.
const PEERS: [Who; 3] = [Who::OnnxRuntime, Who::OnnxRuntimeFused, Who::OpenVino];

/// The targets.
pub const TARGETS: [Target; 3] = [
    Target {
        measure: "DoRA / better of ONNX Runtime and OpenVINO",
        bound: |workload| matches!(workload, Workload::Encode { .. }).then_some(Bound::AtMost(0.9)),
        ratio: |point, threads| Some(point.median(Who::Dora, threads)? / point.best(&PEERS, threads)?),
        limit: |point, threads| point.limit(&PEERS, threads),
        asked: Asked::One,
    },
    Target {
        measure: "DoRA / PEFT's",
        bound: |workload| {
            matches!(workload, Workload::Encode { batch: 1, tokens: 16, .. }).then_some(Bound::AtMost(0.1))
        },
        ratio: |point, threads| Some(point.median(Who::Dora, threads)? / point.median(Who::Peft, threads)?),
        limit: |point, threads| point.limit(&[Who::Peft], threads),
        asked: Asked::One,
    },
    Target {
        measure: "one token / a plain read of its weights",
        bound: |workload| matches!(workload, Workload::Decode { .. }).then_some(Bound::AtMost(1.15)),
        ratio: |point, threads| Some(point.median(Who::Dense, threads)? / point.median(Who::Read, threads)?),
        limit: |_, _| None,
        asked: Asked::One,
    },
];
