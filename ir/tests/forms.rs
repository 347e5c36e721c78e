//! Version 1 of the text and JSON forms: two files of one graph with every op, which must go on to read and to print
//! the same; and the freedom that people have in writing by hand.

use engraft_ir::text::TextError;
use engraft_ir::{DType, Op, Stage, dot, json, text};

const TEXT: &str = include_str!("data/v1.txt");
const JSON: &str = include_str!("data/v1.json");

#[test]
fn version_1_reads_and_prints_the_same() {
    let graph = text::parse(TEXT).unwrap();
    assert_eq!(text::print(&graph), TEXT);
    assert_eq!(json::from_str(JSON).unwrap(), graph);
    assert_eq!(json::from_slice(JSON.as_bytes()).unwrap(), graph);
    assert_eq!(json::to_string(&graph), JSON);
}

#[test]
fn version_1_has_every_op_dtype_and_stage() {
    let graph = json::from_str(JSON).unwrap();
    let counts = graph.op_counts();
    let missing: Vec<_> = Op::table().filter(|info| !counts.contains_key(info.name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for dtype in DType::ALL {
        assert!(graph.nodes().any(|node| node.ty().dtype == dtype), "{dtype}");
    }
    for stage in Stage::ALL {
        assert!(TEXT.contains(&format!("@{stage} ")), "{stage}");
    }
}

#[test]
fn hand_written_text_may_leave_out_what_follows() {
    let full = "engraft 1\ngraph g\n\nx: f32[batch, 2] @call = input()\nw: f32[3, 2] @base = param()\n\
                output: f32[batch, 3] @call = dense(x, w)\n\noutput y = output\n";
    let brief = "
        # a layer
        engraft 1
        graph g
        x:   f32[ batch,2 ]=input( )
        # frozen
        w: f32[3, 2] = param() \r
        output = dense( x ,w )
        output   y=output";
    assert_eq!(text::parse(brief).unwrap(), text::parse(full).unwrap());
    assert_eq!(text::print(&text::parse(brief).unwrap()), full);
    let staged = brief.replace("output = dense", "output @call = dense");
    assert_eq!(text::parse(&staged).unwrap(), text::parse(full).unwrap());
}

#[test]
fn hand_written_json_may_leave_out_what_follows() {
    let brief = r#"{"name": "g", "engraft": 1, "outputs": [{"node": "r", "name": "y"}], "nodes": [
        {"op": "input", "name": "x", "attributes": {"shape": ["n", 2], "dtype": "f32"}},
        {"name": "b", "op": "param", "attributes": {"dtype": "f32", "shape": [2]}, "stage": "base"},
        {"name": "r", "op": "layer_norm", "operands": ["x", null, "b"], "attributes": {"epsilon": 1}}]}"#;
    let graph = json::from_str(brief).unwrap();
    assert!(text::print(&graph).contains("r: f32[n, 2] @call = layer_norm(x, _, b) {epsilon: 1.0}"));
    insta::assert_snapshot!(json::to_string(&graph));
}

#[test]
fn attributes_are_printed_so_that_they_read_back_whatever_they_hold() {
    let line = "p: f32[] = param() {group: \"a } , { \\\" \\u0000 é\"}";
    let graph = text::parse(&format!("engraft 1\ngraph g\n{line}\noutput y = p")).unwrap();
    assert_eq!(graph.params()[0].group, "a } , { \" \0 é");
    assert_eq!(text::parse(&text::print(&graph)), Ok(graph.clone()));
    assert_eq!(json::from_str(&json::to_string(&graph)).unwrap(), graph);
}

#[test]
fn a_wrong_claim_names_the_line_what_is_found_and_what_is_expected() {
    let error = |line: &str| {
        let lines = format!("engraft 1\ngraph g\n# comment\nx: f32[n] = input()\n{line}\noutput y = y");
        text::parse(&lines).unwrap_err().to_string()
    };
    assert_eq!(error("y: f32[m] = relu(x)"), "line 5: `y`: found type f32[m], expected f32[n]");
    assert_eq!(error("y: f64[n] = relu(x)"), "line 5: `y`: found type f64[n], expected f32[n]");
    assert_eq!(error("y @base = relu(x)"), "line 5: `y`: found stage base, expected call");
    assert_eq!(
        error("y = relu(z)\nz = relu(x)"),
        "line 5: `y`: operand `z` is not defined before it; operands come first, so a cycle cannot be written"
    );
    assert_eq!(error("y = relu(y)"), error("y = relu(z)").replace("`z`", "`y`"));
    let cyclic = JSON.replacen(r#""operands": ["mul"]"#, r#""operands": ["neg"]"#, 1);
    let error = json::from_str(&cyclic).unwrap_err().to_string();
    assert!(error.contains("`scale`: operand `neg` is not defined before it"), "{error}");
    let retyped = JSON.replacen(r#""stage": "adapter""#, r#""stage": "base""#, 1);
    let error = json::from_str(&retyped).unwrap_err().to_string();
    assert!(error.contains("`lora_A`: found stage base, expected adapter"), "{error}");
}

#[test]
fn an_untyped_source_says_what_to_write() {
    let error = text::parse("engraft 1\ngraph g\nx = input()\noutput x = x").unwrap_err();
    assert!(matches!(&error, TextError::Untyped { line: 3, .. }), "{error}");
    assert_eq!(error.to_string(), "line 3: `x` needs a type, as in `x: f32[batch, 24] = input()`");
}

#[test]
fn dot_is_deterministic_and_escaped() {
    let graph = text::parse(
        "engraft 1
        graph g
        x: f32[n] = input()
        w: f32[2, n] @base = param() {group: \"a \\\"b\\\"\"}
        n: f32[n] @base = param()
        d = normalize(w) {axis: 1, epsilon: 0.1, epsilon_at: \"max\"}
        y = dense(x, d)
        output y = y",
    )
    .unwrap();
    insta::assert_snapshot!(dot::print(&graph));
}
