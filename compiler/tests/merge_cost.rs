//! Merged or factored: the cost model against times worked out by hand and what must hold of any machine, and what is decided
//! of the layers of a graph, by it and by the caller. The machine is made up: nothing here is measured.
#![allow(clippy::unwrap_used)]

mod common;

use common::{difference, run};
use engraft_compiler::merging::{CostModel, Decision, MergeRule, Merging, survey};
use engraft_compiler::passes::{MergeError, PassError};
use engraft_compiler::pipeline::{self, PipelineError};
use engraft_compiler::plan::merge_cost::{Choice, Estimate, Layer, MARGIN, Workload, choose};
use engraft_compiler::{Options, compile};
use engraft_ir::DType::F32;
use engraft_ir::eval::eval;
use engraft_ir::{Axis, Bindings, Graph, GraphBuilder, Shape, Symbol, Tensor, dims, sample};
use engraft_runtime::measure::{Level, Rates};
use engraft_runtime::{AdapterWeights, LayerWeights, Update};
use proptest::prelude::*;
use std::sync::Arc;

/// A tile takes a nanosecond for each row and input, and so does reading a panel's line from wherever it is.
fn machine() -> Rates {
    Rates {
        panel: 48,
        block: 128,
        block_inputs: 1024,
        tile: (1..=8).map(|rows| f64::from(rows) * 1e-9).collect(),
        dot: 1e-12,
        merge: 1e-12,
        memory: vec![Level { bytes: 1 << 20, read: 192e9, apart: [2e-9, 9e-9], first: 9e-9, fresh: 1e9 }],
    }
}

const LAYER: Layer = Layer { out: 96, k: 100, rank: 4 };

fn close(ours: f64, theirs: f64) {
    assert!((ours - theirs).abs() <= 1e-12 * theirs.abs().max(1e-6), "{ours} for {theirs}");
}

#[test]
fn times_are_what_one_works_out_by_hand() {
    let workload = Workload { rows: 8, ..Workload::default() };
    let one = Estimate::new(LAYER, workload, &machine());
    // Two panels of 100 inputs in a tile of 8 rows; A, which takes longer to read than to use; 4 more inputs for B, whose
    // panels nothing has fetched.
    close(one.merged, 2.0 * 100.0 * 8e-9);
    close(one.factored, one.merged + 4.0 * 400.0 / 192e9 + 2.0 * 4.0 * 9e-9);
    // Of two tiles the other finds them.
    let two = Estimate::new(LAYER, Workload { rows: 16, ..workload }, &machine());
    close(two.factored, 2.0 * 100.0 * 16e-9 + 4.0 * 400.0 / 192e9 + 2.0 * 4.0 * 16e-9);
    // Each element's 4 products; W read and W' written, and memory for it.
    close(one.merging, 96.0 * 400.0 * 1e-12 + 2.0 * 38_400.0 / 192e9 + 38_400.0 / 1e9);
    close(one.break_even().unwrap(), one.merging / (one.factored * (1.0 - MARGIN) - one.merged));
    assert_eq!(one.bytes, 38_400);

    let four = Estimate::new(LAYER, Workload { adapters: 4, ..workload }, &machine());
    // Four tiles of two rows, each of panels that nothing has fetched: between 2 and 9 ns. Four A are read, and the sums of
    // x Wᵀ rest in y until they are taken up again; B is fetched in the shade of the tiles.
    close(four.merged, 4.0 * 2.0 * 100.0 * 3e-9);
    close(four.factored, one.merged + 4.0 * 1600.0 / 192e9 + 64e-9 + 8.0 * 8.0 * 96.0 / 192e9);
    // Two tiles of eight rows: only the first of them. As it is, one tile may have rows of both, and each B is read.
    let high = Estimate::new(LAYER, Workload { rows: 32, adapters: 2, ..workload }, &machine());
    close(high.merged, 2.0 * 2.0 * 100.0 * (9e-9 + 8e-9));
    let factors = 2.0 * (1600.0 + 1536.0) / 192e9 + 2.0 * 2.0 * 4.0 * 16e-9;
    close(high.factored, 2.0 * 100.0 * 32e-9 + factors + 8.0 * 8.0 * 96.0 / 192e9);
    // A row of each adapter cannot be more than there are rows.
    assert_eq!(Estimate::new(LAYER, Workload { adapters: 9, ..workload }, &machine()).workload.adapters, 8);
}

/// From memory ten times slower, a weight for each adapter takes longer than the arithmetic.
#[test]
fn weights_that_no_cache_holds_are_better_shared() {
    let far = Level { bytes: 1 << 22, read: 19.2e9, apart: [11e-9, 18e-9], first: 18e-9, fresh: 1e9 };
    let rates = Rates { memory: vec![machine().memory[0], far], ..machine() };
    let layer = Layer { out: 4800, k: 4800, rank: 256 };
    let saved = |adapters| {
        Estimate::new(layer, Workload { rows: 8, adapters, ..Workload::default() }, &rates).saved()
    };
    assert!(saved(1) > 0.0, "{}", saved(1));
    assert!(saved(4) < 0.0 && saved(8) < saved(4), "{} {}", saved(4), saved(8));
}

#[test]
fn a_decision_is_one_line_with_its_numbers() {
    let workload = Workload { rows: 8, calls_per_swap: 10.0, ..Workload::default() };
    let model = CostModel { rates: machine(), workload, dims: Bindings::new() };
    let lines = |merging: &Merging, model: Option<&CostModel>| {
        let decisions = survey(&layers(), merging, model).unwrap();
        decisions.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let mut some = Merging::by_cost(model.clone());
    some.layers = [("first".to_owned(), true)].into();
    let texts = [
        lines(&Merging::by_cost(model.clone()), None),
        lines(&Merging::NEVER, Some(&model)),
        lines(&some, None),
        lines(&Merging::by_cost(stays(Some(0))), None),
        lines(&Merging::NEVER, None),
    ];
    insta::assert_snapshot!(texts.join("\n\n"));
    assert_eq!(texts.iter().flat_map(|text| text.lines()).filter(|line| !line.is_empty()).count(), 15);
}

/// A machine, layers and a workload.
fn cases() -> impl Strategy<Value = (Layer, Workload, Rates)> {
    let layer = (1_u64..5000, 1_u64..5000, 0_u64..100);
    let workload = (1_u64..300, 1_u64..200, 0.1_f64..1e5, 0_u64..1 << 28);
    let rates = (1e-10_f64..1e-8, 1e-12_f64..1e-9, 1e-12_f64..1e-9, 1e9_f64..1e12, 1e8_f64..1e11);
    (layer, workload, rates).prop_map(|(layer, workload, rates)| {
        let (out, k, rank) = layer;
        let (rows, adapters, calls_per_swap, beside) = workload;
        let (tile, dot, merge, read, fresh) = rates;
        let level = |bytes: u64, slower: f64| Level {
            bytes,
            read: read / slower,
            apart: [200.0 * slower / read, tile * 8.0 + 200.0 * slower / read],
            first: tile * 8.0 + 200.0 * slower / read,
            fresh: fresh / slower,
        };
        let rates = Rates {
            tile: (1..=8).map(|rows| tile * f64::from(rows.max(3))).collect(),
            dot,
            merge,
            memory: vec![level(1 << 19, 1.0), level(1 << 23, 3.0), level(1 << 26, 10.0)],
            ..machine()
        };
        let workload = Workload { rows, adapters, calls_per_swap, memory: None, beside };
        (Layer { out, k, rank }, workload, rates)
    })
}

proptest! {
    #[test]
    fn more_calls_for_a_swap_never_end_merging((layer, workload, rates) in cases(), more in 1.0_f64..1e6) {
        let now = Estimate::new(layer, workload, &rates);
        let calls_per_swap = workload.calls_per_swap * more;
        let later = Estimate::new(layer, Workload { calls_per_swap, ..workload }, &rates);
        prop_assert!(now.saved() <= 0.0 || later.saved() > 0.0);
        // It pays from the break-even on, and only then.
        let at = |calls_per_swap| Estimate::new(layer, Workload { calls_per_swap, ..workload }, &rates).saved();
        match now.break_even() {
            Some(calls) => prop_assert!(at(1.001 * calls + 1e-6) > 0.0 && (calls <= 1.0 || at(0.999 * calls) < 0.0)),
            None => prop_assert!(at(f64::INFINITY) <= 0.0),
        }
    }

    #[test]
    fn a_machine_that_is_twice_as_slow_takes_twice_as_long((layer, workload, rates) in cases()) {
        let slower = Rates {
            tile: rates.tile.iter().map(|tile| 2.0 * tile).collect(),
            dot: 2.0 * rates.dot,
            merge: 2.0 * rates.merge,
            memory: rates
                .memory
                .iter()
                .map(|level| Level {
                    read: level.read / 2.0,
                    fresh: level.fresh / 2.0,
                    apart: level.apart.map(|seconds| 2.0 * seconds),
                    first: 2.0 * level.first,
                    ..*level
                })
                .collect(),
            ..rates
        };
        let [now, then] = [&rates, &slower].map(|rates| Estimate::new(layer, workload, rates));
        for (now, then) in
            [(now.factored, then.factored), (now.merged, then.merged), (now.merging, then.merging)]
        {
            prop_assert!((2.0 * now - then).abs() <= 1e-9 * then);
        }
    }

    /// With one adapter, a product with W' is a part of what is computed otherwise.
    #[test]
    fn a_merged_call_of_one_adapter_is_never_slower((layer, workload, rates) in cases()) {
        let one = Estimate::new(layer, Workload { adapters: 1, ..workload }, &rates);
        prop_assert!(one.merged <= one.factored * (1.0 + 1e-12));
    }

    #[test]
    fn no_more_memory_is_taken_than_there_is(
        cases in prop::collection::vec(cases(), 1..8),
        memory in 0_u64..1 << 30,
        more in 0_u64..1 << 30,
    ) {
        let layers: Vec<_> = cases.iter().map(|(l, workload, rates)| Estimate::new(*l, *workload, rates)).collect();
        let merged = |memory| {
            let choices = choose(&layers, memory);
            (0..layers.len()).filter(|&index| choices[index] == Choice::Merged).collect::<Vec<_>>()
        };
        let few = merged(Some(memory));
        prop_assert!(few.iter().map(|&index| layers[index].bytes).sum::<u64>() <= memory);
        let many = merged(Some(memory.saturating_add(more)));
        prop_assert!(few.iter().all(|index| many.contains(index)));
        let all = merged(None);
        prop_assert!(many.iter().all(|index| all.contains(index)));
        prop_assert!(all.iter().all(|&index| layers[index].saved() > 0.0));
    }
}

/// LoRA, then DoRA, then DoRA of the output: 24 to 40 to 24 to 24, rank 4.
fn layers() -> Graph {
    let graph = written(|g, x| {
        let [w, a, b] = weights(g, "first", 40, 24, &dims![4]);
        let x = x.lora(w, a, b, None, 2.0).named("first").relu();
        let [w, a, b] = weights(g, "second", 24, 40, &dims![4]);
        let m = g.param("second.m", F32, dims![24]).adapter();
        let direction = (w + Tensor::lora_delta(a, b, 0.5)).normalize(Axis::IN);
        let x = x.dense(direction.magnitude(m, Axis::OUT), None).named("second");
        let [w, a, b] = weights(g, "third", 24, 24, &dims![4]);
        let m = g.param("third.m", F32, dims![24]).adapter();
        let c = x.lora(w, a, b, None, 2.0);
        c.normalize_with(-1, 1e-8, engraft_ir::ops::EpsilonAt::Inside).magnitude(m, -1).named("third")
    });
    pipeline::optimize(&graph, &pipeline::Options::default()).unwrap().graph
}

fn written(body: impl for<'g> Fn(&'g GraphBuilder, Tensor<'g>) -> Tensor<'g>) -> Graph {
    let g = GraphBuilder::new("layers");
    let x = g.input("x", F32, dims!["batch", 24]);
    g.output("y", body(&g, x));
    g.finish().unwrap()
}

/// W, A and B, the rank as a shape of one dim.
fn weights<'g>(g: &'g GraphBuilder, name: &str, out: u64, k: u64, rank: &Shape) -> [Tensor<'g>; 3] {
    let rank = &rank[0];
    [
        g.param(&format!("{name}.w"), F32, dims![out, k]),
        g.param(&format!("{name}.a"), F32, Shape::new(vec![rank.clone(), k.into()])).adapter(),
        g.param(&format!("{name}.b"), F32, Shape::new(vec![out.into(), rank.clone()])).adapter(),
    ]
}

/// Adapters stay, so that what can be merged is, if there is room.
fn stays(memory: Option<u64>) -> CostModel {
    let workload = Workload { rows: 8, memory, ..Workload::default() };
    CostModel { rates: machine(), workload, dims: Bindings::new() }
}

fn merged(decisions: &[Decision]) -> Vec<&str> {
    decisions.iter().filter(|decision| decision.merged).map(|decision| decision.layer.as_str()).collect()
}

#[test]
fn cost_decides_of_each_layer_and_the_caller_of_those_that_are_named() {
    let graph = layers();
    let decided = |merging: &Merging| survey(&graph, merging, None).unwrap();
    assert_eq!(merged(&decided(&Merging::by_cost(stays(None)))), ["first", "second"]);
    // 40 outputs are padded to 48: 48 by 24 floats, and 32 by 40.
    let bytes: Vec<_> =
        decided(&Merging::by_cost(stays(None))).iter().filter_map(|d| d.estimate).map(|e| e.bytes).collect();
    assert_eq!(bytes, [4608, 5120]);
    assert_eq!(merged(&decided(&Merging::by_cost(stays(Some(4607))))), [""; 0]);
    assert_eq!(merged(&decided(&Merging::by_cost(stays(Some(9728))))), ["first", "second"]);
    for (rule, named, expected) in [
        (MergeRule::Never, ("second", true), &["second"][..]),
        (MergeRule::ByCost(stays(None)), ("first", false), &["second"]),
        // What the caller asks for takes of the memory first, and is merged even if there is too little.
        (MergeRule::ByCost(stays(Some(5120))), ("first", true), &["first"]),
        (MergeRule::ByCost(stays(Some(0))), ("second", true), &["second"]),
    ] {
        let layers = [(named.0.to_owned(), named.1)].into();
        assert_eq!(merged(&decided(&Merging { rule, layers })), expected);
    }
}

#[test]
fn rows_come_from_dims_that_are_known() {
    let graph = layers();
    let mut model = stays(None);
    model.dims = [(Symbol::new("batch"), 5)].into();
    let rows = |model: CostModel| {
        let decisions = survey(&graph, &Merging::by_cost(model), None).unwrap();
        decisions.iter().filter_map(|decision| decision.estimate).map(|e| e.workload.rows).collect::<Vec<_>>()
    };
    assert_eq!(rows(model), [5, 5]);
    assert_eq!(rows(stays(None)), [8, 8]);
}

/// Whatever is merged, the program computes what the graph means.
#[test]
fn a_graph_of_which_some_layers_are_merged_means_the_same() {
    let graph = layers();
    let values = sample::values(&graph, &[(Symbol::new("batch"), 5)].into(), 3).unwrap();
    let theirs = eval(&graph, &values).unwrap();
    let some = |name: &str| Merging { rule: MergeRule::Never, layers: [(name.to_owned(), true)].into() };
    for (merge, denses) in
        [(Merging::NEVER, 0), (some("first"), 1), (some("second"), 1), (Merging::by_cost(stays(None)), 2)]
    {
        let compiled = compile(&graph, &Options { merge, ..Options::default() }).unwrap();
        assert_eq!(compiled.graph.op_counts().get("dense").copied().unwrap_or(0), denses);
        let worst = difference(&run(&compiled.program, &graph, &values), &theirs);
        assert!(worst <= 1.0, "off by {worst} tolerances");
        let decided = compiled.trace.decisions().filter(|decision| decision.merged).count();
        assert_eq!(decided, denses);
    }
}

#[test]
fn what_is_asked_for_and_cannot_be_is_an_error_and_otherwise_stays_with_the_reason() {
    let graph = layers();
    let output = MergeError::OutputDora { node: "third".to_owned() };
    let ask = |graph: &Graph, merge: Merging| pipeline::optimize(graph, &pipeline::Options { merge });
    let refused = |graph: &Graph, merge: Merging, expected: &MergeError| {
        let source = Box::new(PassError::Merge(expected.clone()));
        assert_eq!(ask(graph, merge).unwrap_err(), PipelineError::Pass { pass: "merge", source });
    };
    let third = Merging { rule: MergeRule::ByCost(stays(None)), layers: [("third".to_owned(), true)].into() };
    refused(&graph, Merging::ALWAYS, &output);
    refused(&graph, third, &output);
    let known = ["first", "second", "third"].map(str::to_owned).to_vec();
    let unknown = MergeError::Unknown { name: "fourth".to_owned(), known };
    let fourth = Merging { rule: MergeRule::Never, layers: [("fourth".to_owned(), true)].into() };
    refused(&graph, fourth, &unknown);
    assert_eq!(unknown.to_string(), "there is no adapted layer `fourth`; there are: first, second, third");
    let third = ask(&graph, Merging::by_cost(stays(None))).unwrap().trace;
    let third = third.decisions().find(|decision| decision.layer == "third").unwrap().to_string();
    assert_eq!(third, format!("third: factored, since {output}"));

    // A rank that an adapter's tensors bind may be merged, but nothing says whether it pays.
    let open = written(|g, x| {
        let [w, a, b] = weights(g, "fc", 40, 24, &dims!["r"]);
        x.lora(w, a, b, None, 2.0).named("fc")
    });
    let decision = ask(&open, Merging::by_cost(stays(None))).unwrap().trace;
    let expected =
        "fc: factored, since `fc` has a dim `r` that is open until it is loaded, so its cost is not known";
    assert_eq!(decision.decisions().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
    let merged = ask(&open, Merging::ALWAYS).unwrap();
    assert_eq!(merged.graph.op_counts()["dense"], 1);
    assert_eq!(merged.trace.decisions().map(ToString::to_string).collect::<Vec<_>>(), ["fc: merged as told"]);

    let live = written(|g, x| {
        let [w, a, b] = weights(g, "fc", 40, 24, &dims![4]);
        x.lora(w, a.live(), b, None, 2.0).named("fc")
    });
    let reason = MergeError::Live { node: "fc".to_owned(), operand: "a", name: "fc.a".to_owned() };
    refused(&live, Merging::ALWAYS, &reason);
    let decision = ask(&live, Merging::by_cost(stays(None))).unwrap().trace.to_string();
    assert!(decision.contains("fc: factored, since `fc` cannot be merged: its a `fc.a`"), "{decision}");
}

/// An adapter of a bank is decided of when it is loaded, and its weights say so.
#[test]
fn a_banks_adapters_are_marked() {
    let tensor = |shape: &[usize]| {
        Arc::new(engraft_runtime::Tensor::f32(shape, vec![0.5; shape.iter().product()]).unwrap())
    };
    let layer = |out: usize, k: usize| {
        let update =
            Update { a: tensor(&[4, k]), b: tensor(&[out, 4]), scale: 1.0, magnitude: None, bias_of_b: None };
        LayerWeights { updates: vec![update], ..LayerWeights::default() }
    };
    let bias = LayerWeights { bias: Some(tensor(&[24])), ..LayerWeights::default() };
    let named = [("first", layer(48, 24)), ("second", layer(24, 48)), ("third", bias)];
    let adapter: AdapterWeights = named.map(|(name, layer)| (name.to_owned(), layer)).into();
    let marked = |merging: &Merging, taken: u64| {
        let mut adapter = adapter.clone();
        let decisions = merging.mark(&mut adapter, None, 0, taken);
        let marked: Vec<_> =
            adapter.iter().filter(|(_, layer)| layer.merge).map(|(name, _)| name.clone()).collect();
        assert_eq!(merged(&decisions), marked);
        marked
    };
    assert_eq!(marked(&Merging::NEVER, 0), [""; 0]);
    assert_eq!(marked(&Merging::ALWAYS, 0), ["first", "second"]);
    // 4608 and 6144 bytes, of which other adapters may have taken some.
    assert_eq!(marked(&Merging::by_cost(stays(Some(10752))), 0), ["first", "second"]);
    assert_eq!(marked(&Merging::by_cost(stays(Some(10752))), 1).len(), 1);
    assert_eq!(marked(&Merging::by_cost(stays(Some(10752))), 10752), [""; 0]);
}
