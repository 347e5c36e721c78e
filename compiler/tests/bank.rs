//! Banks on one adaptable layer: any mixture of adapters over the items of a batch computes what the formula says, in the
//! same bits as each item alone, merged or not, in whatever order updates are put one after the other; what does not fit is refused whole.
#![allow(
    clippy::unwrap_used,
    clippy::many_single_char_names,
    reason = "a test may panic; the letters are the formula's"
)]

use engraft_compiler::plan::kernel::Kernel;
use engraft_compiler::{Merging, Options, compile};
use engraft_ir::DType::F32;
use engraft_ir::{Graph, GraphBuilder, dims};
use engraft_runtime::{
    AdapterWeights, Bank, Base, Context, LayerWeights, Model, Rows, Tensor, Update, Weights, in_order,
};
use engraft_testing::assert_close;
use proptest::prelude::*;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Deterministic numbers between -1 and 1.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / (1_u32 << 23) as f32 - 1.0
    }

    fn tensor(&mut self, shape: &[usize]) -> Arc<Tensor> {
        let data = (0..shape.iter().product()).map(|_| self.next()).collect();
        Arc::new(Tensor::f32(shape, data).unwrap())
    }

    /// Magnitudes that make gains between 0.5 and 1.5, of either sign.
    fn magnitude(&mut self, norms: &[f64]) -> Arc<Tensor> {
        let data = norms.iter().map(|norm| {
            let gain = 1.0 + 0.5 * self.next();
            *norm as f32 * if self.next() > 0.6 { -gain } else { gain }
        });
        Arc::new(Tensor::f32(&[norms.len()], data.collect()).unwrap())
    }
}

/// What kind of update, and its rank.
#[derive(Clone, Copy, Debug)]
struct Kind {
    rank: usize,
    dora: bool,
    bias_of_b: bool,
}

#[derive(Clone, Debug)]
struct Case {
    out: usize,
    k: usize,
    item_rows: usize,
    biased: bool,
    residual: bool,
    /// The updates of each adapter, in order, and whether it replaces the bias, and is merged.
    adapters: Vec<(Vec<Kind>, bool, bool)>,
    /// For each item, its adapter's number, or one past the last for none.
    items: Vec<usize>,
    threads: usize,
    seed: u32,
}

fn cases() -> impl Strategy<Value = Case> {
    let kind = (0_usize..7, any::<bool>(), any::<bool>()).prop_map(|(rank, dora, b)| Kind {
        rank,
        dora,
        bias_of_b: b && !dora,
    });
    let adapter = (prop::collection::vec(kind, 0..4), prop::bool::weighted(0.2), prop::bool::weighted(0.4));
    let extents =
        (1_usize..110, prop_oneof![12 => 1_usize..40, 1 => Just(1030)], 0_usize..12, any::<[bool; 2]>());
    let adapters = prop::collection::vec(adapter, 1..4);
    (extents, adapters, 1_usize..4, any::<u32>()).prop_flat_map(|(extents, adapters, threads, seed)| {
        let (out, k, item_rows, [biased, residual]) = extents;
        prop::collection::vec(0..=adapters.len(), 1..40).prop_map(move |items| Case {
            out,
            k,
            item_rows,
            biased,
            residual,
            adapters: adapters.clone(),
            items,
            threads,
            seed,
        })
    })
}

fn layer(out: usize, k: usize, biased: bool, residual: bool) -> Graph {
    let g = GraphBuilder::new("layer");
    let x = g.input("x", F32, dims!["items", "rows", k]);
    let bias = biased.then(|| g.param("bias", F32, dims![out]));
    let y = x.adaptable("fc", g.param("w", F32, dims![out, k]), bias);
    g.output("y", if residual { y + g.input("residual", F32, dims!["items", "rows", out]) } else { y });
    g.finish().unwrap()
}

fn load(graph: &Graph, weights: &Weights, threads: usize) -> (Base, Model) {
    let options = engraft_runtime::Options { threads: NonZeroUsize::new(threads), kernels: None };
    let program = compile(graph, &Options::default()).unwrap().program;
    let base = program.load_base(weights, Context::new(options).unwrap()).unwrap();
    let model = base.load_adapter(&Weights::new()).unwrap();
    (base, model)
}

fn reals(tensor: &Tensor) -> Vec<f64> {
    tensor.as_f32().unwrap().iter().map(|&x| f64::from(x)).collect()
}

/// `‖W + s B A‖` of each output.
fn norms(w: &[f64], update: &Update, (out, k): (usize, usize)) -> Vec<f64> {
    let delta = delta(update, (out, k));
    (0..out).map(|j| (0..k).map(|p| (w[j * k + p] + delta[j * k + p]).powi(2)).sum::<f64>().sqrt()).collect()
}

/// `s B A`, `[out, in]`.
fn delta(update: &Update, (out, k): (usize, usize)) -> Vec<f64> {
    let (a, b, r) = (reals(&update.a), reals(&update.b), update.a.shape()[0]);
    let element = |j: usize, p: usize| (0..r).map(|i| b[j * r + i] * a[i * k + p]).sum::<f64>();
    (0..out * k).map(|at| update.scale * element(at / k, at % k)).collect()
}

/// An update in 64-bit floats: `s B A`, s times the bias of B, and the gain.
type ExactUpdate = (Vec<f64>, Vec<f64>, Option<Vec<f64>>);

/// An adapter in 64-bit floats.
struct Exact {
    updates: Vec<ExactUpdate>,
    bias: Option<Vec<f64>>,
}

impl Exact {
    fn new(w: &[f64], weights: &LayerWeights, (out, k): (usize, usize)) -> Self {
        let update = |update: &Update| {
            let scaled = |b: &Arc<Tensor>| reals(b).iter().map(|b| update.scale * b).collect();
            let of_b = update.bias_of_b.as_ref().map_or_else(|| vec![0.0; out], scaled);
            let gain = update
                .magnitude
                .as_ref()
                .map(|m| reals(m).iter().zip(norms(w, update, (out, k))).map(|(m, n)| m / n).collect());
            (delta(update, (out, k)), of_b, gain)
        };
        let bias = weights.bias.as_ref().map(|bias| reals(bias));
        Self { updates: weights.updates.iter().map(update).collect(), bias }
    }

    /// One row of the layer, update after update as PEFT computes them: what a `LoRA` adds, it adds to the result; a `DoRA`
    /// makes `γ (result - bias) + γ s B A x + bias` of it.
    fn row(&self, w: &[f64], bias: &[f64], x: &[f64]) -> Vec<f64> {
        let (k, bias) = (x.len(), self.bias.as_deref().unwrap_or(bias));
        let times_x = |matrix: &[f64], j: usize| (0..k).map(|p| matrix[j * k + p] * x[p]).sum::<f64>();
        let mut y: Vec<f64> = bias.iter().enumerate().map(|(j, bias)| times_x(w, j) + bias).collect();
        for (delta, of_b, gain) in &self.updates {
            for (j, y) in y.iter_mut().enumerate() {
                let low_rank = times_x(delta, j) + of_b[j];
                *y = match gain {
                    None => *y + low_rank,
                    Some(gain) => gain[j] * (*y - bias[j] + low_rank) + bias[j],
                };
            }
        }
        y
    }
}

fn adapter(
    case: &Case,
    numbers: &mut Numbers,
    w: &[f64],
    (kinds, replaces, merge): &(Vec<Kind>, bool, bool),
) -> AdapterWeights {
    let Case { out, k, biased, .. } = *case;
    let update = |&Kind { rank, dora, bias_of_b }: &Kind| {
        let (a, b) = (numbers.tensor(&[rank, k]), numbers.tensor(&[out, rank]));
        let scale = f64::from(numbers.next());
        let bias_of_b = bias_of_b.then(|| numbers.tensor(&[out]));
        let mut update = Update { a, b, scale, magnitude: None, bias_of_b };
        update.magnitude = dora.then(|| numbers.magnitude(&norms(w, &update, (out, k))));
        update
    };
    let updates = kinds.iter().map(update).collect();
    let bias = (*replaces && biased).then(|| numbers.tensor(&[out]));
    AdapterWeights::from([("fc".to_owned(), LayerWeights { updates, bias, merge: *merge })])
}

fn check(case: &Case) {
    let Case { out, k, item_rows, biased, residual, items, threads, seed, .. } = case;
    let (out, k, item_rows) = (*out, *k, *item_rows);
    let mut numbers = Numbers(*seed);
    let (w, bias) = (numbers.tensor(&[out, k]), numbers.tensor(&[out]));
    let (base, model) = load(
        &layer(out, k, *biased, *residual),
        &Weights::from_iter([("w", Arc::clone(&w)), ("bias", Arc::clone(&bias))]),
        *threads,
    );
    let (w, bias) = (reals(&w), if *biased { reals(&bias) } else { vec![0.0; out] });
    let adapters: Vec<_> = case.adapters.iter().map(|kinds| adapter(case, &mut numbers, &w, kinds)).collect();
    let exact: Vec<_> = adapters.iter().map(|adapter| Exact::new(&w, &adapter["fc"], (out, k))).collect();
    let none = Exact { updates: Vec::new(), bias: None };
    let bank = Bank::new(base);
    for (index, adapter) in adapters.iter().enumerate() {
        bank.load(&index.to_string(), adapter).unwrap();
    }
    let name = |&item: &usize| (item < adapters.len()).then(|| item.to_string());
    let names: Vec<_> = items.iter().map(name).collect();
    let x = numbers.tensor(&[items.len(), item_rows, k]);
    let added = numbers.tensor(&[items.len(), item_rows, out]);
    let mut session = model.session();
    let mut run = |x: &Tensor, added: &Tensor, names: &[Option<String>]| {
        let inputs = [("x", x), ("residual", added)];
        let inputs = if *residual { &inputs[..] } else { &inputs[..1] };
        session.run_rows(inputs, &bank.rows(names).unwrap()).unwrap().remove(0).1
    };
    let y = run(&x, &added, &names);
    let (x, added, y) = (x.as_f32().unwrap(), added.as_f32().unwrap(), y.as_f32().unwrap());
    for (item, name) in names.iter().enumerate() {
        let own = &x[item * item_rows * k..(item + 1) * item_rows * k];
        let added = &added[item * item_rows * out..(item + 1) * item_rows * out];
        let alone = run(
            &Tensor::f32(&[1, item_rows, k], own.to_vec()).unwrap(),
            &Tensor::f32(&[1, item_rows, out], added.to_vec()).unwrap(),
            std::slice::from_ref(name),
        );
        let company = &y[item * item_rows * out..(item + 1) * item_rows * out];
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(company), bits(alone.as_f32().unwrap()), "item {item}");
        let exact = exact.get(items[item]).unwrap_or(&none);
        let rows = own.chunks_exact(k).zip(added.chunks_exact(out)).zip(company.chunks_exact(out));
        for ((row, added), y) in rows {
            let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
            let ours: Vec<f64> = y.iter().map(|&y| f64::from(y)).collect();
            let added = added.iter().map(|&added| if *residual { f64::from(added) } else { 0.0 });
            let exact: Vec<f64> = exact.row(&w, &bias, &row).iter().zip(added).map(|(y, r)| y + r).collect();
            assert_close(&ours, &exact, 1e-5 * (k as f64).sqrt(), 1e-4);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_mixture_is_each_item_alone(case in cases()) {
        check(&case);
    }
}

/// So many bytes of adapters that a call takes its rows in several rounds, with items that have none, and one whose adapter is
/// merged, which makes it one round.
#[test]
fn many_large_adapters_are_each_item_alone() {
    let kind = |rank, dora| Kind { rank, dora, bias_of_b: !dora };
    let adapters = |merged| {
        let ranks = [(24, true), (17, false), (9, true), (0, false), (30, true)];
        ranks.map(|(rank, dora)| (vec![kind(rank, dora)], false, merged && rank == 9)).to_vec()
    };
    for (threads, item_rows, items, merged) in [(1, 1, 150, false), (3, 2, 70, false), (2, 3, 50, true)] {
        check(&Case {
            out: 100,
            k: 400,
            item_rows,
            biased: true,
            residual: true,
            adapters: adapters(merged),
            items: (0..items).map(|item| item % 6).collect(),
            threads,
            seed: 7,
        });
    }
}

/// A little layer, its bank and its model.
fn little() -> (Bank, Model) {
    let mut numbers = Numbers(1);
    let weights = Weights::from_iter([("w", numbers.tensor(&[3, 2]))]);
    let (base, model) = load(&layer(3, 2, false, false), &weights, 1);
    (Bank::new(base), model)
}

fn lora(rank: usize, module: &str) -> AdapterWeights {
    let mut numbers = Numbers(2);
    let (a, b) = (numbers.tensor(&[rank, 2]), numbers.tensor(&[3, rank]));
    let updates = vec![Update { a, b, scale: 1.0, magnitude: None, bias_of_b: None }];
    AdapterWeights::from([(module.to_owned(), LayerWeights { updates, ..LayerWeights::default() })])
}

#[test]
fn what_does_not_fit_is_refused_and_the_old_stays() {
    let (bank, _) = little();
    bank.load("a", &lora(2, "fc")).unwrap();
    let old = bank.get("a").unwrap();
    let vector = |values: &[f32]| Some(Arc::new(Tensor::f32(&[values.len()], values.to_vec()).unwrap()));
    let changed = |change: &dyn Fn(&mut LayerWeights)| {
        let mut weights = lora(2, "fc");
        change(weights.get_mut("fc").unwrap());
        weights
    };
    let refused = [
        (lora(1, "fd"), "the base has no adaptable layer `fd`; it has `fc`"),
        (
            changed(&|layer| layer.updates[0].a = Numbers(1).tensor(&[2, 3])),
            "layer `fc`: its A is [2, 3], expected [2, 2]",
        ),
        (
            changed(&|layer| layer.updates[0].b = Numbers(1).tensor(&[3, 1])),
            "layer `fc`: its B is [3, 1], expected [3, 2]",
        ),
        (
            changed(&|layer| layer.updates[0].b = Arc::new(Tensor::i32(&[3, 2], vec![0; 6]).unwrap())),
            "layer `fc`: its B is of i32, expected f32",
        ),
        (
            changed(&|layer| layer.updates[0].magnitude = vector(&[1.0])),
            "layer `fc`: its magnitude is [1], expected [3]",
        ),
        (
            changed(&|layer| layer.updates[0].bias_of_b = vector(&[1.0])),
            "layer `fc`: its bias of B is [1], expected [3]",
        ),
        (
            changed(&|layer| layer.updates[0].scale = f64::INFINITY),
            "layer `fc`: its scale is inf, expected a number that f32 holds",
        ),
        (
            changed(&|layer| layer.bias = vector(&[1.0; 3])),
            "layer `fc`: it replaces the bias, but the layer has none",
        ),
        (
            changed(&|layer| {
                layer.updates[0].magnitude = vector(&[1.0, 0.0, 1.0]);
                layer.updates.extend(lora(1, "fc")["fc"].updates.clone());
            }),
            "layer `fc`: an update follows a gain of 0 at output 1, which leaves nothing of the layer that the update could \
             be added to as a product of low rank",
        ),
    ];
    for (weights, message) in refused {
        let error = bank.replace("a", &weights).unwrap_err().to_string();
        assert_eq!(error, format!("adapter `a`: {message}"));
        assert!(Arc::ptr_eq(&bank.get("a").unwrap(), &old), "{message}");
    }
    assert_eq!(
        bank.load("a", &lora(1, "fc")).unwrap_err().to_string(),
        "there is an adapter `a` already; replace or remove it"
    );
    let unknown = "there is no adapter `b`; there are `a`";
    assert_eq!(bank.replace("b", &lora(1, "fc")).unwrap_err().to_string(), unknown);
    assert_eq!(bank.remove("b").unwrap_err().to_string(), unknown);
    assert_eq!(bank.rows(&[Some("a"), Some("b")]).unwrap_err().to_string(), unknown);
    bank.remove("a").unwrap();
    assert_eq!(bank.get("a").unwrap_err().to_string(), "there is no adapter `a`; there are none");
}

#[test]
fn calls_with_other_adapters_than_theirs_are_refused() {
    let ((bank, model), (other, _)) = (little(), little());
    bank.load("a", &lora(1, "fc")).unwrap();
    other.load("a", &lora(1, "fc")).unwrap();
    let x = Tensor::f32(&[2, 1, 2], vec![1.0; 4]).unwrap();
    let refusal = |rows: &Rows| model.session().run_rows(&[("x", &x)], rows).unwrap_err().to_string();
    let one = bank.rows(&[Some("a")]).unwrap();
    assert_eq!(refusal(&one), "layer `fc` has 2 items, but adapters are given for 1");
    let foreign = other.rows(&[None, Some("a")]).unwrap();
    assert_eq!(
        refusal(&foreign),
        "the adapter of item 1 was loaded onto another base than the one that is called"
    );
    let g = GraphBuilder::new("plain");
    let x = g.input("x", F32, dims!["items", 2]);
    g.output("y", x.relu());
    let (_, plain) = load(&g.finish().unwrap(), &Weights::new(), 1);
    let x = Tensor::f32(&[1, 2], vec![1.0; 2]).unwrap();
    let error = plain.session().run_rows(&[("x", &x)], &one).unwrap_err().to_string();
    assert_eq!(error, "adapters are given, but the program has no adaptable layers");
}

/// An adapter lives as long as the bank or a call has it.
#[test]
fn an_adapter_goes_with_its_last_user() {
    let (bank, model) = little();
    bank.load("a", &lora(2, "fc")).unwrap();
    let (first, rows) = (Arc::downgrade(&bank.get("a").unwrap()), bank.rows(&[Some("a")]).unwrap());
    let x = Tensor::f32(&[1, 1, 2], vec![1.0, 2.0]).unwrap();
    let mut session = model.session();
    let before = session.run_rows(&[("x", &x)], &rows).unwrap();
    bank.replace("a", &lora(1, "fc")).unwrap();
    assert_eq!(session.run_rows(&[("x", &x)], &rows).unwrap(), before);
    assert!(first.upgrade().is_some());
    drop(rows);
    assert!(first.upgrade().is_none());
    let after = session.run_rows(&[("x", &x)], &bank.rows(&[Some("a")]).unwrap()).unwrap();
    assert_ne!(after, before);
    bank.remove("a").unwrap();
    assert!(bank.list().is_empty());
}

#[test]
fn an_adaptable_weight_must_be_the_bases() {
    let g = GraphBuilder::new("layer");
    let x = g.input("x", F32, dims!["items", 2]);
    g.output("y", x.adaptable("fc", g.param("w", F32, dims![3, 2]).adapter(), None).named("fc"));
    let error = compile(&g.finish().unwrap(), &Options::default()).err().unwrap().to_string();
    assert_eq!(
        error,
        "`fc` is adaptable as `fc`, but its weight `w` is known at stage adapter, expected base: adapters are loaded onto \
         the base's weight"
    );
}

/// A layer of a graph and one of a bank are merged in the same way, to the last bit.
#[test]
fn a_graph_and_a_bank_merge_alike() {
    for (out, k, rank, dora) in [(50, 20, 3, true), (48, 33, 1, true), (7, 64, 5, false)] {
        let mut numbers = Numbers(out as u32);
        let (w, a, b) = (numbers.tensor(&[out, k]), numbers.tensor(&[rank, k]), numbers.tensor(&[out, rank]));
        let mut update = Update { a, b, scale: 0.5, magnitude: None, bias_of_b: None };
        if dora {
            update.magnitude = Some(numbers.magnitude(&norms(&reals(&w), &update, (out, k))));
        }
        let x = numbers.tensor(&[9, 4, k]);
        let base = Weights::from_iter([("w", Arc::clone(&w))]);

        let g = GraphBuilder::new("layer");
        let [tw, ta, tb] = [("w", [out, k]), ("a", [rank, k]), ("b", [out, rank])]
            .map(|(name, [rows, columns])| g.param(name, F32, dims![rows, columns]));
        let delta = engraft_ir::Tensor::lora_delta(ta.adapter(), tb.adapter(), 0.5);
        let weight = if dora {
            (tw + delta).normalize(1).magnitude(g.param("m", F32, dims![out]).adapter(), 0)
        } else {
            tw + delta
        };
        g.output("y", g.input("x", F32, dims!["items", "rows", k]).dense(weight, None));
        let options = Options { merge: Merging::ALWAYS, ..Options::default() };
        let compiled = compile(&g.finish().unwrap(), &options).unwrap();
        assert!(compiled.plan.steps.iter().any(|step| matches!(step.kernel, Kernel::Merge(_))));
        let mut adapter = Weights::from_iter([("a", Arc::clone(&update.a)), ("b", Arc::clone(&update.b))]);
        if let Some(m) = &update.magnitude {
            adapter.insert("m", Arc::clone(m));
        }
        let context = Context::new(engraft_runtime::Options::default()).unwrap();
        let model = compiled.program.load_base(&base, context).unwrap().load_adapter(&adapter).unwrap();
        let of_graph = model.session().run(&[("x", &*x)]).unwrap();

        let (base, model) = load(&layer(out, k, false, false), &base, 1);
        let bank = Bank::new(base);
        let merged = LayerWeights { updates: vec![update], merge: true, ..LayerWeights::default() };
        bank.load("a", &AdapterWeights::from([("fc".to_owned(), merged)])).unwrap();
        let rows = bank.rows(&[Some("a"); 9]).unwrap();
        let of_bank = model.session().run_rows(&[("x", &*x)], &rows).unwrap();
        let [of_graph, of_bank] = [&of_graph, &of_bank]
            .map(|outputs| outputs[0].1.as_f32().unwrap().iter().map(|y| y.to_bits()).collect::<Vec<_>>());
        assert_eq!(of_graph, of_bank, "[{out}, {k}], rank {rank}");
    }
}

#[test]
fn two_biases_cannot_be_in_one_place() {
    let (plain, mut biased) = (lora(2, "fc"), lora(2, "fc"));
    biased.get_mut("fc").unwrap().bias = Some(Numbers(3).tensor(&[3]));
    assert_eq!(
        in_order([&biased, &plain, &biased]).unwrap_err().to_string(),
        "adapters 0 and 2 both replace the bias of `fc`, and only one can stand in its place"
    );
    assert_eq!(in_order([&plain, &biased]).unwrap()["fc"].updates.len(), 2);
}

/// An adapter comes with the call, so a layer that is computed before it cannot have one.
#[test]
fn an_adaptable_layer_must_run_with_the_call() {
    let g = GraphBuilder::new("layer");
    let prefix = g.param("prefix", F32, dims![1, 2]).adapter();
    let y = prefix.adaptable("fc", g.param("w", F32, dims![3, 2]), None).named("fc");
    g.output("y", g.input("x", F32, dims!["items", 3]) + y);
    let error = compile(&g.finish().unwrap(), &Options::default()).err().unwrap().to_string();
    assert_eq!(
        error,
        "`fc` is adaptable as `fc`, but is computed at stage adapter, expected call: adapters come with the call"
    );
}

/// `DoRA` has no direction where W + s B A is zero: what divides by its norm is refused rather than no number, and so is what
/// divides by next to nothing, and a weight or a magnitude that is not finite.
#[test]
fn gains_that_are_not_finite_are_refused() {
    let mut numbers = Numbers(2);
    let (a, b) = (numbers.tensor(&[1, 2]), Tensor::f32(&[3, 1], vec![1.0, 0.0, 1.0]).unwrap());
    let update = |magnitude: f32| Update {
        a: Arc::clone(&a),
        b: Arc::new(b.clone()),
        scale: 1.0,
        magnitude: Some(Arc::new(Tensor::f32(&[3], vec![1.0, magnitude, 1.0]).unwrap())),
        bias_of_b: None,
    };
    for (w, magnitude, [m, norm, gain]) in [
        (0.0, 1.0, ["1.0", "0.0", "inf"]),
        (1e-39, 1.0, ["1.0", "1e-39", "inf"]),
        (f32::INFINITY, 1.0, ["1.0", "inf", "0.0"]),
        (1.0, f32::NAN, ["NaN", "1.0", "NaN"]),
        (1.0, f32::NEG_INFINITY, ["-inf", "1.0", "-inf"]),
    ] {
        let mut weight = Numbers(1).tensor(&[3, 2]).as_f32().unwrap().to_vec();
        weight[2..4].copy_from_slice(&[w, 0.0]);
        let weights = Weights::from_iter([("w", Arc::new(Tensor::f32(&[3, 2], weight).unwrap()))]);
        let bank = Bank::new(load(&layer(3, 2, false, false), &weights, 1).0);
        let layer = LayerWeights { updates: vec![update(magnitude)], ..LayerWeights::default() };
        let error =
            bank.load("a", &AdapterWeights::from([("fc".to_owned(), layer)])).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "adapter `a`: layer `fc`: DoRA's magnitude is {m} and the norm of W + s B A is {norm} at output 1, expected \
                 finite numbers whose quotient, times the gains of updates before, is finite too; it is {gain}"
            )
        );
    }
}

/// A gain of zero hides an output; an update after it that adds nothing to this output has nothing to undo.
#[test]
fn what_adds_nothing_may_follow_a_gain_of_zero() {
    let mut numbers = Numbers(1);
    let w = numbers.tensor(&[3, 2]);
    let (base, model) = load(&layer(3, 2, false, false), &Weights::from_iter([("w", Arc::clone(&w))]), 1);
    let bank = Bank::new(base);
    let mut weights = lora(2, "fc");
    let layer = weights.get_mut("fc").unwrap();
    layer.updates[0].magnitude = Some(Arc::new(Tensor::f32(&[3], vec![1.0, 0.0, 1.0]).unwrap()));
    let mut after = lora(1, "fc")["fc"].updates[0].clone();
    let mut b = after.b.as_f32().unwrap().to_vec();
    b[1] = 0.0;
    after.b = Arc::new(Tensor::f32(&[3, 1], b).unwrap());
    layer.updates.push(after);
    let expected = Exact::new(&reals(&w), layer, (3, 2));
    bank.load("a", &weights).unwrap();
    let x = Tensor::f32(&[1, 1, 2], vec![1.0, 2.0]).unwrap();
    let y = model.session().run_rows(&[("x", &x)], &bank.rows(&[Some("a")]).unwrap()).unwrap();
    let expected = expected.row(&reals(&w), &[0.0; 3], &[1.0, 2.0]);
    assert!(expected[1] == 0.0 && expected[0] != 0.0 && expected[2] != 0.0);
    assert_close(&reals(&y[0].1), &expected, 1e-6, 1e-6);
}

/// An update that only f32 cannot hold after a tiny gain is refused rather than made infinite.
#[test]
fn what_a_tiny_gain_makes_infinite_is_refused() {
    let (bank, _) = little();
    let mut weights = lora(2, "fc");
    let layer = weights.get_mut("fc").unwrap();
    layer.updates[0].magnitude = Some(Arc::new(Tensor::f32(&[3], vec![1.0, 1e-37, 1.0]).unwrap()));
    layer.updates.push(Update { scale: 1e6, magnitude: None, ..layer.updates[0].clone() });
    let error = bank.load("a", &weights).unwrap_err().to_string();
    assert!(error.contains("an update follows a gain of ") && error.contains(" at output 1,"), "{error}");
    let mut weights = lora(2, "fc");
    weights.get_mut("fc").unwrap().updates[0].scale = 1e-60;
    let error = bank.load("a", &weights).unwrap_err().to_string();
    assert!(error.ends_with("its scale is 1e-60, expected a number that f32 holds"), "{error}");
}
