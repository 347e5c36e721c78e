//! What the tests share: the little base models of the recorded cases, written with the public builder, and the way from
//! files to the reference interpreter.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part")]

pub mod models;

use engraft_import::safetensors::read_weights;
use engraft_ir::value::Value;
use engraft_ir::{DType, Graph, GraphBuilder, Tensor as Node, dims, eval::Values, eval::eval};
use engraft_runtime::{DType as Stored, Source, Tensor, Weights};
use ndarray::{ArrayD, IxDyn};
use std::path::PathBuf;

/// The directory of a case that PEFT recorded.
pub fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/peft").join(name)
}

/// The adapter config of a case, as JSON.
pub fn config_of(name: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(case(name).join("adapter_config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Which base a case was recorded on.
pub fn base_of(name: &str) -> String {
    let text = std::fs::read_to_string(case(name).join("case.json")).unwrap();
    let case: serde_json::Value = serde_json::from_str(&text).unwrap();
    case["base"].as_str().unwrap().to_owned()
}

/// The graph of a base model of the recorded cases.
pub fn base(name: &str) -> Graph {
    let g = GraphBuilder::new(name);
    match name {
        "mlp" => mlp(&g, (24, 40, 16), true),
        "mlp_nobias" => mlp(&g, (24, 40, 16), false),
        "mlp_square" => mlp(&g, (24, 24, 24), true),
        "conv1d" => conv1d(&g),
        "emb" => emb(&g),
        other => panic!("there is no base `{other}`"),
    }
    g.finish().unwrap()
}

fn linear<'g>(g: &'g GraphBuilder, name: &str, x: Node<'g>, (out, r#in): (u64, u64), bias: bool) -> Node<'g> {
    g.block(name, || {
        let w = g.param("weight", DType::F32, dims![out, r#in]);
        let b = bias.then(|| g.param("bias", DType::F32, dims![out]));
        x.dense(w, b)
    })
    .named(name)
}

/// fc1 -> relu -> fc2
fn mlp(g: &GraphBuilder, (r#in, hidden, out): (u64, u64, u64), bias: bool) {
    let x = g.input("x", DType::F32, dims!["batch", r#in]);
    let h = linear(g, "fc1", x, (hidden, r#in), bias).relu();
    g.output("y", linear(g, "fc2", h, (out, hidden), bias));
}

/// fc1 -> gelu -> fc2 with weights `[in, out]`: as a product and a sum, and as a `dense` over the transpose.
fn conv1d(g: &GraphBuilder) {
    let x = g.input("x", DType::F32, dims!["batch", 24]);
    let w = g.param("fc1.weight", DType::F32, dims![24, 40]);
    let b = g.param("fc1.bias", DType::F32, dims![40]);
    let h = (x.matmul(w).named("fc1") + b).gelu();
    let w = g.param("fc2.weight", DType::F32, dims![40, 16]);
    let b = g.param("fc2.bias", DType::F32, dims![16]);
    g.output("y", h.dense(w.t(), Some(b)).named("fc2"));
}

/// emb -> fc
fn emb(g: &GraphBuilder) {
    let ids = g.input("ids", DType::I64, dims!["batch", "seq"]);
    let table = g.param("emb.weight", DType::F32, dims![50, 24]);
    let h = table.gather(ids).named("emb");
    g.output("y", linear(g, "fc", h, (16, 24), true));
}

/// A tensor as the reference interpreter wants it.
pub fn value(tensor: &Tensor) -> Value {
    let shape = IxDyn(tensor.shape());
    match tensor.dtype() {
        Stored::F32 => {
            let data = tensor.as_f32().unwrap().iter().map(|&x| f64::from(x)).collect();
            ArrayD::from_shape_vec(shape, data).unwrap().into()
        }
        Stored::I32 => {
            let data = tensor.as_i32().unwrap().iter().map(|&x| i64::from(x)).collect();
            ArrayD::from_shape_vec(shape, data).unwrap().into()
        }
        Stored::I64 => ArrayD::from_shape_vec(shape, tensor.as_i64().unwrap().to_vec()).unwrap().into(),
    }
}

/// Tensors by name, as the reference interpreter wants them.
pub fn values(weights: &Weights) -> Values {
    weights.iter().map(|(name, tensor)| (name.to_owned(), value(tensor))).collect()
}

/// A case's base weights and recorded inputs.
pub fn given(name: &str) -> Values {
    let mut given = values(&read_weights(case(name).join("base.safetensors")).unwrap());
    given.extend(values(&read_weights(case(name).join("io.safetensors")).unwrap()));
    given
}

/// What the reference interpreter says `y` is.
pub fn y(graph: &Graph, given: &Values) -> ArrayD<f64> {
    eval(graph, given).unwrap()["y"].as_real().unwrap().clone()
}

/// Requires `|ours - theirs| <= 1e-5 max(1, max |theirs|) + 1e-4 |theirs|`.
#[track_caller]
pub fn assert_agree(ours: &ArrayD<f64>, theirs: &ArrayD<f64>) {
    assert_eq!(ours.shape(), theirs.shape());
    let largest = theirs.iter().fold(1.0_f64, |largest, t| largest.max(t.abs()));
    for (i, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let difference = (ours - theirs).abs();
        assert!(difference <= 1e-5 * largest + 1e-4 * theirs.abs(), "element {i}: {ours}, expected {theirs}");
    }
}

/// Deterministic numbers between -1 and 1 that depend on the name.
pub fn numbers(name: &str, shape: &[usize]) -> Tensor {
    let mut state =
        name.bytes().fold(1_u32, |state, byte| state.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    let data = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::f32(shape, data).unwrap()
}

/// Elements that no machine has memory for: those of [`unmade`].
pub const MANY: usize = 1 << 60;

/// A tensor of floats that are still to be made, and can't be where there are [`MANY`].
pub fn unmade(shape: &[usize]) -> Tensor {
    struct Ones;
    impl Source for Ones {
        fn read(&self, _: usize, to: &mut [f32]) {
            to.fill(1.0);
        }
    }
    Tensor::stored(shape, Ones).unwrap()
}

/// A file or directory of what PEFT recorded with several adapters active.
pub fn composed(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/composed").join(name)
}

/// The base of those.
pub fn composed_base() -> Graph {
    let g = GraphBuilder::new("mlp");
    mlp(&g, (6, 8, 5), true);
    g.finish().unwrap()
}
