//! Text and JSON are inverses of printing, on random graphs; and random graphs evaluate.

use engraft_ir::{Op, eval, json, sample, text, verify};
use engraft_testing::{arb_bindings, arb_graph};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::BTreeSet;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn text_and_json_round_trip(graph in arb_graph()) {
        prop_assert_eq!(verify(&graph), Ok(()));
        let printed = text::print(&graph);
        let parsed = text::parse(&printed).unwrap();
        prop_assert_eq!(&parsed, &graph);
        prop_assert_eq!(text::print(&parsed), printed);

        let written = json::to_string(&graph);
        let read = json::from_str(&written).unwrap();
        prop_assert_eq!(&read, &graph);
        prop_assert_eq!(json::to_string(&read), written);
    }

    #[test]
    fn types_and_stages_follow_from_the_rest(graph in arb_graph()) {
        let mut document: serde_json::Value = serde_json::from_str(&json::to_string(&graph)).unwrap();
        for node in document["nodes"].as_array_mut().unwrap() {
            let node = node.as_object_mut().unwrap();
            prop_assert!(node.remove("type").is_some() && node.remove("stage").is_some());
        }
        prop_assert_eq!(json::from_str(&document.to_string()).unwrap(), graph);
    }

    #[test]
    fn what_is_read_means_the_same(graph in arb_graph(), bindings in arb_bindings(), seed in any::<u64>()) {
        let values = sample::values(&graph, &bindings, seed).unwrap();
        let result = eval::eval(&graph, &values).unwrap();
        let read = json::from_str(&json::to_string(&graph)).unwrap();
        prop_assert_eq!(&eval::eval(&read, &values).unwrap(), &result);
        for (name, ty) in graph.output_types() {
            prop_assert_eq!(result[&name].shape(), ty.shape.eval(&bindings).unwrap());
            prop_assert!(result[&name].as_real().unwrap().iter().all(|y| y.is_finite()), "{name}");
        }
    }
}

#[test]
fn random_graphs_have_every_op() {
    let mut runner = TestRunner::deterministic();
    let mut missing: BTreeSet<_> = Op::table().map(|info| info.name).collect();
    for _ in 0..1000 {
        let counts = arb_graph().new_tree(&mut runner).unwrap().current().op_counts();
        missing.retain(|name| !counts.contains_key(name));
    }
    assert!(missing.is_empty(), "{missing:?}");
}
