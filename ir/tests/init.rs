//! Initial values and random values: distributions, determinism, ranges, refusals.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use engraft_ir::DType::{F32, I32, I64};
use engraft_ir::init::{InitError, complete, initialize};
use engraft_ir::ops::Init;
use engraft_ir::sample::{self, SampleError};
use engraft_ir::value::Value;
use engraft_ir::{Graph, GraphBuilder, Shape, Tensor, dims, text};
use engraft_testing::{assert_close, bindings, real};

fn one(init: Init, shape: Shape) -> Graph {
    let g = GraphBuilder::new("one");
    g.output("y", g.param("w", F32, shape).init(init));
    g.finish().unwrap()
}

fn start(init: Init, shape: Shape) -> Vec<f64> {
    let values = initialize(&one(init, shape), 3).unwrap();
    values["w"].as_real().unwrap().iter().copied().collect()
}

#[test]
fn each_init_has_its_distribution() {
    assert_eq!(start(Init::Zeros, dims![2, 2]), [0.0; 4]);
    assert_eq!(start(Init::Ones, dims![2, 2]), [1.0; 4]);

    let normal = start(Init::Normal { std: 0.5 }, dims![100, 100]);
    let mean = normal.iter().sum::<f64>() / 1e4;
    let std = (normal.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e4).sqrt();
    assert!(mean.abs() < 0.02 && (std - 0.5).abs() < 0.02, "mean {mean}, std {std}");
    let within = normal.iter().filter(|x| x.abs() < 0.5).count();
    assert!((6600..7050).contains(&within), "{within} of 10000 within one standard deviation, expected 6827");

    let glorot = start(Init::GlorotUniform, dims![20, 30]);
    let limit = (6.0f64 / 50.0).sqrt();
    let largest = glorot.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    assert!(largest <= limit && largest > 0.98 * limit, "{largest} of {limit}");
    assert!((glorot.iter().sum::<f64>() / 600.0).abs() < 0.03);
}

#[test]
fn the_same_seed_gives_the_same_values_everywhere() {
    // Written down once; another platform, another order of parameters or another release must not change them.
    insta::assert_snapshot!(format!("{:?}", start(Init::Normal { std: 1.0 }, dims![4])));
    insta::assert_snapshot!(format!("{:?}", start(Init::GlorotUniform, dims![2, 2])));
}

#[test]
fn adding_a_parameter_changes_no_other() {
    let g = GraphBuilder::edit(one(Init::Normal { std: 1.0 }, dims![3]));
    g.output("z", g.param("a", F32, dims![3]).init(Init::Normal { std: 1.0 }));
    let both = initialize(&g.finish().unwrap(), 3).unwrap();
    assert_eq!(both["w"], initialize(&one(Init::Normal { std: 1.0 }, dims![3]), 3).unwrap()["w"]);
    assert_ne!(both["w"], both["a"]);
    assert_ne!(both["w"], initialize(&one(Init::Normal { std: 1.0 }, dims![3]), 4).unwrap()["w"]);
}

#[test]
fn a_magnitude_starts_as_the_norm_in_either_form() {
    let g = GraphBuilder::new("norms");
    let w = g.param("w", F32, dims![2, 2]);
    let (a, b) = (
        g.param("a", F32, dims![1, 2]).init(Init::Normal { std: 1.0 }),
        g.param("b", F32, dims![2, 1]).init(Init::Zeros),
    );
    let (m, n) = (g.param("m", F32, dims![2]).init(Init::Norm), g.param("n", F32, dims![2]).init(Init::Norm));
    g.output("y", (w + Tensor::lora_delta(a, b, 2.0)).normalize(-1).magnitude(m, 0));
    g.output("gain", n / w.lora_norm(a, b, 2.0));
    let base = [("w".to_owned(), real(&[2, 2], &[3.0, 4.0, 5.0, 12.0]))].into();
    let values = complete(&g.finish().unwrap(), base, 0).unwrap();
    assert_eq!(values["m"], real(&[2], &[5.0, 13.0]));
    assert_eq!(values["n"], real(&[2], &[5.0, 13.0]));
}

#[test]
fn refusals() {
    let g = GraphBuilder::new("bare");
    g.output("y", g.param("w", F32, dims![2]));
    let error = initialize(&g.finish().unwrap(), 0).unwrap_err();
    assert!(matches!(&error, InitError::NoInit { param, .. } if param == "w"), "{error}");

    let error = initialize(&one(Init::Norm, dims![2]), 0).unwrap_err();
    assert_eq!(error, InitError::NoNorm { param: "w".to_owned() });

    let error = initialize(&one(Init::Zeros, dims!["n"]), 0).unwrap_err();
    assert!(matches!(&error, InitError::Dim { param, .. } if param == "w"), "{error}");

    let g = GraphBuilder::new("unfit");
    let _ = g.param("a", I32, dims![2]).init(Init::Normal { std: 1.0 });
    let _ = g.param("b", F32, dims![2]).init(Init::GlorotUniform);
    let _ = g.param("c", F32, dims![2, 2]).init(Init::Norm);
    let _ = g.param("d", F32, dims![2]).init(Init::Normal { std: -1.0 });
    let _ = g.param("e", I32, dims![2]).init(Init::Ones);
    assert_eq!(g.finish().unwrap_err().errors().len(), 4);
}

#[test]
fn integers_can_start_out_too() {
    let g = GraphBuilder::new("ids");
    let table = g.param("table", F32, dims![3, 2]).init(Init::Ones);
    g.output("y", table.gather(g.param("positions", I64, dims![2]).init(Init::Ones)));
    let values = initialize(&g.finish().unwrap(), 0).unwrap();
    assert!(matches!(&values["positions"], Value::Int(ids) if ids.iter().all(|&id| id == 1)));
}

const TWO_TABLES: &str = "engraft 1
    graph tables
    ids: i32[batch, 8] = input()
    any: i64[50] = input()
    big: f32[1000, 2] = param()
    small: f32[3, 2] = param()
    first = slice(ids) {axis: 1, start: 0, length: 4}
    turned = transpose(first) {permutation: [1, 0]}
    a = gather(big, ids)
    b = gather(small, turned)
    output a = a
    output b = b
    output any = any";

#[test]
fn sampled_ids_are_in_range_of_every_table_they_reach() {
    let graph = text::parse(TWO_TABLES).unwrap();
    let values = sample::values(&graph, &bindings(&[("batch", 5)]), 11).unwrap();
    let ids = values["ids"].as_int().unwrap();
    assert_eq!(ids.shape(), [5, 8]);
    assert!(ids.iter().all(|id| (0..3).contains(id)) && ids.iter().any(|&id| id == 2));
    assert!(values["any"].as_int().unwrap().iter().all(|id| (0..100).contains(id)));
    let floats: Vec<_> = values["big"].as_real().unwrap().iter().copied().collect();
    assert!(floats.iter().all(|x| x.abs() <= 1.0 && *x == f64::from(*x as f32)));
    assert_close(&[floats.iter().sum::<f64>() / 2000.0], &[0.0], 0.05, 0.0);
    assert_eq!(sample::values(&graph, &bindings(&[("batch", 5)]), 11).unwrap(), values);
}

#[test]
fn sampling_refuses_what_it_cannot_fill() {
    let graph = text::parse(TWO_TABLES).unwrap();
    let error = sample::values(&graph, &bindings(&[]), 0).unwrap_err();
    assert!(matches!(&error, SampleError::Dim { node, .. } if node == "ids"), "{error}");
    let error = sample::values(&graph, &bindings(&[("batch", 1 << 50)]), 0).unwrap_err();
    assert!(matches!(&error, SampleError::Dim { .. }), "{error}");

    let g = GraphBuilder::new("empty");
    let table = g.param("table", F32, dims!["rows", 2]);
    g.output("y", table.gather(g.input("ids", I64, dims![2])));
    let graph = g.finish().unwrap();
    let error = sample::values(&graph, &bindings(&[("rows", 0)]), 0).unwrap_err();
    assert_eq!(error, SampleError::NoRows { ids: "ids".to_owned(), table: "table".to_owned() });
}
