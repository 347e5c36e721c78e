//! DoRA's two meanings against numbers computed by Edifice's formulas in float64, in all three of its forms.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use engraft_ir::DType::F32;
use engraft_ir::eval::{Values, eval};
use engraft_ir::layers::{DoraConfig, DoraMeaning, DoraOptions, dora};
use engraft_ir::value::Value;
use engraft_ir::{Graph, GraphBuilder, dims};
use engraft_testing::{assert_close, close, real};
use safetensors::SafeTensors;

const TOLERANCE: f64 = 1e-9;
const RECORDED: &[u8] = include_bytes!("data/edifice/edifice.safetensors");

fn recorded(name: &str) -> Value {
    let tensors = SafeTensors::deserialize(RECORDED).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let elements: Vec<_> =
        tensor.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect();
    real(tensor.shape(), &elements)
}

/// Edifice stores matrices the other way round.
fn transposed(name: &str) -> Value {
    recorded(name).as_real().unwrap().t().to_owned().into()
}

fn values() -> Values {
    let names = ["input", "dora.weight", "dora.lora_A", "dora.lora_B", "dora.magnitude", "dense.bias"];
    let values =
        [recorded("x"), transposed("V"), transposed("A"), transposed("B"), recorded("m"), recorded("b")];
    names.into_iter().map(str::to_owned).zip(values).collect()
}

fn run(graph: &Graph) -> Vec<f64> {
    let mut values = values();
    values.insert("dense.weight".to_owned(), values["dora.weight"].clone());
    eval(graph, &values).unwrap()["output"].as_real().unwrap().iter().copied().collect()
}

fn elements(name: &str) -> Vec<f64> {
    recorded(name).as_real().unwrap().iter().copied().collect()
}

fn wrapped(meaning: DoraMeaning, bias: bool) -> Graph {
    let g = GraphBuilder::new("wrapped");
    let x = g.input("input", F32, dims!["batch", 20]);
    let bias = bias.then(|| g.param("dense.bias", F32, dims![12]));
    let dense = x.dense(g.param("dense.weight", F32, dims![12, 20]), bias);
    g.output("output", dora::wrap(dense, &DoraOptions { rank: 4, meaning, ..DoraOptions::default() }));
    g.finish().unwrap()
}

#[test]
fn build_agrees_in_the_output_meaning() {
    let graph = DoraConfig::new(20, 12).rank(4).meaning(DoraMeaning::Output).build().unwrap();
    assert_close(&run(&graph), &elements("y_build"), TOLERANCE, 0.0);
}

#[test]
fn wrap_agrees_in_the_output_meaning() {
    assert_close(&run(&wrapped(DoraMeaning::Output, true)), &elements("y_wrap"), TOLERANCE, 0.0);
    assert_close(&run(&wrapped(DoraMeaning::Output, false)), &elements("y_build"), TOLERANCE, 0.0);
}

#[test]
fn the_papers_meaning_agrees_and_differs() {
    let graph = DoraConfig::new(20, 12).rank(4).build().unwrap();
    let y = run(&graph);
    assert_close(&y, &elements("y_paper"), TOLERANCE, 0.0);
    assert_close(&run(&wrapped(DoraMeaning::Weight, false)), &elements("y_paper"), TOLERANCE, 0.0);
    assert!(close(&y, &elements("y_build"), 1e-2, 0.0).is_err(), "the two meanings must differ");
}
