//! Code for a stage: where each buffer is, and the calls of its kernels in order.

use super::calls;
use super::emit::{Emit, memory};
use super::{Codegen, CodegenError, STAGE_FUNCTIONS};
use crate::plan::kernel::Kernel;
use crate::plan::{BufferId, Plan, Step, Storage, stage_index};
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{FuncRef, InstBuilder, Value};
use cranelift_module::{FuncId, Linkage, Module};
use engraft_ir::{Dim, Stage};
use engraft_runtime::abi::Frame;
use std::mem::offset_of;

/// Where the buffers of one stage are, once its function has begun.
struct Places<'a> {
    plan: &'a Plan,
    /// The frame's table of buffers.
    table: Value,
    arena: Value,
    slots: Vec<Value>,
}

impl Plan {
    /// A buffer's place in the frame's table: inputs, params, staged values, outputs.
    fn table_index(&self, storage: Storage) -> Option<usize> {
        let (inputs, params, staged) = (self.inputs.len(), self.params.len(), self.staged.len());
        match storage {
            Storage::Input(index) => Some(index),
            Storage::Param(index) => Some(inputs + index),
            Storage::Staged(index) => Some(inputs + params + index),
            Storage::Output(index) => Some(inputs + params + staged + index),
            Storage::Constant(_) | Storage::Arena(_) => None,
        }
    }
}

impl<'a, M: Module> Codegen<'a, M> {
    pub(super) fn stage(&mut self, stage: Stage) -> Result<FuncId, CodegenError> {
        let plan = self.plan;
        // Their functions first: a function cannot be defined within another.
        let mut callees = Vec::new();
        for (index, step) in plan.steps_at(stage) {
            callees.push((index, step, self.callee(step)?, self.step_epilogue(step)?));
        }
        let mark = if plan.profiled { Some(self.entry(calls::MARK)?) } else { None };
        let name = STAGE_FUNCTIONS[stage_index(stage)];
        self.define(name, Linkage::Export, (&[I64], Some(I32)), |this, b, arguments| {
            let frame = arguments[0];
            let symbols = this.symbols.clone();
            let mut e = Emit::in_frame(b, frame, &symbols);
            e.load_symbols(plan.steps_at(stage).flat_map(|(_, step)| calls::dims(&step.kernel)));
            let places = Places::new(plan, &mut e, stage, frame);
            for (index, step, callee, epilogue) in callees {
                this.call(&mut e, &places, frame, (index, step), callee, epilogue);
                if let Some(mark) = mark {
                    let mark = this.module.declare_func_in_func(mark, e.b.func);
                    let number = e.int(index as i64);
                    e.b.ins().call(mark, &[frame, number]);
                }
            }
            e.return_status(0);
            Ok(())
        })
    }

    fn callee(&mut self, step: &'a Step) -> Result<FuncId, CodegenError> {
        match calls::entry_point(&step.kernel) {
            Some(name) => self.entry(name),
            None => self.kernel(&step.kernel),
        }
    }

    fn step_epilogue(&mut self, step: &'a Step) -> Result<Option<FuncId>, CodegenError> {
        match &step.kernel {
            Kernel::Linear(linear) if !linear.adds_residual() => {
                linear.epilogue.as_ref().map(|body| self.epilogue(body)).transpose()
            }
            _ => Ok(None),
        }
    }

    fn address(&mut self, e: &mut Emit<'_, '_>, places: &Places<'_>, buffer: BufferId) -> Value {
        let storage = places.plan.buffer(buffer).storage;
        match storage {
            Storage::Arena(slot) => e.advance(places.arena, places.slots[slot.0]),
            Storage::Constant(index) => {
                let data = self.module.declare_data_in_func(self.constants[index], e.b.func);
                e.b.ins().symbol_value(I64, data)
            }
            _ => {
                let index = places.plan.table_index(storage).unwrap_or_default();
                e.table_entry(places.table, index)
            }
        }
    }

    /// One step's call.
    fn call(
        &mut self,
        e: &mut Emit<'_, '_>,
        places: &Places<'_>,
        frame: Value,
        (index, step): (usize, &Step),
        callee: FuncId,
        epilogue: Option<FuncId>,
    ) {
        let callee = self.module.declare_func_in_func(callee, e.b.func);
        let reads: Vec<_> = step.reads.iter().map(|&buffer| self.address(e, places, buffer)).collect();
        let write = self.address(e, places, step.write);
        match &step.kernel {
            Kernel::Pack(pack) => e.call_pack(callee, frame, pack, reads[0], write),
            Kernel::Linear(linear) => {
                let epilogue = epilogue.map(|id| {
                    let function = self.module.declare_func_in_func(id, e.b.func);
                    e.b.ins().func_addr(I64, function)
                });
                let number = places.plan.adaptable().position(|(step, ..)| step == index);
                e.call_linear(callee, frame, (linear, number), &reads, write, epilogue);
            }
            Kernel::Dot(dot) => e.call_dot(callee, frame, dot, [reads[0], reads[1]], write),
            Kernel::RowNorm(norm) => {
                e.call_row_norm(callee, frame, norm, [reads[0], reads[1], reads[2]], write);
            }
            Kernel::Merge(merge) => e.call_merge(callee, frame, merge, &reads, write),
            Kernel::Attention(attention) => e.call_attention(callee, frame, attention, &reads, write),
            Kernel::Row(row) => match row.op.center() {
                Some((center, epsilon)) => {
                    e.call_layer_norm(callee, frame, (row, center, epsilon), &reads, write);
                }
                None => e.call_emitted(callee, [frame, write], &reads),
            },
            Kernel::Loop(_) | Kernel::Cast(_) => e.call_emitted(callee, [frame, write], &reads),
            Kernel::Gather(_) => {
                let number = e.int(index as i64);
                let call = e.b.ins().call(callee, &[frame, write, reads[0], reads[1], number]);
                let status = e.b.inst_results(call)[0];
                e.leave_if(status, |e| {
                    e.b.ins().return_(&[status]);
                });
            }
        }
    }
}

impl<'a> Places<'a> {
    fn new(plan: &'a Plan, e: &mut Emit<'_, '_>, stage: Stage, frame: Value) -> Self {
        let slots: &[Dim] = &plan.arenas[stage_index(stage)];
        e.load_symbols(slots);
        let table = e.frame_field(frame, offset_of!(Frame, buffers));
        let arena = e.frame_field(frame, offset_of!(Frame, arena));
        let slots = e.slot_offsets(slots);
        Self { plan, table, arena, slots }
    }
}

impl Emit<'_, '_> {
    fn call_emitted(&mut self, callee: FuncRef, [frame, write]: [Value; 2], reads: &[Value]) {
        let arguments = [&[frame, write], reads].concat();
        self.b.ins().call(callee, &arguments);
    }

    /// The address at an index of a table.
    pub(super) fn table_entry(&mut self, table: Value, index: usize) -> Value {
        self.b.ins().load(I64, memory(), table, 8 * index as i32)
    }

    pub(super) fn return_nothing(&mut self) {
        self.b.ins().return_(&[]);
    }

    pub(super) fn return_status(&mut self, status: i64) {
        let status = self.b.ins().iconst(I32, status);
        self.b.ins().return_(&[status]);
    }
}
