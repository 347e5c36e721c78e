//! Code for `Cast`: integers become floats one by one, rounded to the nearest, ties to even. There are as many as there
//! are positions, so vectors would gain nothing.

use super::emit::{Emit, Width, memory};
use crate::plan::kernel::Cast;
use cranelift_codegen::ir::types::{F32, I32, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use engraft_ir::DType;

impl Emit<'_, '_> {
    /// Runs the kernel.
    pub(super) fn run_cast(&mut self, cast: &Cast, read: Value, write: Value) {
        let ty = if cast.from == DType::I32 { I32 } else { I64 };
        let count = self.dim(&cast.count);
        self.repeat(count, &[read, write], |e, at| {
            let integer = e.b.ins().load(ty, memory(), at[0], 0);
            let float = e.b.ins().fcvt_from_sint(F32, integer);
            e.store(float, at[1]);
            vec![e.advance_by(at[0], i64::from(ty.bytes())), e.advance_by(at[1], Width::Scalar.bytes())]
        });
    }
}
