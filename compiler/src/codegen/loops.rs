//! Code for `Loop`: nested counted loops with one pointer per access, the innermost axis in vectors and then one by
//! one. Epilogues are the same loop over a tile.

use super::emit::{Emit, LANES, Width, memory};
use crate::plan::kernel::{Access, Expr, Loop};
use cranelift_codegen::ir::types::{F32, F32X4, I32, I64};
use cranelift_codegen::ir::{InstBuilder, Type, Value};
use engraft_ir::{DType, Dim};

/// How an access moves along the innermost axis.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inner {
    /// Stays: one element for all.
    Fixed,
    /// To the next element.
    Contiguous,
    /// By a stride.
    Strided,
}

/// One access of a loop being emitted: pointer, bytes per step along each axis, and how it moves innermost.
struct Walk {
    pointer: Value,
    steps: Vec<Value>,
    inner: Inner,
}

/// The extents that a loop runs over.
pub(super) enum Extents {
    /// Its whole space.
    Whole,
    /// Rows and columns `(from, to)` of a space `[rows, out]`.
    Tile([(Value, Value); 2]),
}

impl Loop {
    /// Every dim that code for the loop needs.
    pub(super) fn dims(&self) -> impl Iterator<Item = &Dim> {
        let accesses = self.reads.iter().chain(std::iter::once(&self.write));
        self.space.iter().chain(accesses.flat_map(|a| a.strides.iter().chain(std::iter::once(&a.offset))))
    }
}

impl Emit<'_, '_> {
    /// Runs a loop: `pointers` are the buffers read, in order, and the buffer written.
    pub(super) fn run_loop(&mut self, body: &Loop, reads: &[Value], write: Value, extents: &Extents) {
        let (mut counts, starts): (Vec<_>, Vec<_>) = match extents {
            Extents::Whole => body.space.iter().map(|dim| (self.dim(dim), None)).unzip(),
            Extents::Tile(ranges) => {
                ranges.iter().map(|&(from, to)| (self.b.ins().isub(to, from), Some(from))).unzip()
            }
        };
        if let (Extents::Whole, Some((_, inside))) = (extents, body.space.split_first()) {
            counts[0] = self.unless_empty(counts[0], inside);
        }
        let mut walks: Vec<_> = body
            .reads
            .iter()
            .zip(reads)
            .map(|(access, &buffer)| self.walk(access, buffer, body.dtype, &starts))
            .collect();
        walks.push(self.walk(&body.write, write, body.dtype, &starts));
        let pointers: Vec<_> = walks.iter().map(|walk| walk.pointer).collect();
        self.nest(body, &walks, &counts, 0, &pointers);
    }

    fn walk(&mut self, access: &Access, buffer: Value, dtype: DType, starts: &[Option<Value>]) -> Walk {
        let offset = self.dim(&access.offset);
        let offset = self.bytes(offset, dtype.bytes());
        let mut pointer = self.advance(buffer, offset);
        let mut steps = Vec::new();
        for (stride, start) in access.strides.iter().zip(starts) {
            let stride = self.dim(stride);
            let step = self.bytes(stride, dtype.bytes());
            if let Some(start) = start {
                let skipped = self.b.ins().imul(*start, step);
                pointer = self.advance(pointer, skipped);
            }
            steps.push(step);
        }
        let inner = match access.strides.last().and_then(Dim::as_fixed) {
            Some(0) => Inner::Fixed,
            Some(1) => Inner::Contiguous,
            _ => Inner::Strided,
        };
        Walk { pointer, steps, inner }
    }

    fn nest(&mut self, body: &Loop, walks: &[Walk], counts: &[Value], axis: usize, pointers: &[Value]) {
        if axis + 1 == counts.len() {
            self.innermost(body, walks, counts[axis], pointers);
            return;
        }
        self.repeat(counts[axis], pointers, |e, pointers| {
            e.nest(body, walks, counts, axis + 1, pointers);
            let moved = pointers.iter().zip(walks).map(|(&p, walk)| e.advance(p, walk.steps[axis]));
            moved.collect()
        });
    }

    fn innermost(&mut self, body: &Loop, walks: &[Walk], count: Value, pointers: &[Value]) {
        let writes_vectors = walks.last().is_some_and(|walk| walk.inner == Inner::Contiguous);
        if body.dtype != DType::F32 || !writes_vectors {
            self.repeat(count, pointers, |e, pointers| e.point(body, walks, Width::Scalar, pointers));
            return;
        }
        let (vectors, rest) = self.split_lanes(count);
        let pointers =
            self.repeat(vectors, pointers, |e, pointers| e.point(body, walks, Width::Vector, pointers));
        self.repeat(rest, &pointers, |e, pointers| e.point(body, walks, Width::Scalar, pointers));
    }

    /// One step along the innermost axis; returns the pointers moved on.
    fn point(&mut self, body: &Loop, walks: &[Walk], width: Width, pointers: &[Value]) -> Vec<Value> {
        let mut values: Vec<Value> = Vec::with_capacity(body.body.len());
        for expr in &body.body {
            let value = match *expr {
                Expr::Load(access) => self.load_access(body.dtype, &walks[access], width, pointers[access]),
                Expr::Number(number) => self.number(width, number),
                Expr::Unary(function, x) => self.unary(function, width, values[x]),
                Expr::Binary(function, a, b) => self.binary(function, values[a], values[b]),
            };
            values.push(value);
        }
        let (write, result) = (pointers.len() - 1, values.len() - 1);
        self.store(values[result], pointers[write]);
        let lanes = if width == Width::Vector { LANES } else { 1 };
        let innermost = |walk: &Walk| walk.steps.last().copied();
        let moved = pointers.iter().zip(walks).map(|(&pointer, walk)| match (walk.inner, innermost(walk)) {
            (Inner::Contiguous, _) => self.advance_by(pointer, lanes * body.dtype.bytes() as i64),
            (Inner::Strided, Some(step)) => {
                let step = self.b.ins().imul_imm_s(step, lanes);
                self.advance(pointer, step)
            }
            _ => pointer,
        });
        moved.collect()
    }

    fn load_access(&mut self, dtype: DType, walk: &Walk, width: Width, pointer: Value) -> Value {
        let scalar = element_type(dtype);
        match (width, walk.inner) {
            (Width::Vector, Inner::Contiguous) => self.load(width, pointer),
            (Width::Vector, Inner::Strided) => {
                let mut pointer = pointer;
                let mut vector = self.number(width, 0.0);
                for lane in 0..LANES as u8 {
                    let element = self.b.ins().load(F32, memory(), pointer, 0);
                    vector = self.b.ins().insertlane(vector, element, lane);
                    pointer = self.advance(pointer, walk.steps[walk.steps.len() - 1]);
                }
                vector
            }
            (Width::Vector, Inner::Fixed) => {
                let element = self.b.ins().load(F32, memory(), pointer, 0);
                self.b.ins().splat(F32X4, element)
            }
            (Width::Scalar, _) => self.b.ins().load(scalar, memory(), pointer, 0),
        }
    }
}

fn element_type(dtype: DType) -> Type {
    match dtype {
        DType::F32 => F32,
        DType::I32 => I32,
        // f64 does not get past the planner; eight bytes are eight bytes.
        DType::I64 | DType::F64 => I64,
    }
}
