//! An independent proof that a plan uses memory soundly, after `checker.rs` of regalloc2. It runs a plan on intervals of
//! bytes instead of numbers: every arena, staged value, input and output is memory in which each byte knows the buffer
//! it was last written as. What a step touches follows from its kernel's description. Proved, for given values of the
//! symbols, is that
//! 1. every buffer fits its place, and every read and write lies within its buffer,
//! 2. every byte read was written before as a byte of that very buffer, in memory that the stage can reach,
//! 3. no step writes where it reads, but for a product's epilogue, which works on the product's own output in place, and
//!    for a copy of what is carried from call to call onto itself,
//! 4. what a kernel reads as packed was packed in that form, and from just those matrices,
//! 5. every staged value is whole when its stage ends, and every output when the call ends,
//! 6. every extent is known at the stage that needs it,
//! 7. no step writes over what is carried: an input and the output that it becomes are one region, whose beginning is the
//!    input, and stays what it is.
//!
//! It knows nothing of how the planner decided, and shares no code with it.

mod error;
mod footprint;
mod memory;

pub use error::{BufferRef, CheckError, Packed, StepRef, Unsound};

use super::kernel::{Access, Expr, Kernel, Linear, Loop, Merge, Packing, RowNorm};
use super::{BufferId, Plan, STAGES, Step, Storage};
use engraft_ir::{Bindings, Dim, DimError, Stage};
use footprint::{Extents, Footprint, packed_bytes};
use memory::{Foreign, Memory};
use std::collections::BTreeMap;

/// Slots begin at multiples of it, as `abi.rs` of the runtime documents.
const LINE: u64 = 64;

/// The values that [`check_all`] tries for each symbol: none, one, few, and what is no multiple of anything.
const TRIED: [u64; 4] = [0, 1, 2, 7];

/// The most symbols of which [`check_all`] tries every combination.
const COMBINED: usize = 3;

/// Checks a plan with these values of its symbols.
///
/// # Errors
/// All that is wrong.
pub fn check(plan: &Plan, symbols: &Bindings) -> Result<(), Vec<CheckError>> {
    let (known, memory) = (Bindings::new(), BTreeMap::new());
    let mut checker =
        Checker { plan, known, slots: Vec::new(), memory, packed: BTreeMap::new(), errors: Vec::new() };
    for stage in STAGES {
        checker.stage(stage, symbols);
    }
    if checker.errors.is_empty() { Ok(()) } else { Err(checker.errors) }
}

/// Checks a plan with each symbol at 0, 1, 2 and 7: in every combination if there are few symbols, else with all but one
/// alike.
///
/// # Errors
/// What is wrong with the first combination with which something is.
pub fn check_all(plan: &Plan) -> Result<(), Unsound> {
    let symbols: Vec<_> = plan.symbols.iter().map(|bound| bound.symbol.clone()).collect();
    for values in combinations(symbols.len()) {
        let symbols: Bindings = symbols.iter().cloned().zip(values).collect();
        check(plan, &symbols).map_err(|errors| Unsound { symbols, errors })?;
    }
    Ok(())
}

fn combinations(symbols: usize) -> Vec<Vec<u64>> {
    if symbols <= COMBINED {
        let longer = |shorter: Vec<Vec<u64>>, _| {
            shorter
                .iter()
                .flat_map(|values| TRIED.map(|value| [values.as_slice(), &[value]].concat()))
                .collect()
        };
        return (0..symbols).fold(vec![Vec::new()], longer);
    }
    let mut all = Vec::new();
    for (alike, other) in TRIED.into_iter().flat_map(|alike| TRIED.map(|other| (alike, other))) {
        for odd in 0..if alike == other { 1 } else { symbols } {
            let mut values = vec![alike; symbols];
            values[odd] = other;
            all.push(values);
        }
    }
    all
}

/// A block of memory that a stage can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Region {
    /// The arena of the running stage.
    Arena,
    Input(usize),
    Param(usize),
    Staged(usize),
    Output(usize),
    Constant(usize),
}

/// Where a buffer is.
#[derive(Clone, Copy)]
struct Place {
    region: Region,
    start: u64,
    bytes: u64,
}

struct Checker<'p> {
    plan: &'p Plan,
    /// The symbols that are known at the running stage.
    known: Bindings,
    /// Where the slots of the running stage begin, and their bytes.
    slots: Vec<(u64, u64)>,
    memory: BTreeMap<Region, Memory>,
    /// What was packed into each buffer.
    packed: BTreeMap<BufferId, Packed>,
    errors: Vec<CheckError>,
}

impl Checker<'_> {
    fn stage(&mut self, stage: Stage, symbols: &Bindings) {
        let plan = self.plan;
        for bound in plan.symbols.iter().filter(|bound| bound.stage <= stage) {
            if let Some(&value) = symbols.get(&bound.symbol) {
                self.known.insert(bound.symbol.clone(), value);
            }
        }
        self.memory.remove(&Region::Arena);
        self.lay_out(stage);
        self.give(stage);
        for (index, step) in plan.steps.iter().enumerate().filter(|(_, step)| step.stage == stage) {
            self.step(index, step);
        }
        let staged = plan.staged.iter().enumerate().map(|(i, &id)| (Region::Staged(i), id));
        let staged = staged.filter(|(_, id)| plan.buffer(*id).stage == stage);
        let outputs = plan.outputs.iter().enumerate().map(|(i, &(_, id))| (Region::Output(i), id));
        let outputs = outputs.filter(|_| stage == Stage::Call);
        for (region, id) in staged.chain(outputs) {
            // A buffer for a packed matrix of a symbolic extent has room to spare.
            let packed = self.packed.get(&id).map(|p| packed_bytes(p.packing, p.batch, p.out, p.k));
            let Some(bytes) = packed.or_else(|| self.bytes(id, stage)) else { continue };
            let foreign = self.memory.entry(region).or_default().foreign(0..bytes, id);
            if let Some(Foreign { at, .. }) = foreign {
                self.errors.push(CheckError::Incomplete { buffer: self.buffer(id), stage, at });
            }
        }
    }

    /// Places the slots of a stage one after the other, as compiled code does, and checks that its buffers fit them.
    fn lay_out(&mut self, stage: Stage) {
        self.slots.clear();
        let slots = STAGES.iter().zip(&self.plan.arenas).filter(|(of, _)| **of == stage);
        let mut start = 0_u64;
        for (slot, dim) in slots.flat_map(|(_, slots)| slots).enumerate() {
            let bytes = Extents(&self.known).of(dim).unwrap_or_else(|source| {
                self.errors.push(CheckError::SlotExtent { slot, stage, source });
                0
            });
            self.slots.push((start, bytes));
            start = start.saturating_add(bytes.div_ceil(LINE).saturating_mul(LINE));
        }
        for (index, buffer) in self.plan.buffers.iter().enumerate() {
            let place = match buffer.storage {
                Storage::Arena(slot) if buffer.stage == stage => {
                    self.slots.get(slot.0).map(|&(_, bytes)| bytes)
                }
                Storage::Constant(number) if stage == Stage::Base => {
                    let constant = self.plan.constants.get(number);
                    constant.map(|elements| (elements.len() * elements.dtype().bytes()) as u64)
                }
                _ => None,
            };
            let Some(place) = place else { continue };
            let Some(bytes) = self.bytes(BufferId(index), stage) else { continue };
            if bytes > place {
                let buffer = self.buffer(BufferId(index));
                self.errors.push(CheckError::TooLarge { buffer, bytes, place });
            }
        }
    }

    /// Fills what is given at a stage.
    fn give(&mut self, stage: Stage) {
        let plan = self.plan;
        let inputs = plan.inputs.iter().enumerate().filter(|_| stage == Stage::Call);
        let params = plan.params.iter().enumerate().filter(|(_, id)| plan.buffer(**id).stage == stage);
        let given = inputs.map(|(i, &id)| (self.input_region(i), id));
        let given: Vec<_> = given.chain(params.map(|(i, &id)| (Region::Param(i), id))).collect();
        for (region, id) in given {
            if let Some(bytes) = self.bytes(id, stage) {
                self.memory.insert(region, Memory::given(self.owner(id), bytes));
            }
        }
        for (index, buffer) in plan.buffers.iter().enumerate().filter(|_| stage == Stage::Base) {
            let Storage::Constant(number) = buffer.storage else { continue };
            if let Some(bytes) = self.bytes(BufferId(index), stage) {
                self.memory.insert(Region::Constant(number), Memory::given(BufferId(index), bytes));
            }
        }
    }

    fn step(&mut self, index: usize, step: &Step) {
        let at = || StepRef::of(self.plan, index);
        if let Some((access, found, expected)) = uneven_access(&step.kernel) {
            self.errors.push(CheckError::Axes { step: at(), access, expected, found });
            return;
        }
        let footprints = match Extents(&self.known).footprints(&step.kernel) {
            Ok(footprints) => footprints,
            Err(source) => {
                self.errors.push(CheckError::StepExtent { step: at(), source });
                return;
            }
        };
        if footprints.reads.len() != step.reads.len() {
            let (expected, found) = (footprints.reads.len(), step.reads.len());
            self.errors.push(CheckError::Operands { step: at(), expected, found });
            return;
        }
        if let Err(source) = self.packing(index, step) {
            self.errors.push(CheckError::StepExtent { step: StepRef::of(self.plan, index), source });
        }
        let mut reads = Vec::new();
        for (&id, footprint) in step.reads.iter().zip(&footprints.reads) {
            reads.extend(self.read(index, step.stage, id, footprint).map(|touched| (id, touched)));
        }
        let Some((region, written)) = self.touch(index, step.stage, step.write, &footprints.write) else {
            return;
        };
        let is_in_place = self.copies_carried(step);
        for (id, (read_region, read)) in &reads {
            if *read_region == region && read.meets(&written) && !is_in_place {
                let (read, write) = (self.buffer(*id), self.buffer(step.write));
                self.errors.push(CheckError::Overlap { step: StepRef::of(self.plan, index), read, write });
            }
        }
        let target = self.plan.buffer(step.write);
        let is_given = matches!(target.storage, Storage::Input(_) | Storage::Param(_) | Storage::Constant(_));
        if is_given || target.stage != step.stage {
            let (step, buffer) = (StepRef::of(self.plan, index), self.buffer(step.write));
            self.errors.push(CheckError::NotItsOwn { step, buffer });
            return;
        }
        if !is_in_place {
            self.keeps_carried(index, step, &written);
        }
        let memory = self.memory.entry(region).or_default();
        written.runs().for_each(|run| memory.write(run, step.write));
    }

    /// Checks a read; returns what it touches.
    fn read(
        &mut self,
        index: usize,
        stage: Stage,
        id: BufferId,
        footprint: &Footprint,
    ) -> Option<(Region, Footprint)> {
        let (region, touched) = self.touch(index, stage, id, footprint)?;
        let owner = self.owner(id);
        let memory = self.memory.entry(region).or_default();
        // Mostly all of it is written; only else do the gaps between the runs matter.
        let foreign = memory
            .foreign(touched.span(), owner)
            .and_then(|_| touched.runs().find_map(|run| memory.foreign(run, owner)));
        if let Some(Foreign { at, owner }) = foreign {
            let start = touched.span().start - footprint.span().start;
            let (step, buffer, at) = (StepRef::of(self.plan, index), self.buffer(id), at - start);
            self.errors.push(match owner {
                None => CheckError::Unwritten { step, buffer, at },
                Some(by) => CheckError::Clobbered { step, buffer, by: self.buffer(by), at },
            });
        }
        Some((region, touched))
    }

    /// What a footprint is in memory, if it lies within its buffer.
    fn touch(
        &mut self,
        index: usize,
        stage: Stage,
        id: BufferId,
        footprint: &Footprint,
    ) -> Option<(Region, Footprint)> {
        let Some(Place { region, start, bytes }) = self.place(id, stage) else {
            let (step, buffer) = (StepRef::of(self.plan, index), self.buffer(id));
            self.errors.push(CheckError::Absent { step, buffer, stage });
            return None;
        };
        let end = footprint.span().end;
        if !footprint.is_empty() && end > bytes {
            let (step, buffer) = (StepRef::of(self.plan, index), self.buffer(id));
            self.errors.push(CheckError::Beyond { step, buffer, end, bytes });
            return None;
        }
        Some((region, footprint.moved(start)))
    }

    /// Where a buffer is for a step of this stage, as compiled code finds it: a slot is one of the stage's own arena.
    fn place(&mut self, id: BufferId, stage: Stage) -> Option<Place> {
        let plan = self.plan;
        let buffer = plan.buffer(id);
        let bytes = self.bytes(id, stage)?;
        let is_listed = |list: &[BufferId], number: usize| list.get(number) == Some(&id);
        let place = |region| Some(Place { region, start: 0, bytes });
        match buffer.storage {
            Storage::Arena(slot) if buffer.stage == stage => {
                let &(start, _) = self.slots.get(slot.0)?;
                Some(Place { region: Region::Arena, start, bytes })
            }
            Storage::Input(i) if stage == Stage::Call && is_listed(&plan.inputs, i) => {
                place(self.input_region(i))
            }
            Storage::Param(i) if buffer.stage <= stage && is_listed(&plan.params, i) => {
                place(Region::Param(i))
            }
            Storage::Constant(i) if i < plan.constants.len() => place(Region::Constant(i)),
            // The runtime holds what loading computes; a call has no memory of its own that outlives it.
            Storage::Staged(i)
                if buffer.stage <= stage && buffer.stage < Stage::Call && is_listed(&plan.staged, i) =>
            {
                place(Region::Staged(i))
            }
            Storage::Output(i)
                if stage == Stage::Call && plan.outputs.get(i).is_some_and(|(_, output)| *output == id) =>
            {
                place(Region::Output(i))
            }
            _ => None,
        }
    }

    /// Where an input is: at the beginning of the output that it becomes, if it is carried.
    fn input_region(&self, input: usize) -> Region {
        let carried = self.plan.carried.iter().find(|carried| carried.input == input);
        carried.map_or(Region::Input(input), |carried| Region::Output(carried.output))
    }

    /// As which buffer a buffer's bytes count as written: an input that is carried as the output it becomes.
    fn owner(&self, id: BufferId) -> BufferId {
        let Storage::Input(input) = self.plan.buffer(id).storage else { return id };
        let carried = self.plan.carried.iter().find(|carried| carried.input == input);
        carried.and_then(|carried| self.plan.outputs.get(carried.output)).map_or(id, |(_, output)| *output)
    }

    /// Whether a step copies an input that is carried to where it is, element by element: the code then does nothing.
    fn copies_carried(&self, step: &Step) -> bool {
        let Kernel::Loop(Loop { reads, write, body, .. }) = &step.kernel else { return false };
        let &[read] = step.reads.as_slice() else { return false };
        let is_same = reads.as_slice() == std::slice::from_ref(write) && body.as_slice() == [Expr::Load(0)];
        is_same && read != step.write && self.owner(read) == step.write
    }

    /// Checks that a step leaves alone what the output that it writes began as.
    fn keeps_carried(&mut self, index: usize, step: &Step, written: &Footprint) {
        let plan = self.plan;
        let Storage::Output(output) = plan.buffer(step.write).storage else { return };
        let Some(carried) = plan.carried.iter().find(|carried| carried.output == output) else { return };
        let Some(&input) = plan.inputs.get(carried.input) else { return };
        let end = self.bytes(input, Stage::Call).unwrap_or(u64::MAX);
        if !written.is_empty() && written.span().start < end {
            let (step, buffer) = (StepRef::of(plan, index), self.buffer(input));
            self.errors.push(CheckError::OverwritesCarried { step, buffer, at: written.span().start });
        }
    }

    /// Checks what a kernel takes packed and what its epilogue walks, and remembers what is packed.
    fn packing(&mut self, index: usize, step: &Step) -> Result<(), DimError> {
        let step_ref = StepRef::of(self.plan, index);
        let extents = Extents(&self.known);
        let (expected, product) = match &step.kernel {
            Kernel::Linear(linear) => (extents.linear_operands(linear)?, Some(linear)),
            Kernel::Dot(dot) => (vec![(1, extents.one(Packing::Rows, &dot.out, &dot.k)?)], None),
            Kernel::RowNorm(RowNorm { out, k, rank }) | Kernel::Merge(Merge { out, k, rank, .. }) => {
                let w = extents.one(Packing::Panels, out, k)?;
                let a = extents.one(Packing::Rows, rank, k)?;
                (vec![(0, w), (1, a), (2, extents.one(Packing::Panels, out, rank)?)], None)
            }
            _ => (Vec::new(), None),
        };
        let made = match &step.kernel {
            Kernel::Pack(pack) => Some(Packed {
                batch: extents.of(&pack.batch)?,
                ..extents.one(pack.packing, &pack.matrix.out, &pack.matrix.k)?
            }),
            Kernel::Merge(Merge { out, k, .. }) => Some(extents.one(Packing::Panels, out, k)?),
            _ => None,
        };
        for (operand, expected) in expected {
            let id = step.reads[operand];
            let found = self.packed.get(&id).copied();
            if found != Some(expected) {
                let (step, buffer) = (step_ref.clone(), self.buffer(id));
                self.errors.push(CheckError::NotPacked { step, buffer, expected, found });
            }
        }
        if let Some(linear) = product {
            let (walks, rows) = walks_output(Extents(&self.known), linear)?;
            if !walks {
                let out = Extents(&self.known).of(&linear.out)?;
                self.errors.push(CheckError::Epilogue { step: step_ref, rows, out });
            }
        }
        let Some(made) = made else {
            self.packed.remove(&step.write);
            return Ok(());
        };
        self.packed.insert(step.write, made);
        if !matches!(self.plan.buffer(step.write).storage, Storage::Arena(_) | Storage::Staged(_)) {
            let (step, buffer) = (StepRef::of(self.plan, index), self.buffer(step.write));
            self.errors.push(CheckError::Unaligned { step, buffer });
        }
        Ok(())
    }

    fn buffer(&self, id: BufferId) -> BufferRef {
        BufferRef::of(self.plan, id)
    }

    /// The bytes of a buffer, if they are known.
    fn bytes(&mut self, id: BufferId, stage: Stage) -> Option<u64> {
        let bytes = Extents(&self.known).of(&self.plan.buffer(id).bytes());
        let unknown = |source| CheckError::BufferExtent { buffer: self.buffer(id), stage, source };
        bytes.map_err(unknown).map_err(|error| self.errors.push(error)).ok()
    }
}

impl Extents<'_> {
    /// One matrix as a kernel takes it.
    fn one(self, packing: Packing, out: &Dim, k: &Dim) -> Result<Packed, DimError> {
        Ok(Packed { packing, batch: 1, out: self.of(out)?, k: self.of(k)? })
    }

    /// What a product takes packed, by operand.
    fn linear_operands(self, linear: &Linear) -> Result<Vec<(usize, Packed)>, DimError> {
        let batch = if linear.batched_weight { self.of(&linear.batch)? } else { 1 };
        let w = Packed { batch, ..self.one(Packing::Panels, &linear.out, &linear.k)? };
        let b = linear.rank.as_ref().map(|rank| self.one(Packing::Panels, &linear.out, rank));
        Ok([Some((1, w)), b.transpose()?.map(|b| (3, b))].into_iter().flatten().collect())
    }
}

/// An access of a loop that does not walk as many axes as the loop: which, its strides, the axes.
fn uneven_access(kernel: &Kernel) -> Option<(usize, usize, usize)> {
    let body = match kernel {
        Kernel::Loop(body) => Some(body),
        Kernel::Linear(linear) => linear.epilogue.as_ref(),
        _ => None,
    }?;
    let strides = body.reads.iter().chain([&body.write]).map(|access| access.strides.len());
    let axes = body.space.len();
    strides.enumerate().find(|(_, found)| *found != axes).map(|(access, found)| (access, found, axes))
}

/// Whether a product's epilogue, if it has one, reads as access 0 and writes just the elements of its output
/// `[batch * rows, out]`, each at its own place; and how many rows that are. Tiles then touch nothing of each other.
fn walks_output(extents: Extents<'_>, linear: &Linear) -> Result<(bool, u64), DimError> {
    let (batch, rows, out) =
        (extents.of(&linear.batch)?, extents.of(&linear.rows)?, extents.of(&linear.out)?);
    let rows = batch.saturating_mul(rows);
    let Some(Loop { space, reads, write, .. }) = &linear.epilogue else { return Ok((true, rows)) };
    let [outer, inner] = space.as_slice() else { return Ok((false, rows)) };
    let is_output = |access: &Access| -> Result<bool, DimError> {
        let strides = [(rows, &access.strides[0], out), (out, &access.strides[1], 1)];
        let mut walks = extents.of(&access.offset)? == 0;
        for (extent, stride, expected) in strides {
            walks &= extent < 2 || extents.of(stride)? == expected;
        }
        Ok(walks)
    };
    let same_space = extents.of(outer)? == rows && extents.of(inner)? == out;
    let own = reads.first().map_or(Ok(false), is_output)?;
    Ok((same_space && own && is_output(write)?, rows))
}
