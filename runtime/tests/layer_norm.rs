//! Layer norms and RMS norms against the formula in 64-bit floats, over every length at which lanes and steps end, and over
//! numbers of rows at which groups and tasks do.

#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod operands;

use std::ptr::null;

use engraft_runtime::abi::{Center, LayerNorm};
use engraft_runtime::{Context, KernelSet, engraft_layer_norm};
use operands::{Floats, Guarded, bits, context, extent, frame, runnable};
use proptest::prelude::*;
use proptest::sample::select;

const EPSILON: f32 = 1e-5;

/// Rows with their operands.
#[derive(Clone, Debug)]
struct Case {
    center: Center,
    n: usize,
    x: Vec<f32>,
    weight: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

impl Case {
    /// Rows whose mean is about `shift`.
    fn new(
        (rows, n): (usize, usize),
        center: Center,
        [weight, bias]: [bool; 2],
        shift: f32,
        seed: u64,
    ) -> Case {
        let mut floats = Floats(seed);
        let x = floats.take(rows * n).into_iter().map(|x| x + shift).collect();
        Case { center, n, x, weight: weight.then(|| floats.take(n)), bias: bias.then(|| floats.take(n)) }
    }

    /// `rows` of them, and y if it is not to be x.
    fn compute(&self, context: &Context, rows: usize, x: &mut Guarded, y: Option<&mut Guarded>) {
        let [weight, bias] = [&self.weight, &self.bias].map(|v| v.as_deref().map(Guarded::of));
        let optional = |values: &Option<Guarded>| values.as_ref().map_or(null(), Guarded::address);
        let x = x.address_mut();
        let norm = LayerNorm {
            center: self.center,
            rows: rows as u64,
            n: self.n as u64,
            epsilon: EPSILON,
            x,
            weight: optional(&weight),
            bias: optional(&bias),
            y: y.map_or(x, Guarded::address_mut),
        };
        let frame = frame(context, &[]);
        // SAFETY: the buffers have the lengths that the extents give.
        unsafe { engraft_layer_norm(&raw const frame, &raw const norm) };
    }

    fn run(&self, context: &Context) -> Vec<f32> {
        let (mut x, mut y) = (Guarded::of(&self.x), Guarded::nan(self.x.len()));
        self.compute(context, self.rows(), &mut x, Some(&mut y));
        assert_eq!(bits(x.values()), bits(&self.x), "x is only read");
        y.values().to_vec()
    }

    fn rows(&self) -> usize {
        self.x.len().checked_div(self.n).unwrap_or(0)
    }

    fn only(&self, row: usize) -> Case {
        Case { x: self.x[row * self.n..(row + 1) * self.n].to_vec(), ..self.clone() }
    }

    /// The formula in 64-bit floats: each element, and how far off it may be.
    fn reference(&self) -> Vec<(f64, f64)> {
        let mut elements = Vec::with_capacity(self.x.len());
        let of =
            |vector: &Option<Vec<f32>>, j: usize, none| vector.as_ref().map_or(none, |v| f64::from(v[j]));
        for row in self.x.chunks(self.n.max(1)) {
            let n = row.len() as f64;
            let mean = |f: &dyn Fn(f64) -> f64| row.iter().map(|&x| f(f64::from(x))).sum::<f64>() / n;
            let (center, magnitude) = match self.center {
                Center::Mean => (mean(&|x| x), mean(&f64::abs)),
                Center::Zero => (0.0, 0.0),
            };
            let norm = (mean(&|x| (x - center).powi(2)) + f64::from(EPSILON)).sqrt();
            for (j, &x) in row.iter().enumerate() {
                let (weight, bias) = (of(&self.weight, j, 1.0), of(&self.bias, j, 0.0));
                let y = (f64::from(x) - center) / norm * weight;
                // A sum of n terms, in chains of a 16th of them at most, is off by a few roundings of the terms' magnitude, and a
                // mean that is off moves every deviation.
                let roundings = (n / 16.0 + 16.0) * f64::from(f32::EPSILON);
                let bound = roundings * ((magnitude / norm * weight).abs() + y.abs() + bias.abs() + 1e-3);
                elements.push((y + bias, bound));
            }
        }
        elements
    }

    fn assert_close(&self, found: &[f32], what: &str) {
        let reference = self.reference();
        assert_eq!(found.len(), reference.len());
        for (index, (&found, (expected, bound))) in found.iter().zip(reference).enumerate() {
            let off = (f64::from(found) - expected).abs();
            assert!(off <= bound, "{what}: element {index} is {found} instead of {expected}");
        }
    }
}

fn centers() -> impl Strategy<Value = Center> {
    select(vec![Center::Mean, Center::Zero])
}

fn extents() -> impl Strategy<Value = (usize, usize)> {
    (0..40_usize, prop_oneof![extent(), select(vec![191, 192, 255, 384, 576, 768, 1000, 4099])])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn norms_are_what_the_formula_says(
        extents in extents(), center in centers(), vectors: [bool; 2], shift in select(vec![0.0_f32, 1.0, -30.0]), seed: u64,
    ) {
        let case = Case::new(extents, center, vectors, shift, seed);
        for set in runnable() {
            case.assert_close(&case.run(&context(set, 1)), set.name());
        }
    }

    #[test]
    fn a_row_depends_on_nothing_but_itself_and_may_be_written_over(
        extents in extents(), center in centers(), vectors: [bool; 2], seed: u64,
    ) {
        let case = Case::new(extents, center, vectors, 0.5, seed);
        for set in runnable() {
            let context = context(set, 1);
            let whole = case.run(&context);
            for row in 0..case.rows() {
                let alone = case.only(row).run(&context);
                prop_assert_eq!(bits(&alone), bits(&whole[row * case.n..(row + 1) * case.n]));
            }
            let mut x = Guarded::of(&case.x);
            case.compute(&context, case.rows(), &mut x, None);
            prop_assert_eq!(bits(x.values()), bits(&whole));
        }
    }
}

/// So many elements that the threads share them.
#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let case = Case::new((131, 257), Center::Mean, [true; 2], 0.5, 7);
    for set in runnable() {
        let [one, three] = [1, 3].map(|threads| case.run(&context(set, threads)));
        assert_eq!(bits(&one), bits(&three), "{set}");
    }
}

#[test]
fn sets_that_fuse_agree_to_the_last_bit() {
    for (n, center) in
        [1, 15, 64, 100, 384, 1001].into_iter().flat_map(|n| [(n, Center::Mean), (n, Center::Zero)])
    {
        let case = Case::new((9, n), center, [true; 2], 0.5, 11);
        let sets = runnable().filter(|&set| set != KernelSet::Portable);
        let found: Vec<_> = sets.map(|set| bits(&case.run(&context(set, 1)))).collect();
        assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{n} {center:?}");
    }
}

/// A row with what is no finite number says so in its own elements alone.
#[test]
fn what_is_not_finite_stays_in_its_row() {
    for (set, center, what) in runnable().flat_map(|set| {
        [Center::Mean, Center::Zero].into_iter().flat_map(move |center| {
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|what| (set, center, what))
        })
    }) {
        for n in [5, 16, 83] {
            let mut case = Case::new((6, n), center, [true; 2], 0.5, 3);
            let without = case.run(&context(set, 1));
            case.x[2 * n + n / 2] = what;
            let with = case.run(&context(set, 1));
            for row in 0..6 {
                let (with, without) = (&with[row * n..(row + 1) * n], &without[row * n..(row + 1) * n]);
                if row != 2 {
                    assert_eq!(bits(with), bits(without), "{set} {center:?} {what}");
                } else if center == Center::Zero && what.is_infinite() {
                    // The others are nothing beside it: 0, and so the bias.
                    let bias = case.bias.as_ref().unwrap();
                    let ours = with.iter().zip(bias).enumerate();
                    assert!(ours.into_iter().all(|(j, (y, bias))| if j == n / 2 {
                        y.is_nan()
                    } else {
                        y == bias
                    }));
                } else {
                    assert!(with.iter().all(|y| y.is_nan()), "{set} {center:?} {what}");
                }
            }
        }
    }
}

/// However many rows there are of nothing, and none of something.
#[test]
fn nothing_takes_no_time_and_touches_nothing() {
    for (set, center) in runnable().flat_map(|set| [Center::Mean, Center::Zero].map(|center| (set, center))) {
        for (rows, n) in [(0, 37), (1 << 60, 0), (0, 0)] {
            let case = Case::new((0, n), center, [true; 2], 0.0, 5);
            case.compute(&context(set, 1), rows, &mut Guarded::nan(0), Some(&mut Guarded::nan(0)));
        }
    }
}
