//! Stages are inferred: from sources, through operands, and from what binds the symbols of a shape.

use engraft_ir::{Stage, Stages, Symbol, text};
use engraft_testing::arb_graph;
use proptest::prelude::*;

#[test]
fn a_stage_is_the_latest_of_what_it_is_computed_from() {
    let graph = text::parse(
        "engraft 1
        graph stages
        x: f32[batch, 2] = input()
        w: f32[3, 2] @base = param()
        a: f32[1, 2] @adapter = param()
        b: f32[3, 1] @adapter = param()
        live: f32[3] @call = param()
        c @compile = constant() {shape: [3], values: {\"f32\": [1, 2, 3]}}
        early @compile = scale(c) {factor: 2}
        squares @base = square(w)
        delta @adapter = lora_delta(a, b) {scale: 1}
        adapted @adapter = add(squares, delta)
        norm @adapter = lora_norm(w, a, b) {scale: 1}
        gain @call = div(live, norm)
        y @call = dense(x, adapted, gain)
        output y = y
        output early = early",
    )
    .unwrap();
    let stages = Stages::of(&graph);
    assert_eq!(stages.symbol(&Symbol::new("batch")), Some(Stage::Call));
    assert_eq!(stages.symbol(&Symbol::new("seq")), None);
}

#[test]
fn symbols_are_known_when_their_earliest_source_is() {
    // The rank is the adapter's to say; a shape that uses it is no earlier, though its operand is.
    let graph = text::parse(
        "engraft 1
        graph symbols
        x: f32[rank, 2] @call = input()
        w: f32[rows, 2] @base = param()
        a: f32[rank, 2] @adapter = param()
        c = constant() {shape: [1, 2], values: {\"f32\": [1, 2]}}
        tall @base = broadcast(c) {shape: [\"rows\", 2]}
        wide @adapter = broadcast(c) {shape: [\"rank\", 2]}
        y @adapter = add(a, wide)
        output y = y
        output tall = tall
        output x = x
        output w = w",
    )
    .unwrap();
    assert_eq!(Stages::of(&graph).symbol(&Symbol::new("rank")), Some(Stage::Adapter));
    assert_eq!(Stages::of(&graph).symbol(&Symbol::new("rows")), Some(Stage::Base));
}

proptest! {
    #[test]
    fn no_node_is_earlier_than_its_operands(graph in arb_graph()) {
        let stages = Stages::of(&graph);
        for id in graph.order() {
            for operand in graph.operands(id).into_iter().flatten() {
                prop_assert!(stages.node(operand) <= stages.node(id));
            }
        }
    }
}
