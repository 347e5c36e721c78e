//! The pages in `docs/` stay true: their example loads, and their table of ops is the table of ops.

use engraft_ir::op::{OpInfo, Slot};
use engraft_ir::{Op, eval, json, sample, text};
use engraft_testing::bindings;
use std::fmt::Write as _;

const PAGE: &str = include_str!("../../docs/json-format.md");
const WALK: &str = include_str!("../../docs/add-an-op.md");

/// The fenced blocks of a language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(fence.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn the_example_is_a_graph_that_runs() {
    let examples = blocks(PAGE, "json");
    let graph = json::from_str(examples[0]).unwrap();
    let values = sample::values(&graph, &bindings(&[("batch", 3)]), 1).unwrap();
    assert_eq!(eval::eval(&graph, &values).unwrap()["y"].shape(), [3, 8]);
    let same = blocks(PAGE, "text");
    assert_eq!(text::parse(same[0]).unwrap(), graph);
}

#[test]
fn the_smallest_fragments_are_json() {
    for fragment in &blocks(PAGE, "json")[1..] {
        assert!(serde_json::from_str::<serde_json::Value>(fragment).is_ok(), "{fragment}");
    }
}

fn list<T>(items: &[T], show: impl Fn(&T) -> String) -> String {
    if items.is_empty() { "none".to_owned() } else { items.iter().map(show).collect::<Vec<_>>().join("; ") }
}

fn row(info: &OpInfo) -> String {
    let slot = |slot: &Slot| {
        let note = if info.variadic {
            ", once or more"
        } else if slot.optional {
            ", optional"
        } else {
            ""
        };
        format!("`{}`{note}", slot.name)
    };
    let attribute = |(name, meaning): &(&str, &str)| format!("`{name}`: {meaning}");
    let (slots, attributes) = (list(info.slots, slot), list(info.attributes, attribute));
    format!("| `{}` | {slots} | {attributes} | {} |", info.name, info.formula)
}

#[test]
fn the_table_of_ops_is_complete() {
    let mut table = "| op | operands | attributes | meaning |\n|---|---|---|---|\n".to_owned();
    for info in Op::table() {
        let _ = writeln!(table, "{}", row(info));
    }
    assert!(PAGE.contains(&table), "the table in docs/json-format.md should be:\n{table}");
}

#[test]
fn the_walk_through_names_files_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for path in WALK.split('`').filter(|word| word.starts_with("ir/") || word.starts_with("docs/")) {
        assert!(path.contains('<') || root.join(path).exists(), "{path}");
    }
}
