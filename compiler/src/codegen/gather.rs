//! Code for `Gather`: every id is checked, then rows are copied, from a table or from its panels. Nothing is written when an
//! id is out of range.

use super::emit::{Emit, Width, memory};
use crate::plan::kernel::Gather;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use engraft_ir::{DType, Dim};
use engraft_runtime::abi::{Fault, Frame};
use engraft_runtime::panels::{LANE, PANEL};
use std::mem::offset_of;

impl Gather {
    /// Every dim that code for the kernel needs.
    pub(super) fn dims(&self) -> [&Dim; 3] {
        [&self.count, &self.rows, &self.width]
    }
}

impl Emit<'_, '_> {
    /// Runs the kernel, and returns from the function with status 1 and the fault filled if an id is out of range.
    pub(super) fn run_gather(
        &mut self,
        gather: &Gather,
        [table, ids]: [Value; 2],
        y: Value,
        [frame, step]: [Value; 2],
    ) {
        let [count, rows, width] = gather.dims().map(|dim| self.dim(dim));
        let id_bytes = gather.ids.bytes() as i64;
        self.repeat(count, &[ids], |e, at| {
            let id = e.load_id(gather.ids, at[0]);
            // As an unsigned number a negative id is beyond any table.
            let is_bad = e.b.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, id, rows);
            e.fault_if(is_bad, frame, [step, id, rows]);
            vec![e.advance_by(at[0], id_bytes)]
        });
        if gather.from_panels {
            self.copy_from_panels(gather.ids, [count, rows, width], [table, ids, y]);
            return;
        }
        let row_bytes = self.bytes(width, gather.dtype.bytes());
        // Bytes are bytes: rows are moved as f32, eight-byte elements as two.
        let floats = self.b.ins().ushr_imm_s(row_bytes, 2);
        let (vectors, rest) = self.split_lanes(floats);
        self.repeat(count, &[ids, y], |e, at| {
            let id = e.load_id(gather.ids, at[0]);
            let offset = e.b.ins().imul(id, row_bytes);
            let row = e.advance(table, offset);
            let end = e.copy(vectors, Width::Vector, [row, at[1]]);
            let end = e.copy(rest, Width::Scalar, [end[0], end[1]]);
            vec![e.advance_by(at[0], id_bytes), end[1]]
        });
    }

    /// Copies rows of a matrix that lies as [`panels`](engraft_runtime::panels): element p of row j of a panel is at
    /// `p * w + j` of it, w being the panel's width.
    fn copy_from_panels(
        &mut self,
        id_type: DType,
        [count, rows, width]: [Value; 3],
        [panels, ids, y]: [Value; 3],
    ) {
        let (panel, lane) = (PANEL as i64, LANE as i64);
        let padded = self.b.ins().iadd_imm_s(rows, lane - 1);
        let padded = self.b.ins().band_imm_s(padded, -lane);
        self.repeat(count, &[ids, y], |e, at| {
            let id = e.load_id(id_type, at[0]);
            let full = e.int(panel);
            let index = e.b.ins().udiv(id, full);
            let first = e.b.ins().imul(index, full);
            let rest = e.b.ins().isub(padded, first);
            let is_last = e.b.ins().icmp(IntCC::UnsignedLessThan, rest, full);
            let panel_width = e.b.ins().select(is_last, rest, full);
            let step = e.bytes(panel_width, 4);
            let begin = e.b.ins().imul(first, width);
            let within = e.b.ins().isub(id, first);
            let begin = e.b.ins().iadd(begin, within);
            let begin = e.bytes(begin, 4);
            let row = e.advance(panels, begin);
            let end = e.repeat(width, &[row, at[1]], |e, at| {
                let value = e.b.ins().load(I32, memory(), at[0], 0);
                e.store(value, at[1]);
                vec![e.advance(at[0], step), e.advance_by(at[1], 4)]
            });
            vec![e.advance_by(at[0], id_type.bytes() as i64), end[1]]
        });
    }

    fn load_id(&mut self, dtype: DType, pointer: Value) -> Value {
        if dtype == DType::I32 {
            let id = self.b.ins().load(I32, memory(), pointer, 0);
            self.b.ins().sextend(I64, id)
        } else {
            self.b.ins().load(I64, memory(), pointer, 0)
        }
    }

    fn fault_if(&mut self, condition: Value, frame: Value, [step, found, limit]: [Value; 3]) {
        self.leave_if(condition, |e| {
            let fault = e.frame_field(frame, offset_of!(Frame, fault));
            let fields = [
                (step, offset_of!(Fault, step)),
                (found, offset_of!(Fault, found)),
                (limit, offset_of!(Fault, limit)),
            ];
            for (value, offset) in fields {
                e.b.ins().store(memory(), value, fault, offset as i32);
            }
            let status = e.b.ins().iconst(I32, 1);
            e.b.ins().return_(&[status]);
        });
    }

    fn copy(&mut self, count: Value, width: Width, at: [Value; 2]) -> Vec<Value> {
        self.repeat(count, &at, |e, at| {
            // As integers: a signalling NaN must come out as it went in.
            let value = e.b.ins().load(width.int(), memory(), at[0], 0);
            e.store(value, at[1]);
            vec![e.advance_by(at[0], width.bytes()), e.advance_by(at[1], width.bytes())]
        })
    }
}
