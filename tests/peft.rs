//! Every adapter that PEFT recorded on the little bases, through compiled code: fused, as built, and merged, beside the
//! outputs that PEFT computed itself.
#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod common;

use common::{base, case, file, reals};
use engraft::Merging;
use engraft::import::peft::{BiasMode, PeftAdapter, attach};
use engraft::prelude::*;
use engraft::runtime::{self, Context, Weights};
use engraft_testing::assert_close;
use ndarray::{Array2, Axis};
use std::sync::Arc;

/// As PEFT's recordings ask: `|ours - theirs| <= 1e-5 max(1, max |theirs|) + 1e-4 |theirs|`.
const ATOL: f64 = 1e-5;
const RTOL: f64 = 1e-4;

/// Compiles the graph and requires that it computes `expected` as `y`.
#[track_caller]
fn check(graph: &Graph, options: &Options, weights: &Weights, io: &Weights, expected: &str) {
    let program = compile(graph, options).unwrap().program;
    let context = Context::new(runtime::Options::default()).unwrap();
    let model = program.load_base(weights, context).unwrap().load_adapter(weights).unwrap();
    let inputs = graph.inputs();
    let inputs: Vec<_> =
        inputs.iter().map(|input| (input.name.as_str(), &**io.get(&input.name).unwrap())).collect();
    let outputs = model.run(&inputs).unwrap();
    let theirs = io.get(expected).unwrap();
    assert_eq!(outputs[0].1.shape(), theirs.shape());
    assert_close(&reals(&outputs[0].1), &reals(theirs), ATOL, RTOL);
}

/// Every way to compile.
const WAYS: [Options; 3] = [
    Options { optimize: true, merge: Merging::NEVER, profile: false },
    Options { optimize: false, merge: Merging::NEVER, profile: true },
    Options { optimize: true, merge: Merging::ALWAYS, profile: false },
];

/// The base's weights with these in their place.
fn with(mut weights: Weights, others: &Weights) -> Weights {
    for (name, tensor) in others.iter() {
        weights.insert(name, Arc::clone(tensor));
    }
    weights
}

fn check_case(name: &str, base_weights: &Weights, adapter: &PeftAdapter) {
    let (graph, io) = (base(name), file(name, "io.safetensors"));
    let attached = attach(&graph, adapter).unwrap();
    let all = with(base_weights.clone(), &attached.weights);
    // PEFT switches an adapter off without restoring the biases that it replaced.
    let without = if adapter.config().bias == BiasMode::None { base_weights } else { &all };
    check(&graph, &Options::default(), without, &io, "y_base");
    for way in &WAYS {
        check(&attached.graph, way, &all, &io, "y");
    }
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            let name = stringify!($name);
            check_case(name, &file(name, "base.safetensors"), &PeftAdapter::open(case(name)).unwrap());
        })*

        /// No recorded case is forgotten. Those of whole models are compared in `import/tests/models.rs`.
        #[test]
        fn all_cases_are_checked() {
            let mut checked = vec![$(stringify!($name)),*, "pissa", "bert_dora", "gpt2_dora", "llama_dora"];
            checked.sort_unstable();
            let entries = std::fs::read_dir(case("")).unwrap().map(|entry| entry.unwrap().file_name());
            let mut recorded: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
            recorded.sort_unstable();
            assert_eq!(checked, recorded);
        }
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

/// `PiSSA` is an update of what it left of the base: of W without its `rank` largest singular components.
#[test]
fn pissa() {
    let mut weights = file("pissa", "base.safetensors");
    for name in ["fc1.weight", "fc2.weight"] {
        let w = weights.get(name).unwrap();
        let elements = w.as_f32().unwrap().iter().map(|&x| f64::from(x)).collect();
        let w = Array2::from_shape_vec((w.shape()[0], w.shape()[1]), elements).unwrap();
        let rest: Vec<_> = residual(&w, 4).iter().map(|&x| x as f32).collect();
        weights.insert(name, runtime::Tensor::f32(w.shape(), rest).unwrap());
    }
    let adapter = PeftAdapter::open(case("pissa")).unwrap().on_residual_base();
    check_case("pissa", &weights, &adapter);
}

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
