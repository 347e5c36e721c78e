//! Every adapter that PEFT recorded on the little bases gives PEFT's own outputs.

#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod common;

use common::{assert_agree, base, base_of, case, given, values, y};
use engraft_import::peft::{AttachError, Attached, BiasMode, PeftAdapter, attach};
use engraft_ir::{Stage, verify};
use ndarray::{Array2, Axis};

fn check(name: &str) -> Attached {
    let graph = base(&base_of(name));
    let given = given(name);
    let adapter = PeftAdapter::open(case(name)).unwrap();
    let attached = attach(&graph, &adapter).unwrap();
    assert!(verify(&attached.graph).is_ok());
    let mut all = given.clone();
    all.extend(values(&attached.weights));
    // PEFT switches an adapter off without restoring the biases that it replaced.
    let base = if adapter.config().bias == BiasMode::None { &given } else { &all };
    assert_agree(&y(&graph, base), given["y_base"].as_real().unwrap());
    assert_agree(&y(&attached.graph, &all), given["y"].as_real().unwrap());

    let params = attached.graph.params();
    let adapter_stage: Vec<_> =
        params.iter().filter(|p| p.stage == Stage::Adapter).map(|p| p.name.as_str()).collect();
    let mut weights: Vec<_> = attached.weights.iter().map(|(name, _)| name).collect();
    weights.sort_by_key(|name| adapter_stage.iter().position(|param| param == name));
    assert_eq!(weights, adapter_stage, "each adapter parameter has its tensor, and nothing else");
    attached
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*
    };
}

cases!(
    dora,
    dora_embedding,
    dora_fan_in_fan_out,
    dora_no_bias,
    dora_square,
    lora,
    lora_bias_all,
    lora_embedding,
    lora_fan_in_fan_out,
    lora_modules_to_save,
    lora_rank_alpha_pattern,
    lora_regex_target,
    lora_rslora,
);

/// What is left of a matrix without its `rank` largest singular components: `W - Σ σ u vᵀ`, by one-sided Jacobi rotations,
/// which make the columns of `W V` orthogonal.
fn residual(w: &Array2<f64>, rank: usize) -> Array2<f64> {
    let columns = w.ncols();
    let (mut us, mut v) = (w.clone(), Array2::eye(columns));
    for _ in 0..30 {
        for (i, j) in (0..columns).flat_map(|i| (0..i).map(move |j| (i, j))) {
            let (p, q) = (us.column(i).to_owned(), us.column(j).to_owned());
            let (dot, difference) = (p.dot(&q), q.dot(&q) - p.dot(&p));
            let (sin, cos) = (0.5 * f64::atan2(2.0 * dot, difference)).sin_cos();
            for m in [&mut us, &mut v] {
                let (p, q) = (m.column(i).to_owned(), m.column(j).to_owned());
                m.column_mut(i).assign(&(&p * cos - &q * sin));
                m.column_mut(j).assign(&(&p * sin + &q * cos));
            }
        }
    }
    let mut by_size: Vec<usize> = (0..columns).collect();
    by_size.sort_by(|&i, &j| us.column(j).dot(&us.column(j)).total_cmp(&us.column(i).dot(&us.column(i))));
    let rest = &by_size[rank..];
    us.select(Axis(1), rest).dot(&v.select(Axis(1), rest).t())
}

#[test]
fn pissa() {
    let graph = base("mlp");
    let adapter = PeftAdapter::open(case("pissa")).unwrap();
    // The recorded base is the original one, which PEFT changes whenever it loads such an adapter.
    let error = attach(&graph, &adapter).unwrap_err();
    assert_eq!(error, AttachError::ResidualBase { init: "pissa".to_owned() });

    let mut all = given("pissa");
    for name in ["fc1.weight", "fc2.weight"] {
        let w = all[name].as_real().unwrap().clone().into_dimensionality().unwrap();
        all.insert(name.to_owned(), residual(&w, 4).into_dyn().into());
    }
    assert_agree(&y(&graph, &all), all["y_base"].as_real().unwrap());
    let attached = attach(&graph, &adapter.on_residual_base()).unwrap();
    all.extend(values(&attached.weights));
    assert_agree(&y(&attached.graph, &all), all["y"].as_real().unwrap());
}

#[test]
fn graphs() {
    for name in ["lora", "dora", "dora_embedding", "dora_fan_in_fan_out", "lora_modules_to_save"] {
        let attached = check(name);
        let text = format!("{}\n{}", engraft_ir::text::print(&attached.graph), attached.report);
        insta::assert_snapshot!(name, text);
    }
}
