//! Every op's refusals: operands and attributes that break its rule, and what the error says.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use engraft_ir::Graph;
use engraft_ir::ops::Input;
use engraft_ir::{GraphError, NodeId, Op, TensorType};
use serde_json::{Map, Value as Json};
use std::collections::BTreeSet;

/// Op, attributes, operand types (`_` for none), and a part of the message.
type Refusal = (&'static str, &'static str, &'static [&'static str], &'static str);

#[rustfmt::skip]
const REFUSALS: &[Refusal] = &[
    ("input", r#"{"dtype": "f32", "shape": [9, 1, 1, 1, 1, 1, 1, 1, 1]}"#, &[], "is too large"),
    ("input", r#"{"dtype": "f16", "shape": [2]}"#, &[], "unknown variant `f16`"),
    ("input", r#"{"dtype": "f32", "shape": [1000000000000000000]}"#, &[], "is too large"),
    ("input", r#"{"dtype": "f32", "shape": [1048576, 1048577]}"#, &[], "is too large"),
    ("input", r#"{"dtype": "f32", "shape": [-1]}"#, &[], "a non-negative integer or a string"),
    ("input", r#"{"dtype": "f32", "shape": ["a b"]}"#, &[], "`a b` is not a dim"),
    ("input", r#"{"dtype": "f32"}"#, &[], "missing field `shape`"),
    ("input", r#"{"dtype": "f32", "shape": []}"#, &["f32[2]"], "takes 0 operands, found 1"),
    ("param", r#"{"dtype": "f32", "shape": [], "binding": "compile"}"#, &[], "attribute `binding` is compile"),
    ("param", r#"{"dtype": "f32", "shape": [], "binding": "later"}"#, &[], "unknown variant `later`"),
    ("param", r#"{"dtype": "f32", "shape": [2], "init": {"normal": {"std": -1}}}"#, &[], "attribute `init` is -1"),
    ("param", r#"{"dtype": "f32", "shape": [2], "init": "glorot_uniform"}"#, &[], "a float matrix only"),
    ("param", r#"{"dtype": "f32", "shape": [2, 2], "init": "norm"}"#, &[], "a float vector only"),
    ("param", r#"{"dtype": "i32", "shape": [2], "init": {"normal": {"std": 1}}}"#, &[], "zeros or ones"),
    ("constant", r#"{"shape": [3], "values": {"f32": [1, 2]}}"#, &[], "is 2 elements, expected as many elements as [3]"),
    ("constant", r#"{"shape": ["n"], "values": {"f32": [1, 2]}}"#, &[], "expected fixed dims"),
    ("constant", r#"{"shape": [1], "values": {"f32": [1e60]}}"#, &[], "an infinity or NaN"),
    ("constant", r#"{"shape": [1], "values": {"i32": [1.5]}}"#, &[], "expected i32"),
    ("constant", r#"{"shape": [1], "values": {"i32": [3000000000]}}"#, &[], "expected i32"),
    ("constant", r#"{"shape": [1], "values": {"f32": [1], "f64": [1]}}"#, &[], "expected map with a single key"),
    ("dense", "{}", &["f32[2, 3]"], "takes 2 to 3 operands, found 1"),
    ("dense", "{}", &["f32[2, 3]", "_", "f32[4]"], "operand `weight` is missing"),
    ("dense", "{}", &["f32[2, 3]", "f32[4, 5]"], "`x` f32[2, 3] and `weight` f32[4, 5] do not fit: x is [.., in]"),
    ("dense", "{}", &["f32[2, 3]", "f32[4, 3]", "f32[3]"], "`weight` f32[4, 3] and `bias` f32[3] do not fit"),
    ("dense", "{}", &["f32[2, 3]", "f32[3]"], "operand `weight` must have two axes, [out, in], found f32[3]"),
    ("dense", "{}", &["f32[]", "f32[4, 3]"], "operand `x` must have at least one axis"),
    ("dense", "{}", &["f32[2, 3]", "f64[4, 3]"], "operand `weight` must be f32 like `x`, found f64[4, 3]"),
    ("dense", "{}", &["i32[2, 3]", "i32[4, 3]"], "operand `x` must be f32 or f64, found i32[2, 3]"),
    ("dense", r#"{"bias": true}"#, &["f32[2, 3]", "f32[4, 3]"], "unknown field `bias`"),
    ("dense", "{}", &["f32[2, n]", "f32[4, m]"], "do not fit"),
    ("adaptable", r#"{"module": "fc"}"#, &["f32[3]", "f32[4, 3]"], "operand `x` must have two axes at least, [items, .., in]"),
    ("adaptable", r#"{"module": ""}"#, &["f32[2, 3]", "f32[4, 3]"], "attribute `module` is an empty name, expected a name"),
    ("adaptable", "{}", &["f32[2, 3]", "f32[4, 3]"], "missing field `module`"),
    ("adaptable", r#"{"module": "fc"}"#, &["f32[2, 3]", "f32[4, 3]", "f32[3]"], "`weight` f32[4, 3] and `bias` f32[3] do not fit"),
    ("matmul", "{}", &["f32[2, 3]", "f32[4, 5]"], "a is [.., m, k] and b [.., k, n]"),
    ("matmul", "{}", &["f32[6, 2, 3]", "f32[7, 3, 5]"], "b has the leading dims of a, or none"),
    ("matmul", "{}", &["f32[2, 3]", "f32[7, 3, 5]"], "b has the leading dims of a, or none"),
    ("matmul", "{}", &["f32[3]", "f32[3, 5]"], "operand `a` must have at least two axes"),
    ("lora_delta", r#"{"scale": 1}"#, &["f32[2, 3]", "f32[4, 5]"], "a is [r, in] and b [out, r]"),
    ("lora_delta", "{}", &["f32[2, 3]", "f32[4, 2]"], "missing field `scale`; its attributes are `scale` (s, finite)"),
    ("lora_delta", r#"{"scale": "2"}"#, &["f32[2, 3]", "f32[4, 2]"], "expected f64"),
    ("lora_apply", r#"{"scale": 1}"#, &["f32[7]", "f32[2, 3]", "f32[4, 2]"], "x is [.., in] and a [r, in]"),
    ("lora_norm", r#"{"scale": 1}"#, &["f32[4, 5]", "f32[2, 3]", "f32[4, 2]"], "weight is [out, in] and a [r, in]"),
    ("lora_norm", r#"{"scale": 1}"#, &["f32[5, 3]", "f32[2, 3]", "f32[4, 2]"], "weight is [out, in] and b [out, r]"),
    ("normalize", r#"{"axis": 2, "epsilon": 0, "epsilon_at": "max"}"#, &["f32[2, 3]"], "axis 2 is outside f32[2, 3], which has 2 axes"),
    ("normalize", r#"{"axis": 18446744073709551615, "epsilon": 0, "epsilon_at": "max"}"#, &["f32[2, 3]"], "is outside f32[2, 3]"),
    ("normalize", r#"{"axis": 0, "epsilon": -1, "epsilon_at": "max"}"#, &["f32[2, 3]"], "attribute `epsilon` is -1"),
    ("normalize", r#"{"axis": 0, "epsilon": 0, "epsilon_at": "within"}"#, &["f32[2, 3]"], "unknown variant `within`"),
    ("magnitude", r#"{"axis": 0}"#, &["f32[2, 3]", "f32[3]"], "m has the length of v's axis"),
    ("magnitude", r#"{"axis": 0}"#, &["f32[2, 3]", "f32[2, 1]"], "operand `m` must have one axis"),
    ("magnitude", r#"{"axis": 18446744073709551615}"#, &["f32[2, 3]", "f32[3]"], "is outside"),
    ("lora", r#"{"scale": 1}"#, &["f32[3]", "f32[4, 3]", "f32[2, 5]", "f32[4, 2]"], "weight is [out, in] and a [r, in]"),
    ("lora", r#"{"scale": 1}"#, &["f32[3]", "f32[4, 3]", "f32[2, 3]", "f32[4, 1]"], "a is [r, in] and b [out, r]"),
    ("dora", r#"{"scale": 1}"#, &["f32[3]", "f32[4, 3]", "f32[2, 3]", "f32[4, 2]", "f32[3]"], "weight is [out, in] and gain [out]"),
    ("dora", r#"{"scale": 1}"#, &["f32[3]", "f32[4, 3]", "f32[2, 3]", "f32[4, 2]"], "takes 5 to 6 operands, found 4"),
    ("output_dora", r#"{"scale": 1, "epsilon": 0}"#, &["f32[3]", "f32[4, 3]", "f32[2, 3]", "f32[4, 2]", "f32[3]"], "weight is [out, in] and magnitude [out]"),
    ("output_dora", r#"{"scale": 1, "epsilon": -1}"#, &["f32[3]", "f32[4, 3]", "f32[2, 3]", "f32[4, 2]", "f32[4]"], "attribute `epsilon` is -1"),
    ("add", "{}", &["f32[2, 3]", "f32[2]"], "axes aligned from the last are equal or 1"),
    ("sub", "{}", &["f32[2]", "f64[2]"], "operand `b` must be f32 like `a`"),
    ("mul", r#"{"axis": 1}"#, &["f32[2]", "f32[2]"], "unknown field `axis`; its attributes are none"),
    ("div", "{}", &["f32[batch]", "f32[seq]"], "do not fit"),
    ("scale", r#"{"factor": 1}"#, &["i64[2]"], "operand `x` must be f32 or f64"),
    ("scale", r#"{"factor": null}"#, &["f32[2]"], "expected f64"),
    ("neg", "{}", &[], "takes 1 operands, found 0"),
    ("sqrt", "{}", &["i32[2]"], "operand `x` must be f32 or f64"),
    ("rsqrt", "{}", &["f32[2]", "f32[2]"], "takes 1 operands, found 2"),
    ("square", "{}", &["_"], "operand `x` is missing"),
    ("relu", r#"{"slope": 0.1}"#, &["f32[2]"], "unknown field `slope`"),
    ("gelu", r#"{"approximate": "tanh"}"#, &["f32[2]"], "unknown field `approximate`"),
    ("gelu_tanh", "{}", &["i32[2]"], "operand `x` must be f32 or f64"),
    ("silu", "{}", &["i32[2]"], "operand `x` must be f32 or f64"),
    ("tanh", "{}", &["i32[2]"], "operand `x` must be f32 or f64"),
    ("sigmoid", "{}", &["i32[2]"], "operand `x` must be f32 or f64"),
    ("exp", "{}", &["i32[2]"], "operand `x` must be f32 or f64"),
    ("sin", "{}", &["i32[2]"], "operand `x` must be f32 or f64"),
    ("cos", "{}", &["i32[2]"], "operand `x` must be f32 or f64"),
    ("attention", r#"{"heads": 0, "kv_heads": 1, "scale": 1}"#, &["f32[b, n, 4]", "f32[b, n, 4]", "f32[b, n, 4]"], "attribute `heads` is 0"),
    ("attention", r#"{"heads": 4, "kv_heads": 3, "scale": 1}"#, &["f32[b, n, 4]", "f32[b, n, 4]", "f32[b, n, 4]"], "a divisor of the 4 heads"),
    ("attention", r#"{"heads": 4, "kv_heads": 0, "scale": 1}"#, &["f32[b, n, 4]", "f32[b, n, 4]", "f32[b, n, 4]"], "attribute `kv_heads` is 0"),
    ("attention", r#"{"heads": 2, "kv_heads": 2, "scale": 1, "window": 0}"#, &["f32[b, n, 4]", "f32[b, n, 4]", "f32[b, n, 4]"], "attribute `window` is 0"),
    ("attention", r#"{"heads": 3, "kv_heads": 3, "scale": 1}"#, &["f32[b, n, 4]", "f32[b, n, 4]", "f32[b, n, 4]"], "a divisor of the last dim of `q`"),
    ("attention", r#"{"heads": 2, "kv_heads": 2, "scale": 1}"#, &["f32[b, n, 4]", "f32[b, n, 4]", "f32[b, n, 3]"], "a divisor of the last dim of `v`"),
    ("attention", r#"{"heads": 2, "kv_heads": 2, "scale": 1}"#, &["f32[b, n, d]", "f32[b, n, d]", "f32[b, n, d]"], "which is fixed"),
    ("attention", r#"{"heads": 2, "kv_heads": 1, "scale": 1}"#, &["f32[b, n, 4]", "f32[b, n, 4]", "f32[b, n, 4]"], "a head of q is as wide as one of k"),
    ("attention", r#"{"heads": 2, "kv_heads": 2, "scale": 1}"#, &["f32[b, n, 4]", "f32[c, n, 4]", "f32[c, n, 4]"], "the batch is the same"),
    ("attention", r#"{"heads": 2, "kv_heads": 2, "scale": 1}"#, &["f32[b, n, 4]", "f32[b, n, 4]", "f32[b, m, 4]"], "as many keys as values"),
    ("attention", r#"{"heads": 2, "kv_heads": 2, "scale": 1}"#, &["f32[b, n, 4]", "f64[b, n, 4]", "f32[b, n, 4]"], "all have one element type"),
    ("attention", r#"{"heads": 2, "kv_heads": 2, "scale": 1}"#, &["f32[n, 4]", "f32[n, 4]", "f32[n, 4]"], "three axes, [batch, length, heads·width]"),
    ("attention", r#"{"heads": 2, "kv_heads": 2, "scale": 1}"#, &["f32[b, n, 4]", "f32[b, n, 4]", "f32[b, n, 4]", "f32[b, n]"], "operand `mask` must be i32 or i64"),
    ("attention", r#"{"heads": 2, "kv_heads": 2, "scale": 1}"#, &["f32[b, n, 4]", "f32[b, m, 4]", "f32[b, m, 4]", "i64[b, n]"], "the mask has an element for each key"),
    ("attention", r#"{"heads": 2, "kv_heads": 2, "scale": null}"#, &["f32[b, n, 4]", "f32[b, n, 4]", "f32[b, n, 4]"], "expected f64"),
    ("attention", r#"{"heads": 2, "kv_heads": 2, "scale": 1, "alibi": true}"#, &["f32[b, n, 4]", "f32[b, n, 4]", "f32[b, n, 4]"], "unknown field `alibi`"),
    ("cast", r#"{"dtype": "f32"}"#, &["f32[2]"], "operand `x` must be i32 or i64"),
    ("cast", r#"{"dtype": "i32"}"#, &["i64[2]"], "attribute `dtype` is i32"),
    ("cast", r#"{"dtype": "f16"}"#, &["i64[2]"], "unknown variant `f16`"),
    ("sum", r#"{"axes": []}"#, &["f32[2]"], "expected at least one axis, ascending, without repeats"),
    ("sum", r#"{"axes": [1, 0]}"#, &["f32[2, 2]"], "attribute `axes` is [1, 0]"),
    ("mean", r#"{"axes": [0, 0]}"#, &["f32[2, 2]"], "attribute `axes` is [0, 0]"),
    ("max", r#"{"axes": [1]}"#, &["f32[2]"], "axis 1 is outside f32[2]"),
    ("max", r#"{"axes": [-1]}"#, &["f32[2]"], "expected usize"),
    ("softmax", r#"{"axis": 1}"#, &["f32[2]"], "axis 1 is outside f32[2]"),
    ("softmax", r#"{"axis": 18446744073709551615}"#, &["f32[2]"], "is outside f32[2]"),
    ("layer_norm", r#"{"epsilon": 0}"#, &["f32[2, 3]", "f32[2]"], "x is [.., d] and the vector [d]"),
    ("layer_norm", r#"{"epsilon": 0}"#, &["f32[]"], "at least one axis"),
    ("rms_norm", r#"{"epsilon": 0}"#, &["f32[2, 3]", "f32[1, 3]"], "operand `weight` must have one axis"),
    ("rms_norm", "{}", &["f32[2, 3]"], "missing field `epsilon`"),
    ("reshape", r#"{"shape": [5]}"#, &["f32[2, 3]"], "f32[2, 3] cannot become [5]: the number of elements must stay the same"),
    ("reshape", r#"{"shape": ["n", 6]}"#, &["f32[m, 6]"], "cannot become [n, 6]"),
    ("broadcast", r#"{"shape": [3, 3]}"#, &["f32[2, 3]"], "equal, or 1 in x"),
    ("broadcast", r#"{"shape": [3]}"#, &["f32[2, 3]"], "cannot become [3]"),
    ("broadcast", r#"{"shape": [1048576, 1048576, 3]}"#, &["f32[3]"], "is too large"),
    ("transpose", r#"{"permutation": [0]}"#, &["f32[2, 3]"], "expected every axis of f32[2, 3] once"),
    ("transpose", r#"{"permutation": [0, 0]}"#, &["f32[2, 3]"], "attribute `permutation` is [0, 0]"),
    ("concat", r#"{"axis": 0}"#, &[], "takes 1 to 1024 operands, found 0"),
    ("concat", r#"{"axis": 0}"#, &["f32[2]", "_", "f32[2]"], "operand `part` is missing"),
    ("concat", r#"{"axis": 0}"#, &["f32[2, 3]", "f32[2, 4]"], "all dims but the axis are equal"),
    ("concat", r#"{"axis": 0}"#, &["f32[2]", "f64[2]"], "all dims but the axis are equal"),
    ("concat", r#"{"axis": 1}"#, &["f32[2]"], "axis 1 is outside"),
    ("slice", r#"{"axis": 0, "start": 1, "length": 2}"#, &["f32[2]"], "attribute `length` is 2 from 1"),
    ("slice", r#"{"axis": 0, "start": 0, "length": "n"}"#, &["f32[4]"], "a range within axis 0 of f32[4] for every value"),
    ("slice", r#"{"axis": 1, "start": 0, "length": 1}"#, &["f32[4]"], "axis 1 is outside"),
    ("gather", "{}", &["f32[4, 2]", "f32[3]"], "operand `ids` must be i32 or i64, found f32[3]"),
    ("gather", "{}", &["f32[]", "i32[3]"], "operand `table` must have at least one axis"),
    ("gather", "{}", &["f32[2, 1, 1, 1, 1]", "i32[1, 1, 1, 1, 1]"], "is too large"),
];

fn refusal(&(op, attributes, operands, _): &Refusal) -> Option<String> {
    let attributes: Map<String, Json> = serde_json::from_str(attributes).unwrap();
    let op = match Op::from_attributes(op, attributes) {
        Err(error) => return Some(error.to_string()),
        Ok(op) => op.expect("the op exists"),
    };
    let mut graph = Graph::new("rules").unwrap();
    let mut operand = |(i, ty): (usize, &&str)| -> Option<NodeId> {
        let TensorType { dtype, shape } = (**ty != *"_").then(|| ty.parse().unwrap())?;
        Some(graph.add(&format!("operand{i}"), Input { dtype, shape, carries: None }, &[]).unwrap())
    };
    let operands: Vec<_> = operands.iter().enumerate().map(&mut operand).collect();
    match graph.add("node", op, &operands) {
        Ok(_) => None,
        Err(error @ GraphError::Rule { .. }) => Some(error.to_string()),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn what_breaks_a_rule_is_refused_with_both_sides() {
    for row in REFUSALS {
        let found = refusal(row).unwrap_or_else(|| panic!("{row:?} was taken"));
        assert!(found.contains(row.3), "{row:?} says: {found}");
    }
}

#[test]
fn every_op_has_a_refusal() {
    let tested: BTreeSet<_> = REFUSALS.iter().map(|row| row.0).collect();
    let all: BTreeSet<_> = Op::table().map(|info| info.name).collect();
    assert_eq!(tested, all);
}

#[test]
fn every_op_documents_the_attributes_it_takes() {
    for info in Op::table() {
        // What an op calls unknown names what it knows; an op without attributes says so.
        let attributes = [("no such attribute".to_owned(), Json::Null)].into_iter().collect();
        let error = Op::from_attributes(info.name, attributes).unwrap_err().to_string();
        for (name, meaning) in info.attributes {
            assert!(error.contains(&format!("`{name}` ({meaning})")), "{error}");
        }
        assert!(!info.formula.is_empty());
    }
    assert_eq!(Op::from_attributes("conv", Map::new()), Ok(None));
}
