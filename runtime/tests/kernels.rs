//! Products and dot products against the formulas in 64-bit floats, over every shape at which tiles, panels and blocks end.

#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod operands;

use std::ptr::{null, null_mut};

use engraft_runtime::abi::{Dot, Frame, Linear, NOT_ADAPTABLE, Packing};
use engraft_runtime::panels::{LANE, PANEL};
use engraft_runtime::{Context, KernelSet, engraft_dot, engraft_linear};
use operands::{Floats, Guarded, Layout, Packed, assert_close, bits, context, extent, frame, pack, runnable};
use proptest::prelude::*;
use proptest::sample::select;

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
    residual: Option<Vec<f32>>,
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
    fn new(extents: Extents, [shared_x, shared_w, gain, bias, residual]: [bool; 5], seed: u64) -> Case {
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
            residual: residual.then(|| floats.take(batch * rows * out)),
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
        let residual = self.residual.as_deref().map(Guarded::of);
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
            residual: optional(&residual),
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
            let residual = self.residual.as_ref().map_or(0.0, |residual| f64::from(residual[elements.len()]));
            let magnitude = gain.abs() * magnitude + bias.abs() + residual.abs();
            elements.push((gain * sum + bias + residual, magnitude));
        }
        elements
    }

    /// A single row of the product.
    fn only(&self, item: usize, row: usize) -> Case {
        let Case { rows, out, k, rank, .. } = *self;
        let x = (if self.shared_x { 0 } else { item } * rows + row) * k;
        let w = if self.shared_w { 0 } else { item } * out * k;
        let (h, y) = ((item * rows + row) * rank, (item * rows + row) * out);
        Case {
            batch: 1,
            rows: 1,
            shared_x: false,
            shared_w: false,
            x: self.x[x..x + k].to_vec(),
            w: self.w[w..w + out * k].to_vec(),
            h: self.h[h..h + rank].to_vec(),
            residual: self.residual.as_ref().map(|residual| residual[y..y + out].to_vec()),
            ..self.clone()
        }
    }
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
    fn products_are_what_the_formula_says(extents in extents(), flags: [bool; 5], seed: u64) {
        let case = Case::new(extents, flags, seed);
        let reference = case.reference();
        for set in runnable() {
            assert_close(&case.run(&context(set, 1)), &reference, case.k + case.rank);
        }
    }

    #[test]
    fn a_row_depends_on_nothing_but_itself(extents in extents(), flags: [bool; 5], seed: u64) {
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
            // Sums of one output are added up one by one, those of several together.
            for j in 0..out {
                let column: Vec<_> = whole.iter().skip(j).step_by(out).copied().collect();
                prop_assert_eq!(bits(&dots.only_output(j).run(&context)), bits(&column));
            }
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

    fn only_output(&self, j: usize) -> Dots {
        let (out_stride, k_stride) = self.layout.strides(self.out, self.k);
        let a = (0..self.k).map(|p| self.a[j * out_stride + p * k_stride]).collect();
        Dots { out: 1, x: self.x.clone(), a, ..*self }
    }
}

const LARGE: Extents = Extents { batch: 1, rows: 203, out: 203, k: 67, rank: 5 };

#[test]
fn threads_change_no_bit() {
    for extents in [LARGE, Extents { batch: 9, rows: 33, ..LARGE }, Extents { rows: 1, out: 2000, ..LARGE }] {
        let case = Case::new(extents, [false, extents.batch == 1, true, true, true], 1);
        let mut floats = Floats(2);
        let (x, a) = (floats.take(203 * 67), floats.take(5 * 67));
        let dots = Dots { rows: 203, out: 5, k: 67, layout: Layout::OutIn, x, a };
        for set in runnable() {
            let alone = context(set, 1);
            for threads in [2, 3] {
                let together = context(set, threads);
                assert_eq!(bits(&case.run(&together)), bits(&case.run(&alone)));
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
    let (k, layout) = (1057, Layout::OutIn);
    let case = Case::new(Extents { k, ..LARGE }, [false, false, true, true, true], 3);
    let mut floats = Floats(4);
    let dots = Dots { rows: 31, out: 5, k, layout, x: floats.take(31 * k), a: floats.take(5 * k) };
    let results = fused.map(|set| {
        let context = context(set, 1);
        [case.run(&context), dots.run(&context)].map(|values| bits(&values))
    });
    let results: Vec<_> = results.collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
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
        let case = Case::new(extents, [false, false, true, true, true], 4);
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
    let mut case = Case::new(Extents { rows: 8, out: 70, ..LARGE }, [false, true, false, false, false], 5);
    case.x[3 * case.k] = f32::INFINITY;
    case.w[69 * case.k + 1] = f32::NAN;
    for set in runnable() {
        for (index, y) in case.run(&context(set, 1)).iter().enumerate() {
            assert_eq!(y.is_finite(), index / 70 != 3 && index % 70 != 69, "element {index}");
        }
    }
}
