//! Where buffers live. What a later stage reads is staged; what the call returns is the caller's; the rest shares the
//! slots of its stage's arena, each slot as large as the largest of its buffers, whose lifetimes do not meet.
//! Knows steps only by what they read and write.

use super::items::items;
use super::kernel::Kernel;
use super::{
    BoundSymbol, Buffer, BufferId, Carried, ConstantData, Plan, STAGES, SlotId, Step, Storage, stage_index,
};
use engraft_ir::{Dim, Graph, NodeId, Op, Stage, Stages, TensorType};
use std::collections::{BTreeMap, BTreeSet};

/// A plan whose buffers have no places yet.
pub(super) struct Draft {
    plan: Plan,
    sources: Vec<BufferId>,
}

/// What a buffer's storage is until it has a place.
const UNPLACED: Storage = Storage::Arena(SlotId(usize::MAX));

impl Draft {
    pub(super) fn new(graph: &Graph) -> Self {
        let plan = Plan {
            name: graph.name().to_owned(),
            symbols: Vec::new(),
            buffers: Vec::new(),
            steps: Vec::new(),
            inputs: Vec::new(),
            params: Vec::new(),
            staged: Vec::new(),
            outputs: Vec::new(),
            carried: Vec::new(),
            items: None,
            constants: Vec::new(),
            arenas: Default::default(),
            profiled: false,
        };
        Self { plan, sources: Vec::new() }
    }

    fn placed_buffer(&mut self, name: &str, ty: TensorType, stage: Stage, storage: Storage) -> BufferId {
        self.plan.buffers.push(Buffer { name: name.to_owned(), ty, stage, storage });
        BufferId(self.plan.buffers.len() - 1)
    }

    /// A buffer that a step at `stage` will write.
    pub(super) fn buffer(&mut self, name: &str, ty: TensorType, stage: Stage) -> BufferId {
        self.placed_buffer(name, ty, stage, UNPLACED)
    }

    /// The buffer of a value given with each call.
    pub(super) fn input(&mut self, name: &str, ty: TensorType) -> BufferId {
        let buffer = self.placed_buffer(name, ty, Stage::Call, Storage::Input(self.plan.inputs.len()));
        self.plan.inputs.push(buffer);
        self.sources.push(buffer);
        buffer
    }

    /// The buffer of a parameter.
    pub(super) fn param(&mut self, name: &str, ty: TensorType, binding: Stage) -> BufferId {
        let buffer = self.placed_buffer(name, ty, binding, Storage::Param(self.plan.params.len()));
        self.plan.params.push(buffer);
        self.sources.push(buffer);
        buffer
    }

    pub(super) fn constant(&mut self, name: &str, values: ConstantData) -> BufferId {
        let ty = TensorType::new(values.dtype(), [Dim::from(values.len())].into_iter().collect());
        let storage = Storage::Constant(self.plan.constants.len());
        self.plan.constants.push(values);
        self.placed_buffer(name, ty, Stage::Base, storage)
    }

    pub(super) fn step(
        &mut self,
        stage: Stage,
        name: String,
        kernel: Kernel,
        reads: Vec<BufferId>,
        write: BufferId,
    ) {
        self.plan.steps.push(Step { stage, name, kernel, reads, write });
    }

    /// Makes a buffer the caller's, if it is a value of the call that is not the caller's yet.
    pub(super) fn claim_output(&mut self, name: &str, buffer: BufferId, ty: &TensorType) -> bool {
        let Buffer { stage, storage, .. } = self.plan.buffers[buffer.0];
        if storage != UNPLACED || stage != Stage::Call {
            return false;
        }
        self.plan.buffers[buffer.0].storage = Storage::Output(self.plan.outputs.len());
        // A reshaped value lies in its operand's buffer; the caller sees its own shape.
        self.plan.buffers[buffer.0].ty = ty.clone();
        self.plan.outputs.push((name.to_owned(), buffer));
        true
    }

    /// The plan, every buffer in its place.
    pub(super) fn finish(mut self, graph: &Graph, stages: &Stages) -> Plan {
        self.plan.steps.sort_by_key(|step| step.stage);
        self.pair_carried(graph);
        self.bind_symbols(stages);
        let items = items(graph, stages);
        self.plan.items = items.and_then(|items| self.plan.symbols.iter().position(|b| b.symbol == items));
        self.stage_values();
        for stage in STAGES {
            self.plan.arenas[stage_index(stage)] = self.assign_slots(stage);
        }
        self.plan
    }

    /// Pairs the inputs that are carried with the outputs that they become.
    fn pair_carried(&mut self, graph: &Graph) {
        for (input, &buffer) in self.plan.inputs.iter().enumerate() {
            let name = &self.plan.buffers[buffer.0].name;
            let Some(carries) = graph.find(name).and_then(|id| carries(graph, id)) else { continue };
            if let Some(output) = self.plan.outputs.iter().position(|(output, _)| output == carries) {
                self.plan.carried.push(Carried { input, output });
            }
        }
    }

    /// Each symbol is bound by the first source of its stage that has it as a whole axis. What is carried binds the rows
    /// that it has, and nothing else: before the first call it has no other extents.
    fn bind_symbols(&mut self, stages: &Stages) {
        let inputs: BTreeSet<_> =
            self.plan.carried.iter().map(|carried| self.plan.inputs[carried.input]).collect();
        let (carried, others): (Vec<BufferId>, Vec<BufferId>) =
            self.sources.iter().partition(|&source| inputs.contains(source));
        for buffer in carried.into_iter().chain(others) {
            let Buffer { ty, stage, .. } = &self.plan.buffers[buffer.0];
            let axes = if inputs.contains(&buffer) { 1 } else { ty.rank() };
            for (axis, dim) in ty.shape.iter().enumerate().take(axes) {
                let Some(symbol) = dim.as_symbol().filter(|symbol| stages.symbol(symbol) == Some(*stage))
                else {
                    continue;
                };
                if self.plan.symbols.iter().all(|known| known.symbol != *symbol) {
                    self.plan.symbols.push(BoundSymbol {
                        symbol: symbol.clone(),
                        stage: *stage,
                        buffer,
                        axis,
                    });
                }
            }
        }
    }

    fn stage_values(&mut self) {
        for step in &self.plan.steps {
            for &BufferId(read) in &step.reads {
                let Buffer { stage, storage, .. } = self.plan.buffers[read];
                if storage == UNPLACED && step.stage > stage {
                    self.plan.buffers[read].storage = Storage::Staged(self.plan.staged.len());
                    self.plan.staged.push(BufferId(read));
                }
            }
        }
    }

    /// Gives the arena buffers of a stage their slots, and returns the slots' bytes.
    fn assign_slots(&mut self, stage: Stage) -> Vec<Dim> {
        let Plan { steps, buffers, .. } = &mut self.plan;
        let uses = |step: &Step| step.reads.iter().chain([&step.write]).copied().collect::<BTreeSet<_>>();
        let mut last_use = BTreeMap::new();
        for (now, step) in steps.iter().enumerate().filter(|(_, step)| step.stage == stage) {
            last_use.extend(uses(step).into_iter().map(|buffer| (buffer, now)));
        }
        let mut slots: Vec<Dim> = Vec::new();
        let mut free: Vec<SlotId> = Vec::new();
        for (now, step) in steps.iter().enumerate().filter(|(_, step)| step.stage == stage) {
            let write = &mut buffers[step.write.0];
            if write.storage == UNPLACED {
                write.storage = Storage::Arena(take_slot(&mut slots, &mut free, &write.bytes()));
            }
            // After its last use, also if that is the step that writes it, a slot is free for the next step.
            for buffer in uses(step).into_iter().filter(|buffer| last_use.get(buffer) == Some(&now)) {
                if let Storage::Arena(slot) = buffers[buffer.0].storage {
                    free.push(slot);
                }
            }
        }
        slots
    }
}

/// The output that an input carries.
pub(super) fn carries(graph: &Graph, id: NodeId) -> Option<&String> {
    match graph.node(id).op() {
        Op::Input(input) => input.carries.as_ref(),
        _ => None,
    }
}

/// A free slot that is large enough, or can grow to be (whatever the symbols' values), or else a new one. The
/// tightest fit is not known where sizes are symbolic; the most recently freed is warm.
fn take_slot(slots: &mut Vec<Dim>, free: &mut Vec<SlotId>, bytes: &Dim) -> SlotId {
    let fits = |slot: &SlotId| slots[slot.0].checked_sub(bytes).is_some();
    let grows = |slot: &SlotId| bytes.checked_sub(&slots[slot.0]).is_some();
    if let Some(index) = free.iter().rposition(fits) {
        return free.remove(index);
    }
    if let Some(index) = free.iter().rposition(grows) {
        let slot = free.remove(index);
        slots[slot.0] = bytes.clone();
        return slot;
    }
    slots.push(bytes.clone());
    SlotId(slots.len() - 1)
}
