//! Calls of the runtime's kernels: a structure of the binary interface is filled on the stack and handed over.

use super::emit::{Emit, POINTER, StackUse, memory};
use crate::plan::kernel::{Attention, Center, Dot, Kernel, Linear, Merge, Pack, Row, RowNorm};
use cranelift_codegen::ir::types::I32;
use cranelift_codegen::ir::{FuncRef, InstBuilder, StackSlot, StackSlotData, StackSlotKind, Value};
use engraft_ir::Dim;
use engraft_runtime::abi::{self, Function};
use std::mem::{align_of, offset_of, size_of};

/// The runtime's entry points, by the kernel they serve.
pub(super) const PACK: &str = "engraft_pack";
/// See [`PACK`].
pub(super) const LINEAR: &str = "engraft_linear";
/// See [`PACK`].
pub(super) const DOT: &str = "engraft_dot";
/// See [`PACK`].
pub(super) const ROW_NORM: &str = "engraft_row_norm";
/// See [`PACK`].
pub(super) const MERGE: &str = "engraft_merge";
/// See [`PACK`].
pub(super) const ATTENTION: &str = "engraft_attention";
/// See [`PACK`].
pub(super) const LAYER_NORM: &str = "engraft_layer_norm";

/// The runtime's entry point that computes an elementwise function.
pub(super) const UNARY: &str = "engraft_unary";

/// The runtime's entry point that is told when a step has ended.
pub(super) const MARK: &str = "engraft_mark";

/// The runtime's entry point that computes a kernel, if it is one of the runtime's.
pub(super) fn entry_point(kernel: &Kernel) -> Option<&'static str> {
    match kernel {
        Kernel::Pack(_) => Some(PACK),
        Kernel::Linear(_) => Some(LINEAR),
        Kernel::Dot(_) => Some(DOT),
        Kernel::RowNorm(_) => Some(ROW_NORM),
        Kernel::Merge(_) => Some(MERGE),
        Kernel::Attention(_) => Some(ATTENTION),
        Kernel::Row(row) if row.op.center().is_some() => Some(LAYER_NORM),
        Kernel::Loop(_) | Kernel::Row(_) | Kernel::Gather(_) | Kernel::Cast(_) => None,
    }
}

/// A structure being filled on the stack.
struct Fill {
    slot: StackSlot,
}

impl Emit<'_, '_> {
    fn fill<T>(&mut self) -> Fill {
        const { assert!(align_of::<T>() <= 8) }
        Fill { slot: self.slot(StackUse::Structure, size_of::<T>()) }
    }

    /// A table of addresses on the stack.
    pub(super) fn table(&mut self, addresses: &[Value]) -> Value {
        let slot = self.slot(StackUse::Table, 8 * addresses.len());
        for (index, &address) in addresses.iter().enumerate() {
            self.b.ins().stack_store(POINTER, address, slot, 8 * index as i32);
        }
        self.b.ins().stack_addr(POINTER, slot, 0)
    }

    /// Memory on the stack, the same for all calls that use as much of it in the same way: they come one after the other.
    fn slot(&mut self, used_as: StackUse, bytes: usize) -> StackSlot {
        let wanted = (used_as, bytes as u32);
        if let Some((_, slot)) = self.stack.iter().find(|(known, _)| *known == wanted) {
            return *slot;
        }
        let data = StackSlotData::new(StackSlotKind::ExplicitSlot, wanted.1, 3);
        let slot = self.b.create_sized_stack_slot(data);
        self.stack.push((wanted, slot));
        slot
    }

    fn set(&mut self, fill: &Fill, offset: usize, value: Value) {
        self.b.ins().stack_store(POINTER, value, fill.slot, offset as i32);
    }

    fn set_dim(&mut self, fill: &Fill, offset: usize, dim: &Dim) {
        let value = self.dim(dim);
        self.set(fill, offset, value);
    }

    fn call_with(&mut self, entry: FuncRef, frame: Value, fill: &Fill) {
        let argument = self.b.ins().stack_addr(POINTER, fill.slot, 0);
        self.b.ins().call(entry, &[frame, argument]);
    }

    /// Packs `w` into `packed`.
    pub(super) fn call_pack(&mut self, entry: FuncRef, frame: Value, pack: &Pack, w: Value, packed: Value) {
        let fill = self.fill::<abi::Pack>();
        self.set_dim(&fill, offset_of!(abi::Pack, batch), &pack.batch);
        self.set_dim(&fill, offset_of!(abi::Pack, out), &pack.matrix.out);
        self.set_dim(&fill, offset_of!(abi::Pack, k), &pack.matrix.k);
        self.set_dim(&fill, offset_of!(abi::Pack, out_stride), &pack.matrix.out_stride);
        self.set_dim(&fill, offset_of!(abi::Pack, k_stride), &pack.matrix.k_stride);
        let matrix_elements = pack.matrix.out.clone() * &pack.matrix.k;
        self.set_dim(&fill, offset_of!(abi::Pack, w_batch_stride), &matrix_elements);
        self.set(&fill, offset_of!(abi::Pack, w), w);
        let scale = self.b.ins().f32const(pack.scale);
        self.set(&fill, offset_of!(abi::Pack, scale), scale);
        let packing = self.int(pack.packing as i64);
        self.set(&fill, offset_of!(abi::Pack, packing), packing);
        self.set(&fill, offset_of!(abi::Pack, packed), packed);
        self.call_with(entry, frame, &fill);
    }

    /// Computes a linear layer, which has a number if it is adaptable; `reads` are as [`Kernel::Linear`] lists them.
    pub(super) fn call_linear(
        &mut self,
        entry: FuncRef,
        frame: Value,
        (linear, adaptable): (&Linear, Option<usize>),
        reads: &[Value],
        y: Value,
        epilogue: Option<Value>,
    ) {
        let fill = self.fill::<abi::Linear>();
        let zero = self.int(0);
        let mut reads = reads.iter().copied();
        let mut next = |is_there: bool| if is_there { reads.next().unwrap_or(zero) } else { zero };
        let (x, w) = (next(true), next(true));
        let (h, b) = (next(linear.rank.is_some()), next(linear.rank.is_some()));
        let (gain, bias) = (next(linear.gain), next(linear.bias));
        let residual = if linear.adds_residual() { reads.next() } else { None };
        let epilogue_buffers = match epilogue {
            Some(_) => self.table(&std::iter::once(y).chain(reads).collect::<Vec<_>>()),
            None => zero,
        };
        self.set_dim(&fill, offset_of!(abi::Linear, batch), &linear.batch);
        self.set_dim(&fill, offset_of!(abi::Linear, rows), &linear.rows);
        self.set_dim(&fill, offset_of!(abi::Linear, out), &linear.out);
        self.set_dim(&fill, offset_of!(abi::Linear, k), &linear.k);
        self.set_dim(&fill, offset_of!(abi::Linear, rank), linear.rank.as_ref().unwrap_or(&Dim::fixed(0)));
        self.set_dim(&fill, offset_of!(abi::Linear, x_batch_stride), &(linear.rows.clone() * &linear.k));
        let w_stride = if linear.batched_weight { self.panel_floats(linear) } else { zero };
        self.set(&fill, offset_of!(abi::Linear, w_batch_stride), w_stride);
        let adaptable = self.int(adaptable.map_or(abi::NOT_ADAPTABLE, |number| number as u64).cast_signed());
        let pointers = [
            (adaptable, offset_of!(abi::Linear, adaptable)),
            (x, offset_of!(abi::Linear, x)),
            (w, offset_of!(abi::Linear, w)),
            (h, offset_of!(abi::Linear, h)),
            (b, offset_of!(abi::Linear, b)),
            (gain, offset_of!(abi::Linear, gain)),
            (bias, offset_of!(abi::Linear, bias)),
            (residual.unwrap_or(zero), offset_of!(abi::Linear, residual)),
            (y, offset_of!(abi::Linear, y)),
            (epilogue_buffers, offset_of!(abi::Linear, epilogue_buffers)),
            (epilogue.unwrap_or(zero), offset_of!(abi::Linear, epilogue)),
        ];
        for (pointer, offset) in pointers {
            self.set(&fill, offset, pointer);
        }
        self.call_with(entry, frame, &fill);
    }

    /// `Packing::Panels.len(out, k)`, exactly.
    fn panel_floats(&mut self, linear: &Linear) -> Value {
        const LANE: i64 = engraft_runtime::panels::LANE as i64;
        let (out, k) = (self.dim(&linear.out), self.dim(&linear.k));
        let up = self.b.ins().iadd_imm_s(out, LANE - 1);
        let padded = self.b.ins().band_imm_s(up, -LANE);
        self.b.ins().imul(padded, k)
    }

    /// Computes `h = x Aᵀ`.
    pub(super) fn call_dot(&mut self, entry: FuncRef, frame: Value, dot: &Dot, [x, a]: [Value; 2], h: Value) {
        let fill = self.fill::<abi::Dot>();
        self.set_dim(&fill, offset_of!(abi::Dot, rows), &dot.rows);
        self.set_dim(&fill, offset_of!(abi::Dot, k), &dot.k);
        self.set_dim(&fill, offset_of!(abi::Dot, out), &dot.out);
        let pointers =
            [(x, offset_of!(abi::Dot, x)), (a, offset_of!(abi::Dot, a)), (h, offset_of!(abi::Dot, h))];
        for (pointer, offset) in pointers {
            self.set(&fill, offset, pointer);
        }
        self.call_with(entry, frame, &fill);
    }

    /// Computes the norms of the rows of `W + B A`.
    pub(super) fn call_row_norm(
        &mut self,
        entry: FuncRef,
        frame: Value,
        norm: &RowNorm,
        weight: [Value; 3],
        n: Value,
    ) {
        let fill = self.fill::<abi::RowNorm>();
        self.set_adapted_weight(
            &fill,
            offset_of!(abi::RowNorm, weight),
            [&norm.out, &norm.k, &norm.rank],
            weight,
        );
        self.set(&fill, offset_of!(abi::RowNorm, n), n);
        self.call_with(entry, frame, &fill);
    }

    /// Its extents `[out, k, rank]`, and where W, A and B are.
    fn set_adapted_weight(&mut self, fill: &Fill, offset: usize, extents: [&Dim; 3], [w, a, b]: [Value; 3]) {
        let places = [
            offset_of!(abi::AdaptedWeight, out),
            offset_of!(abi::AdaptedWeight, k),
            offset_of!(abi::AdaptedWeight, rank),
        ];
        for (place, extent) in places.into_iter().zip(extents) {
            self.set_dim(fill, offset + place, extent);
        }
        let pointers = [
            (w, offset_of!(abi::AdaptedWeight, w)),
            (a, offset_of!(abi::AdaptedWeight, a)),
            (b, offset_of!(abi::AdaptedWeight, b)),
        ];
        for (pointer, place) in pointers {
            self.set(fill, offset + place, pointer);
        }
    }

    /// Computes the panels of a merged weight; `reads` are as [`Kernel::Merge`] lists them.
    pub(super) fn call_merge(
        &mut self,
        entry: FuncRef,
        frame: Value,
        merge: &Merge,
        reads: &[Value],
        merged: Value,
    ) {
        let fill = self.fill::<abi::Merge>();
        let (weight, extents) = ([reads[0], reads[1], reads[2]], [&merge.out, &merge.k, &merge.rank]);
        self.set_adapted_weight(&fill, offset_of!(abi::Merge, weight), extents, weight);
        let gain = reads.get(3).copied().unwrap_or_else(|| self.int(0));
        self.set(&fill, offset_of!(abi::Merge, gain), gain);
        self.set(&fill, offset_of!(abi::Merge, merged), merged);
        self.call_with(entry, frame, &fill);
    }

    /// Computes attention; `reads` are as [`Kernel::Attention`] lists them.
    pub(super) fn call_attention(
        &mut self,
        entry: FuncRef,
        frame: Value,
        attention: &Attention,
        reads: &[Value],
        y: Value,
    ) {
        let fill = self.fill::<abi::Attention>();
        let extents = [
            (&attention.batch, offset_of!(abi::Attention, batch)),
            (&attention.queries, offset_of!(abi::Attention, queries)),
            (&attention.keys, offset_of!(abi::Attention, keys)),
            (&attention.q.batch_stride, offset_of!(abi::Attention, q_batch_stride)),
            (&attention.q.row_stride, offset_of!(abi::Attention, q_row_stride)),
            (&attention.k.batch_stride, offset_of!(abi::Attention, k_batch_stride)),
            (&attention.k.row_stride, offset_of!(abi::Attention, k_row_stride)),
            (&attention.v.batch_stride, offset_of!(abi::Attention, v_batch_stride)),
            (&attention.v.row_stride, offset_of!(abi::Attention, v_row_stride)),
        ];
        for (dim, offset) in extents {
            self.set_dim(&fill, offset, dim);
        }
        let numbers = [
            (attention.heads, offset_of!(abi::Attention, heads)),
            (attention.kv_heads, offset_of!(abi::Attention, kv_heads)),
            (attention.d, offset_of!(abi::Attention, d)),
            (attention.e, offset_of!(abi::Attention, e)),
            (attention.window.unwrap_or(u64::MAX), offset_of!(abi::Attention, window)),
            (attention.mask.map_or(0, |mask| mask.bytes() as u64), offset_of!(abi::Attention, mask_bytes)),
        ];
        for (number, offset) in numbers {
            let value = self.int(number.cast_signed());
            self.set(&fill, offset, value);
        }
        let scale = self.b.ins().f32const(attention.scale);
        self.set(&fill, offset_of!(abi::Attention, scale), scale);
        let causal = self.b.ins().iconst(I32, i64::from(attention.causal));
        self.set(&fill, offset_of!(abi::Attention, causal), causal);
        let views = [&attention.q, &attention.k, &attention.v];
        let fields =
            [offset_of!(abi::Attention, q), offset_of!(abi::Attention, k), offset_of!(abi::Attention, v)];
        for ((view, &read), offset) in views.into_iter().zip(reads).zip(fields) {
            let elements = self.dim(&view.offset);
            let bytes = self.bytes(elements, size_of::<f32>());
            let first = self.advance(read, bytes);
            self.set(&fill, offset, first);
        }
        let mask = reads.get(3).copied().unwrap_or_else(|| self.int(0));
        self.set(&fill, offset_of!(abi::Attention, mask), mask);
        self.set(&fill, offset_of!(abi::Attention, y), y);
        self.call_with(entry, frame, &fill);
    }

    /// Computes norms of rows; `reads` are as [`Kernel::Row`] lists them.
    pub(super) fn call_layer_norm(
        &mut self,
        entry: FuncRef,
        frame: Value,
        (row, center, epsilon): (&Row, Center, f32),
        reads: &[Value],
        y: Value,
    ) {
        let fill = self.fill::<abi::LayerNorm>();
        let zero = self.int(0);
        let mut reads = reads.iter().copied();
        let mut next = |is_there: bool| if is_there { reads.next().unwrap_or(zero) } else { zero };
        let (x, weight, bias) = (next(true), next(row.weight), next(row.bias));
        self.set_dim(&fill, offset_of!(abi::LayerNorm, rows), &row.outer);
        self.set_dim(&fill, offset_of!(abi::LayerNorm, n), &row.n);
        let fields = [
            (self.int(center as i64), offset_of!(abi::LayerNorm, center)),
            (self.b.ins().f32const(epsilon), offset_of!(abi::LayerNorm, epsilon)),
            (x, offset_of!(abi::LayerNorm, x)),
            (weight, offset_of!(abi::LayerNorm, weight)),
            (bias, offset_of!(abi::LayerNorm, bias)),
            (y, offset_of!(abi::LayerNorm, y)),
        ];
        for (value, offset) in fields {
            self.set(&fill, offset, value);
        }
        self.call_with(entry, frame, &fill);
    }

    /// Computes a function of `count` floats at x into y, which may be x itself.
    pub(super) fn call_unary(&mut self, function: Function, count: Value, places: [Value; 2]) {
        let (one_row, no_stride) = (self.int(1), self.int(0));
        self.call_unary_rows(function, [one_row, count], places, [no_stride; 2]);
    }

    /// The same for rows of so many floats, which are as many floats apart.
    pub(super) fn call_unary_rows(
        &mut self,
        function: Function,
        [rows, count]: [Value; 2],
        [x, y]: [Value; 2],
        [x_stride, y_stride]: [Value; 2],
    ) {
        let Some((entry, frame)) = self.unary else {
            unreachable!("a function that calls the runtime's is linked to them before it is emitted")
        };
        let fill = self.fill::<abi::Unary>();
        let function = self.int(function as i64);
        let fields = [
            (function, offset_of!(abi::Unary, function)),
            (rows, offset_of!(abi::Unary, rows)),
            (count, offset_of!(abi::Unary, count)),
            (x, offset_of!(abi::Unary, x)),
            (x_stride, offset_of!(abi::Unary, x_stride)),
            (y, offset_of!(abi::Unary, y)),
            (y_stride, offset_of!(abi::Unary, y_stride)),
        ];
        for (value, offset) in fields {
            self.set(&fill, offset, value);
        }
        self.call_with(entry, frame, &fill);
    }

    /// Memory on the stack for what the runtime's functions are given and give; it begins where a cache line does.
    pub(super) fn scratch(&mut self, bytes: i64) -> Value {
        const LINE: i64 = abi::ALIGNMENT as i64;
        let slot = self.slot(StackUse::Scratch, (bytes + LINE) as usize);
        let end = self.b.ins().stack_addr(POINTER, slot, LINE as i32);
        self.b.ins().band_imm_s(end, -LINE)
    }

    /// A field of the frame.
    pub(super) fn frame_field(&mut self, frame: Value, offset: usize) -> Value {
        self.b.ins().load(POINTER, memory(), frame, offset as i32)
    }
}

/// Every dim that a call of a runtime kernel needs.
pub(super) fn dims(kernel: &Kernel) -> Vec<&Dim> {
    match kernel {
        Kernel::Pack(Pack { batch, matrix: m, .. }) => {
            vec![batch, &m.out, &m.k, &m.out_stride, &m.k_stride]
        }
        Kernel::Linear(l) => [&l.batch, &l.rows, &l.k, &l.out].into_iter().chain(l.rank.as_ref()).collect(),
        Kernel::Dot(dot) => vec![&dot.rows, &dot.k, &dot.out],
        Kernel::RowNorm(norm) => vec![&norm.out, &norm.k, &norm.rank],
        Kernel::Merge(merge) => vec![&merge.out, &merge.k, &merge.rank],
        Kernel::Attention(attention) => {
            let views = [&attention.q, &attention.k, &attention.v].into_iter();
            let views = views.flat_map(|view| [&view.offset, &view.batch_stride, &view.row_stride]);
            [&attention.batch, &attention.queries, &attention.keys].into_iter().chain(views).collect()
        }
        Kernel::Row(row) if row.op.center().is_some() => vec![&row.outer, &row.n],
        Kernel::Loop(_) | Kernel::Row(_) | Kernel::Gather(_) | Kernel::Cast(_) => Vec::new(),
    }
}
