//! What the runtime needs to know of a plan: names, types, what binds each symbol, and where sizes stand. The only
//! place that knows both the IR's and the runtime's words for types and stages.

use super::sizes::SizesLayout;
use crate::plan::kernel::{Kernel, Linear, Pack};
use crate::plan::{Buffer, BufferId, Carried, Plan, STAGES, Step, Storage, stage_index};
use engraft_ir::{DType, Dim, Stage};
use engraft_runtime::abi::Stage as RunStage;
use engraft_runtime::{
    AdaptableSpec, Binder, CarriedSpec, DType as RunDType, Extent, ItemsSpec, ParamSpec, ProgramSpec,
    StagedSpec, SymbolSpec, TensorSpec,
};

pub(super) fn program_spec(plan: &Plan, layout: &mut SizesLayout) -> ProgramSpec {
    let inputs = plan.inputs.iter().map(|&buffer| tensor(plan, layout, buffer, None)).collect();
    let params = plan
        .params
        .iter()
        .map(|&buffer| ParamSpec {
            tensor: tensor(plan, layout, buffer, None),
            stage: run_stage(plan.buffer(buffer).stage),
            last_read: last_read(plan, buffer),
            only_packed: is_only_packed(plan, buffer),
        })
        .collect();
    let outputs =
        plan.outputs.iter().map(|(name, buffer)| tensor(plan, layout, *buffer, Some(name))).collect();
    let staged = plan
        .staged
        .iter()
        .map(|&id| {
            let buffer = plan.buffer(id);
            let bytes_at = layout.bytes(vec![buffer.bytes()]);
            StagedSpec { name: buffer.name.clone(), stage: run_stage(buffer.stage), bytes_at }
        })
        .collect();
    let arena_at = STAGES.map(|stage| layout.bytes(plan.arenas[stage_index(stage)].clone()));
    let symbols = plan
        .symbols
        .iter()
        .map(|bound| SymbolSpec {
            name: bound.symbol.to_string(),
            bound_by: match plan.buffer(bound.buffer).storage {
                Storage::Param(index) => Binder::Param(index),
                Storage::Input(index) => Binder::Input(index),
                _ => unreachable!("the plan's verifier checked that a source binds each symbol"),
            },
            axis: bound.axis,
            stage: run_stage(bound.stage),
        })
        .collect();
    let steps = plan.steps.iter().map(|step| step.name.clone()).collect();
    let (carried, adaptable, items) =
        (carried(plan), adaptable(plan, layout), plan.items.map(|symbol| items(plan, symbol)));
    let (sizes_len, profiled) = (layout.len(), plan.profiled);
    ProgramSpec {
        symbols,
        inputs,
        params,
        staged,
        outputs,
        carried,
        adaptable,
        items,
        sizes_len,
        arena_at,
        steps,
        profiled,
    }
}

fn items(plan: &Plan, symbol: usize) -> ItemsSpec {
    let name = &plan.symbols[symbol].symbol;
    let has = |buffer: BufferId| plan.buffer(buffer).ty.shape.symbols().contains(name);
    let inputs = plan.inputs.iter().enumerate().filter(|&(_, &buffer)| has(buffer));
    ItemsSpec { symbol, inputs: inputs.map(|(index, _)| index).collect() }
}

fn adaptable(plan: &Plan, layout: &mut SizesLayout) -> Vec<AdaptableSpec> {
    let layers = plan.adaptable().map(|(_, step, linear)| {
        let Linear { batch, rows, k, out, bias, .. } = linear;
        let Storage::Staged(weight) = plan.buffer(step.reads[1]).storage else {
            unreachable!("the plan's verifier checked that the weight is staged")
        };
        let module = linear.adaptable.as_deref().unwrap_or_default().to_owned();
        AdaptableSpec { module, extents_at: layout.each([batch, rows, k, out]), weight, has_bias: *bias }
    });
    layers.collect()
}

fn carried(plan: &Plan) -> Vec<CarriedSpec> {
    let extent = |dim: &Dim| match (dim.as_fixed(), dim.as_symbol()) {
        (Some(extent), _) => Extent::Fixed(extent),
        (None, Some(symbol)) => {
            let index = plan.symbols.iter().position(|bound| bound.symbol == *symbol);
            index.map_or(Extent::Computed, Extent::Symbol)
        }
        (None, None) => Extent::Computed,
    };
    let carried = |carried: &Carried| CarriedSpec {
        input: carried.input,
        output: carried.output,
        extents: plan.buffer(plan.inputs[carried.input]).ty.shape.iter().map(extent).collect(),
    };
    plan.carried.iter().map(carried).collect()
}

fn tensor(plan: &Plan, layout: &mut SizesLayout, id: BufferId, name: Option<&String>) -> TensorSpec {
    let buffer = plan.buffer(id);
    TensorSpec {
        name: name.unwrap_or(&buffer.name).clone(),
        dtype: run_dtype(buffer.ty.dtype),
        rank: buffer.ty.rank(),
        shape_at: layout.extents(plan, id),
        display: buffer.ty.to_string(),
    }
}

/// The last stage with a step that reads the buffer, or the buffer's own. (An output is a buffer that a step writes, never
/// a parameter itself.)
fn last_read(plan: &Plan, buffer: BufferId) -> RunStage {
    let readers = plan.steps.iter().filter(|step| step.reads.contains(&buffer)).map(|step| step.stage);
    readers.chain([plan.buffer(buffer).stage]).map(run_stage).fold(RunStage::Base, RunStage::max)
}

/// Whether the steps that read a parameter all pack it at the stage at which it arrives, as matrices whose rows or columns
/// are the rows of the tensor.
fn is_only_packed(plan: &Plan, buffer: BufferId) -> bool {
    let Buffer { ty, stage, .. } = plan.buffer(buffer);
    let one = Dim::fixed(1);
    let row = ty.shape.last().unwrap_or(&one);
    let is_packed = |step: &Step| match &step.kernel {
        Kernel::Pack(Pack { matrix: m, .. }) => {
            let by_output = m.k_stride == one && m.out_stride == m.k && m.k == *row;
            let by_input = m.out_stride == one && m.k_stride == m.out && m.out == *row;
            step.stage == *stage && (by_output || by_input)
        }
        _ => false,
    };
    *stage != Stage::Call && plan.steps.iter().filter(|step| step.reads.contains(&buffer)).all(is_packed)
}

fn run_stage(stage: Stage) -> RunStage {
    [RunStage::Base, RunStage::Adapter, RunStage::Call][stage_index(stage)]
}

fn run_dtype(dtype: DType) -> RunDType {
    match dtype {
        DType::F32 => RunDType::F32,
        DType::I32 => RunDType::I32,
        DType::I64 => RunDType::I64,
        DType::F64 => unreachable!("the planner refuses f64"),
    }
}
