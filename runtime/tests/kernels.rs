//! The kernels against the formulas in 64-bit floats, over every shape at which tiles, panels and blocks end.

#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

use std::num::NonZeroUsize;
use std::ptr::{null, null_mut};

use engraft_runtime::abi::{Dot, Frame, Linear, Merge, NOT_ADAPTABLE, Pack, Packing, RowNorm};
use engraft_runtime::panels::{LANE, PANEL};
use engraft_runtime::{
    Context, KernelSet, Options, engraft_dot, engraft_linear, engraft_merge, engraft_pack, engraft_row_norm,
};
use proptest::prelude::*;
use proptest::sample::select;

/// Floats between guards of NaN, aligned as panels are: a guard that is read spoils the sum, one that is written is
/// missed.
struct Guarded {
    floats: Vec<f32>,
    first: usize,
    len: usize,
}

impl Guarded {
    const GUARD: usize = 64;

    fn of(values: &[f32]) -> Guarded {
        let mut floats = vec![f32::NAN; values.len() + 3 * Guarded::GUARD];
        let first = floats.as_ptr().align_offset(64) + Guarded::GUARD;
        floats[first..first + values.len()].copy_from_slice(values);
        Guarded { floats, first, len: values.len() }
    }

    fn nan(len: usize) -> Guarded {
        Guarded::of(&vec![f32::NAN; len])
    }

    fn values(&self) -> &[f32] {
        let (before, rest) = self.floats.split_at(self.first);
        let (values, after) = rest.split_at(self.len);
        assert!(before.iter().chain(after).all(|guard| guard.is_nan()), "written outside its bounds");
        values
    }

    fn address(&self) -> *const f32 {
        self.floats[self.first..].as_ptr()
    }

    fn address_mut(&mut self) -> *mut f32 {
        self.floats[self.first..].as_mut_ptr()
    }
}

/// Floats in -1..1, the same for the same seed.
struct Floats(u64);

impl Floats {
    fn take(&mut self, len: usize) -> Vec<f32> {
        let mut next = || {
            // Knuth's MMIX generator.
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }
}

fn context(set: KernelSet, threads: usize) -> Context {
    Context::new(Options { threads: NonZeroUsize::new(threads), kernels: Some(set) }).unwrap()
}

/// The sets this CPU can run.
fn runnable() -> impl Iterator<Item = KernelSet> {
    KernelSet::ALL.into_iter().filter(|set| set.kernels().is_some())
}

fn frame(context: &Context, buffers: &[*mut u8]) -> Frame {
    Frame {
        dims: null(),
        buffers: buffers.as_ptr(),
        arena: null_mut(),
        context,
        fault: null_mut(),
        profile: null_mut(),
        adapters: null(),
        arriving: null(),
    }
}

/// W as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    OutIn,
    InOut,
}

impl Layout {
    fn strides(self, out: usize, k: usize) -> (usize, usize) {
        match self {
            Layout::OutIn => (k, 1),
            Layout::InOut => (1, out),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Packed {
    packing: Packing,
    batch: usize,
    out: usize,
    k: usize,
    layout: Layout,
    scale: f32,
}

fn pack(context: &Context, packed: Packed, w: &[f32]) -> Guarded {
    let Packed { packing, batch, out, k, layout, scale } = packed;
    let (out_stride, k_stride) = layout.strides(out, k);
    let w = Guarded::of(w);
    let mut packed = Guarded::nan(batch * packing.len(out, k).unwrap());
    let request = Pack {
        batch: batch as u64,
        out: out as u64,
        k: k as u64,
        w: w.address(),
        w_batch_stride: (out * k) as u64,
        out_stride: out_stride as u64,
        k_stride: k_stride as u64,
        scale,
        packing,
        packed: packed.address_mut(),
    };
    let frame = frame(context, &[]);
    // SAFETY: the buffers have the lengths that the extents give.
    unsafe { engraft_pack(&raw const frame, &raw const request) };
    packed
}

/// A product with its operands.
#[derive(Clone, Debug)]
struct Case {
    batch: usize,
    rows: usize,
    out: usize,
    k: usize,
    rank: usize,
    shared_x: bool,
    shared_w: bool,
    x: Vec<f32>,
    w: Vec<f32>,
    h: Vec<f32>,
    b: Vec<f32>,
    gain: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

#[derive(Clone, Copy, Debug)]
struct Extents {
    batch: usize,
    rows: usize,
    out: usize,
    k: usize,
    rank: usize,
}

impl Case {
    fn new(extents: Extents, [shared_x, shared_w, gain, bias]: [bool; 4], seed: u64) -> Case {
        let Extents { batch, rows, out, k, rank } = extents;
        let mut floats = Floats(seed);
        Case {
            batch,
            rows,
            out,
            k,
            rank,
            shared_x,
            shared_w,
            x: floats.take(if shared_x { 1 } else { batch } * rows * k),
            w: floats.take(if shared_w { 1 } else { batch } * out * k),
            h: floats.take(batch * rows * rank),
            b: floats.take(out * rank),
            gain: gain.then(|| floats.take(out)),
            bias: bias.then(|| floats.take(out)),
        }
    }

    fn run(&self, context: &Context) -> Vec<f32> {
        self.run_with(context, &[], |_, linear| linear)
    }

    /// Runs the product, changed by `adjust` once its addresses are known.
    fn run_with(
        &self,
        context: &Context,
        buffers: &[*mut u8],
        adjust: impl FnOnce(&mut [*mut u8], Linear) -> Linear,
    ) -> Vec<f32> {
        let Case { batch, rows, out, k, rank, .. } = *self;
        let layout = Layout::OutIn;
        let matrices = if self.shared_w { 1 } else { batch };
        let packing = Packing::Panels;
        let w = pack(context, Packed { packing, batch: matrices, out, k, layout, scale: 1.0 }, &self.w);
        let b = pack(context, Packed { packing, batch: 1, out, k: rank, layout, scale: 1.0 }, &self.b);
        let (x, h) = (Guarded::of(&self.x), Guarded::of(&self.h));
        let (gain, bias) = (self.gain.as_deref().map(Guarded::of), self.bias.as_deref().map(Guarded::of));
        let mut y = Guarded::nan(batch * rows * out);
        let optional = |values: &Option<Guarded>| values.as_ref().map_or(null(), Guarded::address);
        let linear = Linear {
            batch: batch as u64,
            rows: rows as u64,
            out: out as u64,
            k: k as u64,
            rank: rank as u64,
            x: x.address(),
            x_batch_stride: if self.shared_x { 0 } else { (rows * k) as u64 },
            w: w.address(),
            w_batch_stride: if self.shared_w { 0 } else { Packing::Panels.len(out, k).unwrap() as u64 },
            h: if rank == 0 { null() } else { h.address() },
            b: if rank == 0 { null() } else { b.address() },
            gain: optional(&gain),
            bias: optional(&bias),
            y: y.address_mut(),
            adaptable: NOT_ADAPTABLE,
            epilogue_buffers: null(),
            epilogue: None,
        };
        let mut buffers = buffers.to_vec();
        let linear = adjust(&mut buffers, linear);
        let linear = Linear { epilogue_buffers: buffers.as_ptr(), ..linear };
        let frame = frame(context, &[]);
        // SAFETY: the buffers have the lengths that the extents give, and the panels are packed for them.
        unsafe { engraft_linear(&raw const frame, &raw const linear) };
        y.values().to_vec()
    }

    /// The formula in 64-bit floats: each element, and the sum of its terms' magnitudes.
    fn reference(&self) -> Vec<(f64, f64)> {
        let Case { batch, rows, out, k, rank, .. } = *self;
        let mut elements = Vec::with_capacity(batch * rows * out);
        for (item, row, j) in
            (0..batch).flat_map(|i| (0..rows).flat_map(move |r| (0..out).map(move |j| (i, r, j))))
        {
            let x = (if self.shared_x { 0 } else { item } * rows + row) * k;
            let w = (if self.shared_w { 0 } else { item } * out + j) * k;
            let h = (item * rows + row) * rank;
            let of_w = self.x[x..x + k].iter().zip(&self.w[w..w + k]);
            let of_b = self.h[h..h + rank].iter().zip(&self.b[j * rank..(j + 1) * rank]);
            let terms = of_w.chain(of_b).map(|(&a, &b)| f64::from(a) * f64::from(b));
            let (sum, magnitude) = terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()));
            let gain = self.gain.as_ref().map_or(1.0, |gain| f64::from(gain[j]));
            let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[j]));
            elements.push((gain * sum + bias, gain.abs() * magnitude + bias.abs()));
        }
        elements
    }

    /// A single row of the product.
    fn only(&self, item: usize, row: usize) -> Case {
        let Case { rows, out, k, rank, .. } = *self;
        let x = (if self.shared_x { 0 } else { item } * rows + row) * k;
        let w = if self.shared_w { 0 } else { item } * out * k;
        let h = (item * rows + row) * rank;
        Case {
            batch: 1,
            rows: 1,
            shared_x: false,
            shared_w: false,
            x: self.x[x..x + k].to_vec(),
            w: self.w[w..w + out * k].to_vec(),
            h: self.h[h..h + rank].to_vec(),
            ..self.clone()
        }
    }
}

/// Agreement within the bound of a sum of that many rounded terms (Higham, Accuracy and Stability, section 3.1).
fn assert_close(found: &[f32], reference: &[(f64, f64)], terms: usize) {
    assert_eq!(found.len(), reference.len());
    for (index, (&found, &(expected, magnitude))) in found.iter().zip(reference).enumerate() {
        let bound = (terms + 4) as f64 * f64::from(f32::EPSILON) * magnitude + f64::from(f32::MIN_POSITIVE);
        assert!(
            (f64::from(found) - expected).abs() <= bound,
            "element {index}: {found} instead of {expected}"
        );
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Extents around the ends of tiles (4, 6, 8), lanes (16), panels (48) and blocks of rows (128).
fn extent() -> impl Strategy<Value = usize> {
    select(vec![
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 31, 33, 47, 48, 49, 63, 65, 95, 97, 127, 128, 129,
        137,
    ])
}

fn extents() -> impl Strategy<Value = Extents> {
    let batched = (0..4_usize, 0..20_usize, extent(), extent(), 0..10_usize);
    let flat = (Just(1), extent(), extent(), extent(), extent());
    // Where rows fill several tiles, K is taken in blocks, and the sums rest in y in between; a single tile takes it whole.
    let deep = (1..3_usize, 1..20_usize, 1..70_usize, select(vec![1023, 1024, 1025, 2051]), 0..3_usize);
    prop_oneof![batched, flat, deep].prop_map(|(batch, rows, out, k, rank)| Extents {
        batch,
        rows,
        out,
        k,
        rank,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn products_are_what_the_formula_says(extents in extents(), flags: [bool; 4], seed: u64) {
        let case = Case::new(extents, flags, seed);
        let reference = case.reference();
        for set in runnable() {
            assert_close(&case.run(&context(set, 1)), &reference, case.k + case.rank);
        }
    }

    #[test]
    fn a_row_depends_on_nothing_but_itself(extents in extents(), flags: [bool; 4], seed: u64) {
        let case = Case::new(extents, flags, seed);
        for set in runnable() {
            let context = context(set, 1);
            let whole = case.run(&context);
            for (item, row) in (0..case.batch).flat_map(|item| (0..case.rows).map(move |row| (item, row))).step_by(7) {
                let at = (item * case.rows + row) * case.out;
                prop_assert_eq!(bits(&case.only(item, row).run(&context)), bits(&whole[at..at + case.out]));
            }
        }
    }

    #[test]
    fn packed_matrices_lie_where_the_format_says(
        (batch, out, k) in (0..3_usize, extent(), extent()), in_out: bool, scale in select(vec![1.0_f32, 0.25]), seed: u64,
    ) {
        let layout = if in_out { Layout::InOut } else { Layout::OutIn };
        let w = Floats(seed).take(batch * out * k);
        let packed = |packing| {
            let packed = Packed { packing, batch, out, k, layout, scale };
            pack(&context(KernelSet::Portable, 1), packed, &w).values().to_vec()
        };
        let (out_stride, k_stride) = layout.strides(out, k);
        let mut expected = Vec::new();
        for item in 0..batch {
            for first in (0..out).step_by(PANEL) {
                let width = (out - first).min(PANEL).next_multiple_of(LANE);
                for p in 0..k {
                    expected.extend((first..first + width).map(|j| {
                        if j < out { scale * w[item * out * k + j * out_stride + p * k_stride] } else { 0.0 }
                    }));
                }
            }
        }
        prop_assert_eq!(packed(Packing::Panels), expected);
        let mut expected = Vec::new();
        for (item, j) in (0..batch).flat_map(|item| (0..out).map(move |j| (item, j))) {
            let row = (0..k).map(|p| scale * w[item * out * k + j * out_stride + p * k_stride]);
            expected.extend(row.chain(std::iter::repeat(0.0)).take(if k == 0 { 0 } else { (k.div_ceil(LANE) | 1) * LANE }));
        }
        prop_assert_eq!(packed(Packing::Rows), expected);
    }

    #[test]
    fn dot_products_are_what_the_formula_says_and_of_their_row_alone(
        (rows, out, k) in (extent(), 0..20_usize, extent()), in_out: bool, seed: u64,
    ) {
        let layout = if in_out { Layout::InOut } else { Layout::OutIn };
        let mut floats = Floats(seed);
        let dots = Dots { rows, out, k, layout, x: floats.take(rows * k), a: floats.take(out * k) };
        let reference = dots.reference();
        for set in runnable() {
            let context = context(set, 1);
            let whole = dots.run(&context);
            assert_close(&whole, &reference, k);
            for row in (0..rows).step_by(7) {
                prop_assert_eq!(bits(&dots.only(row).run(&context)), bits(&whole[row * out..(row + 1) * out]));
            }
        }
    }

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

/// Dot products with their operands.
struct Dots {
    rows: usize,
    out: usize,
    k: usize,
    layout: Layout,
    x: Vec<f32>,
    a: Vec<f32>,
}

impl Dots {
    fn run(&self, context: &Context) -> Vec<f32> {
        let Dots { rows, out, k, layout, .. } = *self;
        let packed = Packed { packing: Packing::Rows, batch: 1, out, k, layout, scale: 1.0 };
        let (x, a) = (Guarded::of(&self.x), pack(context, packed, &self.a));
        let mut h = Guarded::nan(rows * out);
        let request = Dot {
            rows: rows as u64,
            k: k as u64,
            out: out as u64,
            x: x.address(),
            a: a.address(),
            h: h.address_mut(),
        };
        let frame = frame(context, &[]);
        // SAFETY: the buffers have the lengths that the extents give.
        unsafe { engraft_dot(&raw const frame, &raw const request) };
        h.values().to_vec()
    }

    /// Each element, and the sum of its terms' magnitudes.
    fn reference(&self) -> Vec<(f64, f64)> {
        let (out_stride, k_stride) = self.layout.strides(self.out, self.k);
        let element = |row: usize, j: usize| {
            let term = |p: usize| {
                f64::from(self.x[row * self.k + p]) * f64::from(self.a[j * out_stride + p * k_stride])
            };
            (0..self.k).map(term).fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()))
        };
        (0..self.rows).flat_map(|row| (0..self.out).map(move |j| element(row, j))).collect()
    }

    fn only(&self, row: usize) -> Dots {
        Dots { rows: 1, x: self.x[row * self.k..(row + 1) * self.k].to_vec(), a: self.a.clone(), ..*self }
    }
}

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

    fn norms(&self, context: &Context) -> Vec<f32> {
        let ([w, a, b], rank) = (self.packed(context), self.rank);
        let mut n = Guarded::nan(self.out);
        let request = RowNorm {
            out: self.out as u64,
            k: self.k as u64,
            rank: rank as u64,
            w: w.address(),
            a: if rank == 0 { null() } else { a.address() },
            b: if rank == 0 { null() } else { b.address() },
            n: n.address_mut(),
        };
        let frame = frame(context, &[]);
        // SAFETY: the buffers have the lengths that the extents give.
        unsafe { engraft_row_norm(&raw const frame, &raw const request) };
        n.values().to_vec()
    }

    /// The elements of `gain ∘ (W + s B A)` by rows. What pads its panels is 0.
    fn merged(&self, context: &Context, gain: Option<&[f32]>) -> Vec<f32> {
        let ([w, a, b], gain) = (self.packed(context), gain.map(Guarded::of));
        let Adapted { out, k, rank, .. } = *self;
        let mut merged = Guarded::nan(Packing::Panels.len(out, k).unwrap());
        let request = Merge {
            out: out as u64,
            k: k as u64,
            rank: rank as u64,
            w: w.address(),
            a: if rank == 0 { null() } else { a.address() },
            b: if rank == 0 { null() } else { b.address() },
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

const LARGE: Extents = Extents { batch: 1, rows: 203, out: 203, k: 67, rank: 5 };

#[test]
fn threads_change_no_bit() {
    for extents in [LARGE, Extents { batch: 9, rows: 33, ..LARGE }, Extents { rows: 1, out: 2000, ..LARGE }] {
        let case = Case::new(extents, [false, extents.batch == 1, true, true], 1);
        let mut floats = Floats(2);
        let (w, a, b) = (floats.take(203 * 67), floats.take(5 * 67), floats.take(203 * 5));
        let weight = Adapted { out: 203, k: 67, rank: 5, layout: Layout::InOut, scale: 0.5, w, a, b };
        let (x, a, gain) = (floats.take(203 * 67), floats.take(5 * 67), floats.take(203));
        let dots = Dots { rows: 203, out: 5, k: 67, layout: Layout::OutIn, x, a };
        for set in runnable() {
            let alone = context(set, 1);
            for threads in [2, 3] {
                let together = context(set, threads);
                assert_eq!(bits(&case.run(&together)), bits(&case.run(&alone)));
                assert_eq!(bits(&weight.norms(&together)), bits(&weight.norms(&alone)));
                for gain in [None, Some(gain.as_slice())] {
                    assert_eq!(bits(&weight.merged(&together, gain)), bits(&weight.merged(&alone, gain)));
                }
                assert_eq!(bits(&dots.run(&together)), bits(&dots.run(&alone)));
            }
        }
    }
}

#[test]
fn kernels_that_fuse_multiply_and_add_agree_to_the_last_bit() {
    // On a CPU with one of them only there is nothing to compare.
    let fused = [KernelSet::Avx2, KernelSet::Avx512].into_iter().filter(|set| set.kernels().is_some());
    // A K of more than one block, and no whole number of lanes.
    let (out, k, rank, layout) = (203, 1057, 5, Layout::OutIn);
    let case = Case::new(Extents { k, ..LARGE }, [false, false, true, true], 3);
    let mut floats = Floats(4);
    let (w, a, b) = (floats.take(out * k), floats.take(rank * k), floats.take(out * rank));
    let dots = Dots { rows: 31, out: rank, k, layout, x: floats.take(31 * k), a: a.clone() };
    let gain = floats.take(out);
    let weight = Adapted { out, k, rank, layout, scale: 0.5, w, a, b };
    let results = fused.map(|set| {
        let context = context(set, 1);
        let [plain, gained] = [None, Some(gain.as_slice())].map(|gain| weight.merged(&context, gain));
        [case.run(&context), dots.run(&context), weight.norms(&context), plain, gained]
            .map(|values| bits(&values))
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

/// Doubles its tile of the product, whose address, rows and columns are the buffers.
unsafe extern "C" fn double(
    _: *const Frame,
    buffers: *const *mut u8,
    row0: u64,
    row1: u64,
    col0: u64,
    col1: u64,
) {
    // SAFETY: the test passes the product's output and extents.
    unsafe {
        let (rows, out) = (*buffers.add(1) as u64, *buffers.add(2) as u64);
        #[allow(clippy::cast_ptr_alignment, reason = "it was a pointer to floats")]
        let y = (*buffers).cast::<f32>();
        assert!(row0 < row1 && row1 <= rows && col0 < col1 && col1 <= out);
        for (row, column) in (row0..row1).flat_map(|row| (col0..col1).map(move |column| (row, column))) {
            *y.add((row * out + column) as usize) *= 2.0;
        }
    }
}

#[test]
fn an_epilogue_gets_every_finished_element_once() {
    for extents in [
        LARGE,
        Extents { batch: 3, rows: 97, out: 65, k: 1030, rank: 0 },
        Extents { rows: 7, out: 16, k: 0, ..LARGE },
        Extents { rows: 0, ..LARGE },
        Extents { out: 0, ..LARGE },
    ] {
        let case = Case::new(extents, [false, false, true, true], 4);
        for context in [context(KernelSet::Portable, 1), context(KernelSet::Portable, 3)] {
            let (rows, out) = (std::ptr::without_provenance_mut(case.batch * case.rows), case.out);
            let out = std::ptr::without_provenance_mut(out);
            let doubled = case.run_with(&context, &[null_mut(), rows, out], |buffers, linear| {
                buffers[0] = linear.y.cast();
                Linear { epilogue: Some(double), ..linear }
            });
            let once: Vec<f32> = case.run(&context).iter().map(|y| 2.0 * y).collect();
            assert_eq!(bits(&doubled), bits(&once));
        }
    }
}

#[test]
fn values_that_are_not_finite_stay_in_their_rows_and_columns() {
    let mut case = Case::new(Extents { rows: 8, out: 70, ..LARGE }, [false, true, false, false], 5);
    case.x[3 * case.k] = f32::INFINITY;
    case.w[69 * case.k + 1] = f32::NAN;
    for set in runnable() {
        for (index, y) in case.run(&context(set, 1)).iter().enumerate() {
            assert_eq!(y.is_finite(), index / 70 != 3 && index % 70 != 69, "element {index}");
        }
    }
}
