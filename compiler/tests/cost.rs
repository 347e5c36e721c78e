//! What steps cost, against counting: every operation of a plain evaluation, one by one, and every byte that the kernel's
//! description says is touched, in a set per buffer. And which roof binds, against trying values.
#![allow(clippy::unwrap_used)]

use engraft_compiler::plan::kernel::{
    self, Access, Expr, Kernel, Linear, Loop, MatrixLayout, Packing, Row, RowOp, View,
};
use engraft_compiler::plan::roofline::{Bound, Roof, bound, least};
use engraft_compiler::plan::{BufferId, Cost, Plan, PlanOptions, Step, plan};
use engraft_ir::DType::{F32, I64};
use engraft_ir::ops::{Attention, Reduction};
use engraft_ir::{Axis, Bindings, Dim, Graph, GraphBuilder, Symbol, Tensor, dims};
use engraft_runtime::measure::Machine;
use engraft_testing::{arb_graph, bindings};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::{BTreeMap, BTreeSet};

/// Counts operations.
#[derive(Default)]
struct Tally(u64);

impl Tally {
    fn count(&mut self, operations: &[&str]) {
        self.0 += operations.len() as u64;
    }

    fn product_and_sum(&mut self, steps: u64) {
        (0..steps).for_each(|_| self.count(&["*", "+"]));
    }

    fn body(&mut self, body: &Loop) {
        for expr in &body.body {
            match expr {
                Expr::Load(_) | Expr::Number(_) => {}
                Expr::Unary(..) | Expr::Binary(..) => self.count(&["f"]),
            }
        }
    }

    fn row(&mut self, row: &Row, n: u64) {
        for _ in 0..n {
            match row.op {
                RowOp::Reduce(Reduction::Max) => self.count(&["max"]),
                RowOp::Reduce(_) => self.count(&["+"]),
                RowOp::Softmax => self.count(&["max", "-", "exp", "+", "/"]),
                RowOp::Normalize { .. } | RowOp::RmsNorm { .. } => self.count(&["x*x", "+", "/"]),
                RowOp::LayerNorm { .. } => self.count(&["+", "x-mean", "d*d", "+", "/"]),
            }
            self.count(if row.weight { &["*"] } else { &[] });
            self.count(if row.bias { &["+"] } else { &[] });
        }
        match row.op {
            RowOp::Reduce(Reduction::Mean) => self.count(&["/"]),
            RowOp::Reduce(_) | RowOp::Softmax => {}
            RowOp::Normalize { epsilon: 0.0, .. } => self.count(&["sqrt"]),
            RowOp::Normalize { .. } => self.count(&["sqrt", "ε"]),
            RowOp::RmsNorm { .. } => self.count(&["/", "ε", "sqrt"]),
            RowOp::LayerNorm { .. } => self.count(&["/", "/", "ε", "sqrt"]),
        }
    }
}

/// A plan's step with values of the symbols.
struct Concrete<'a> {
    plan: &'a Plan,
    symbols: &'a Bindings,
}

/// The elements touched of each buffer.
type Touched = BTreeMap<BufferId, BTreeSet<u64>>;

impl Concrete<'_> {
    fn of(&self, dim: &Dim) -> u64 {
        dim.eval(self.symbols).unwrap()
    }

    fn product(&self, dims: &[&Dim]) -> u64 {
        dims.iter().map(|dim| self.of(dim)).product()
    }

    fn flops(&self, kernel: &Kernel) -> u64 {
        let mut tally = Tally::default();
        match kernel {
            Kernel::Pack(pack) => {
                let elements = self.product(&[&pack.batch, &pack.matrix.out, &pack.matrix.k]);
                (0..elements).filter(|_| pack.scale != 1.0).for_each(|_| tally.count(&["*"]));
            }
            Kernel::Linear(Linear { batch, rows, out, k, rank, gain, bias, epilogue, .. }) => {
                for _ in 0..self.product(&[batch, rows, out]) {
                    tally.product_and_sum(self.of(k));
                    tally.product_and_sum(rank.as_ref().map_or(0, |rank| self.of(rank)));
                    tally.count(if *gain { &["*"] } else { &[] });
                    tally.count(if *bias { &["+"] } else { &[] });
                    if let Some(body) = epilogue {
                        tally.body(body);
                    }
                }
            }
            Kernel::Dot(dot) => {
                for _ in 0..self.product(&[&dot.rows, &dot.out]) {
                    tally.product_and_sum(self.of(&dot.k));
                }
            }
            Kernel::RowNorm(norm) => {
                for _ in 0..self.of(&norm.out) {
                    for _ in 0..self.of(&norm.k) {
                        tally.product_and_sum(self.of(&norm.rank));
                        tally.count(&["w+", "x*x", "+"]);
                    }
                    tally.count(&["sqrt"]);
                }
            }
            Kernel::Merge(merge) => {
                for _ in 0..self.product(&[&merge.out, &merge.k]) {
                    tally.product_and_sum(self.of(&merge.rank));
                    tally.count(if merge.gain { &["w+", "*"] } else { &["w+"] });
                }
            }
            Kernel::Loop(body) => {
                let points: u64 = body.space.iter().map(|extent| self.of(extent)).product();
                (0..points).for_each(|_| tally.body(body));
            }
            Kernel::Row(row) => {
                (0..self.product(&[&row.outer, &row.inner])).for_each(|_| tally.row(row, self.of(&row.n)));
            }
            Kernel::Attention(attention) => {
                let kernel::Attention { batch, queries, keys, heads, d, e, .. } = attention;
                for _ in 0..self.product(&[batch, queries, keys]) * heads {
                    tally.product_and_sum(*d);
                    tally.count(&["scale", "max", "-", "exp", "+", "/"]);
                    tally.product_and_sum(*e);
                }
            }
            Kernel::Gather(_) | Kernel::Cast(_) => {}
        }
        tally.0
    }

    fn access(&self, body: &Loop, access: &Access) -> BTreeSet<u64> {
        let mut indices = BTreeSet::from([self.of(&access.offset)]);
        for (extent, stride) in body.space.iter().zip(&access.strides) {
            let (extent, stride) = (self.of(extent), self.of(stride));
            indices = indices.iter().flat_map(|at| (0..extent).map(move |i| at + i * stride)).collect();
        }
        indices
    }

    fn matrix(
        &self,
        batch: &Dim,
        MatrixLayout { out, k, out_stride, k_stride }: &MatrixLayout,
    ) -> BTreeSet<u64> {
        let (out, k) = (self.of(out), self.of(k));
        let (out_stride, k_stride) = (self.of(out_stride), self.of(k_stride));
        let item = |i: u64| {
            (0..out).flat_map(move |j| (0..k).map(move |p| i * out * k + j * out_stride + p * k_stride))
        };
        (0..self.of(batch)).flat_map(item).collect()
    }

    /// A packed matrix, exactly where the padded extent is fixed; where it is symbolic a plan reserves for the largest
    /// remainder.
    fn packed(&self, packing: Packing, batch: &Dim, out: &Dim, k: &Dim) -> BTreeSet<u64> {
        let padded = match packing {
            Packing::Panels => out,
            Packing::Rows => k,
        };
        let (out, k) = (self.of(out), self.of(k));
        let floats = match (padded.as_fixed(), packing) {
            (Some(_), _) => packing.len(out as usize, k as usize).unwrap() as u64,
            (None, Packing::Panels) => (out + 15) * k,
            (None, Packing::Rows) => out * (k + 31),
        };
        (0..floats * self.of(batch)).collect()
    }

    /// What each operand is touched in, the written one last.
    fn operands(&self, kernel: &Kernel) -> Vec<BTreeSet<u64>> {
        let tensor = |dims: &[&Dim]| (0..self.product(dims)).collect();
        let one = &Dim::fixed(1);
        match kernel {
            Kernel::Pack(pack) => vec![
                self.matrix(&pack.batch, &pack.matrix),
                self.packed(pack.packing, &pack.batch, &pack.matrix.out, &pack.matrix.k),
            ],
            Kernel::Linear(linear) => {
                let Linear { batch, rows, out, k, .. } = linear;
                let weights = if linear.batched_weight { batch } else { one };
                let mut operands =
                    vec![tensor(&[batch, rows, k]), self.packed(Packing::Panels, weights, out, k)];
                if let Some(rank) = &linear.rank {
                    operands
                        .extend([tensor(&[batch, rows, rank]), self.packed(Packing::Panels, one, out, rank)]);
                }
                operands.extend([linear.gain, linear.bias].iter().filter(|is| **is).map(|_| tensor(&[out])));
                if let Some(body) = &linear.epilogue {
                    operands.extend(body.reads[1..].iter().map(|access| self.access(body, access)));
                }
                operands.push(tensor(&[batch, rows, out]));
                operands
            }
            Kernel::Dot(dot) => {
                let a = self.packed(Packing::Rows, one, &dot.out, &dot.k);
                vec![tensor(&[&dot.rows, &dot.k]), a, tensor(&[&dot.rows, &dot.out])]
            }
            Kernel::RowNorm(norm) => {
                let (out, k, rank) = (&norm.out, &norm.k, &norm.rank);
                vec![
                    self.packed(Packing::Panels, one, out, k),
                    self.packed(Packing::Rows, one, rank, k),
                    self.packed(Packing::Panels, one, out, rank),
                    tensor(&[out]),
                ]
            }
            Kernel::Merge(merge) => {
                let (out, k, rank) = (&merge.out, &merge.k, &merge.rank);
                let mut operands = vec![
                    self.packed(Packing::Panels, one, out, k),
                    self.packed(Packing::Rows, one, rank, k),
                    self.packed(Packing::Panels, one, out, rank),
                ];
                operands.extend(merge.gain.then(|| tensor(&[out])));
                operands.push(self.packed(Packing::Panels, one, out, k));
                operands
            }
            Kernel::Loop(body) => {
                body.reads.iter().chain([&body.write]).map(|access| self.access(body, access)).collect()
            }
            Kernel::Row(row) => {
                let reduces = matches!(row.op, RowOp::Reduce(_));
                let extras = [row.weight, row.bias].into_iter().filter(|is| *is).map(|_| tensor(&[&row.n]));
                let written = if reduces { one } else { &row.n };
                let x = tensor(&[&row.outer, &row.n, &row.inner]);
                [x].into_iter().chain(extras).chain([tensor(&[&row.outer, written, &row.inner])]).collect()
            }
            Kernel::Cast(cast) => vec![tensor(&[&cast.count]); 2],
            Kernel::Attention(attention) => {
                let items = self.of(&attention.batch);
                let view = |(rows, width, view): (&Dim, u64, &View)| -> BTreeSet<u64> {
                    let (rows, offset) = (self.of(rows), self.of(&view.offset));
                    let (batch_stride, row_stride) = (self.of(&view.batch_stride), self.of(&view.row_stride));
                    let row = |b: u64, i: u64| offset + b * batch_stride + i * row_stride;
                    let row = move |b, i| (0..width).map(move |c| row(b, i) + c);
                    (0..items).flat_map(|b| (0..rows).flat_map(move |i| row(b, i))).collect()
                };
                let mut operands: Vec<_> = attention.operands().map(view).into();
                operands.extend(attention.mask.map(|_| tensor(&[&attention.batch, &attention.keys])));
                let width = Dim::fixed(attention.heads * attention.e);
                operands.push(tensor(&[&attention.batch, &attention.queries, &width]));
                operands
            }
            Kernel::Gather(gather) => {
                let rows = match (gather.count.as_fixed(), gather.rows.as_fixed()) {
                    (Some(count), Some(rows)) => Dim::fixed(count.min(rows)),
                    _ => gather.count.clone(),
                };
                let written = tensor(&[&gather.count, &gather.width]);
                vec![tensor(&[&rows, &gather.width]), tensor(&[&gather.count]), written]
            }
        }
    }

    fn bytes(&self, touched: &Touched) -> u64 {
        let bytes = |(id, elements): (&BufferId, &BTreeSet<u64>)| {
            elements.len() as u64 * self.plan.buffer(*id).ty.dtype.bytes() as u64
        };
        touched.iter().map(bytes).sum()
    }

    fn assert_cost(&self, step: &Step) {
        let mut operands = self.operands(&step.kernel);
        let written = Touched::from([(step.write, operands.pop().unwrap())]);
        assert_eq!(operands.len(), step.reads.len(), "{step}");
        let mut read = Touched::new();
        for (&buffer, elements) in step.reads.iter().zip(operands) {
            read.entry(buffer).or_default().extend(elements);
        }
        let cost = self.plan.cost(step);
        let found = [&cost.flops, &cost.read, &cost.written].map(|dim| self.of(dim));
        let expected = [self.flops(&step.kernel), self.bytes(&read), self.bytes(&written)];
        assert_eq!(found, expected, "flops, read, written of {step}\n{cost}\nof\n{}", self.plan);
    }
}

fn assert_costs(graph: &Graph, symbols: &Bindings) {
    for fuse in [true, false] {
        let plan = &plan(graph, PlanOptions { fuse }).unwrap();
        plan.steps.iter().for_each(|step| Concrete { plan, symbols }.assert_cost(step));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        rng_seed: RngSeed::Fixed(11),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn costs_are_what_is_counted(graph in arb_graph(), batch in 1..6_u64, seq in 1..5_u64) {
        assert_costs(&graph, &bindings(&[("batch", batch), ("seq", seq)]));
    }
}

/// What random graphs do not have together: a gain, an epilogue that reads, norms, every reduction, ids.
#[test]
fn costs_of_an_adapted_block_are_what_is_counted() {
    let g = GraphBuilder::new("block");
    let ids = g.input("ids", I64, dims!["batch"]);
    let x = g.param("table", F32, dims![9, 20]).gather(ids);
    let w = g.param("w", F32, dims![20, 20]);
    let (a, b) = (g.param("a", F32, dims!["r", 20]).adapter(), g.param("b", F32, dims![20, "r"]).adapter());
    let gain = g.param("m", F32, dims![20]).adapter() / w.lora_norm(a, b, 0.5);
    let bias = g.param("bias", F32, dims![20]);
    let y = x.dora(w, a, b, gain, Some(bias), 0.5).gelu() + x;
    let normed = y.layer_norm(Some(bias), Some(bias), 1e-5).rms_norm(Some(bias), 1e-6).normalize(-1);
    g.output("y", normed.softmax(0).t().concat(&[y.t()], 0));
    g.output("adapted", (w + Tensor::lora_delta(a, b, 0.5)).normalize(Axis::IN));
    let merged = w + Tensor::lora_delta(a, b, 0.25);
    g.output("merged", x.dense(merged, None) + x.dense((merged + w).magnitude(bias, Axis::OUT), None));
    let merged = (w + Tensor::lora_delta(a, b, 0.75)).magnitude(bias, Axis::OUT);
    g.output("merged_gain", x.dense(merged, None));
    g.output("merged_plain", x.dense(w + Tensor::lora_delta(a, b, 0.125), None));
    for reduction in [Reduction::Sum, Reduction::Mean, Reduction::Max] {
        g.output(&format!("{reduction:?}"), y.reduce(reduction, &[0], false));
    }
    let graph = g.finish().unwrap();
    for (batch, rank) in [(1, 1), (3, 4), (40, 2)] {
        assert_costs(&graph, &bindings(&[("batch", batch), ("r", rank)]));
    }
}

/// q, k and v of one row, of several heads and one, a transposed cache, and a mask.
#[test]
fn costs_of_attention_are_what_is_counted() {
    let g = GraphBuilder::new("attention");
    let x = g.input("x", F32, dims!["batch", "seq", 12]);
    let cache = g.input("cache", F32, dims!["seq", "batch", 2]).transpose(&[1, 0, 2]);
    let mask = g.input("mask", I64, dims!["batch", "seq"]);
    let op = Attention { heads: 2, kv_heads: 1, scale: 0.5, causal: true, window: None };
    let (q, k, v) = (x.slice(2, 0, 4), x.slice(2, 4, 2), x.slice(2, 6, 6));
    g.output("own", q.attention(k, v, Some(mask), op));
    g.output("cached", q.attention(cache, k, None, op));
    let graph = g.finish().unwrap();
    for (batch, seq) in [(1, 1), (3, 4), (2, 9)] {
        assert_costs(&graph, &bindings(&[("batch", batch), ("seq", seq)]));
    }
}

/// By hand: 5 outputs of 6 products and sums, a bias and a `relu`; W is padded to 16 outputs.
#[test]
fn the_cost_of_a_layer_is_symbolic() {
    let g = GraphBuilder::new("layer");
    let (w, bias) = (g.param("w", F32, dims![5, 6]), g.param("bias", F32, dims![5]));
    g.output("y", g.input("x", F32, dims!["batch", 6]).dense(w, Some(bias)).relu());
    let plan = plan(&g.finish().unwrap(), PlanOptions::default()).unwrap();
    let [pack, linear] = plan.steps.as_slice() else { panic!("{plan}") };
    assert_eq!(plan.cost(pack).to_string(), "0 flops, reads 120 bytes, writes 384 bytes");
    let expected = "70*batch flops, reads 24*batch+404 bytes, writes 20*batch bytes";
    assert_eq!(plan.cost(linear).to_string(), expected);
}

/// Ten operations in the time of a byte.
const MACHINE: Machine = Machine { flops_per_second: 1e10, bytes_per_second: 1e9 };

fn cost(flops: &str, read: &str, written: &str) -> Cost {
    let [flops, read, written] = [flops, read, written].map(|text| text.parse().unwrap());
    Cost { flops, read, written }
}

/// Every claim about a symbol is tried for values around it.
#[test]
fn the_binding_roof_is_the_one_that_values_show() {
    let batch = Symbol::new("batch");
    let crossing = |at, below, above| Bound::Crossing { symbol: batch.clone(), at, below, above };
    let (compute, memory) = (Roof::Compute, Roof::Memory);
    for (cost, expected) in [
        // A layer: 2·768·768 a row over a weight that is read once.
        (cost("1179648*batch", "3072*batch+2359296", "3072*batch"), crossing(22, memory, compute)),
        (cost("100*batch", "4*batch", "4*batch"), Bound::Always(compute)),
        (cost("10*batch", "4*batch", "4*batch"), Bound::Always(memory)),
        (cost("1001", "4*batch", "0"), crossing(26, compute, memory)),
        (cost("20*batch*batch", "101*batch", "0"), crossing(51, memory, compute)),
        (cost("batch", "0", "0"), Bound::Always(compute)),
        (cost("0", "batch", "0"), Bound::Always(memory)),
        // Memory below 2.., compute, and memory again: not told in one line.
        (cost("1000*batch", "batch*batch+100", "0"), Bound::Open(vec![batch.clone()])),
    ] {
        assert_eq!(bound(&cost, &MACHINE, &Bindings::new()), expected, "{cost}");
        for extent in [1, 2, 20, 21, 22, 23, 24, 25, 26, 49, 50, 51, 52, 1000] {
            let symbols = bindings(&[("batch", extent)]);
            let (flops, bytes) = (cost.flops.eval(&symbols).unwrap(), cost.bytes().eval(&symbols).unwrap());
            let (compute_time, memory_time) = (flops as f64 / 1e10, bytes as f64 / 1e9);
            let (seconds, roof) = least(flops, bytes, &MACHINE);
            assert_eq!(seconds, compute_time.max(memory_time));
            assert_eq!(roof == Roof::Compute, compute_time > memory_time);
            let claimed = match &expected {
                Bound::Always(roof) => *roof,
                Bound::Crossing { at, below, above, .. } => {
                    if extent < *at {
                        *below
                    } else {
                        *above
                    }
                }
                _ => roof,
            };
            assert_eq!(claimed, roof, "{cost} at {extent}");
            let Bound::Time { seconds: told, roof: bound_by } = bound(&cost, &MACHINE, &symbols) else {
                panic!("every symbol is known")
            };
            assert!((told - seconds).abs() <= 1e-12 * seconds);
            assert_eq!(bound_by, roof);
        }
    }
}

#[test]
fn several_open_dims_are_told_unless_one_roof_binds_for_all() {
    let always = cost("100*batch*seq", "4*batch*seq", "4*batch*seq");
    assert_eq!(bound(&always, &MACHINE, &Bindings::new()), Bound::Always(Roof::Compute));
    let open = cost("100*batch*seq", "4000*batch", "4*batch*seq");
    let both = Bound::Open(vec![Symbol::new("batch"), Symbol::new("seq")]);
    assert_eq!(bound(&open, &MACHINE, &Bindings::new()), both);
    assert_eq!(both.to_string(), "depends on batch, seq");
    // A layer's rows in both dims: the value of one leaves the other.
    let of_seq = bound(&open, &MACHINE, &bindings(&[("batch", 3)]));
    assert_eq!(of_seq.to_string(), "memory-bound below seq = 667, then compute-bound");
}
