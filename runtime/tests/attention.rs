//! Attention against the formula in 64-bit floats, over extents at which lanes, tiles and blocks end. What no query may
//! see is NaN: the gaps between rows, and the keys and values that the mask leaves out.

#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod operands;

use std::ptr::null;

use engraft_runtime::abi::Attention;
use engraft_runtime::{Context, KernelSet, engraft_attention};
use operands::{bits, context, frame, runnable};
use proptest::prelude::*;
use proptest::sample::select;

/// Attention with its operands, each `[batch, rows, width]`.
#[derive(Clone, Debug)]
struct Case {
    batch: usize,
    queries: usize,
    keys: usize,
    kv_heads: usize,
    group: usize,
    d: usize,
    e: usize,
    causal: bool,
    window: Option<usize>,
    /// Whether a key is there, `[batch, keys]`.
    mask: Option<Vec<bool>>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Floats between rows, and whether rows of items alternate rather than follow each other.
    gap: usize,
    alternate: bool,
}

/// Rows as they lie in memory, between NaN.
struct Rows {
    floats: Vec<f32>,
    batch_stride: usize,
    row_stride: usize,
}

impl Rows {
    const GUARD: usize = 32;

    fn of(values: &[f32], [batch, rows, width]: [usize; 3], case: &Case) -> Rows {
        let padded = width + case.gap;
        let (batch_stride, row_stride) =
            if case.alternate { (padded, batch * padded) } else { (rows * padded, padded) };
        // Ends with the last row, so that a checker of addresses sees what reads beyond it.
        let mut floats = vec![f32::NAN; Rows::GUARD + batch * rows * padded];
        for (b, i) in (0..batch).flat_map(|b| (0..rows).map(move |i| (b, i))) {
            let (from, to) = ((b * rows + i) * width, Rows::GUARD + b * batch_stride + i * row_stride);
            floats[to..to + width].copy_from_slice(&values[from..from + width]);
        }
        Rows { floats, batch_stride, row_stride }
    }

    fn address(&self) -> *const f32 {
        self.floats[Rows::GUARD..].as_ptr()
    }
}

/// Floats in -1..1, the same for the same seed.
fn floats(seed: &mut u64, len: usize) -> Vec<f32> {
    let mut next = || {
        // Knuth's MMIX generator.
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

impl Case {
    fn width(&self) -> usize {
        self.kv_heads * self.group * self.e
    }

    fn is_there(&self, item: usize, key: usize) -> bool {
        self.mask.as_ref().is_none_or(|mask| mask[item * self.keys + key])
    }

    fn scale(&self) -> f32 {
        1.0 / (self.d.max(1) as f32).sqrt()
    }

    /// Fills the operands; what the mask leaves out with NaN.
    fn filled(mut self, mut seed: u64) -> Case {
        self.q = floats(&mut seed, self.batch * self.queries * self.kv_heads * self.group * self.d);
        self.k = floats(&mut seed, self.batch * self.keys * self.kv_heads * self.d);
        self.v = floats(&mut seed, self.batch * self.keys * self.kv_heads * self.e);
        for (item, key) in (0..self.batch).flat_map(|b| (0..self.keys).map(move |j| (b, j))) {
            if !self.is_there(item, key) {
                for (of, width) in [(&mut self.k, self.d), (&mut self.v, self.e)] {
                    let width = self.kv_heads * width;
                    of[(item * self.keys + key) * width..][..width].fill(f32::NAN);
                }
            }
        }
        self
    }

    /// The result, the mask as integers of 4 or 8 bytes.
    fn run_with(&self, context: &Context, mask_bytes: u64) -> Vec<f32> {
        let Case { batch, queries, keys, kv_heads, group, d, e, .. } = *self;
        let q = Rows::of(&self.q, [batch, queries, kv_heads * group * d], self);
        let k = Rows::of(&self.k, [batch, keys, kv_heads * d], self);
        let v = Rows::of(&self.v, [batch, keys, kv_heads * e], self);
        let there = self.mask.iter().flatten();
        // Any integer but 0 says that a key is there.
        let (mask32, mask64): (Vec<i32>, Vec<i64>) =
            there.map(|&is| (if is { -7 } else { 0 }, if is { 1 << 40 } else { 0 })).unzip();
        let len = batch * queries * self.width();
        let mut y = vec![f32::NAN; len + 2 * Rows::GUARD];
        let request = Attention {
            batch: batch as u64,
            queries: queries as u64,
            keys: keys as u64,
            heads: (kv_heads * group) as u64,
            kv_heads: kv_heads as u64,
            d: d as u64,
            e: e as u64,
            scale: self.scale(),
            causal: u32::from(self.causal),
            window: self.window.map_or(u64::MAX, |window| window as u64),
            q: q.address(),
            q_batch_stride: q.batch_stride as u64,
            q_row_stride: q.row_stride as u64,
            k: k.address(),
            k_batch_stride: k.batch_stride as u64,
            k_row_stride: k.row_stride as u64,
            v: v.address(),
            v_batch_stride: v.batch_stride as u64,
            v_row_stride: v.row_stride as u64,
            mask: match (&self.mask, mask_bytes) {
                (None, _) => null(),
                (_, 4) => mask32.as_ptr().cast(),
                _ => mask64.as_ptr().cast(),
            },
            mask_bytes,
            y: y[Rows::GUARD..].as_mut_ptr(),
        };
        let frame = frame(context, &[]);
        // SAFETY: the buffers have the lengths that the extents and strides give.
        unsafe { engraft_attention(&raw const frame, &raw const request) };
        let (before, rest) = y.split_at(Rows::GUARD);
        let (values, after) = rest.split_at(len);
        assert!(before.iter().chain(after).all(|guard| guard.is_nan()), "written outside its bounds");
        values.to_vec()
    }

    fn run(&self, context: &Context) -> Vec<f32> {
        self.run_with(context, 8)
    }

    /// The keys that a row sees.
    fn seen(&self, item: usize, row: usize) -> Vec<usize> {
        let at = (self.keys + row) as i64 - self.queries as i64;
        let sees = |&key: &usize| {
            let key = key as i64;
            (!self.causal || key <= at) && self.window.is_none_or(|window| key > at - window as i64)
        };
        (0..self.keys).filter(sees).filter(|&key| self.is_there(item, key)).collect()
    }

    /// The formula in 64-bit floats.
    fn reference(&self) -> Vec<f64> {
        let Case { batch, queries, keys, kv_heads, group, d, e, .. } = *self;
        let mut y = Vec::new();
        for (item, row) in (0..batch).flat_map(|item| (0..queries).map(move |row| (item, row))) {
            let seen = self.seen(item, row);
            for head in 0..kv_heads * group {
                let q = &self.q[((item * queries + row) * kv_heads * group + head) * d..][..d];
                let part = |of: &[f32], key: usize, width: usize, c: usize| {
                    f64::from(of[((item * keys + key) * kv_heads + head / group) * width + c])
                };
                let score = |&key: &usize| {
                    let terms = q.iter().enumerate().map(|(c, &q)| f64::from(q) * part(&self.k, key, d, c));
                    (f64::from(self.scale()) * terms.sum::<f64>()).exp()
                };
                let weights: Vec<f64> = seen.iter().map(score).collect();
                let sum: f64 = weights.iter().sum();
                y.extend((0..e).map(|c| {
                    let terms = seen.iter().zip(&weights).map(|(&key, w)| w * part(&self.v, key, e, c));
                    if seen.is_empty() { 0.0 } else { terms.sum::<f64>() / sum }
                }));
            }
        }
        y
    }

    fn item(&self, item: usize) -> Case {
        let part = |of: &[f32]| of[of.len() / self.batch * item..][..of.len() / self.batch].to_vec();
        let mask = self.mask.as_ref().map(|mask| mask[item * self.keys..][..self.keys].to_vec());
        Case { batch: 1, mask, q: part(&self.q), k: part(&self.k), v: part(&self.v), ..self.clone() }
    }

    /// A query of one item, with the keys that come before it in their order, if they have one.
    fn query(&self, row: usize) -> Case {
        let in_order = (self.keys + row + 1).saturating_sub(self.queries).min(self.keys);
        let keys = if self.causal { in_order } else { self.keys };
        let mask = self.mask.as_ref().map(|mask| mask[..keys].to_vec());
        let part = |of: &[f32], width: usize| of[..keys * self.kv_heads * width].to_vec();
        let width = self.kv_heads * self.group * self.d;
        let q = self.q[row * width..][..width].to_vec();
        Case { queries: 1, keys, mask, q, k: part(&self.k, self.d), v: part(&self.v, self.e), ..self.clone() }
    }

    /// One item without the keys that are not there.
    fn compact(&self) -> Case {
        let keys: Vec<_> = (0..self.keys).filter(|&key| self.is_there(0, key)).collect();
        let part = |of: &[f32], width: usize| {
            keys.iter().flat_map(|key| of[key * width..][..width].to_vec()).collect()
        };
        let (k, v) = (part(&self.k, self.kv_heads * self.d), part(&self.v, self.kv_heads * self.e));
        Case { keys: keys.len(), mask: None, k, v, ..self.clone() }
    }
}

fn extent() -> impl Strategy<Value = usize> {
    select(vec![0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 97, 129, 130, 200])
}

fn width() -> impl Strategy<Value = usize> {
    prop_oneof![1..=80_usize, select(vec![0, 12, 32, 64, 127, 128, 129, 257])]
}

/// Left padding, right padding, holes, or nothing at all.
fn mask(kind: u8, batch: usize, keys: usize, seed: u64) -> Option<Vec<bool>> {
    let random = floats(&mut seed.clone(), batch * keys);
    let is_there = |at: usize| {
        let (item, key) = (at / keys, at % keys);
        let padded = (item * 37 + seed as usize % 29) % (keys + 1);
        match kind {
            1 => key >= padded,
            2 => key < padded,
            3 => random[at] > 0.3,
            _ => false,
        }
    };
    (kind > 0).then(|| (0..batch * keys).map(is_there).collect())
}

fn cases() -> impl Strategy<Value = Case> {
    let extents = (0..4_usize, extent(), extent());
    let widths = (1..3_usize, 1..5_usize, width(), width());
    let rules = (any::<bool>(), prop::option::of(1..100_usize), 0..5_u8, 0..20_usize, any::<bool>());
    (extents, widths, rules, any::<u64>()).prop_map(|(extents, widths, rules, seed)| {
        let ((batch, queries, keys), (kv_heads, group, d, e)) = (extents, widths);
        let (causal, window, kind, gap, alternate) = rules;
        let mask = mask(kind, batch, keys, seed);
        let (q, k, v) = Default::default();
        let rules = (causal, window, mask);
        let (causal, window, mask) = rules;
        Case { batch, queries, keys, kv_heads, group, d, e, causal, window, mask, q, k, v, gap, alternate }
            .filled(seed)
    })
}

/// Scores are within 8 of 0 and values within 1: a score is off by 1e-6 or so, a weight relatively so.
fn assert_close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(found) - expected).abs() <= 1e-5,
            "element {index}: {found} instead of {expected}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn attention_is_what_the_formula_says(case in cases()) {
        let reference = case.reference();
        for set in runnable() {
            let context = context(set, 1);
            let found = case.run(&context);
            assert_close(&found, &reference);
            prop_assert_eq!(bits(&case.run_with(&context, 4)), bits(&found));
        }
    }

    #[test]
    fn an_item_depends_on_nothing_but_itself(case in cases()) {
        for set in runnable() {
            let context = context(set, 1);
            let whole = case.run(&context);
            for item in 0..case.batch {
                let len = case.queries * case.width();
                prop_assert_eq!(bits(&case.item(item).run(&context)), bits(&whole[item * len..][..len]));
            }
        }
    }

    #[test]
    fn a_query_alone_is_as_among_others(case in cases()) {
        // Windows are counted from a query's own place, which a query alone has only in an order.
        let window = case.window.filter(|_| case.causal);
        let case = Case { queries: case.queries.max(1), window, ..case }.filled(5);
        for set in runnable() {
            let context = context(set, 1);
            for item in (0..case.batch).map(|item| case.item(item)) {
                let whole = item.run(&context);
                for row in (0..item.queries).rev().step_by(5) {
                    let among = &whole[row * item.width()..][..item.width()];
                    prop_assert_eq!(bits(&item.query(row).run(&context)), bits(among), "row {}", row);
                }
            }
        }
    }

    /// Keys and values that are no numbers, or as large as any, change no bit of the heads and rows that do not see them.
    #[test]
    fn values_that_are_not_finite_change_no_other_row(
        case in cases(), of_v: bool, places in prop::collection::vec((any::<u32>(), 0..5_usize), 1..6),
    ) {
        const SPECIAL: [f32; 5] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN];
        let mut dirty = case.clone();
        let (of, width) = if of_v { (&mut dirty.v, case.e) } else { (&mut dirty.k, case.d) };
        let places = if of.is_empty() { vec![] } else { places };
        let places = places.iter().map(|&(at, special)| {
            let at = at as usize % of.len();
            of[at] = SPECIAL[special];
            at / width
        });
        let places: Vec<_> = places.collect();
        let heads = case.kv_heads * case.group;
        for set in runnable() {
            let context = context(set, 1);
            let (found, clean) = (dirty.run(&context), case.run(&context));
            for (item, row) in (0..case.batch).flat_map(|item| (0..case.queries).map(move |row| (item, row))) {
                let seen = case.seen(item, row);
                for head in 0..heads {
                    let is_seen = |&key: &usize| places.contains(&((item * case.keys + key) * case.kv_heads + head / case.group));
                    if !seen.iter().any(is_seen) {
                        let at = ((item * case.queries + row) * heads + head) * case.e;
                        prop_assert_eq!(bits(&found[at..at + case.e]), bits(&clean[at..at + case.e]), "row {}", row);
                    }
                }
            }
        }
    }

    #[test]
    fn keys_that_are_not_there_change_no_bit(case in cases(), pad in 0..70_usize) {
        // Without an order of keys, as if there were none.
        let case = Case { causal: false, window: None, ..case };
        for set in runnable() {
            let context = context(set, 1);
            for item in (0..case.batch).map(|item| case.item(item)) {
                prop_assert_eq!(bits(&item.run(&context)), bits(&item.compact().run(&context)));
            }
        }
        // In order, rows before and after padding are as without, of a row's own queries too.
        let n = case.keys.min(case.queries);
        let case = Case { batch: 1, queries: n, keys: n, causal: true, window: Some(40), mask: None, ..case }.filled(7);
        let before = |of: &[f32], width: usize| [vec![f32::NAN; width * pad], of.to_vec()].concat();
        let width = case.kv_heads * case.d;
        let padded = Case {
            queries: n + pad,
            keys: n + pad,
            mask: Some((0..n + pad).map(|key| key >= pad).collect()),
            q: before(&case.q, width * case.group),
            k: before(&case.k, width),
            v: before(&case.v, case.kv_heads * case.e),
            ..case.clone()
        };
        for set in runnable() {
            let context = context(set, 1);
            let found = padded.run(&context);
            prop_assert_eq!(bits(&found[pad * case.width()..]), bits(&case.run(&context)));
        }
    }
}

/// A case of every part: several blocks of keys and of vectors.
fn large(seed: u64) -> Case {
    let (batch, queries, keys, kv_heads, group, d, e) = (3, 130, 200, 2, 3, 33, 20);
    let mask = mask(3, batch, keys, seed);
    let (q, k, v) = Default::default();
    let (causal, window, gap, alternate) = (true, Some(150), 5, true);
    Case { batch, queries, keys, kv_heads, group, d, e, causal, window, mask, q, k, v, gap, alternate }
        .filled(seed)
}

#[test]
fn threads_change_no_bit() {
    let case = large(1);
    for set in runnable() {
        let alone = case.run(&context(set, 1));
        for threads in [2, 3] {
            assert_eq!(bits(&case.run(&context(set, threads))), bits(&alone));
        }
    }
}

#[test]
fn kernels_that_fuse_multiply_and_add_agree_to_the_last_bit() {
    // On a CPU with one of them only there is nothing to compare.
    let fused = [KernelSet::Avx2, KernelSet::Avx512].into_iter().filter(|set| set.kernels().is_some());
    let results: Vec<_> = fused.map(|set| bits(&large(2).run(&context(set, 1)))).collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

/// Later values that are no numbers spoil the rows that see them, and none before.
#[test]
fn values_that_are_not_finite_stay_with_the_rows_that_see_them() {
    let case = large(3);
    let mut case = Case { batch: 1, queries: 200, window: None, mask: None, q: vec![], ..case }.filled(3);
    let (at, width) = (70, case.kv_heads * case.e);
    case.v[at * width] = f32::INFINITY;
    case.k[(at + 20) * case.kv_heads * case.d] = f32::NAN;
    let mut clean = case.clone();
    clean.v[at * width] = 0.0;
    for set in runnable() {
        let (found, clean) = (case.run(&context(set, 1)), clean.run(&context(set, 1)));
        for (index, (y, clean)) in found.iter().zip(&clean).enumerate() {
            let (row, column) = (index / case.width(), index % case.width());
            let (sees_v, sees_k) = (row >= at && column % case.e == 0, row >= at + 20);
            let first_head = column < case.group * case.e;
            let spoilt = first_head && (sees_v || sees_k);
            assert_eq!(y.is_finite(), !spoilt, "row {row}, column {column}: {y}");
            assert!(spoilt || y.to_bits() == clean.to_bits(), "row {row}, column {column}");
        }
    }
}

/// Scores far from 0 neither overflow nor vanish: only their differences count.
#[test]
fn large_scores_are_safe() {
    let mut case = Case { batch: 1, causal: false, window: None, mask: None, ..large(4) }.filled(4);
    case.k.iter_mut().for_each(|k| *k *= 1e4);
    for set in runnable() {
        let found = case.run(&context(set, 1));
        assert!(found.iter().all(|y| y.is_finite() && y.abs() <= 1.0));
    }
}
