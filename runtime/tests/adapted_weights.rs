//! Adapted weights, `W + s B A`, against the formulas in 64-bit floats: the norms of their rows, and the panels of merged ones.

#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod operands;

use std::ptr::null;

use engraft_runtime::abi::{AdaptedWeight, Merge, Packing, RowNorm};
use engraft_runtime::panels::{LANE, PANEL};
use engraft_runtime::{Context, KernelSet, engraft_merge, engraft_row_norm};
use operands::{Floats, Guarded, Layout, Packed, assert_close, bits, context, extent, frame, pack, runnable};
use proptest::prelude::*;

/// An adapted weight by its parts.
struct Adapted {
    out: usize,
    k: usize,
    rank: usize,
    layout: Layout,
    scale: f32,
    w: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Adapted {
    /// W, A and B as kernels read them.
    fn packed(&self, context: &Context) -> [Guarded; 3] {
        let Adapted { out, k, rank, layout, scale, .. } = *self;
        let matrix = |packing, (out, k), layout, scale, values: &[f32]| {
            pack(context, Packed { packing, batch: 1, out, k, layout, scale }, values)
        };
        [
            matrix(Packing::Panels, (out, k), layout, 1.0, &self.w),
            matrix(Packing::Rows, (rank, k), Layout::OutIn, 1.0, &self.a),
            matrix(Packing::Panels, (out, rank), Layout::OutIn, scale, &self.b),
        ]
    }

    fn weight(&self, [w, a, b]: &[Guarded; 3]) -> AdaptedWeight {
        let address = |of: &Guarded| if self.rank == 0 { null() } else { of.address() };
        let [out, k, rank] = [self.out, self.k, self.rank].map(|extent| extent as u64);
        AdaptedWeight { out, k, rank, w: w.address(), a: address(a), b: address(b) }
    }

    fn norms(&self, context: &Context) -> Vec<f32> {
        let operands = self.packed(context);
        let mut n = Guarded::nan(self.out);
        let request = RowNorm { weight: self.weight(&operands), n: n.address_mut() };
        let frame = frame(context, &[]);
        // SAFETY: the buffers have the lengths that the extents give.
        unsafe { engraft_row_norm(&raw const frame, &raw const request) };
        n.values().to_vec()
    }

    /// The elements of `gain ∘ (W + s B A)` by rows. What pads its panels is 0.
    fn merged(&self, context: &Context, gain: Option<&[f32]>) -> Vec<f32> {
        let (operands, gain) = (self.packed(context), gain.map(Guarded::of));
        let Adapted { out, k, .. } = *self;
        let mut merged = Guarded::nan(Packing::Panels.len(out, k).unwrap());
        let request = Merge {
            weight: self.weight(&operands),
            gain: gain.as_ref().map_or(null(), Guarded::address),
            merged: merged.address_mut(),
        };
        let frame = frame(context, &[]);
        // SAFETY: the buffers have the lengths that the extents give.
        unsafe { engraft_merge(&raw const frame, &raw const request) };
        let mut rows = vec![f32::NAN; out * k];
        for first in (0..out).step_by(PANEL) {
            let columns = (out - first).min(PANEL);
            let width = columns.next_multiple_of(LANE);
            for (at, &value) in merged.values()[first * k..(first + width) * k].iter().enumerate() {
                let (input, column) = (at / width, at % width);
                if column < columns {
                    rows[(first + column) * k + input] = value;
                } else {
                    assert!(value == 0.0, "{value} pads");
                }
            }
        }
        rows
    }

    /// The norm of a single output.
    fn only(&self, j: usize) -> Adapted {
        let (out_stride, k_stride) = self.layout.strides(self.out, self.k);
        Adapted {
            out: 1,
            layout: Layout::OutIn,
            w: (0..self.k).map(|p| self.w[j * out_stride + p * k_stride]).collect(),
            a: self.a.clone(),
            b: self.b[j * self.rank..(j + 1) * self.rank].to_vec(),
            ..*self
        }
    }

    /// An element of `W + s B A`, and the sum of its terms' magnitudes.
    fn element(&self, j: usize, p: usize) -> (f64, f64) {
        let (out_stride, k_stride) = self.layout.strides(self.out, self.k);
        let w = f64::from(self.w[j * out_stride + p * k_stride]);
        let term = |r: usize| f64::from(self.b[j * self.rank + r]) * f64::from(self.a[r * self.k + p]);
        let scale = f64::from(self.scale);
        let magnitudes = (0..self.rank).map(|r| term(r).abs()).sum::<f64>();
        (w + scale * (0..self.rank).map(term).sum::<f64>(), w.abs() + scale.abs() * magnitudes)
    }

    /// Each norm, and the norm of the terms' magnitudes.
    fn reference(&self) -> Vec<(f64, f64)> {
        let norm = |j: usize| {
            let (mut squares, mut magnitudes) = (0.0, 0.0);
            for p in 0..self.k {
                let (element, magnitude) = self.element(j, p);
                squares += element.powi(2);
                magnitudes += magnitude.powi(2);
            }
            (squares.sqrt(), magnitudes.sqrt())
        };
        (0..self.out).map(norm).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn row_norms_are_what_the_formula_says(
        (out, k, rank) in (extent(), extent(), extent()), in_out: bool, scale in -2.0_f32..2.0, seed: u64,
    ) {
        let layout = if in_out { Layout::InOut } else { Layout::OutIn };
        let mut floats = Floats(seed);
        let (w, a, b) = (floats.take(out * k), floats.take(rank * k), floats.take(out * rank));
        let case = Adapted { out, k, rank, layout, scale, w, a, b };
        let reference = case.reference();
        for set in runnable() {
            let context = context(set, 1);
            let norms = case.norms(&context);
            assert_close(&norms, &reference, rank);
            for row in (0..out).step_by(7) {
                prop_assert_eq!(bits(&case.only(row).norms(&context)), bits(&norms[row..=row]));
            }
        }
    }

    #[test]
    fn merged_weights_are_what_the_formula_says(
        (out, k, rank) in (extent(), extent(), extent()), scale in -2.0_f32..2.0, has_gain: bool, seed: u64,
    ) {
        let layout = Layout::OutIn;
        let mut floats = Floats(seed);
        let (w, a, b) = (floats.take(out * k), floats.take(rank * k), floats.take(out * rank));
        let gain = has_gain.then(|| floats.take(out));
        let case = Adapted { out, k, rank, layout, scale, w, a, b };
        let gain_of = |j: usize| gain.as_ref().map_or(1.0, |gain| f64::from(gain[j]));
        let element = |at: usize| {
            let ((value, magnitude), gain) = (case.element(at / k, at % k), gain_of(at / k));
            (gain * value, gain.abs() * magnitude)
        };
        let reference: Vec<_> = (0..out * k).map(element).collect();
        for set in runnable() {
            let merged = case.merged(&context(set, 1), gain.as_deref());
            assert_close(&merged, &reference, rank + 2);
            prop_assert_eq!(bits(&case.merged(&context(set, 3), gain.as_deref())), bits(&merged));
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let (out, k, rank) = (203, 67, 5);
    let mut floats = Floats(2);
    let (w, a, b) = (floats.take(out * k), floats.take(rank * k), floats.take(out * rank));
    let weight = Adapted { out, k, rank, layout: Layout::InOut, scale: 0.5, w, a, b };
    let gain = floats.take(out);
    for set in runnable() {
        let alone = context(set, 1);
        for threads in [2, 3] {
            let together = context(set, threads);
            assert_eq!(bits(&weight.norms(&together)), bits(&weight.norms(&alone)));
            for gain in [None, Some(gain.as_slice())] {
                assert_eq!(bits(&weight.merged(&together, gain)), bits(&weight.merged(&alone, gain)));
            }
        }
    }
}

#[test]
fn kernels_that_fuse_multiply_and_add_agree_to_the_last_bit() {
    // On a CPU with one of them only there is nothing to compare.
    let fused = [KernelSet::Avx2, KernelSet::Avx512].into_iter().filter(|set| set.kernels().is_some());
    // No whole number of lanes, of tiles or of panels.
    let (out, k, rank, layout) = (203, 1057, 5, Layout::OutIn);
    let mut floats = Floats(4);
    let (w, a, b) = (floats.take(out * k), floats.take(rank * k), floats.take(out * rank));
    let gain = floats.take(out);
    let weight = Adapted { out, k, rank, layout, scale: 0.5, w, a, b };
    let results = fused.map(|set| {
        let context = context(set, 1);
        let [plain, gained] = [None, Some(gain.as_slice())].map(|gain| weight.merged(&context, gain));
        [weight.norms(&context), plain, gained].map(|values| bits(&values))
    });
    let results: Vec<_> = results.collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn norms_neither_cancel_nor_overflow() {
    // W + 1 * B A is 0 but for the last input; and squares beyond f32 are within f64.
    let (out, k, layout) = (1, 100, Layout::OutIn);
    let mut w = vec![1000.0; k];
    w[k - 1] += 0.5;
    let cancelling = Adapted { out, k, rank: 1, layout, scale: 1.0, w, a: vec![-1000.0; k], b: vec![1.0] };
    let huge = Adapted { out, k, rank: 0, layout, scale: 1.0, w: vec![1e30; k], a: vec![], b: vec![] };
    for set in runnable() {
        assert_eq!(cancelling.norms(&context(set, 1)), [0.5]);
        assert_eq!(huge.norms(&context(set, 1)), [1e31]);
    }
}
