//! Code for `Row`: reductions, softmax and division by the Euclidean norm along one axis, as a few passes over each row. Where
//! the axis is contiguous the lanes of a vector are neighbours along it; where it is not, they are neighbouring rows. Layer
//! and RMS norms are the runtime's.

use super::emit::{Emit, LANES, Width};
use crate::plan::kernel::{Row, RowOp};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use engraft_ir::Dim;
use engraft_ir::ops::{EpsilonAt, Reduction};
use engraft_runtime::abi::Function;

/// The vector accumulators of a reduction along a contiguous axis: as many as hide the latency of an addition.
const ACCUMULATORS: usize = 4;

/// The bytes of a step along a contiguous axis: a vector for each accumulator.
const STEP: i64 = Width::Vector.bytes() * ACCUMULATORS as i64;

/// The elements that the exponentials of a softmax are taken of in one call: enough that its own time does not show. Of a
/// block that has more, all at once.
const EXPONENTIALS: i64 = 1024;

/// A combination of two values of the same width, for the step and for the lanes.
type Combine = dyn Fn(&mut Emit<'_, '_>, Value, Value) -> Value;

/// A function of a row's element and of the row's scalars, as wide as it.
type Element = dyn Fn(&mut Emit<'_, '_>, Value, &[Value]) -> Value;

/// A pass over a row.
struct Pass<'a> {
    from: Value,
    /// What `f` knows of the whole row.
    scalars: &'a [Value],
    f: &'a Element,
}

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
}

impl Row {
    /// Every dim that code for the kernel needs.
    pub(super) fn dims(&self) -> [&Dim; 3] {
        [&self.outer, &self.n, &self.inner]
    }
}

impl Emit<'_, '_> {
    /// Runs the kernel: `reads` are x, and the weight if there is one.
    pub(super) fn run_row(&mut self, row: &Row, reads: &[Value], y: Value) {
        let x = reads[0];
        let weight = row.weight.then(|| reads[1]);
        let [outer, n, inner] = row.dims().map(|dim| self.dim(dim));
        let stride = self.bytes(inner, 4);
        let block = self.b.ins().imul(stride, n);
        let reduces = matches!(row.op, RowOp::Reduce(_));
        let written = if reduces { stride } else { block };
        let along = row.inner == Dim::fixed(1);
        // A reduction has a result over no elements, too.
        let outer = self.unless_empty(outer, if reduces { None } else { Some(&row.n) });
        let outer = self.unless_empty(outer, [&row.inner]);
        let span = Span { x, y, n, stride, along, width: Width::Scalar, weight };
        if row.op == RowOp::Softmax {
            self.softmax(span, inner, outer);
            return;
        }
        self.blocks(outer, span, [block, written], |e, span| {
            e.rows(span, inner, |e, span| e.one_row(row.op, span));
        });
    }

    /// Runs `body` on each of `outer` blocks, so many bytes of x and y apart.
    fn blocks(&mut self, outer: Value, span: Span, bytes: [Value; 2], body: impl Fn(&mut Self, Span)) {
        self.repeat(outer, &[span.x, span.y], |e, at| {
            body(e, Span { x: at[0], y: at[1], ..span });
            vec![e.advance(at[0], bytes[0]), e.advance(at[1], bytes[1])]
        });
    }

    /// Runs `body` on each of `inner` rows side by side, on as many at a time as a vector has lanes.
    fn rows(&mut self, span: Span, inner: Value, body: impl Fn(&mut Self, Span)) {
        if span.along {
            body(self, span);
            return;
        }
        let (vectors, rest) = self.split_lanes(inner);
        let at = self.neighbours(Span { width: Width::Vector, ..span }, vectors, &body);
        self.neighbours(Span { x: at[0], y: at[1], ..span }, rest, &body);
    }

    /// Rows side by side, `count` times as many as the span is wide.
    fn neighbours(&mut self, span: Span, count: Value, body: &impl Fn(&mut Self, Span)) -> Vec<Value> {
        self.repeat(count, &[span.x, span.y], |e, at| {
            body(e, Span { x: at[0], y: at[1], ..span });
            let bytes = span.width.bytes();
            vec![e.advance_by(at[0], bytes), e.advance_by(at[1], bytes)]
        })
    }

    fn one_row(&mut self, op: RowOp, span: Span) {
        match op {
            RowOp::Reduce(reduction) => self.reduce(reduction, span),
            RowOp::Softmax => unreachable!("its exponentials are of many rows at a time"),
            RowOp::Normalize { epsilon, epsilon_at } => {
                let squares = self.sum(span, &Pass { f: &|e, x, _| e.mul(x, x), ..Pass::over(span.x) });
                let norm = self.norm(span.width, squares, epsilon, epsilon_at);
                self.scale_row(span, norm);
            }
            RowOp::LayerNorm { .. } | RowOp::RmsNorm { .. } => {
                unreachable!("the runtime's norms are called, not emitted")
            }
        }
    }

    fn reduce(&mut self, reduction: Reduction, span: Span) {
        let result = match reduction {
            Reduction::Max => {
                self.fold(span, &Pass::over(span.x), f32::NEG_INFINITY, &|e, a, b| e.b.ins().fmax(a, b))
            }
            Reduction::Sum | Reduction::Mean => self.sum(span, &Pass::over(span.x)),
        };
        let result = match reduction {
            Reduction::Mean => {
                let n = self.count_as_float(span.n);
                let n = self.fit(n, span.width);
                self.div(result, n)
            }
            _ => result,
        };
        self.store(result, span.y);
    }

    /// `exp(x - max) / Σ exp(x - max)`; the exponentials are the runtime's, of as many blocks at a time as make a call worth
    /// it. Elements that are not numbers need not show in the maximum: they show in the sum.
    fn softmax(&mut self, span: Span, inner: Value, outer: Value) {
        let elements = self.b.ins().imul(span.n, inner);
        let bytes = self.bytes(elements, 4);
        let one = self.int(1);
        let (all, at_least) = (self.int(EXPONENTIALS), self.b.ins().umax(elements, one));
        let most = self.b.ins().udiv(all, at_least);
        let most = self.b.ins().umax(most, one);
        self.pieces(outer, most, &[span.x, span.y], |e, blocks, at| {
            let span = Span { x: at[0], y: at[1], ..span };
            e.blocks(blocks, span, [bytes; 2], |e, span| e.rows(span, inner, Self::shift));
            let count = e.b.ins().imul(blocks, elements);
            e.call_unary(Function::Exp, count, [span.y; 2]);
            let span = Span { x: span.y, ..span };
            e.blocks(blocks, span, [bytes; 2], |e, span| e.rows(span, inner, Self::divide_by_sum));
            let moved = e.b.ins().imul(blocks, bytes);
            at.iter().map(|&at| e.advance(at, moved)).collect()
        });
    }

    /// `x - max(x)`
    fn shift(&mut self, span: Span) {
        let max = self.fold(span, &Pass::over(span.x), f32::NEG_INFINITY, &|e, a, b| {
            e.choose(FloatCC::LessThan, a, b, b, a)
        });
        self.map(span, &Pass { from: span.x, scalars: &[max], f: &|e, x, scalars| e.sub(x, scalars[0]) });
    }

    /// `x / Σ x`
    fn divide_by_sum(&mut self, span: Span) {
        let sum = self.sum(span, &Pass::over(span.x));
        let factor = self.reciprocal(span.width, sum);
        self.map(span, &Pass { from: span.x, scalars: &[factor], f: &|e, x, scalars| e.mul(x, scalars[0]) });
    }

    fn sum(&mut self, span: Span, pass: &Pass<'_>) -> Value {
        self.fold(span, pass, 0.0, &|e, a, b| e.add(a, b))
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
        let f: &Element = &|e, x, scalars| e.mul(x, scalars[0]);
        self.map(span, &Pass { scalars: &[factor], f, ..Pass::over(span.x) });
    }

    /// The scalars of a row, as wide as its elements.
    fn widen(&mut self, scalars: &[Value], width: Width) -> Vec<Value> {
        scalars.iter().map(|&scalar| self.fit(scalar, width)).collect()
    }

    /// Combines `f(element)` over the row.
    fn fold(&mut self, span: Span, pass: &Pass<'_>, start: f32, combine: &Combine) -> Value {
        if !span.along {
            return self.fold_across(span, pass, start, combine);
        }
        let [blocks, vectors, end] = self.cover(span.n, ACCUMULATORS as i64);
        let (begin, empty) = (self.int(0), self.number(Width::Vector, start));
        let wide = self.widen(pass.scalars, Width::Vector);
        let sums = self.steps([begin, blocks], STEP, &[empty; ACCUMULATORS], |e, offset, sums| {
            let next = sums.iter().enumerate().map(|(i, &sum)| {
                let displacement = Width::Vector.bytes() * i as i64;
                let value = e.element(pass, Width::Vector, (offset, displacement), &wide);
                combine(e, sum, value)
            });
            next.collect()
        });
        let pairs = [combine(self, sums[0], sums[1]), combine(self, sums[2], sums[3])];
        let sum = combine(self, pairs[0], pairs[1]);
        let sum = self.fold_run(pass, Width::Vector, [blocks, vectors], (sum, &wide), combine);
        let lanes = self.across(sum, &|e, a, b| combine(e, a, b));
        self.fold_run(pass, Width::Scalar, [vectors, end], (lanes, pass.scalars), combine)
    }

    fn fold_run(
        &mut self,
        pass: &Pass<'_>,
        width: Width,
        range: [Value; 2],
        (sum, scalars): (Value, &[Value]),
        combine: &Combine,
    ) -> Value {
        self.steps(range, width.bytes(), &[sum], |e, offset, sums| {
            let value = e.element(pass, width, (offset, 0), scalars);
            vec![combine(e, sums[0], value)]
        })[0]
    }

    /// `f` of the element at an offset.
    fn element(
        &mut self,
        pass: &Pass<'_>,
        width: Width,
        (offset, displacement): (Value, i64),
        scalars: &[Value],
    ) -> Value {
        let x = self.load_at(width, pass.from, offset, displacement);
        (pass.f)(self, x, scalars)
    }

    /// [`Self::fold`] where the elements of a row do not lie side by side.
    fn fold_across(&mut self, span: Span, pass: &Pass<'_>, start: f32, combine: &Combine) -> Value {
        let empty = self.number(span.width, start);
        let (blocks, rest) = self.split(span.n, ACCUMULATORS as i64);
        let begin = self.int(0);
        let mut carried = vec![begin];
        carried.resize(1 + ACCUMULATORS, empty);
        let ends = self.repeat(blocks, &carried, |e, at| {
            let mut next = vec![at[0]];
            for &sum in &at[1..] {
                let value = e.element(pass, span.width, (next[0], 0), pass.scalars);
                next.push(combine(e, sum, value));
                next[0] = e.advance(next[0], span.stride);
            }
            next
        });
        let pairs = [combine(self, ends[1], ends[2]), combine(self, ends[3], ends[4])];
        let sum = combine(self, pairs[0], pairs[1]);
        self.repeat(rest, &[ends[0], sum], |e, at| {
            let value = e.element(pass, span.width, (at[0], 0), pass.scalars);
            vec![e.advance(at[0], span.stride), combine(e, at[1], value)]
        })[1]
    }

    /// Writes `f(element) · weight` over the row.
    fn map(&mut self, span: Span, pass: &Pass<'_>) {
        let begin = self.int(0);
        if !span.along {
            // One weight serves all lanes.
            self.repeat(span.n, &[begin, begin], |e, at| {
                let value = e.element(pass, span.width, (at[0], 0), pass.scalars);
                let value = e.weighted(span, value, (Width::Scalar, at[1], 0));
                e.store_at(value, span.y, at[0], 0);
                vec![e.advance(at[0], span.stride), e.advance_by(at[1], Width::Scalar.bytes())]
            });
            return;
        }
        let [blocks, vectors, end] = self.cover(span.n, ACCUMULATORS as i64);
        let wide = self.widen(pass.scalars, Width::Vector);
        let pieces = [
            (Width::Vector, STEP, [begin, blocks], wide.as_slice()),
            (Width::Vector, Width::Vector.bytes(), [blocks, vectors], wide.as_slice()),
            (Width::Scalar, Width::Scalar.bytes(), [vectors, end], pass.scalars),
        ];
        for (width, step, range, scalars) in pieces {
            self.steps(range, step, &[], |e, offset, _| {
                for displacement in (0..step).step_by(width.bytes() as usize) {
                    let value = e.element(pass, width, (offset, displacement), scalars);
                    let value = e.weighted(span, value, (width, offset, displacement));
                    e.store_at(value, span.y, offset, displacement);
                }
                Vec::new()
            });
        }
    }

    /// `value · weight`, if there is one.
    fn weighted(
        &mut self,
        span: Span,
        value: Value,
        (width, offset, displacement): (Width, Value, i64),
    ) -> Value {
        let Some(base) = span.weight else { return value };
        let wide = if span.along { width } else { span.width };
        let weight = self.load_at(width, base, offset, displacement);
        let weight = self.fit(weight, wide);
        self.mul(value, weight)
    }
}

impl Pass<'_> {
    /// A pass over the elements as they are.
    fn over(from: Value) -> Self {
        Self { from, scalars: &[], f: &|_, x, _| x }
    }
}

const _: () = assert!(ACCUMULATORS == 4 && LANES == 4, "fold combines four accumulators of four lanes");
