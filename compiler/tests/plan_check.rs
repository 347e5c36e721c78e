//! The plan checker, and the verifier's word on rows: sound plans pass, and each way of breaking one is told by its own error.
#![allow(clippy::unwrap_used)]

mod common;

use common::bindings;
use engraft_compiler::plan::check::{CheckError, check, check_all};
use engraft_compiler::plan::kernel::{Kernel, Packing};
use engraft_compiler::plan::{BufferId, Plan, PlanInvariant, PlanOptions, SlotId, Storage, plan, verify};
use engraft_ir::DType::{F32, I64};
use engraft_ir::ops::Attention;
use engraft_ir::{Axis, Dim, Graph, GraphBuilder, Stage, Tensor, dims};

/// A chain of kernels, so that values meet in the arena.
fn chain() -> Graph {
    let g = GraphBuilder::new("chain");
    let x = g.input("x", F32, dims!["batch", 6]);
    let total = x.softmax(-1).named("total");
    let normed = x.layer_norm(None, None, 1e-5).named("normed");
    g.output("y", (total + normed).softmax(-1).rms_norm(None, 1e-6));
    g.finish().unwrap()
}

/// A layer with everything that is staged.
fn layer() -> Graph {
    let g = GraphBuilder::new("layer");
    let x = g.input("x", F32, dims!["batch", 5]);
    let w = g.param("w", F32, dims![7, 5]);
    let a = g.param("a", F32, dims!["rank", 5]).adapter();
    let b = g.param("b", F32, dims![7, "rank"]).adapter();
    let m = g.param("m", F32, dims![7]).adapter();
    let gain = (m / w.lora_norm(a, b, 2.0)).named("gain");
    g.output("y", x.dora(w, a, b, gain, None, 2.0).relu());
    g.finish().unwrap()
}

fn joined() -> Graph {
    let g = GraphBuilder::new("joined");
    let x = g.input("x", F32, dims!["batch", 3]);
    g.output("y", x.concat(&[x.slice(1, 1, 2), x.scale(2.0)], 1));
    g.finish().unwrap()
}

fn planned(graph: &Graph) -> Plan {
    let plan = plan(graph, PlanOptions { fuse: true }).unwrap();
    check_all(&plan).unwrap_or_else(|e| panic!("{e}\n{plan}"));
    plan
}

/// The buffer of this name.
fn buffer(plan: &Plan, name: &str) -> BufferId {
    let found = plan.buffers.iter().position(|buffer| buffer.name == name);
    BufferId(found.unwrap_or_else(|| panic!("no buffer `{name}` in\n{plan}")))
}

/// The first step that writes the buffer of this name.
fn writer(plan: &Plan, name: &str) -> usize {
    let id = buffer(plan, name);
    plan.steps.iter().position(|step| step.write == id).unwrap()
}

/// What the checker finds with small odd extents.
fn errors(plan: &Plan) -> Vec<CheckError> {
    let found = check(plan, &bindings(&[("batch", 3), ("rank", 2)]));
    assert!(check_all(plan).is_err(), "one of the combinations finds it too");
    found.expect_err("the plan is broken")
}

#[track_caller]
fn finds(plan: &Plan, message: &str) {
    let found: Vec<_> = errors(plan).iter().map(ToString::to_string).collect();
    assert!(found.iter().any(|error| error == message), "{found:#?}\n{plan}");
}

#[test]
fn sound_plans_pass() {
    let g = GraphBuilder::new("attention");
    let table = g.param("table", F32, dims![11, 8]);
    let x = table.gather(g.input("ids", I64, dims!["batch", "seq"])).reshape(dims!["batch", "seq", 2, 4]);
    let q = x.transpose(&[0, 2, 1, 3]);
    let scores = q.matmul(q.transpose(&[0, 1, 3, 2])).scale(0.5).softmax(-1);
    let mixed = scores.matmul(q).transpose(&[0, 2, 1, 3]).reshape(dims!["batch", "seq", 8]);
    g.output("y", mixed.layer_norm(None, None, 1e-5));
    g.output("sum", mixed.sum(&[0, 2]));
    for graph in [g.finish().unwrap(), chain(), layer(), joined()] {
        for fuse in [true, false] {
            let plan = plan(&graph, PlanOptions { fuse }).unwrap();
            check_all(&plan).unwrap_or_else(|e| panic!("{e}\n{plan}"));
        }
    }
}

/// q, k and v in one buffer: a view that begins too late reads beyond it.
#[test]
fn attention_beyond_its_operand_is_found() {
    let g = GraphBuilder::new("views");
    let x = g.input("x", F32, dims!["batch", 4, 12]);
    let [q, k, v] = [0, 4, 8].map(|start| x.slice(2, start, 4));
    let op = Attention { heads: 2, kv_heads: 2, scale: 0.5, causal: false, window: None };
    g.output("y", q.attention(k, v, None, op));
    let mut plan = planned(&g.finish().unwrap());
    let [step] = plan.steps.as_mut_slice() else { panic!("{plan}") };
    let Kernel::Attention(attention) = &mut step.kernel else { panic!("{step}") };
    attention.v.offset = Dim::fixed(9);
    let end = 4 * (3 * 4 * 12 + 1);
    let expected = format!("step 0 (`{}`) reaches byte {end} of b0 (`x`), which has {}", step.name, end - 4);
    finds(&plan, &expected);
}

#[test]
fn live_buffers_in_one_slot_are_found() {
    let mut plan = planned(&chain());
    let (total, normed) = (buffer(&plan, "total"), buffer(&plan, "normed"));
    plan.buffers[normed.0].storage = plan.buffer(total).storage;
    let reader = plan.steps.iter().position(|step| step.reads.contains(&total)).unwrap();
    let name = &plan.steps[reader].name;
    let expected = format!(
        "step {reader} (`{name}`) reads byte 0 of b{} (`total`), where b{} (`normed`) lies by then",
        total.0, normed.0
    );
    finds(&plan, &expected);
}

#[test]
fn writing_where_a_step_reads_is_found() {
    let mut plan = planned(&chain());
    let reader = plan.steps.len() - 1;
    let (read, write) = (plan.steps[reader].reads[0], plan.steps[reader - 1].reads[0]);
    plan.buffers[read.0].storage = plan.buffer(write).storage;
    assert!(errors(&plan).iter().any(|error| matches!(error, CheckError::Overlap { .. })), "{plan}");
}

#[test]
fn steps_out_of_order_are_found() {
    let mut plan = planned(&chain());
    let step = writer(&plan, "normed");
    plan.steps.swap(step, step + 1);
    let name = &plan.steps[step].name;
    let id = buffer(&plan, "normed").0;
    finds(
        &plan,
        &format!("step {step} (`{name}`) reads byte 0 of b{id} (`normed`), which nothing has written"),
    );
}

#[test]
fn a_missing_step_is_found() {
    let mut plan = planned(&chain());
    plan.steps.pop();
    let id = plan.outputs[0].1.0;
    let name = &plan.buffers[id].name;
    finds(&plan, &format!("byte 0 of b{id} (`{name}`) is not written when stage call ends"));
}

#[test]
fn a_staged_value_in_an_arena_is_found() {
    let mut plan = planned(&layer());
    let gain = buffer(&plan, "gain");
    assert!(matches!(plan.buffer(gain).storage, Storage::Staged(_)));
    plan.buffers[gain.0].storage = Storage::Arena(SlotId(plan.arenas[1].len()));
    plan.arenas[1].push(plan.buffer(gain).bytes());
    let reader = plan.steps.iter().position(|s| s.stage == Stage::Call && s.reads.contains(&gain)).unwrap();
    let name = plan.steps[reader].name.clone();
    finds(
        &plan,
        &format!("step {reader} (`{name}`) uses b{} (`gain`), which has no place at stage call", gain.0),
    );
    finds(&plan, &format!("byte 0 of b{} (`gain`) is not written when stage adapter ends", gain.0));
}

#[test]
fn an_arena_value_of_an_earlier_stage_is_found() {
    let mut plan = planned(&layer());
    let norm = plan.steps.iter().find(|step| matches!(step.kernel, Kernel::RowNorm(_))).unwrap().write;
    let gain = buffer(&plan, "gain");
    for step in plan.steps.iter_mut().filter(|step| step.stage == Stage::Call) {
        step.reads.iter_mut().filter(|read| **read == gain).for_each(|read| *read = norm);
    }
    let error =
        |error: &CheckError| matches!(error, CheckError::Absent { buffer, .. } if buffer.index == norm.0);
    assert!(errors(&plan).iter().any(error), "{plan}");
}

#[test]
fn a_staged_value_of_a_later_stage_is_found() {
    let mut plan = planned(&layer());
    let gain = buffer(&plan, "gain");
    let step = writer(&plan, "gain");
    plan.steps[step].stage = Stage::Call;
    plan.steps.sort_by_key(|step| step.stage);
    assert!(
        errors(&plan)
            .iter()
            .any(|error| matches!(error, CheckError::NotItsOwn { buffer, .. } if buffer.index == gain.0))
    );
}

#[test]
fn a_slot_too_small_is_found() {
    let mut plan = planned(&chain());
    plan.arenas[2][0] = Dim::from("batch") * 20;
    let id = plan.buffers.iter().position(|b| b.storage == Storage::Arena(SlotId(0))).unwrap();
    let name = &plan.buffers[id].name;
    finds(&plan, &format!("b{id} (`{name}`) takes 72 bytes, but its place has 60"));
}

#[test]
fn panels_too_small_or_of_another_matrix_are_found() {
    let mut plan = planned(&layer());
    let id = buffer(&plan, "w.panels");
    // Seven outputs take a lane of sixteen.
    plan.buffers[id.0].ty.shape = dims![35];
    let step = writer(&plan, "w.panels");
    finds(
        &plan,
        &format!("step {step} (`w.panels`) reaches byte 320 of b{} (`w.panels`), which has 140", id.0),
    );

    let mut plan = planned(&layer());
    let Kernel::Pack(pack) = &mut plan.steps[step].kernel else { panic!("{plan}") };
    pack.matrix.out = Dim::fixed(6);
    let product = plan.steps.iter().position(|s| matches!(&s.kernel, Kernel::Linear(l) if l.gain)).unwrap();
    let name = plan.steps[product].name.clone();
    let expected = format!(
        "step {product} (`{name}`) reads b{} (`w.panels`) as panels of 1 matrices [7, 5], found panels of 1 \
         matrices [6, 5]",
        id.0
    );
    finds(&plan, &expected);
}

#[test]
fn a_missing_part_of_a_concatenation_is_found() {
    let mut plan = planned(&joined());
    plan.steps.remove(1);
    // Of eight columns the first three are there.
    let id = plan.outputs[0].1.0;
    let name = &plan.buffers[id].name;
    finds(&plan, &format!("byte 12 of b{id} (`{name}`) is not written when stage call ends"));
}

#[test]
fn an_access_beyond_its_buffer_is_found() {
    let mut plan = planned(&joined());
    let Kernel::Loop(body) = &mut plan.steps[1].kernel else { panic!("{plan}") };
    body.reads[0].offset = Dim::fixed(2);
    // Rows of three: the last two elements of the third would be the ninth and tenth.
    let (name, read) = (plan.steps[1].name.clone(), plan.steps[1].reads[0].0);
    finds(&plan, &format!("step 1 (`{name}`) reaches byte 40 of b{read} (`x`), which has 36"));
    let Kernel::Loop(body) = &mut plan.steps[1].kernel else { panic!("{plan}") };
    body.reads[0].strides.pop();
    finds(&plan, &format!("step 1 (`{name}`) walks 2 axes, but access 0 has 1 strides"));
}

#[test]
fn an_epilogue_that_reads_other_tiles_is_found() {
    let mut plan = planned(&layer());
    let step = plan.steps.len() - 1;
    let Kernel::Linear(linear) = &mut plan.steps[step].kernel else { panic!("{plan}") };
    let epilogue = linear.epilogue.as_mut().expect("relu is an epilogue");
    epilogue.reads[0].strides.swap(0, 1);
    let name = plan.steps[step].name.clone();
    finds(
        &plan,
        &format!("step {step} (`{name}`) has an epilogue that does not walk the product's output [3, 7]"),
    );
}

#[test]
fn a_symbol_of_a_later_stage_is_found() {
    let mut plan = planned(&layer());
    for bound in plan.symbols.iter_mut().filter(|bound| bound.symbol.name() == "rank") {
        bound.stage = Stage::Call;
    }
    assert!(errors(&plan).iter().any(|error| matches!(error, CheckError::StepExtent { .. })));
}

#[test]
fn many_symbols_are_tried_within_bounds() {
    let g = GraphBuilder::new("many");
    let names: Vec<_> = (0..9).map(|i| format!("s{i}")).collect();
    let inputs: Vec<Tensor<'_>> =
        names.iter().map(|name| g.input(&format!("x_{name}"), F32, dims![name.as_str(), 3])).collect();
    g.output("y", inputs[0].concat(&inputs[1..], 0));
    check_all(&planned(&g.finish().unwrap())).unwrap();
}

/// A merged weight is made from panels of just that weight, and is itself what a layer reads.
#[test]
fn a_merge_of_another_matrix_is_found() {
    let g = GraphBuilder::new("merged");
    let w = g.param("w", F32, dims![7, 5]);
    let a = g.param("a", F32, dims!["rank", 5]).adapter();
    let b = g.param("b", F32, dims![7, "rank"]).adapter();
    let merged = (w + Tensor::lora_delta(a, b, 2.0)).named("merged");
    g.output("y", g.input("x", F32, dims!["batch", 5]).dense(merged, None));
    let graph = g.finish().unwrap();
    let broken = |out: u64| {
        let mut plan = planned(&graph);
        let step = writer(&plan, "merged.panels");
        let Kernel::Merge(merge) = &mut plan.steps[step].kernel else { panic!("{plan}") };
        merge.out = Dim::fixed(out);
        (step, buffer(&plan, "w.panels").0, buffer(&plan, "merged.panels").0, plan)
    };
    let (step, w, merged, plan) = broken(6);
    let panels = |rows: u64| format!("panels of 1 matrices [{rows}, 5]");
    let expected =
        format!("step {step} (`merged`) reads b{w} (`w.panels`) as {}, found {}", panels(6), panels(7));
    finds(&plan, &expected);
    let product = plan.steps.iter().position(|step| matches!(step.kernel, Kernel::Linear(_))).unwrap();
    let expected = format!(
        "step {product} (`{}`) reads b{merged} (`merged.panels`) as {}, found {}",
        plan.steps[product].name,
        panels(7),
        panels(6)
    );
    finds(&plan, &expected);
}

/// A weight that is merged with a gain, all in one stage: nothing of it is staged, so all of it lies in one arena.
fn merged_in_calls() -> Graph {
    let g = GraphBuilder::new("merged");
    let w = g.param("w", F32, dims![7, 5]).live();
    let a = g.param("a", F32, dims!["rank", 5]).live();
    let b = g.param("b", F32, dims![7, "rank"]).live();
    let gain = g.param("gain", F32, dims![7]).live();
    let merged = (w + Tensor::lora_delta(a, b, 2.0)).magnitude(gain, Axis::OUT).named("merged");
    g.output("y", g.input("x", F32, dims!["batch", 5]).dense(merged, None));
    g.finish().unwrap()
}

/// The step that merges, and the buffers of W, A, B and the gain.
fn merge(plan: &Plan) -> (usize, [BufferId; 4]) {
    let step = writer(plan, "merged.panels");
    assert!(matches!(plan.steps[step].kernel, Kernel::Merge(_)), "{plan}");
    (step, plan.steps[step].reads.as_slice().try_into().unwrap())
}

#[test]
fn a_merge_of_factors_packed_otherwise_is_found() {
    let graph = merged_in_calls();
    for (operand, other) in [(0, Packing::Rows), (1, Packing::Panels), (2, Packing::Rows)] {
        let mut plan = planned(&graph);
        let (step, reads) = merge(&plan);
        let pack = plan.steps.iter_mut().find(|step| step.write == reads[operand]).unwrap();
        let Kernel::Pack(pack) = &mut pack.kernel else { panic!("{pack:?}") };
        let expected = pack.packing;
        pack.packing = other;
        let is_told = |error: &CheckError| match error {
            CheckError::NotPacked { step: at, buffer, expected: needs, found: Some(found) } => {
                let packings = (needs.packing, found.packing);
                at.index == step && buffer.index == reads[operand].0 && packings == (expected, other)
            }
            _ => false,
        };
        assert!(errors(&plan).iter().any(is_told), "operand {operand}\n{plan}");
    }
}

#[test]
fn a_merge_with_a_gain_too_short_is_found() {
    let mut plan = planned(&merged_in_calls());
    let (step, [.., gain]) = merge(&plan);
    plan.buffers[gain.0].ty.shape = dims![6];
    let name = &plan.steps[step].name;
    let expected = format!("step {step} (`{name}`) reaches byte 28 of b{} (`gain`), which has 24", gain.0);
    finds(&plan, &expected);
}

#[test]
fn a_merge_over_what_it_reads_is_found() {
    for operand in 0..3 {
        let mut plan = planned(&merged_in_calls());
        let (step, reads) = merge(&plan);
        let (read, write) = (reads[operand], plan.steps[step].write);
        assert!(matches!(plan.buffer(write).storage, Storage::Arena(_)), "{plan}");
        // The room for the one is enough for the other: all that is wrong is where it lies.
        let Storage::Arena(slot) = plan.buffer(read).storage else { panic!("{plan}") };
        plan.arenas[2][slot.0] = plan.buffer(read).bytes() + plan.buffer(write).bytes();
        plan.buffers[write.0].storage = Storage::Arena(slot);
        let name = &plan.steps[step].name;
        let expected = format!(
            "step {step} (`{name}`) writes b{} (`merged.panels`) where it reads b{} (`{}`)",
            write.0,
            read.0,
            plan.buffer(read).name
        );
        finds(&plan, &expected);
    }
}

#[test]
fn a_row_that_nothing_computes_is_found() {
    let g = GraphBuilder::new("rows");
    let (x, w) = (g.input("x", F32, dims!["batch", 6]), g.param("w", F32, dims![6]));
    g.output("normed", x.layer_norm(Some(w), None, 1e-5));
    g.output("shares", x.softmax(-1));
    let sound = planned(&g.finish().unwrap());
    assert_eq!(verify(&sound), Ok(()));

    let of = |op: &str| sound.steps.iter().position(|step| step.kernel.name() == op).unwrap();

    let (index, mut turned) = (of("layer_norm"), sound.clone());
    let Kernel::Row(row) = &mut turned.steps[index].kernel else { panic!("{sound}") };
    (row.outer, row.inner) = (Dim::fixed(1), row.outer.clone());
    assert_eq!(verify(&turned), Err(vec![PlanInvariant::Row { step: index, kernel: "layer_norm" }]));

    let (index, mut shifted) = (of("softmax"), sound.clone());
    let Kernel::Row(row) = &mut shifted.steps[index].kernel else { panic!("{sound}") };
    row.bias = true;
    let vector = buffer(&sound, "w");
    shifted.steps[index].reads.push(vector);
    assert_eq!(verify(&shifted), Err(vec![PlanInvariant::Row { step: index, kernel: "softmax" }]));
}
