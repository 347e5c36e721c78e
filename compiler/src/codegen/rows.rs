//! Code for `Row`: reductions, softmax and norms along one axis, as a few passes over each row. Where the axis is
//! contiguous the lanes of a vector are neighbours along it; where it is not, they are neighbouring rows.

use super::emit::{Emit, LANES, Width};
use crate::plan::kernel::{Row, RowOp};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use engraft_ir::Dim;
use engraft_ir::ops::{EpsilonAt, Reduction};

/// The vector accumulators of a reduction along a contiguous axis: as many as hide the latency of an addition.
const ACCUMULATORS: usize = 4;

/// A combination of two values of the same width, for the step and for the lanes.
type Combine = dyn Fn(&mut Emit<'_, '_>, Value, Value) -> Value;

/// A function of a row's element, and of the weight's and bias's where there are.
type Element = dyn Fn(&mut Emit<'_, '_>, Width, Value) -> Value;

/// One row, or as many neighbouring rows as a vector has lanes.
#[derive(Clone, Copy)]
struct Span {
    x: Value,
    y: Value,
    n: Value,
    /// Bytes from one element of the row to the next.
    stride: Value,
    /// Whether lanes lie along the row.
    along: bool,
    /// The width of a row's scalars: a vector where lanes are rows.
    width: Width,
    weight: Option<Value>,
    bias: Option<Value>,
}

impl Row {
    /// Every dim that code for the kernel needs.
    pub(super) fn dims(&self) -> [&Dim; 3] {
        [&self.outer, &self.n, &self.inner]
    }
}

impl Emit<'_, '_> {
    /// Runs the kernel: `reads` are x, weight, bias as they are present.
    pub(super) fn run_row(&mut self, row: &Row, reads: &[Value], y: Value) {
        let x = reads[0];
        let weight = row.weight.then(|| reads[1]);
        let bias = row.bias.then(|| reads[1 + usize::from(row.weight)]);
        let [outer, n, inner] = row.dims().map(|dim| self.dim(dim));
        let stride = self.bytes(inner, 4);
        let block = self.b.ins().imul(stride, n);
        let reduces = matches!(row.op, RowOp::Reduce(_));
        let written = if reduces { stride } else { block };
        let along = row.inner == Dim::fixed(1);
        // A reduction has a result over no elements, too.
        let outer = self.unless_empty(outer, if reduces { None } else { Some(&row.n) });
        let outer = self.unless_empty(outer, [&row.inner]);
        self.repeat(outer, &[x, y], |e, at| {
            let span = Span { x: at[0], y: at[1], n, stride, along, width: Width::Scalar, weight, bias };
            if along {
                e.one_row(row.op, span);
            } else {
                let (vectors, rest) = e.split_lanes(inner);
                let at = e.neighbours(row.op, Span { width: Width::Vector, ..span }, vectors);
                e.neighbours(row.op, Span { x: at[0], y: at[1], ..span }, rest);
            }
            vec![e.advance(at[0], block), e.advance(at[1], written)]
        });
    }

    /// Rows side by side, `count` times as many as the span is wide.
    fn neighbours(&mut self, op: RowOp, span: Span, count: Value) -> Vec<Value> {
        self.repeat(count, &[span.x, span.y], |e, at| {
            e.one_row(op, Span { x: at[0], y: at[1], ..span });
            let bytes = span.width.bytes();
            vec![e.advance_by(at[0], bytes), e.advance_by(at[1], bytes)]
        })
    }

    fn one_row(&mut self, op: RowOp, span: Span) {
        match op {
            RowOp::Reduce(reduction) => self.reduce(reduction, span),
            RowOp::Softmax => self.softmax(span),
            RowOp::Normalize { epsilon, epsilon_at } => {
                let squares = self.sum_of_squares(span);
                let norm = self.norm(span.width, squares, epsilon, epsilon_at);
                self.scale_row(span, norm);
            }
            RowOp::LayerNorm { epsilon } => self.layer_norm(span, epsilon),
            RowOp::RmsNorm { epsilon } => {
                let squares = self.sum_of_squares(span);
                let n = self.row_length(span);
                let mean = self.div(squares, n);
                let norm = self.norm(span.width, mean, epsilon, EpsilonAt::Inside);
                self.scale_row(span, norm);
            }
        }
    }

    fn row_length(&mut self, span: Span) -> Value {
        let n = self.count_as_float(span.n);
        self.fit(n, span.width)
    }

    fn reduce(&mut self, reduction: Reduction, span: Span) {
        let result = match reduction {
            Reduction::Max => {
                self.fold(span, span.x, f32::NEG_INFINITY, &|_, _, x| x, &|e, a, b| e.b.ins().fmax(a, b))
            }
            Reduction::Sum | Reduction::Mean => {
                self.fold(span, span.x, 0.0, &|_, _, x| x, &|e, a, b| e.add(a, b))
            }
        };
        let result = match reduction {
            Reduction::Mean => {
                let n = self.row_length(span);
                self.div(result, n)
            }
            _ => result,
        };
        self.store(result, span.y);
    }

    fn softmax(&mut self, span: Span) {
        let max = self.fold(span, span.x, f32::NEG_INFINITY, &|_, _, x| x, &|e, a, b| e.b.ins().fmax(a, b));
        self.map(span, span.x, &move |e, width, x| {
            let max = e.fit(max, width);
            let shifted = e.sub(x, max);
            e.unary(engraft_ir::ops::Unary::Exp, width, shifted)
        });
        let sum = self.fold(span, span.y, 0.0, &|_, _, x| x, &|e, a, b| e.add(a, b));
        let factor = self.reciprocal(span.width, sum);
        self.map(span, span.y, &move |e, width, x| {
            let factor = e.fit(factor, width);
            e.mul(x, factor)
        });
    }

    fn sum_of_squares(&mut self, span: Span) -> Value {
        self.fold(span, span.x, 0.0, &|e, _, x| e.mul(x, x), &|e, a, b| e.add(a, b))
    }

    fn norm(&mut self, width: Width, squares: Value, epsilon: f32, epsilon_at: EpsilonAt) -> Value {
        let epsilon = self.number(width, epsilon);
        match epsilon_at {
            EpsilonAt::Inside => {
                let sum = self.add(squares, epsilon);
                self.b.ins().sqrt(sum)
            }
            EpsilonAt::Outside => {
                let root = self.b.ins().sqrt(squares);
                self.add(root, epsilon)
            }
            EpsilonAt::Max => {
                let root = self.b.ins().sqrt(squares);
                self.choose(FloatCC::LessThan, root, epsilon, epsilon, root)
            }
        }
    }

    /// `x / norm · weight`.
    fn scale_row(&mut self, span: Span, norm: Value) {
        let factor = self.reciprocal(span.width, norm);
        self.map(span, span.x, &move |e, width, x| {
            let factor = e.fit(factor, width);
            e.mul(x, factor)
        });
    }

    fn layer_norm(&mut self, span: Span, epsilon: f32) {
        let sum = self.fold(span, span.x, 0.0, &|_, _, x| x, &|e, a, b| e.add(a, b));
        let n = self.row_length(span);
        let mean = self.div(sum, n);
        let squares = self.fold(
            span,
            span.x,
            0.0,
            &move |e, width, x| {
                let mean = e.fit(mean, width);
                let deviation = e.sub(x, mean);
                e.mul(deviation, deviation)
            },
            &|e, a, b| e.add(a, b),
        );
        let variance = self.div(squares, n);
        let norm = self.norm(span.width, variance, epsilon, EpsilonAt::Inside);
        let factor = self.reciprocal(span.width, norm);
        self.map(span, span.x, &move |e, width, x| {
            let (mean, factor) = (e.fit(mean, width), e.fit(factor, width));
            let deviation = e.sub(x, mean);
            e.mul(deviation, factor)
        });
    }

    /// Combines `f(element)` over the row.
    fn fold(&mut self, span: Span, from: Value, start: f32, f: &Element, combine: &Combine) -> Value {
        if !span.along {
            let start = self.number(span.width, start);
            let end = self.repeat(span.n, &[from, start], |e, at| {
                let x = e.load(span.width, at[0]);
                let value = f(e, span.width, x);
                vec![e.advance(at[0], span.stride), combine(e, at[1], value)]
            });
            return end[1];
        }
        let (vectors, rest) = self.split_lanes(span.n);
        let blocks = self.b.ins().ushr_imm_s(vectors, i64::from(ACCUMULATORS.ilog2()));
        let vectors = self.b.ins().band_imm_s(vectors, ACCUMULATORS as i64 - 1);
        let empty = self.number(Width::Vector, start);
        let mut carried = vec![from];
        carried.resize(1 + ACCUMULATORS, empty);
        let end = self.repeat(blocks, &carried, |e, at| {
            let bytes = Width::Vector.bytes();
            let mut next = vec![e.advance_by(at[0], bytes * ACCUMULATORS as i64)];
            for (i, &sum) in at[1..].iter().enumerate() {
                let pointer = e.advance_by(at[0], bytes * i as i64);
                next.push(e.fold_step(Width::Vector, pointer, sum, f, combine));
            }
            next
        });
        let pairs = [combine(self, end[1], end[2]), combine(self, end[3], end[4])];
        let sum = combine(self, pairs[0], pairs[1]);
        let end = self.fold_run(vectors, Width::Vector, [end[0], sum], f, combine);
        let lanes = self.across(end[1], &|e, a, b| combine(e, a, b));
        self.fold_run(rest, Width::Scalar, [end[0], lanes], f, combine)[1]
    }

    fn fold_run(
        &mut self,
        count: Value,
        width: Width,
        from: [Value; 2],
        f: &Element,
        combine: &Combine,
    ) -> Vec<Value> {
        self.repeat(count, &from, |e, at| {
            let sum = e.fold_step(width, at[0], at[1], f, combine);
            vec![e.advance_by(at[0], width.bytes()), sum]
        })
    }

    fn fold_step(
        &mut self,
        width: Width,
        pointer: Value,
        sum: Value,
        f: &Element,
        combine: &Combine,
    ) -> Value {
        let x = self.load(width, pointer);
        let value = f(self, width, x);
        combine(self, sum, value)
    }

    /// Writes `f(element) · weight + bias` over the row.
    fn map(&mut self, span: Span, from: Value, f: &Element) {
        let vectors_of = [span.weight, span.bias];
        let mut carried = vec![from, span.y];
        carried.extend(vectors_of.iter().flatten());
        if !span.along {
            self.map_run(span, span.n, span.width, &carried, f);
            return;
        }
        let (vectors, rest) = self.split_lanes(span.n);
        let at = self.map_run(span, vectors, Width::Vector, &carried, f);
        self.map_run(span, rest, Width::Scalar, &at, f);
    }

    fn map_run(
        &mut self,
        span: Span,
        count: Value,
        width: Width,
        carried: &[Value],
        f: &Element,
    ) -> Vec<Value> {
        self.repeat(count, carried, |e, at| {
            let x = e.load(width, at[0]);
            let mut value = f(e, width, x);
            // Along the row weights are as wide as elements; across rows one weight serves all lanes.
            let (parameter, parameter_bytes) =
                if span.along { (width, width.bytes()) } else { (Width::Scalar, 4) };
            let mut parameters = at[2..].iter();
            if let Some(&pointer) = span.weight.and_then(|_| parameters.next()) {
                let weight = e.load(parameter, pointer);
                let weight = e.fit(weight, width);
                value = e.mul(value, weight);
            }
            if let Some(&pointer) = span.bias.and_then(|_| parameters.next()) {
                let bias = e.load(parameter, pointer);
                let bias = e.fit(bias, width);
                value = e.add(value, bias);
            }
            e.store(value, at[1]);
            let step = |e: &mut Self, pointer| {
                if span.along {
                    e.advance_by(pointer, width.bytes())
                } else {
                    e.advance(pointer, span.stride)
                }
            };
            let mut next = vec![step(e, at[0]), step(e, at[1])];
            next.extend(at[2..].iter().map(|&pointer| e.advance_by(pointer, parameter_bytes)));
            next
        })
    }
}

const _: () = assert!(ACCUMULATORS == 4 && LANES == 4, "fold combines four accumulators of four lanes");
