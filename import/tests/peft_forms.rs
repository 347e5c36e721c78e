//! Normal forms against the formulas of PEFT's layers, written plainly in `f64`, and against what PEFT recorded with several
//! adapters active.
#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod common;

use common::{assert_agree, composed, composed_base, numbers, value, values, y};
use engraft_import::peft::{
    BaseWeight, ComposeError, Composition, FormError, LinearForm, LoraConfig, PeftAdapter, attach, combine,
    inner_product, relation, update_norm,
};
use engraft_import::safetensors::{Floats, read_weights};
use engraft_ir::eval::Values;
use engraft_ir::{DType, Graph, GraphBuilder, dims};
use engraft_runtime::{Tensor, Weights};
use ndarray::{Array1, Array2, Axis, Ix2};
use proptest::prelude::*;
use serde_json::json;

/// What a layer's weight is used as.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    Linear,
    Conv1d,
    Embedding,
}

#[derive(Clone, Debug)]
struct Adapter {
    rank: usize,
    alpha: i32,
    rslora: bool,
    dora: bool,
    lora_bias: bool,
}

#[derive(Clone, Debug)]
struct Layer {
    used: Use,
    out: usize,
    r#in: usize,
    bias: bool,
}

impl Layer {
    fn stored(&self) -> [usize; 2] {
        if self.used == Use::Linear { [self.out, self.r#in] } else { [self.r#in, self.out] }
    }

    fn graph(&self) -> Graph {
        let g = GraphBuilder::new("layer");
        let [rows, columns] = self.stored().map(|dim| dim as u64);
        let w = g.param("fc.weight", DType::F32, dims![rows, columns]);
        let b = self.bias.then(|| g.param("fc.bias", DType::F32, dims![self.out as u64]));
        let input = |dtype, shape| g.input("x", dtype, shape);
        let y = match self.used {
            Use::Linear => input(DType::F32, dims!["n", self.r#in as u64]).dense(w, b),
            Use::Conv1d => input(DType::F32, dims!["n", self.r#in as u64]).dense(w.t(), b),
            Use::Embedding => w.gather(input(DType::I64, dims!["n"])),
        };
        g.output("y", y);
        g.finish().unwrap()
    }

    /// W `[out, in]`.
    fn weight(&self) -> Array2<f64> {
        let w = matrix(&numbers("w", &self.stored()));
        if self.used == Use::Linear { w } else { w.reversed_axes() }
    }

    fn adapter(&self, index: usize, adapter: &Adapter) -> PeftAdapter {
        let config = json!({
            "peft_type": "LORA", "target_modules": ["fc"], "r": adapter.rank, "lora_alpha": adapter.alpha,
            "use_dora": adapter.dora, "use_rslora": adapter.rslora, "lora_bias": adapter.lora_bias,
        });
        let names = match self.used {
            Use::Embedding => ["lora_embedding_A", "lora_embedding_B"],
            Use::Linear | Use::Conv1d => ["lora_A.weight", "lora_B.weight"],
        };
        let shapes = [vec![adapter.rank, self.r#in], vec![self.out, adapter.rank]];
        let mut parts: Vec<(&str, Vec<usize>)> = names.into_iter().zip(shapes).collect();
        if adapter.dora {
            parts.push(("lora_magnitude_vector", vec![self.out]));
        }
        if adapter.lora_bias {
            parts.push(("lora_B.bias", vec![self.out]));
        }
        let tensor = |(name, shape): (&str, Vec<usize>)| {
            (format!("base_model.model.fc.{name}"), numbers(&format!("{name}{index}"), &shape))
        };
        let tensors: Weights = parts.into_iter().map(tensor).collect();
        PeftAdapter::new(LoraConfig::parse(&config.to_string()).unwrap(), &tensors).unwrap()
    }
}

fn matrix(tensor: &Tensor) -> Array2<f64> {
    value(tensor).as_real().unwrap().clone().into_dimensionality::<Ix2>().unwrap()
}

fn part(adapter: &PeftAdapter, end: &str) -> Option<Tensor> {
    adapter.tensors().iter().find(|(name, _)| name.ends_with(end)).map(|(_, tensor)| (**tensor).clone())
}

fn vector(adapter: &PeftAdapter, end: &str) -> Option<Array1<f64>> {
    part(adapter, end).map(|tensor| tensor.as_f32().unwrap().iter().map(|&x| f64::from(x)).collect())
}

/// s B A.
fn delta(adapter: &PeftAdapter) -> Array2<f64> {
    let [a, b] = ["A", "B"].map(|factor| {
        let ends = [format!("lora_{factor}.weight"), format!("lora_embedding_{factor}")];
        matrix(&ends.iter().find_map(|end| part(adapter, end)).unwrap())
    });
    b.dot(&a) * adapter.config().scale("fc").unwrap()
}

/// What PEFT's layers do in turn to `result`, given the layer's own W, bias and input.
fn sequential(layer: &Layer, adapters: &[PeftAdapter], x: &Array2<f64>, bias: &Array1<f64>) -> Array2<f64> {
    let w = layer.weight();
    let mut result = x.dot(&w.t()) + bias;
    for adapter in adapters {
        let delta = delta(adapter);
        let update = x.dot(&delta.t());
        if let Some(m) = vector(adapter, "lora_magnitude_vector") {
            let norm = (&w + &delta).map_axis(Axis(1), |row| row.dot(&row).sqrt());
            let g = m / norm;
            result = (result - bias) * &g + bias + update * &g;
        } else {
            result += &update;
            if let Some(b) = vector(adapter, "lora_B.bias") {
                result += &(b * adapter.config().scale("fc").unwrap());
            }
        }
    }
    result
}

prop_compose! {
    fn adapter()(rank in 1_usize..5, alpha in -20..30, rslora in any::<bool>(), kind in 0..3) -> Adapter {
        Adapter { rank, alpha, rslora, dora: kind == 1, lora_bias: kind == 2 }
    }
}

prop_compose! {
    fn layer()(
        used in proptest::sample::select(&[Use::Linear, Use::Conv1d, Use::Embedding][..]),
        (out, r#in) in (1_usize..7, 1_usize..7),
        bias in any::<bool>(),
    ) -> Layer {
        Layer { used, out, r#in, bias }
    }
}

/// The composed module's merged weight `[out, in]` and shift.
fn merged(layer: &Layer, composition: &Composition) -> (Array2<f64>, Array1<f64>) {
    let module = &composition.modules[0];
    let w = numbers("w", &layer.stored());
    let weight = BaseWeight::new(&module.module, Floats::of(&w).unwrap()).unwrap();
    let form = module.form(&module.gains(&weight).unwrap()).unwrap();
    let merger = form.merger(&weight).unwrap();
    let mut w = matrix(&w);
    for (row, mut numbers) in w.axis_iter_mut(Axis(0)).enumerate() {
        merger.merge(row, numbers.as_slice_mut().unwrap());
    }
    let shift =
        form.shift().map_or_else(|| Array1::zeros(layer.out), |shift| shift.iter().copied().collect());
    (if layer.used == Use::Linear { w } else { w.reversed_axes() }, shift)
}

proptest! {
    /// One merged weight and one bias are what the layers do one after the other.
    #[test]
    fn composed_is_sequential(layer in layer(), adapters in proptest::collection::vec(adapter(), 1..4)) {
        let embedding = layer.used == Use::Embedding;
        let adapters = adapters.into_iter().map(|adapter| Adapter { lora_bias: adapter.lora_bias && !embedding, ..adapter });
        let adapters: Vec<_> = adapters.enumerate().map(|(index, adapter)| layer.adapter(index, &adapter)).collect();
        let references: Vec<_> = adapters.iter().collect();
        let composition = Composition::new(&layer.graph(), &references).unwrap();
        let x = matrix(&numbers("x", &[3, layer.r#in]));
        let bias = if layer.bias && !embedding { matrix(&numbers("b", &[1, layer.out])).row(0).to_owned() } else { Array1::zeros(layer.out) };
        let theirs = sequential(&layer, &adapters, &x, &bias);
        let (w, shift) = merged(&layer, &composition);
        let ours = x.dot(&w.t()) + &bias + &shift;
        let largest = theirs.iter().fold(1.0_f64, |largest, y| largest.max(y.abs()));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            prop_assert!((ours - theirs).abs() <= 1e-10 * largest, "{ours} {theirs}");
        }
    }

    /// A weighted combination is the sum of the weighted updates, whatever the ranks and scales.
    #[test]
    fn weighted_is_the_sum(
        layer in layer(),
        parts in proptest::collection::vec((adapter(), -3.0..3.0_f64), 1..4),
    ) {
        let make = |(index, (adapter, weight)): (usize, &(Adapter, f64))| {
            let adapter = Adapter { dora: false, lora_bias: false, ..adapter.clone() };
            (*weight, layer.adapter(index, &adapter))
        };
        let parts: Vec<(f64, PeftAdapter)> = parts.iter().enumerate().map(make).collect();
        let expected: Array2<f64> = parts.iter().fold(Array2::zeros((layer.out, layer.r#in)), |sum, (w, a)| sum + delta(a) * *w);
        let factors: Vec<_> =
            parts.iter().map(|(weight, a)| (*weight, a.contents().unwrap().factors.remove(0))).collect();
        let weighted: Vec<_> = factors.iter().map(|(weight, factors)| (*weight, factors)).collect();
        let form = LinearForm::weighted("fc", (layer.r#in, layer.out), &weighted).unwrap();
        let shaped = |numbers: &[f64], rows, columns| Array2::from_shape_vec((rows, columns), numbers.to_vec()).unwrap();
        let ours = shaped(form.b(), layer.out, form.rank()).dot(&shaped(form.a(), form.rank(), layer.r#in));
        let largest = expected.iter().fold(1.0_f64, |largest, x| largest.max(x.abs()));
        for (ours, theirs) in ours.iter().zip(&expected) {
            prop_assert!((ours - theirs).abs() <= 1e-12 * largest, "{ours} {theirs}");
        }
        // As an adapter's files, where each w s B is rounded to f32 once: r numbers, none of A's larger than 1.
        let size = |(w, a): &(f64, PeftAdapter)| {
            w.abs() * a.config().scale("fc").unwrap().abs() * a.config().rank("fc").unwrap() as f64
        };
        let bound = f64::from(f32::EPSILON) * parts.iter().map(size).sum::<f64>() + f64::from(f32::MIN_POSITIVE);
        let combined: Vec<_> = parts.iter().map(|(weight, adapter)| (*weight, adapter)).collect();
        for (ours, theirs) in delta(&combine(&combined).unwrap()).iter().zip(&expected) {
            prop_assert!((ours - theirs).abs() <= bound, "{ours} {theirs}");
        }
    }

    /// The form of one adapter is what the graph with the adapter attached computes.
    #[test]
    fn a_form_is_what_is_attached(layer in layer(), adapter in adapter()) {
        let adapter = Adapter { lora_bias: adapter.lora_bias && layer.used != Use::Embedding, ..adapter };
        let (graph, adapter) = (layer.graph(), layer.adapter(0, &adapter));
        let attached = attach(&graph, &adapter).unwrap();
        let mut given: Values = values(&attached.weights);
        given.insert("fc.weight".to_owned(), value(&numbers("w", &layer.stored())));
        given.insert("fc.bias".to_owned(), value(&numbers("b", &[layer.out])));
        let ids = || Tensor::i64(&[3], vec![0, layer.r#in as i64 - 1, 0]).unwrap();
        let x = if layer.used == Use::Embedding { ids() } else { numbers("x", &[3, layer.r#in]) };
        given.insert("x".to_owned(), value(&x));
        let theirs = y(&attached.graph, &given);

        let (w, shift) = merged(&layer, &Composition::new(&graph, &[&adapter]).unwrap());
        let w = if layer.used == Use::Linear { w } else { w.reversed_axes() };
        given.insert("fc.weight".to_owned(), w.into_dyn().into());
        let ours = y(&graph, &given) + shift;
        assert_agree(&ours, &theirs);
    }

    /// W' / g - B A is W again, as near as the arithmetic allows.
    #[test]
    fn unmerged_is_the_base(layer in layer(), adapters in proptest::collection::vec(adapter(), 1..3)) {
        let adapters: Vec<_> = adapters.iter().enumerate().map(|(index, adapter)| {
            layer.adapter(index, &Adapter { lora_bias: false, ..adapter.clone() })
        }).collect();
        let composition = Composition::new(&layer.graph(), &adapters.iter().collect::<Vec<_>>()).unwrap();
        let (module, w) = (&composition.modules[0], numbers("w", &layer.stored()));
        let weight = BaseWeight::new(&module.module, Floats::of(&w).unwrap()).unwrap();
        let form = module.form(&module.gains(&weight).unwrap()).unwrap();
        let merger = form.merger(&weight).unwrap();
        for (row, original) in matrix(&w).axis_iter(Axis(0)).enumerate() {
            let mut numbers = original.to_vec();
            merger.merge(row, &mut numbers);
            merger.unmerge(row, &mut numbers);
            for (ours, theirs) in numbers.iter().zip(original) {
                prop_assert!((ours - theirs).abs() <= 1e-9, "{ours} {theirs}");
            }
        }
    }

    /// Sizes and angles from r x r products are those of the matrices.
    #[test]
    fn grams_are_those_of_the_matrices(layer in layer(), adapters in [adapter(), adapter()]) {
        let adapters = adapters.map(|adapter| Adapter { lora_bias: false, ..adapter });
        let [x, y] = [0, 1].map(|index| layer.adapter(index, &adapters[index]));
        let deltas = [&x, &y].map(delta);
        let factors = [&x, &y].map(|adapter| adapter.contents().unwrap().factors.remove(0));
        let norms = deltas.each_ref().map(|d| d.iter().map(|x| x * x).sum::<f64>().sqrt());
        let scale = norms[0].max(norms[1]).max(1.0);
        for (factors, norm) in factors.iter().zip(norms) {
            prop_assert!((update_norm(factors) - norm).abs() <= 1e-6 * scale);
        }
        let product: f64 = deltas[0].iter().zip(&deltas[1]).map(|(x, y)| x * y).sum();
        prop_assert!((inner_product(&factors[0], &factors[1]).unwrap() - product).abs() <= 1e-10 * scale * scale);
        let difference = (&deltas[0] - &deltas[1]).iter().map(|x| x * x).sum::<f64>().sqrt();
        let relation = relation(&factors[0], &factors[1]).unwrap();
        match relation.relative_difference {
            Some(relative) if norms[0] > 1e-6 => prop_assert!((relative * norms[0] - difference).abs() <= 1e-5 * scale),
            Some(_) => {}
            None => prop_assert!(norms[0] == 0.0 && norms[1] > 0.0),
        }
        if let Some(cosine) = relation.cosine {
            prop_assert!((cosine * norms[0] * norms[1] - product).abs() <= 1e-6 * scale * scale);
        }
    }
}

/// The tiny base with these adapters merged in this order.
fn merged_mlp(adapters: &[&PeftAdapter]) -> Values {
    let base = read_weights(composed("base.safetensors")).unwrap();
    let composition = Composition::new(&composed_base(), adapters).unwrap();
    let mut given = values(&base);
    for module in &composition.modules {
        let name = |end: &str| format!("{}.{end}", module.module.name);
        let stored = base.get(&name("weight")).unwrap();
        let weight = BaseWeight::new(&module.module, Floats::of(stored).unwrap()).unwrap();
        let form = module.form(&module.gains(&weight).unwrap()).unwrap();
        let merger = form.merger(&weight).unwrap();
        let mut w = matrix(stored);
        for (row, mut numbers) in w.axis_iter_mut(Axis(0)).enumerate() {
            merger.merge(row, numbers.as_slice_mut().unwrap());
        }
        given.insert(name("weight"), w.into_dyn().into());
        if let Some(shift) = form.shift() {
            let bias = given[&name("bias")].as_real().unwrap() + &Array1::from_iter(shift.iter().copied());
            given.insert(name("bias"), bias.into());
        }
    }
    given
}

/// PEFT with `set_adapter` of two adapters, in this order.
#[test]
fn composed_is_what_peft_recorded() {
    let io = values(&read_weights(composed("io.safetensors")).unwrap());
    let pairs = ["l1.l2", "d1.l1", "l1.d1", "d1.d2", "d2.d1", "lb.d1", "d1.lb"];
    assert_eq!(io.keys().filter(|name| name.starts_with("y.")).count(), pairs.len() + 1, "and y.cat");
    for pair in pairs {
        let (first, second) = pair.split_once('.').unwrap();
        let [first, second] = [first, second].map(|name| PeftAdapter::open(composed(name)).unwrap());
        let mut given = merged_mlp(&[&first, &second]);
        given.insert("x".to_owned(), io["x"].clone());
        assert_agree(&y(&composed_base(), &given), io[&format!("y.{pair}")].as_real().unwrap());
    }
    let order = |name: &str| io[name].as_real().unwrap();
    assert_ne!(order("y.d1.d2"), order("y.d2.d1"), "the order matters");
}

/// An adapter of one output and one input with rank 1: A = B = [1], and m = [m] if there is one.
fn tiny(m: Option<f32>, b: f32) -> PeftAdapter {
    let config = json!({
        "peft_type": "LORA", "target_modules": ["fc"], "r": 1, "lora_alpha": 1, "use_dora": m.is_some(),
    });
    let vector = |x: f32, shape: &[usize]| Tensor::f32(shape, vec![x]).unwrap();
    let mut tensors = Weights::new();
    tensors.insert("base_model.model.fc.lora_A.weight", vector(1.0, &[1, 1]));
    tensors.insert("base_model.model.fc.lora_B.weight", vector(b, &[1, 1]));
    if let Some(m) = m {
        tensors.insert("base_model.model.fc.lora_magnitude_vector", vector(m, &[1]));
    }
    PeftAdapter::new(LoraConfig::parse(&config.to_string()).unwrap(), &tensors).unwrap()
}

/// The form of these on a weight of one element.
fn tiny_form(adapters: &[&PeftAdapter], w: f32) -> Result<f64, FormError> {
    let graph = Layer { used: Use::Linear, out: 1, r#in: 1, bias: false }.graph();
    let composition = Composition::new(&graph, adapters).unwrap();
    let (module, w) = (&composition.modules[0], [w]);
    let weight = BaseWeight::new(&module.module, Floats::Values(&w))?;
    let form = module.form(&module.gains(&weight)?)?;
    let mut merged = [f64::from(w[0])];
    form.merger(&weight)?.merge(0, &mut merged);
    Ok(merged[0])
}

#[test]
fn what_a_form_cannot_say_is_refused() {
    let (zero, lora, none) = (tiny(Some(0.0), 1.0), tiny(None, 1.0), tiny(None, 0.0));
    let error = tiny_form(&[&zero, &lora], 2.0).unwrap_err();
    assert_eq!(error, FormError::ZeroGain { module: "fc".to_owned(), output: 0 });
    assert!(error.to_string().contains("g (W + D) cannot say that"), "{error}");
    // In the other order it can, and what adds nothing is no matter.
    assert_eq!(tiny_form(&[&lora, &zero], 2.0), Ok(0.0));
    assert_eq!(tiny_form(&[&zero, &none], 2.0), Ok(0.0));
    let error = tiny_form(&[&tiny(Some(3.0), 1.0)], -1.0).unwrap_err();
    assert_eq!(error, FormError::ZeroNorm { module: "fc".to_owned(), output: 0 });
    let error = tiny_form(&[&tiny(Some(3.0), 1.0)], f32::INFINITY).unwrap_err();
    assert!(matches!(error, FormError::Norm { output: 0, .. }), "{error}");
    assert_eq!(tiny_form(&[&tiny(Some(3.0), 1.0)], 1.0), Ok(3.0));
}

#[test]
fn a_weight_or_an_adapter_of_another_size_is_refused() {
    let graph = |out| Layer { used: Use::Linear, out, r#in: 1, bias: false }.graph();
    let adapter = tiny(None, 1.0);
    let composition = Composition::new(&graph(1), &[&adapter]).unwrap();
    let module = &composition.modules[0];
    let error = BaseWeight::new(&module.module, Floats::Values(&[1.0, 2.0])).unwrap_err();
    assert!(error.to_string().contains("has 2 elements, expected 1 x 1"), "{error}");
    let error = Composition::new(&graph(2), &[&adapter]).unwrap_err();
    assert!(matches!(error, ComposeError::Attach { adapter: 1, .. }), "{error}");
    assert_eq!(Composition::new(&graph(1), &[]).unwrap_err(), ComposeError::Nothing);
}

#[test]
fn adapters_that_contradict_each_other_are_refused() {
    let open = |name: &str| PeftAdapter::open(common::case(name)).unwrap();
    let (saves, adapts) = (open("lora_modules_to_save"), open("lora"));
    let base = common::base("mlp");
    let error = Composition::new(&base, &[&adapts, &saves]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "adapter 2 replaces `fc2.weight`, but adapter 1 was trained as an update of the original"
    );
    let error = Composition::new(&base, &[&saves, &saves]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "adapters 1 and 2 both replace `fc2.weight`, and there can be only one in its place"
    );
    let biases = open("lora_bias_all");
    let error = Composition::new(&base, &[&biases, &adapts, &biases]).unwrap_err();
    assert!(matches!(error, ComposeError::ReplacedTwice { first: 1, second: 3, .. }), "{error}");
    assert!(Composition::new(&base, &[&biases, &adapts]).is_ok());
}

#[test]
fn what_is_not_finite_is_refused() {
    let graph = Layer { used: Use::Linear, out: 1, r#in: 1, bias: false }.graph();
    let error = Composition::new(&graph, &[&tiny(None, f32::NAN)]).unwrap_err();
    assert!(
        error.to_string().contains("adapter 1: module `fc`: tensor `lora_B` has the element NaN"),
        "{error}"
    );
    let error = tiny(Some(f32::INFINITY), 1.0).contents().unwrap_err();
    assert!(error.to_string().contains("`lora_magnitude_vector` has the element inf"), "{error}");
}

/// What is run is the form, rounded once; what has no room in an `f32` is refused.
#[test]
fn a_form_is_rounded_to_be_run() {
    let form = |adapters: &[&PeftAdapter], w: f32| {
        let graph = Layer { used: Use::Linear, out: 1, r#in: 1, bias: false }.graph();
        let composition = Composition::new(&graph, adapters).unwrap();
        let (module, w) = (&composition.modules[0], [w]);
        let weight = BaseWeight::new(&module.module, Floats::Values(&w)).unwrap();
        module.form(&module.gains(&weight).unwrap()).unwrap()
    };
    // g = 8 / |2 + 2| = 2, so the second update is divided by 2 inside it.
    let tensors = form(&[&tiny(Some(8.0), 2.0), &tiny(None, 3.0)], 2.0).tensors().unwrap();
    let reals = |tensor: &Tensor| tensor.as_f32().unwrap().to_vec();
    assert_eq!((reals(&tensors.a), tensors.a.shape()), (vec![1.0, 1.0], &[2, 1][..]));
    assert_eq!((reals(&tensors.b), tensors.b.shape()), (vec![2.0, 1.5], &[1, 2][..]));
    assert_eq!((tensors.gain.as_ref().map(reals), tensors.shift), (Some(vec![2.0]), None));
    let error = form(&[&tiny(Some(1e-38), 1.0), &tiny(None, 10.0)], 1.0).tensors().unwrap_err();
    assert_eq!(error.to_string(), "module `fc`: B has an element that is no finite f32");
}
