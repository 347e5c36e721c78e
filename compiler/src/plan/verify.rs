//! The plan's verifier. It checks, of any plan, that
//! 1. steps are in the order of their stages, and each reads only what is given or was written before it,
//! 2. every buffer is written by a step of its own stage, or is given and never written,
//! 3. what crosses into a later stage is staged, given, or a constant; an arena's buffers stay within their stage,
//! 4. each kernel has as many operands as it says, of the types it works in,
//! 5. every output is written, and every symbol is bound by the axis it names,
//! 6. what is carried is appended to and nothing else: where an input and an output are one piece of memory, each step
//!    that writes it either copies the input to its own place, which does nothing, or writes beyond the input's end,
//! 7. an adaptable layer runs with the call, has one matrix, staged with the base, and no adapter of its own; its items are
//!    those of a batch that is run in slices,
//! 8. layer and RMS norms are along a contiguous axis, and no other op along an axis has a bias.
//!
//! Whether memory is shared soundly is for `check.rs`, which knows nothing of how the planner decided.

use super::kernel::Kernel;
use super::{Buffer, BufferId, Carried, Plan, Step, Storage};
use engraft_ir::{DType, Dim};
use thiserror::Error;

/// One broken invariant of a plan.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanInvariant {
    /// A step runs after one of a later stage.
    #[error("step {step} is of an earlier stage than the step before it")]
    Order {
        /// The step.
        step: usize,
    },
    /// A step reads what nothing wrote.
    #[error("step {step} reads b{buffer}, which nothing before it writes")]
    Unwritten {
        /// The step.
        step: usize,
        /// The buffer.
        buffer: usize,
    },
    /// A step writes what it may not.
    #[error("step {step} writes b{buffer}, which is given or belongs to another stage")]
    Write {
        /// The step.
        step: usize,
        /// The buffer.
        buffer: usize,
    },
    /// A value crosses into a later stage without being staged.
    #[error("step {step} reads b{buffer} of an earlier stage, which is not staged")]
    NotStaged {
        /// The step.
        step: usize,
        /// The buffer.
        buffer: usize,
    },
    /// A kernel has the wrong number of operands.
    #[error("step {step} ({kernel}) takes {expected} buffers, found {found}")]
    Operands {
        /// The step.
        step: usize,
        /// The kernel's name.
        kernel: &'static str,
        /// What the kernel takes.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A kernel works on a type that it does not know.
    #[error("step {step} ({kernel}) works in {expected}, but b{buffer} is {found}")]
    Type {
        /// The step.
        step: usize,
        /// The kernel's name.
        kernel: &'static str,
        /// The buffer.
        buffer: usize,
        /// What the kernel works in.
        expected: DType,
        /// What the buffer holds.
        found: DType,
    },
    /// An output is not written by the call.
    #[error("output `{name}` is written by no step")]
    Output {
        /// The output's name.
        name: String,
    },
    /// An input and an output that are to share memory are not an input and an output that can: of one type and shape
    /// but for the first dim, a symbol of the input's, and neither shared with others.
    #[error("input {input} and output {output} cannot be carried in one piece of memory")]
    Carried {
        /// The input.
        input: usize,
        /// The output.
        output: usize,
    },
    /// A step writes over what is carried.
    #[error("step {step} does not write beyond the end of what input {input} carries")]
    Overwrites {
        /// The step.
        step: usize,
        /// The input.
        input: usize,
    },
    /// A layer that a bank may put adapters on is not as loading them needs it.
    #[error(
        "step {step} is adaptable, so it must run with the call, on one matrix that is staged with the base, with no low-rank \
         part, no gain, and the items of a sliced batch"
    )]
    Adaptable {
        /// The step.
        step: usize,
    },
    /// A norm of the runtime's is along an axis that is not contiguous, or another op along an axis has a bias.
    #[error(
        "step {step} ({kernel}) must be along a contiguous axis if it is a layer or RMS norm, and else have no bias"
    )]
    Row {
        /// The step.
        step: usize,
        /// The kernel's name.
        kernel: &'static str,
    },
    /// A symbol is not the axis that is to bind it.
    #[error("symbol `{symbol}` is not axis {axis} of b{buffer}")]
    Symbol {
        /// The symbol.
        symbol: String,
        /// The axis.
        axis: usize,
        /// The buffer.
        buffer: usize,
    },
}

/// Checks every invariant listed at the top of this file.
///
/// # Errors
/// All that are broken.
pub fn verify(plan: &Plan) -> Result<(), Vec<PlanInvariant>> {
    let mut errors = Vec::new();
    let mut written: Vec<bool> = plan.buffers.iter().map(|b| is_given(b.storage)).collect();
    for (index, step) in plan.steps.iter().enumerate() {
        if index > 0 && plan.steps[index - 1].stage > step.stage {
            errors.push(PlanInvariant::Order { step: index });
        }
        verify_reads(plan, index, step, &written, &mut errors);
        verify_operands(plan, index, step, &mut errors);
        if !may_be_adapted(plan, step) {
            errors.push(PlanInvariant::Adaptable { step: index });
        }
        if !has_code_if_row(&step.kernel) {
            errors.push(PlanInvariant::Row { step: index, kernel: step.kernel.name() });
        }
        let target = plan.buffer(step.write);
        if is_given(target.storage) || target.stage != step.stage {
            errors.push(PlanInvariant::Write { step: index, buffer: step.write.0 });
        }
        written[step.write.0] = true;
    }
    for (index, (name, buffer)) in plan.outputs.iter().enumerate() {
        if !written[buffer.0] || plan.buffer(*buffer).storage != Storage::Output(index) {
            errors.push(PlanInvariant::Output { name: name.clone() });
        }
    }
    plan.carried.iter().for_each(|&carried| verify_carried(plan, carried, &mut errors));
    for bound in &plan.symbols {
        let axis = plan.buffer(bound.buffer).ty.shape.get(bound.axis);
        if axis.and_then(|dim| dim.as_symbol()) != Some(&bound.symbol) {
            let (symbol, axis) = (bound.symbol.to_string(), bound.axis);
            errors.push(PlanInvariant::Symbol { symbol, axis, buffer: bound.buffer.0 });
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn is_given(storage: Storage) -> bool {
    matches!(storage, Storage::Input(_) | Storage::Param(_) | Storage::Constant(_))
}

fn verify_reads(plan: &Plan, index: usize, step: &Step, written: &[bool], errors: &mut Vec<PlanInvariant>) {
    for &read in &step.reads {
        let buffer = plan.buffer(read);
        if !written[read.0] || buffer.stage > step.stage {
            errors.push(PlanInvariant::Unwritten { step: index, buffer: read.0 });
        } else if buffer.stage < step.stage
            && matches!(buffer.storage, Storage::Arena(_) | Storage::Output(_))
        {
            errors.push(PlanInvariant::NotStaged { step: index, buffer: read.0 });
        }
    }
}

/// Checks what an input and an output share, for all values of the symbols.
fn verify_carried(plan: &Plan, carried: Carried, errors: &mut Vec<PlanInvariant>) {
    let Carried { input, output } = carried;
    let fits = |from: &Buffer, to: &Buffer| {
        let (from, to) = (&from.ty, &to.ty);
        let grows = from.shape.first().is_some_and(|dim| dim.as_symbol().is_some());
        grows && from.dtype == to.dtype && from.rank() == to.rank() && from.shape[1..] == to.shape[1..]
    };
    let alone = |other: &&Carried| other.input == input || other.output == output;
    let pair = plan.inputs.get(input).zip(plan.outputs.get(output).map(|(_, id)| id));
    let pair = pair.filter(|(from, to)| fits(plan.buffer(**from), plan.buffer(**to)));
    let pair = pair.filter(|_| plan.carried.iter().filter(alone).count() == 1);
    let Some((&from, &to)) = pair else {
        errors.push(PlanInvariant::Carried { input, output });
        return;
    };
    let end = plan.buffer(from).ty.shape.elements();
    for (index, step) in plan.steps.iter().enumerate().filter(|(_, step)| step.write == to) {
        if !appends(step, from, &end) {
            errors.push(PlanInvariant::Overwrites { step: index, input });
        }
    }
}

/// Whether a step copies this input to its own place, or writes nothing before `end`. Strides are not negative, so the
/// first element that a loop writes is the least.
fn appends(step: &Step, input: BufferId, end: &Dim) -> bool {
    match &step.kernel {
        Kernel::Loop(body) if step.reads == [input] && body.is_identity() => true,
        Kernel::Loop(body) => body.write.offset.checked_sub(end).is_some(),
        _ => false,
    }
}

/// Whether a step is as an adaptable layer must be, if it is one.
fn may_be_adapted(plan: &Plan, step: &Step) -> bool {
    match &step.kernel {
        Kernel::Linear(linear) if linear.adaptable.is_some() => {
            let weight = step.reads.get(1).map(|&weight| plan.buffer(weight));
            let is_staged = |weight: &Buffer| {
                matches!(weight.storage, Storage::Staged(_)) && weight.stage <= engraft_ir::Stage::Base
            };
            let items = plan.items.and_then(|items| plan.symbols.get(items));
            weight.is_some_and(is_staged)
                && step.stage == engraft_ir::Stage::Call
                && linear.rank.is_none()
                && !linear.gain
                && !linear.batched_weight
                && items.is_none_or(|items| linear.batch.as_symbol() == Some(&items.symbol))
        }
        _ => true,
    }
}

fn has_code_if_row(kernel: &Kernel) -> bool {
    match kernel {
        Kernel::Row(row) if row.op.center().is_some() => row.inner == Dim::fixed(1),
        Kernel::Row(row) => !row.bias,
        _ => true,
    }
}

/// How many buffers a kernel reads.
fn operand_count(kernel: &Kernel) -> usize {
    match kernel {
        Kernel::Pack(_) | Kernel::Cast(_) => 1,
        Kernel::Linear(linear) => {
            let epilogue = linear.epilogue.as_ref().map_or(0, |epilogue| epilogue.reads.len() - 1);
            let low_rank = if linear.rank.is_some() { 2 } else { 0 };
            2 + low_rank + usize::from(linear.gain) + usize::from(linear.bias) + epilogue
        }
        Kernel::RowNorm(_) => 3,
        Kernel::Merge(merge) => 3 + usize::from(merge.gain),
        Kernel::Loop(body) => body.reads.len(),
        Kernel::Row(row) => 1 + usize::from(row.weight) + usize::from(row.bias),
        Kernel::Attention(attention) => 3 + usize::from(attention.mask.is_some()),
        Kernel::Dot(_) | Kernel::Gather(_) => 2,
    }
}

fn verify_operands(plan: &Plan, index: usize, step: &Step, errors: &mut Vec<PlanInvariant>) {
    let (kernel, expected) = (step.kernel.name(), operand_count(&step.kernel));
    if step.reads.len() != expected {
        errors.push(PlanInvariant::Operands { step: index, kernel, expected, found: step.reads.len() });
        return;
    }
    for (position, buffer) in step.reads.iter().chain([&step.write]).enumerate() {
        let expected = match &step.kernel {
            Kernel::Loop(body) => body.dtype,
            Kernel::Gather(gather) if position == 1 => gather.ids,
            // Panels are of f32.
            Kernel::Gather(gather) if gather.from_panels => DType::F32,
            Kernel::Gather(gather) => gather.dtype,
            Kernel::Cast(cast) if position == 0 => cast.from,
            Kernel::Attention(attention) if position == 3 => attention.mask.unwrap_or(DType::F32),
            _ => DType::F32,
        };
        let found = plan.buffer(*buffer).ty.dtype;
        if found != expected {
            errors.push(PlanInvariant::Type { step: index, kernel, buffer: buffer.0, expected, found });
        }
    }
}
