//! The error of the elementwise functions as compiled, over the whole range of f32: every 997th bit pattern (every one,
//! in the tests that are ignored for the time they take) and the edges of what floats are, in vectors and one by one,
//! against f64. The bounds are those that `docs/elementwise.md` states.
#![allow(clippy::unwrap_used)]

mod common;

use engraft_ir::DType::F32;
use engraft_ir::ops::Unary;
use engraft_ir::{Graph, GraphBuilder, Op, dims};
use engraft_runtime::{Context, Options, Session, Tensor, Weights};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI, FRAC_PI_2};

/// Between the patterns tried; a prime, so that every exponent sees all kinds of mantissas.
const STRIDE: usize = 997;

/// Where the errors are stated.
const TABLE: &str = include_str!("../../docs/elementwise.md");

/// Elements per call.
const BATCH: usize = 1 << 16;

/// The least normal number.
const NORMAL: f64 = f32::MIN_POSITIVE as f64;

/// The least number, and the distance of neighbours below [`NORMAL`].
const TINY: f64 = NORMAL / (1 << 23) as f64;

/// How far results may be from the true ones, in units in the last place of these.
struct Bound {
    /// Where the true result is a normal number.
    ulps: f64,
    /// Where it is below them.
    tiny: f64,
}

impl Bound {
    /// The bound that the table of the documentation states.
    fn stated(function: Unary) -> Self {
        let start = format!("| `{}` |", Op::Unary(function).name());
        let row =
            TABLE.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_else(|| panic!("{start}"));
        let cells: Vec<f64> = row.split_terminator('|').map(|cell| cell.trim().parse().unwrap()).collect();
        let &[ulps, tiny] = cells.as_slice() else { panic!("{start}{row}") };
        Self { ulps, tiny }
    }
}

/// `f(x)` in f64, without the cancellation of the formulas as they are written.
fn exact(function: Unary, x: f64) -> f64 {
    let sigmoid = |x: f64| if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) };
    match function {
        Unary::Sigmoid => sigmoid(x),
        Unary::Silu => x * sigmoid(x),
        Unary::Gelu => x * (0.5 * libm::erfc(-x * FRAC_1_SQRT_2)),
        // (1 + tanh(u)) / 2 is the sigmoid of 2 u.
        Unary::GeluTanh => x * sigmoid(2.0 * FRAC_2_PI.sqrt() * (x + 0.044_715 * x * x * x)),
        // Compiled code refuses what is beyond its range reduction.
        Unary::Sin | Unary::Cos if x.abs() > f64::from(1 << 20) => f64::NAN,
        _ => function.apply(x),
    }
}

/// Whole batches of inputs.
fn inputs(stride: usize) -> impl Iterator<Item = Vec<f32>> {
    let edges = [0_u32, 1, 0x007f_ffff, 0x0080_0000, 0x3f80_0000, 0x7f7f_ffff, 0x7f80_0000, 0x7fc0_0000];
    let edges = edges.into_iter().flat_map(|bits| [bits, bits | 0x8000_0000]);
    let mut inputs = edges.chain((0..=u32::MAX).step_by(stride)).map(f32::from_bits);
    std::iter::from_fn(move || {
        let mut batch: Vec<_> = inputs.by_ref().take(BATCH).collect();
        let is_empty = batch.is_empty();
        batch.resize(BATCH, 1.0);
        (!is_empty).then_some(batch)
    })
}

/// The function of `[batch]`, contiguous: in vectors.
fn vectors(function: Unary) -> Graph {
    let g = GraphBuilder::new("vectors");
    g.output("y", g.input("x", F32, dims!["batch"]).unary(function));
    g.finish().unwrap()
}

/// The function of `[batch]` as the first of two columns, which are written one by one.
fn one_by_one(function: Unary) -> Graph {
    let g = GraphBuilder::new("one_by_one");
    let x = g.input("x", F32, dims!["batch", 1]);
    g.output("y", x.unary(function).concat(&[x], 1));
    g.finish().unwrap()
}

fn session(graph: &Graph) -> Session {
    let context = Context::new(Options::default()).unwrap();
    let base = common::program(graph, true).load_base(&Weights::new(), context).unwrap();
    base.load_adapter(&Weights::new()).unwrap().session()
}

/// Whether infinities and what is no number are where they belong; `None` where both are finite.
fn agree_beyond(ours: f32, theirs: f64) -> Option<bool> {
    let rounded = theirs as f32;
    let is_finite = ours.is_finite() && rounded.is_finite();
    (!is_finite).then(|| ours == rounded || (ours.is_nan() && theirs.is_nan()))
}

fn within(function: Unary, stride: usize) {
    within_on(function, inputs(stride));
}

fn within_on(function: Unary, batches: impl Iterator<Item = Vec<f32>>) {
    let bound = Bound::stated(function);
    let (mut wide, mut narrow) = (session(&vectors(function)), session(&one_by_one(function)));
    let [mut in_vectors, mut one_by_one] = [(); 2].map(|()| [Tensor::empty(engraft_runtime::DType::F32)]);
    // The worst of each range, and where.
    let mut worst = [(0.0_f64, 0.0_f32, 0.0_f32); 2];
    for batch in batches {
        wide.run_into(&[&Tensor::f32(&[BATCH], batch.clone()).unwrap()], &mut in_vectors).unwrap();
        narrow.run_into(&[&Tensor::f32(&[BATCH, 1], batch.clone()).unwrap()], &mut one_by_one).unwrap();
        let ours = in_vectors[0].as_f32().unwrap();
        for ((&x, &y), columns) in batch.iter().zip(ours).zip(one_by_one[0].as_f32().unwrap().chunks(2)) {
            assert!(
                y.to_bits() == columns[0].to_bits() || (y.is_nan() && columns[0].is_nan()),
                "{function:?}({x:e}) is {y:e} in a vector, {:e} by itself",
                columns[0]
            );
            let theirs = exact(function, f64::from(x));
            if let Some(agrees) = agree_beyond(y, theirs) {
                assert!(agrees, "{function:?}({x:e}) is {theirs:e}, found {y:e}");
                continue;
            }
            let exponent = (theirs.abs().to_bits() >> 52) as i32 - 1023;
            let ulp = 2.0_f64.powi(exponent - 23).max(TINY);
            let range = usize::from(theirs.abs() < NORMAL);
            let ulps = (f64::from(y) - theirs).abs() / ulp;
            if ulps > worst[range].0 {
                worst[range] = (ulps, x, y);
            }
        }
    }
    println!("{function:?}: {worst:?}");
    for ((ulps, x, y), allowed) in worst.into_iter().zip([bound.ulps, bound.tiny]) {
        let theirs = exact(function, f64::from(x));
        assert!(
            ulps <= allowed,
            "{function:?}({x:e}) is {theirs:e}, found {y:e}: off by {ulps} of {allowed} ulps"
        );
    }
}

#[test]
fn neg() {
    within(Unary::Neg, STRIDE);
}

#[test]
fn relu() {
    within(Unary::Relu, STRIDE);
}

#[test]
fn square() {
    within(Unary::Square, STRIDE);
}

#[test]
fn sqrt() {
    within(Unary::Sqrt, STRIDE);
}

#[test]
fn rsqrt() {
    within(Unary::Rsqrt, STRIDE);
}

#[test]
fn exp() {
    within(Unary::Exp, STRIDE);
}

#[test]
fn tanh() {
    within(Unary::Tanh, STRIDE);
}

#[test]
fn sigmoid() {
    within(Unary::Sigmoid, STRIDE);
}

#[test]
fn silu() {
    within(Unary::Silu, STRIDE);
}

#[test]
fn gelu() {
    within(Unary::Gelu, STRIDE);
}

#[test]
fn gelu_tanh() {
    within(Unary::GeluTanh, STRIDE);
}

#[test]
fn sin() {
    within(Unary::Sin, STRIDE);
}

#[test]
fn cos() {
    within(Unary::Cos, STRIDE);
}

/// Where the results are nearest to 0 and the range reduction cancels most: around every multiple of a quarter turn that
/// is asked for, as rotary embeddings do.
#[test]
fn sin_and_cos_near_their_zeros() {
    for function in [Unary::Sin, Unary::Cos] {
        let quarters = (1..667_544).step_by(7).map(|n| (f64::from(n) * FRAC_PI_2) as f32);
        let near =
            quarters.flat_map(|x| [-1_i32, 0, 1].map(|d| f32::from_bits((x.to_bits() as i32 + d) as u32)));
        within_on(
            function,
            near.collect::<Vec<_>>().chunks(BATCH).map(|chunk| {
                let mut batch = chunk.to_vec();
                batch.resize(BATCH, 1.0);
                batch
            }),
        );
    }
}

/// Takes long; `cargo test --release -p engraft-compiler --test math -- --ignored`.
#[test]
#[ignore = "tries every f32"]
fn every_number() {
    for function in Unary::ALL {
        within(function, 1);
    }
}
