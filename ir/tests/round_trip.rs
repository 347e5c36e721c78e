//! Text and JSON are inverses of printing, on random graphs; and random graphs evaluate.

use engraft_ir::{eval, json, sample, text, verify};
use engraft_testing::{arb_bindings, arb_graph};
use proptest::prelude::*;

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
