//! Random bracketings: whatever way DoRA is written, it fuses; whatever is written, fusing keeps its meaning.

#![allow(clippy::unwrap_used, reason = "a test")]

mod layer;

use engraft_ir::ops::EpsilonAt;
use engraft_ir::{DType::F32, Graph, GraphBuilder, Tensor, dims};
use layer::{Layer, SCALE, column, norms, optimized, same, squares};
use proptest::prelude::*;
use std::cell::Cell;

/// Decisions drawn from random bytes; 0 for ever after.
struct Choices<'a> {
    bytes: &'a [u8],
    next: Cell<usize>,
}

impl Choices<'_> {
    fn pick(&self, options: u8) -> u8 {
        let at = self.next.replace(self.next.get() + 1);
        self.bytes.get(at).copied().unwrap_or(0) % options
    }

    fn flip(&self) -> bool {
        self.pick(2) == 1
    }
}

fn sum<'g>(c: &Choices<'_>, a: Tensor<'g>, b: Tensor<'g>) -> Tensor<'g> {
    match c.pick(4) {
        0 => a + b,
        1 => b + a,
        2 => a - -b,
        _ => -(-a - b),
    }
}

/// The terms in any order and any grouping.
fn total<'g>(c: &Choices<'_>, mut terms: Vec<Tensor<'g>>) -> Tensor<'g> {
    while terms.len() > 1 {
        let a = terms.swap_remove(c.pick(terms.len() as u8) as usize);
        let b = terms.swap_remove(c.pick(terms.len() as u8) as usize);
        terms.push(sum(c, a, b));
    }
    terms[0]
}

/// `s B A`.
fn delta<'g>(c: &Choices<'_>, l: &Layer<'g>) -> Tensor<'g> {
    match c.pick(5) {
        0 => Tensor::lora_delta(l.a, l.b, SCALE),
        1 => l.b.matmul(l.a) * SCALE,
        2 => l.b.matmul(l.a * SCALE),
        3 => (l.b * SCALE).dense(l.a.t(), None),
        _ => l.a.t().matmul(l.b.t() * SCALE).t(),
    }
}

fn adapted<'g>(c: &Choices<'_>, l: &Layer<'g>) -> Tensor<'g> {
    let delta = delta(c, l);
    sum(c, l.w, delta)
}

fn norm<'g>(c: &Choices<'_>, l: &Layer<'g>) -> Tensor<'g> {
    if c.flip() { l.w.lora_norm(l.a, l.b, SCALE) } else { norms(adapted(c, l)) }
}

fn update<'g>(c: &Choices<'_>, l: &Layer<'g>) -> Tensor<'g> {
    match c.pick(5) {
        0 => l.update(),
        1 => l.x.dense(l.a, None).dense(l.b, None) * SCALE,
        2 => (l.x.dense(l.a, None) * SCALE).dense(l.b, None),
        3 => (l.x * SCALE).dense(l.a, None).dense(l.b, None),
        _ => l.x.dense(l.a * -SCALE, None).dense(-l.b, None),
    }
}

/// `y ∘ m / n`.
fn gained<'g>(c: &Choices<'_>, l: &Layer<'g>, y: Tensor<'g>) -> Tensor<'g> {
    let n = norm(c, l);
    match c.pick(6) {
        0 => y * (l.m / n),
        1 => (l.m / n) * y,
        2 => y / n * l.m,
        3 => l.m * y / n,
        4 => y.magnitude(l.m / n, -1),
        // As PEFT has it: what the gain changes, beside what was there.
        _ => y + (l.m / n - l.one()) * y,
    }
}

/// The layer with its gain, without its bias.
fn weight_space<'g>(c: &Choices<'_>, l: &Layer<'g>) -> Tensor<'g> {
    let v = adapted(c, l);
    let weight = match c.pick(5) {
        0 => v.normalize(1).magnitude(l.m, 0),
        1 => column(l.m) * (v / squares(v, 1).sqrt()),
        2 => v * column(l.m / norms(v)),
        3 => v.magnitude(l.m, 0) * squares(v, 1).rsqrt(),
        _ => return l.x.matmul(v.t().normalize(0) * l.m),
    };
    if c.flip() { l.x.matmul(weight.t()) } else { l.x.dense(weight, None) }
}

fn activation_space<'g>(c: &Choices<'_>, l: &Layer<'g>) -> Vec<Tensor<'g>> {
    let (base, update) = (l.x.dense(l.w, None), update(c, l));
    match c.pick(3) {
        0 => vec![gained(c, l, base), gained(c, l, update)],
        1 => {
            let y = sum(c, base, update);
            vec![gained(c, l, y)]
        }
        _ => {
            let y = l.x.dense(adapted(c, l), None);
            vec![gained(c, l, y)]
        }
    }
}

fn dora<'g>(c: &Choices<'_>, l: &Layer<'g>) -> Tensor<'g> {
    let mut terms = if c.flip() { vec![weight_space(c, l)] } else { activation_space(c, l) };
    if c.flip() {
        terms.push(l.bias);
    }
    total(c, terms)
}

/// A value `[batch, 6]` that may be anything.
fn value<'g>(c: &Choices<'_>, l: &Layer<'g>, depth: u8) -> Tensor<'g> {
    if depth == 0 {
        return match c.pick(6) {
            0 => l.x.dense(l.w, None),
            1 => update(c, l),
            2 => l.x.dense(l.w, Some(l.bias)),
            3 => l.z.dense(l.v, None),
            4 => weight_space(c, l),
            _ => l.z,
        };
    }
    let inner = value(c, l, depth - 1);
    match c.pick(10) {
        0 | 1 => sum(c, inner, value(c, l, depth - 1)),
        2 => inner * vector(c, l, depth - 1),
        3 => inner + vector(c, l, depth - 1),
        4 => inner.magnitude(vector(c, l, depth - 1), 1),
        5 => gained(c, l, inner),
        6 => inner * 0.5,
        7 => inner.normalize_with(-1, 0.5, EpsilonAt::Inside),
        8 => inner.dense(l.w, Some(l.bias)),
        _ => inner * inner,
    }
}

fn vector<'g>(c: &Choices<'_>, l: &Layer<'g>, depth: u8) -> Tensor<'g> {
    match (depth, c.pick(6)) {
        (0, 0) | (_, 1) => l.m / norm(c, l),
        (0, _) | (_, 2) => l.bias,
        (_, 3) => vector(c, l, depth - 1) - 1.0,
        (_, 4) => vector(c, l, depth - 1) * vector(c, l, depth - 1),
        _ => vector(c, l, depth - 1) + l.m,
    }
}

fn graph(write: impl for<'g> Fn(&Layer<'g>) -> Tensor<'g>) -> Graph {
    let g = GraphBuilder::new("layer");
    let layer = Layer {
        g: &g,
        x: g.input("x", F32, dims!["batch", 6]),
        z: g.input("z", F32, dims!["batch", 6]),
        w: g.param("weight", F32, dims![6, 6]),
        v: g.param("other", F32, dims![6, 6]),
        a: g.param("lora_A", F32, dims![2, 6]).adapter(),
        b: g.param("lora_B", F32, dims![6, 2]).adapter(),
        m: g.param("magnitude", F32, dims![6]).adapter(),
        bias: g.param("bias", F32, dims![6]),
    };
    g.output("y", write(&layer).named("fc"));
    g.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_bracketing_fuses(bytes in prop::collection::vec(any::<u8>(), 48)) {
        let graph = graph(|l| dora(&Choices { bytes: &bytes, next: Cell::new(0) }, l));
        let optimized = optimized(&graph);
        let counts = optimized.graph.op_counts();
        prop_assert_eq!(counts.get("dora"), Some(&1), "{}", optimized.trace);
        prop_assert!(!counts.contains_key("dense") && !counts.contains_key("lora"), "{}", optimized.trace);
        same("bracketing", &optimized);
    }

    #[test]
    fn every_expression_keeps_its_meaning(bytes in prop::collection::vec(any::<u8>(), 64), depth in 1u8..5) {
        let graph = graph(|l| value(&Choices { bytes: &bytes, next: Cell::new(0) }, l, depth));
        same("expression", &optimized(&graph));
    }
}
