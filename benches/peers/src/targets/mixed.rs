//! What the times of batches should be whose rows have different adapters.

use super::{Asked, Bound, Target};
use crate::contender::Who;
use crate::layers::Shape;
use crate::results::Point;
use crate::workload::Workload;

/// A layer's shape.
fn mixed(workload: Workload) -> Option<Shape> {
    if let Workload::Mixed { shape, .. } = workload { Some(shape) } else { None }
}

fn ratio(point: &Point, threads: usize, ours: Who, theirs: Who) -> Option<f64> {
    Some(point.median(ours, threads)? / point.median(theirs, threads)?)
}

/// The targets.
pub const TARGETS: [Target; 4] = [
    Target {
        measure: "each row its own DoRA, r = 16 / our bare layer, with a bank or without",
        bound: |workload| {
            let bound = if mixed(workload)?.inputs >= 4096 { 1.15 } else { 1.25 };
            (mixed(workload)?.rank == 16).then_some(Bound::AtMost(bound))
        },
        // Both are the same product, each on weights of its own; which lie better in memory is luck.
        ratio: |point, threads| {
            Some(point.median(Who::BankOwn, threads)? / point.best(&[Who::Dense, Who::BankBare], threads)?)
        },
        limit: |_, _| None,
        asked: Asked::One,
    },
    Target {
        measure: "8 LoRA adapters / PEFT's adapter_names",
        bound: |workload| mixed(workload).map(|_| Bound::AtMost(0.35)),
        ratio: |point, threads| ratio(point, threads, Who::BankLora, Who::PeftMixed),
        limit: |point, threads| point.limit(&[Who::PeftMixed], threads),
        asked: Asked::One,
    },
    Target {
        measure: "8 DoRA adapters / PEFT's adapter_names on 8 LoRA adapters",
        bound: |workload| mixed(workload).map(|_| Bound::AtMost(0.35)),
        ratio: |point, threads| ratio(point, threads, Who::BankDora, Who::PeftMixed),
        limit: |point, threads| point.limit(&[Who::PeftMixed], threads),
        asked: Asked::One,
    },
    Target {
        measure: "no row adapted / our bare layer",
        bound: |workload| mixed(workload).map(|_| Bound::AtMost(1.03)),
        ratio: |point, threads| ratio(point, threads, Who::BankBare, Who::Dense),
        limit: |_, _| None,
        asked: Asked::One,
    },
];
