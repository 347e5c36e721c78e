//! What is not a graph is an error that says why, never a panic, and never memory without bound.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use engraft_ir::json::{self, JsonError};
use engraft_ir::text::{self, TextError};
use engraft_ir::{MAX_BYTES, MAX_OUTPUTS};
use proptest::prelude::*;

const SMALL_TEXT: &str = "engraft 1\ngraph g\nx: f32[n, 2] @call = input()\nw: f32[2] @base = param() \
                          {init: \"ones\"}\ny: f32[n, 2] @call = rms_norm(x, w) {epsilon: 0.5}\noutput y = y\n";

fn small_json() -> String {
    json::to_string(&text::parse(SMALL_TEXT).unwrap())
}

/// A text with one line in it, and a part of the message.
#[rustfmt::skip]
const LINES: &[(&str, &str)] = &[
    ("y", "expected `: type`, ` @stage` or ` =` after the name, found `the end of the line`"),
    ("y =", "expected an op, found `the end of the line`"),
    ("y = relu", "expected `(` and the operands"),
    ("y = relu(", "expected an operand or `_`"),
    ("y = relu(x", "expected `,` or `)` after an operand"),
    ("y = relu(x,)", "expected an operand or `_`, found `)`"),
    ("y = relu(x) z", "expected the end of the line, found `z`"),
    ("y = relu(x) {", "expected an attribute's name"),
    ("y = relu(x) {}", "expected an attribute's name, found `}`"),
    ("y = scale(x) {factor}", "expected `:` after an attribute's name"),
    ("y = scale(x) {factor: }", "the value of attribute `factor` is no JSON value"),
    ("y = scale(x) {factor: NaN}", "the value of attribute `factor` is no JSON value"),
    ("y = scale(x) {factor: 1e999}", "number out of range"),
    ("y = scale(x) {factor: 1, factor: 2}", "attribute `factor` is there twice"),
    ("y = scale(x) {factor: {\"a\": 1, \"a\": 2}}", "the key `a` is there twice"),
    ("y = scale(x) {factor: 1 bias: 2}", "expected `,` or `}` after an attribute"),
    ("y = scale(x) {factor: 1, bias: 2}", "unknown field `bias`"),
    ("y = scale(x)", "missing field `factor`"),
    ("y = swish(x)", "`y`: there is no op `swish`"),
    ("y = relu(x, x)", "takes 1 operands, found 2"),
    ("y = relu(_)", "operand `x` is missing"),
    ("x = relu(x)", "the name `x` is taken by another node (input)"),
    ("y: f32 = relu(x)", "expected a type such as"),
    ("y: f31[2] = relu(x)", "`f31[2]` is not a type"),
    ("y: f32[n-1] = relu(x)", "`n-1` is not a dim"),
    ("y: f32[1000000000000000000] = input()", "is too large"),
    ("y: f32[1048576, 1048577] = input()", "is too large"),
    ("y:f32[2] = relu(x)", "after the name, found `[2] = relu(x)`"),
    ("y:: f32[2] = input()", "`y:` is not a name"),
    ("_ = relu(x)", "`_` is not a name"),
    ("é = relu(x)", "expected a node's name or `output`, found `é = relu(x)`"),
    ("y @later = relu(x)", "expected compile, base, adapter or call after `@`, found `later"),
    ("y: f32[2] @compile = param()", "attribute `binding` is compile"),
    ("y: f32[2] = param() {binding: \"base\"}", "attribute `binding` stands before the `=`"),
    ("y: f32[2] = input() {shape: [2]}", "attribute `shape` stands before the `=`"),
    ("y: f32[2] @base = input()", "found stage base, expected call"),
    ("output x = x", "there is an output `x` already"),
    ("output z = nowhere", "there is no node `nowhere`"),
    ("output z = x y", "expected the end of the line"),
    ("output z x", "expected `=`"),
    ("graph h", "found `h`"),
    ("y: f32[2*m] = input()", "dim `m` of `y` is unknown"),
    ("p: f32[2*n] = param()", "parameter `p` is given at stage base, but its dim `n` is known only at stage call"),
];

#[test]
fn a_bad_line_is_named() {
    for (line, expected) in LINES {
        let lines = format!("engraft 1\ngraph g\nx: f32[n] = input()\n{line}\noutput x = x");
        let error = text::parse(&lines).expect_err(line);
        assert!(error.to_string().contains(expected), "{line}: {error}");
        let whole = matches!(error, TextError::Invalid { .. });
        let at = if line.starts_with("output x") { "line 5: " } else { "line 4: " };
        assert!(whole || error.to_string().starts_with(at), "{line}: {error}");
    }
}

#[test]
fn a_bad_header_is_named() {
    for (lines, expected) in [
        ("", "the text ends where `engraft 1` is expected"),
        ("# nothing", "the text ends where `engraft 1` is expected"),
        ("engraft 1", "the text ends where `graph` and the graph's name is expected"),
        ("graph g", "line 1: expected `engraft` and the version, found `graph g`"),
        ("engraft 2\ngraph g", "line 1: found version `2`, expected 1"),
        ("engraft one\ngraph g", "line 1: found version `one`, expected 1"),
        ("engraft 1\nx: f32[2] = input()", "line 2: expected `graph` and the graph's name, found `x: f32[2]"),
        ("engraft 1\ngraph a b", "line 2: `a b` is not a name"),
        ("engraft 1\ngraph g", "the graph is not valid:\n  the graph has no output"),
    ] {
        let error = text::parse(lines).expect_err(lines);
        assert!(error.to_string().starts_with(expected), "{lines}: {error}");
    }
}

#[test]
fn json_that_is_no_graph_is_named() {
    let nodes = |nodes: &str| {
        format!(
            r#"{{"engraft": 1, "name": "g", "nodes": [{nodes}], "outputs": [{{"name": "y", "node": "x"}}]}}"#
        )
    };
    let x = r#"{"name": "x", "op": "input", "attributes": {"dtype": "f32", "shape": [2]}}"#;
    let input = |shape: &str| nodes(&x.replace("[2]", shape));
    let with = |node: &str| nodes(&format!("{x}, {node}"));
    let node = |fields: &str| with(&format!(r#"{{"name": "y", {fields}}}"#));
    assert!(json::from_str(&nodes(x)).is_ok());
    let small = nodes(x);
    let cases = [
        (String::new(), "line 1, column 0: EOF while parsing"),
        ("null".to_owned(), "invalid type: null"),
        ("[1]".to_owned(), "invalid type: sequence, expected an object"),
        ("{}".to_owned(), "field `engraft` must be the version, 1; found none"),
        (small.replace("\"engraft\": 1", "\"engraft\": 2"), "must be the version, 1; found 2"),
        (small.replace("\"engraft\": 1", "\"engraft\": \"1\""), "invalid type: string \"1\", expected u64"),
        (small.replace("\"engraft\": 1", "\"engraft\": 1, \"engraft\": 1"), "duplicate field `engraft`"),
        (small.replace("\"name\": \"g\"", "\"title\": \"g\""), "unknown field `title`"),
        (small.replace("\"name\": \"g\", ", ""), "missing field `name`"),
        (small.replace("\"name\": \"g\"", "\"name\": \"a b\""), "field `name`: `a b` is not a name"),
        (small.replace("\"node\": \"x\"", "\"node\": \"z\""), "outputs[0]: there is no node `z`"),
        (small.replace("\"node\": \"x\"", "\"node\": \"x\", \"type\": 1"), "unknown field `type`"),
        (format!("{small} x"), "trailing characters"),
        (small.replace("\"shape\": [2]", "\"shape\": [2], \"shape\": [3]"), "the key `shape` is there twice"),
        (input("[1000000000000000000]"), "nodes[0]: `x`: op `input`: dim `1000000000000000000` is too large"),
        (input("[1000000, 1000000, 1000000]"), "is too large"),
        (input("[1, 1, 1, 1, 1, 1, 1, 1, 1]"), "is too large"),
        (input("[-2]"), "a non-negative integer or a string"),
        (input("[2.5]"), "a non-negative integer or a string"),
        (input("[NaN]"), "expected value"),
        (input("[1e400]"), "number out of range"),
        (input("2"), "expected a sequence"),
        (with(x), "nodes[1]: the name `x` is taken by another node (input)"),
        (with("7"), "invalid type: integer `7`, expected an object"),
        (with(r#"["y", "relu", ["x"]]"#), "invalid type: sequence, expected an object"),
        (
            node(r#""op": "relu", "operands": ["x"], "type": ["f32", [2]]"#),
            "invalid type: sequence, expected an object",
        ),
        (node(r#""op": "swish", "operands": ["x"]"#), "nodes[1]: `y`: there is no op `swish`"),
        (node(r#""op": "relu", "operands": ["z"]"#), "operand `z` is not defined before it"),
        (node(r#""op": "relu", "operands": ["y"]"#), "so a cycle cannot be written"),
        (node(r#""op": "relu", "operands": [0]"#), "invalid type: integer `0`, expected a string"),
        (node(r#""op": "relu", "operands": "x""#), "expected an array of at most 1024 elements"),
        (node(r#""op": "relu", "operands": ["x"], "stage": "later""#), "unknown variant `later`"),
        (node(r#""op": "relu", "operands": ["x"], "dtype": "f32""#), "unknown field `dtype`"),
        (
            node(r#""op": "relu", "operands": ["x"], "attributes": []"#),
            "invalid type: sequence, expected an object",
        ),
        (node(r#""op": "relu", "operands": ["x"], "attributes": {"slope": 1}"#), "unknown field `slope`"),
        (
            node(r#""op": "relu", "operands": ["x"], "type": {"dtype": "f32", "shape": [3]}"#),
            "found type f32[3], expected f32[2]",
        ),
        (node(r#""op": "relu", "operands": ["x"], "type": {"dtype": "f32"}"#), "missing field `shape`"),
        (node(r#""op": "relu", "operands": ["x"], "stage": "base""#), "found stage base, expected call"),
        (node(r#""op": "scale", "operands": ["x"], "attributes": {"factor": "2"}"#), "expected f64"),
        (
            node(&format!(r#""op": "concat", "operands": [{}null]"#, "\"x\",".repeat(1024))),
            "invalid length 1025, expected an array of at most 1024 elements",
        ),
        (
            node(&format!(
                r#""op": "constant", "attributes": {{"shape": [5000], "values": {{"f32": [{}0]}}}}"#,
                "0,".repeat(4999)
            )),
            "invalid length 4097, expected an array of at most 4096 elements",
        ),
        (
            node(&format!(
                r#""op": "relu", "attributes": {{"a": {}{}}}"#,
                "[".repeat(100_000),
                "]".repeat(100_000)
            )),
            "recursion limit exceeded",
        ),
        (nodes(&"[".repeat(1_000_000)), "expected `,` or `]`"),
        (
            small.replace(
                "{\"name\": \"y\"",
                &format!("{}{{\"name\": \"y\"", r#"{"name": "y", "node": "x"}, "#.repeat(MAX_OUTPUTS)),
            ),
            "expected an array of at most 4096 elements",
        ),
    ];
    for (input, expected) in cases {
        let shown: String = input.chars().take(200).collect();
        let error = json::from_str(&input).expect_err(&shown);
        assert!(error.to_string().contains(expected), "{shown}: {error}");
    }
}

#[test]
fn what_is_too_long_is_not_read() {
    let long = " ".repeat(MAX_BYTES + 1);
    assert_eq!(text::parse(&long), Err(TextError::TooLong { found: MAX_BYTES + 1 }));
    assert_eq!(json::from_str(&long), Err(JsonError::TooLong { found: MAX_BYTES + 1 }));
}

#[test]
fn cut_anywhere_it_is_an_error_or_a_graph_but_never_a_panic() {
    let json = small_json();
    for end in 0..json.trim_end().len() {
        assert!(json::from_slice(&json.as_bytes()[..end]).is_err(), "{}", &json[..end]);
    }
    // `output y = y` is whole without its newline, and nothing shorter is.
    for end in 0..SMALL_TEXT.trim_end().len() {
        assert!(text::parse(&SMALL_TEXT[..end]).is_err(), "{}", &SMALL_TEXT[..end]);
    }
    assert!(json::from_slice(&[0xff, 0xfe]).is_err());
}

proptest! {
    #[test]
    fn a_changed_byte_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut json = small_json().into_bytes();
        let at_json = at.index(json.len());
        json[at_json] = byte;
        if let Ok(graph) = json::from_slice(&json) {
            prop_assert_eq!(json::from_str(&json::to_string(&graph)).unwrap(), graph);
        }
        let mut text = SMALL_TEXT.as_bytes().to_vec();
        let at_text = at.index(text.len());
        text[at_text] = byte;
        if let Ok(graph) = text::parse(&String::from_utf8_lossy(&text)) {
            prop_assert_eq!(text::parse(&text::print(&graph)).unwrap(), graph);
        }
    }

    #[test]
    fn any_text_never_panics(text in "\\PC{0,200}") {
        let _ = text::parse(&text);
        let _ = text::parse(&format!("engraft 1\ngraph g\n{text}"));
        let _ = json::from_str(&text);
    }
}
