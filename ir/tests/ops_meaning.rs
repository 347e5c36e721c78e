//! Every op's reference meaning against values worked out by hand, or by a formula written another way.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::cloned_ref_to_slice_refs, reason = "a list of one source reads like a list of many")]

use engraft_ir::eval::{Values, eval};
use engraft_ir::ops::{Binary, Unary};
use engraft_ir::value::{EvalError, Value};
use engraft_ir::{Op, text};
use engraft_testing::{assert_close, assert_values_close, bindings, ids, real};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Runs lines of text; sources are `f32` or `i64` of the given values' shapes, and the result is the node `y`.
#[track_caller]
fn run(sources: &[(&str, Value)], lines: &str) -> Result<Value, EvalError> {
    let mut graph = "engraft 1\ngraph meaning\n".to_owned();
    for (name, value) in sources {
        let dtype = if value.as_real().is_ok() { "f32" } else { "i64" };
        let _ = writeln!(graph, "{name}: {dtype}{:?} = input()", value.shape());
    }
    let graph = text::parse(&format!("{graph}{lines}\noutput y = y")).unwrap();
    let values: Values = sources.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    eval(&graph, &values).map(|mut y| y.remove("y").unwrap())
}

#[track_caller]
fn check(sources: &[(&str, Value)], lines: &str, expected: &Value) {
    let y = run(sources, lines).unwrap();
    let named = |value: &Value| [("y".to_owned(), value.clone())].into();
    assert_values_close(&named(&y), &named(expected), 1e-12, 0.0);
}

fn x() -> (&'static str, Value) {
    ("x", real(&[2, 2], &[1.0, 2.0, 3.0, 4.0]))
}

fn layer() -> Vec<(&'static str, Value)> {
    vec![
        x(),
        ("w", real(&[3, 2], &[1.0, 0.0, 0.0, 1.0, 2.0, -1.0])),
        ("a", real(&[1, 2], &[1.0, 1.0])),
        ("b", real(&[3, 1], &[1.0, 2.0, 3.0])),
        ("v", real(&[3], &[10.0, 20.0, 30.0])),
        ("bias", real(&[3], &[0.5, 0.25, 0.125])),
    ]
}

#[test]
fn dense_and_matmul() {
    check(&layer(), "y = dense(x, w)", &real(&[2, 3], &[1.0, 2.0, 0.0, 3.0, 4.0, 2.0]));
    check(&layer(), "y = dense(x, w, v)", &real(&[2, 3], &[11.0, 22.0, 30.0, 13.0, 24.0, 32.0]));
    check(
        &layer(),
        "y = adaptable(x, w, v) {module: \"fc\"}",
        &real(&[2, 3], &[11.0, 22.0, 30.0, 13.0, 24.0, 32.0]),
    );
    check(
        &[("x", real(&[2], &[1.0, 2.0])), layer().remove(1)],
        "y = dense(x, w)",
        &real(&[3], &[1.0, 2.0, 0.0]),
    );
    let b = ("b", real(&[2, 1], &[1.0, 10.0]));
    check(&[x(), b.clone()], "y = matmul(x, b)", &real(&[2, 1], &[21.0, 43.0]));
    let batched = ("p", real(&[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]));
    check(&[batched.clone(), b], "y = matmul(p, b)", &real(&[2, 1, 1], &[21.0, 43.0]));
    let right = ("q", real(&[2, 2, 1], &[1.0, 0.0, 0.0, 1.0]));
    check(&[batched, right], "y = matmul(p, q)", &real(&[2, 1, 1], &[1.0, 4.0]));
}

#[test]
fn lora_in_its_three_forms() {
    // B A = [[1, 1], [2, 2], [3, 3]]
    check(&layer(), "y = lora_delta(a, b) {scale: 2}", &real(&[3, 2], &[2.0, 2.0, 4.0, 4.0, 6.0, 6.0]));
    // A x = 3 and 7
    let d = [6.0, 12.0, 18.0, 14.0, 28.0, 42.0];
    check(&layer(), "y = lora_apply(x, a, b) {scale: 2}", &real(&[2, 3], &d));
    let y = [17.0, 34.0, 48.0, 27.0, 52.0, 74.0];
    check(&layer(), "y = lora(x, w, a, b, v) {scale: 2}", &real(&[2, 3], &y));
}

#[test]
fn dora_in_both_meanings() {
    // W + 2 B A = [[3, 2], [4, 5], [8, 5]]
    let norms = [13f64.sqrt(), 41f64.sqrt(), 89f64.sqrt()];
    check(&layer(), "y = lora_norm(w, a, b) {scale: 2}", &real(&[3], &norms));
    // Gain times [[7, 14, 18], [17, 32, 44]], then the bias, which is not scaled.
    let y = [70.5, 280.25, 540.125, 170.5, 640.25, 1320.125];
    check(&layer(), "y = dora(x, w, a, b, v, bias) {scale: 2}", &real(&[2, 3], &y));
    let merged = "delta = lora_delta(a, b) {scale: 2}
        adapted = add(w, delta)
        direction = normalize(adapted) {axis: 1, epsilon: 0, epsilon_at: \"inside\"}
        merged = magnitude(direction, v) {axis: 0}
        y = dense(x, merged, bias)";
    let unmerged = "norm = lora_norm(w, a, b) {scale: 2}
        gain = div(v, norm)
        y = dora(x, w, a, b, gain, bias) {scale: 2}";
    check(&layer(), unmerged, &run(&layer(), merged).unwrap());
    // c = [[7.5, 14.25, 18.125], ..], each row by its own norm.
    let c = [[7.5, 14.25, 18.125], [17.5, 32.25, 44.125]];
    let y: Vec<_> = c
        .iter()
        .flat_map(|row: &[f64; 3]| {
            let norm = (row.iter().map(|c| c * c).sum::<f64>() + 0.5).sqrt();
            [10.0 * row[0] / norm, 20.0 * row[1] / norm, 30.0 * row[2] / norm]
        })
        .collect();
    check(&layer(), "y = output_dora(x, w, a, b, v, bias) {scale: 2, epsilon: 0.5}", &real(&[2, 3], &y));
}

#[test]
fn normalize_and_magnitude() {
    let v = ("v", real(&[2, 2], &[3.0, 4.0, 0.0, 2.0]));
    let at = |place: &str, axis: usize| {
        format!("y = normalize(v) {{axis: {axis}, epsilon: 11, epsilon_at: \"{place}\"}}")
    };
    let (inside, outside) = (15f64.sqrt(), 13.0);
    let y = [3.0 / 6.0, 4.0 / 6.0, 0.0, 2.0 / inside];
    check(&[v.clone()], &at("inside", 1), &real(&[2, 2], &y));
    check(&[v.clone()], &at("outside", 1), &real(&[2, 2], &[3.0 / 16.0, 4.0 / 16.0, 0.0, 2.0 / outside]));
    check(&[v.clone()], &at("max", 1), &real(&[2, 2], &[3.0 / 11.0, 4.0 / 11.0, 0.0, 2.0 / 11.0]));
    let columns = [3.0 / 20f64.sqrt(), 4.0 / 31f64.sqrt(), 0.0, 2.0 / 31f64.sqrt()];
    check(&[v.clone()], &at("inside", 0), &real(&[2, 2], &columns));
    let m = ("m", real(&[2], &[10.0, 100.0]));
    check(
        &[v.clone(), m.clone()],
        "y = magnitude(v, m) {axis: 0}",
        &real(&[2, 2], &[30.0, 40.0, 0.0, 200.0]),
    );
    check(&[v, m], "y = magnitude(v, m) {axis: 1}", &real(&[2, 2], &[30.0, 400.0, 0.0, 200.0]));
}

#[test]
fn arithmetic_broadcasts() {
    let row = ("r", real(&[2], &[10.0, 20.0]));
    let column = ("c", real(&[2, 1], &[10.0, 20.0]));
    check(&[x(), row.clone()], "y = add(x, r)", &real(&[2, 2], &[11.0, 22.0, 13.0, 24.0]));
    check(&[x(), column.clone()], "y = sub(c, x)", &real(&[2, 2], &[9.0, 8.0, 17.0, 16.0]));
    check(&[row.clone(), column.clone()], "y = mul(r, c)", &real(&[2, 2], &[100.0, 200.0, 200.0, 400.0]));
    check(&[row, column], "y = div(r, c)", &real(&[2, 2], &[1.0, 2.0, 0.5, 1.0]));
    check(&[x()], "y = scale(x) {factor: -0.5}", &real(&[2, 2], &[-0.5, -1.0, -1.5, -2.0]));
}

#[test]
fn functions_of_one_operand() {
    let points = [-3.0, -1.0, -0.0, 0.5, 2.0];
    // Erf and the exponentials from tables (Abramowitz and Stegun), tanh by its definition.
    let erf = [
        -0.997_300_203_936_739_8,
        -0.682_689_492_137_085_9,
        0.0,
        0.382_924_922_548_026_2,
        0.954_499_736_103_641_6,
    ];
    let tanh = |x: f64| (x.exp() - (-x).exp()) / (x.exp() + (-x).exp());
    // Σ (-x²)ⁿ / Π divisor
    let series = |divisor: fn(f64) -> f64, x: f64| {
        let terms = (1..30).scan(1.0, |term, n| {
            *term *= -x * x / divisor(f64::from(n));
            Some(*term)
        });
        1.0 + terms.sum::<f64>()
    };
    let formula = |f: Unary, i: usize| {
        let x: f64 = points[i];
        match f {
            Unary::Neg => 0.0 - x,
            Unary::Square => x.powi(2),
            Unary::Relu => f64::from(u8::from(x > 0.0)) * x,
            Unary::Gelu => 0.5 * x * (1.0 + erf[i]),
            Unary::GeluTanh => {
                0.5 * x * (1.0 + tanh(0.797_884_560_802_865_4 * x * (1.0 + 0.044_715 * x * x)))
            }
            Unary::Silu => x * x.exp() / (x.exp() + 1.0),
            Unary::Tanh => tanh(x),
            Unary::Sigmoid => x.exp() / (x.exp() + 1.0),
            Unary::Exp => std::f64::consts::E.powf(x),
            // Their series.
            Unary::Sin => x * series(|n| (2.0 * n) * (2.0 * n + 1.0), x),
            Unary::Cos => series(|n| (2.0 * n) * (2.0 * n - 1.0), x),
            Unary::Sqrt => x.powf(0.5),
            Unary::Rsqrt => x.powf(-0.5),
        }
    };
    for f in Unary::ALL {
        let rooted = matches!(f, Unary::Sqrt | Unary::Rsqrt);
        for i in if rooted { 3..5 } else { 0..5 } {
            assert_close(&[f.apply(points[i])], &[formula(f, i)], 1e-12, 0.0);
        }
        let name = Op::from(f).name();
        let y: Vec<_> = points.iter().map(|&x| f.apply(x)).collect();
        check(&[("x", real(&[5], &points))], &format!("y = {name}(x)"), &real(&[5], &y));
    }
    assert!(Unary::Sqrt.apply(-1.0).is_nan() && Unary::Relu.apply(f64::NAN).is_nan());
    assert_eq!(Binary::Div.apply(1.0, 0.0), f64::INFINITY);
}

#[test]
fn reductions() {
    let cube = ("x", real(&[2, 1, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 9.0]));
    check(&[cube.clone()], "y = sum(x) {axes: [0]}", &real(&[1, 3], &[5.0, 7.0, 12.0]));
    check(&[cube.clone()], "y = sum(x) {axes: [0, 2], keep_dims: true}", &real(&[1, 1, 1], &[24.0]));
    check(&[cube.clone()], "y = mean(x) {axes: [0, 2]}", &real(&[1], &[4.0]));
    check(&[cube.clone()], "y = max(x) {axes: [2], keep_dims: true}", &real(&[2, 1, 1], &[3.0, 9.0]));
    let nan = ("x", real(&[3], &[1.0, f64::NAN, 2.0]));
    check(&[nan], "y = max(x) {axes: [0]}", &real(&[], &[f64::NAN]));
    let empty = ("x", real(&[0, 2], &[]));
    check(&[empty.clone()], "y = sum(x) {axes: [0]}", &real(&[2], &[0.0, 0.0]));
    check(&[empty.clone()], "y = mean(x) {axes: [0]}", &real(&[2], &[f64::NAN; 2]));
    check(&[empty], "y = max(x) {axes: [0]}", &real(&[2], &[f64::NEG_INFINITY; 2]));
}

#[test]
fn softmax_and_norms() {
    let ln = |v: f64| v.ln();
    let logits = ("x", real(&[2, 2], &[ln(1.0), ln(3.0), ln(2.0), ln(2.0)]));
    check(&[logits.clone()], "y = softmax(x) {axis: 1}", &real(&[2, 2], &[0.25, 0.75, 0.5, 0.5]));
    check(&[logits], "y = softmax(x) {axis: 0}", &real(&[2, 2], &[1.0 / 3.0, 0.6, 2.0 / 3.0, 0.4]));
    let large = ("x", real(&[2], &[1000.0, 1000.0]));
    check(&[large], "y = softmax(x) {axis: 0}", &real(&[2], &[0.5, 0.5]));
    // Mean 3, variance 8.
    let x = ("x", real(&[1, 4], &[-1.0, 1.0, 5.0, 7.0]));
    let vectors = [("w", real(&[4], &[1.0, 1.0, 2.0, 2.0])), ("b", real(&[4], &[0.0, 0.0, 0.0, 1.0]))];
    let all = [x.clone(), vectors[0].clone(), vectors[1].clone()];
    let root = 20f64.sqrt();
    let deviation = |factor: f64| real(&[1, 4], &[-4.0, -2.0, 2.0, 4.0].map(|d| factor * d));
    check(&[x.clone()], "y = layer_norm(x) {epsilon: 6}", &deviation(0.25));
    let y = [-1.0, -0.5, 1.0, 3.0];
    check(&all, "y = layer_norm(x, w, b) {epsilon: 6}", &real(&[1, 4], &y));
    let y = [-1.0, -0.5, 0.5, 2.0];
    check(&all, "y = layer_norm(x, _, b) {epsilon: 6}", &real(&[1, 4], &y));
    // Mean square 19.
    check(&[x], "y = rms_norm(x) {epsilon: 1}", &real(&[1, 4], &[-1.0, 1.0, 5.0, 7.0].map(|x| x / root)));
    let y = [-1.0, 1.0, 10.0, 14.0].map(|x| x / root);
    check(&all, "y = rms_norm(x, w) {epsilon: 1}", &real(&[1, 4], &y));
}

#[test]
fn movement() {
    let x = ("x", real(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let i = ("i", ids(&[2, 3], &[1, 2, 3, 4, 5, 6]));
    for (kind, make) in [
        (
            x,
            (|shape: &[usize], v: &[i64]| real(shape, &v.iter().map(|&v| v as f64).collect::<Vec<_>>()))
                as fn(&[usize], &[i64]) -> Value,
        ),
        (i, ids),
    ] {
        let (name, source) = (kind.0, [kind.clone()]);
        let check = |lines: &str, expected| check(&source, &lines.replace('#', name), &expected);
        check("y = reshape(#) {shape: [3, 2]}", make(&[3, 2], &[1, 2, 3, 4, 5, 6]));
        check(
            "t = transpose(#) {permutation: [1, 0]}\ny = reshape(t) {shape: [6]}",
            make(&[6], &[1, 4, 2, 5, 3, 6]),
        );
        check("y = transpose(#) {permutation: [1, 0]}", make(&[3, 2], &[1, 4, 2, 5, 3, 6]));
        check("y = broadcast(#) {shape: [2, 2, 3]}", make(&[2, 2, 3], &[1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]));
        check("y = concat(#, #) {axis: 1}", make(&[2, 6], &[1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]));
        check("y = concat(#) {axis: 0}", make(&[2, 3], &[1, 2, 3, 4, 5, 6]));
        check("y = slice(#) {axis: 1, start: 1, length: 2}", make(&[2, 2], &[2, 3, 5, 6]));
        check("y = slice(#) {axis: 0, start: 2, length: 0}", make(&[0, 3], &[]));
        check(
            "c = constant() {shape: [1], values: {\"i64\": [1]}}\ny = gather(#, c)",
            make(&[1, 3], &[4, 5, 6]),
        );
    }
}

#[test]
fn constants() {
    for (dtype, expected) in [
        ("f32", real(&[2], &[1.0, -2.0])),
        ("f64", real(&[2], &[1.0, -2.0])),
        ("i32", ids(&[2], &[1, -2])),
        ("i64", ids(&[2], &[1, -2])),
    ] {
        check(&[], &format!("y = constant() {{shape: [2], values: {{\"{dtype}\": [1, -2]}}}}"), &expected);
    }
}

#[test]
fn symbols_are_bound_by_the_values_given() {
    let graph = text::parse(
        "engraft 1
        graph symbols
        x: f32[batch, 2*batch] = input()
        y = slice(x) {axis: 1, start: \"batch\", length: \"batch\"}
        output y = y",
    )
    .unwrap();
    let run = |x| eval(&graph, &[("x".to_owned(), x)].into());
    let y = run(real(&[2, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])).unwrap();
    assert_eq!(y["y"], real(&[2, 2], &[3.0, 4.0, 7.0, 8.0]));
    assert_eq!(bindings(&[("batch", 2)]).len(), 1);
    let error = run(real(&[2, 3], &[0.0; 6])).unwrap_err();
    assert_eq!(error.to_string(), "`x` must be f32[batch, 2*batch], found shape [2, 3]");
}

#[test]
fn evaluation_refuses_what_does_not_fit() {
    let table = ("t", real(&[2, 1], &[1.0, 2.0]));
    for id in [-1, 2] {
        let error = run(&[table.clone(), ("i", ids(&[1], &[id]))], "y = gather(t, i)").unwrap_err();
        assert_eq!(error.to_string(), format!("`y`: id {id} is outside the table of 2 rows"));
    }
    let huge = run(
        &[],
        "c = constant() {shape: [], values: {\"f32\": [1]}}\ny = broadcast(c) {shape: [1099511627776]}",
    );
    assert!(
        matches!(huge, Err(EvalError::Node { source, .. }) if matches!(*source, EvalError::TooLarge { .. }))
    );
    let graph = text::parse("engraft 1\ngraph g\nx: f32[2] = input()\ny = relu(x)\noutput y = y").unwrap();
    let run = |values: &[(&str, Value)]| {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        eval(&graph, &values).unwrap_err().to_string()
    };
    assert_eq!(run(&[]), "`x` has no value");
    assert_eq!(run(&[("x", real(&[3], &[0.0; 3]))]), "`x` must be f32[2], found shape [3]");
    assert_eq!(run(&[("x", real(&[1, 2], &[0.0; 2]))]), "`x` must be f32[2], found shape [1, 2]");
    assert!(run(&[("x", ids(&[2], &[0, 0]))]).contains("expected floats, found integers"));
}

/// Sources of one batch item, two queries on three keys: two heads of width 2 share keys, values are 1 wide.
fn attended() -> Vec<(&'static str, Value)> {
    vec![
        ("q", real(&[1, 2, 4], &[1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 1.0, 1.0])),
        ("k", real(&[1, 3, 2], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0])),
        ("v", real(&[1, 3, 1], &[1.0, 10.0, 100.0])),
        ("mask", ids(&[1, 3], &[1, 0, 7])),
    ]
}

#[test]
fn attention_over_the_keys_that_a_query_sees() {
    let all = |more: &str, operands: &str| {
        format!("y = attention(q, k, v{operands}) {{heads: 2, kv_heads: 1, scale: 0.5{more}}}")
    };
    // Values weighted by exp of half the dot products.
    let mean = |weights: [f64; 3]| {
        let w = weights.map(f64::exp);
        (w[0] + 10.0 * w[1] + 100.0 * w[2]) / (w[0] + w[1] + w[2])
    };
    let none = f64::NEG_INFINITY;
    let y = [mean([0.5, 0.0, 0.5]), mean([0.0, 1.0, 1.0]), 37.0, mean([0.5, 0.5, 1.0])];
    check(&attended(), &all("", ""), &real(&[1, 2, 2], &y));
    // The queries are the last of the keys: the first one stands at key 1.
    let y = [mean([0.5, 0.0, none]), mean([0.0, 1.0, none]), 37.0, mean([0.5, 0.5, 1.0])];
    check(&attended(), &all(", causal: true", ""), &real(&[1, 2, 2], &y));
    let y = [mean([0.5, 0.0, none]), mean([0.0, 1.0, none]), mean([none, 0.0, 0.0]), mean([none, 0.5, 1.0])];
    check(&attended(), &all(", causal: true, window: 2", ""), &real(&[1, 2, 2], &y));
    // A window alone looks ahead: the first query sees keys 1 and 2, the second key 2.
    let y = [mean([none, 0.0, 0.5]), mean([none, 1.0, 1.0]), 100.0, 100.0];
    check(&attended(), &all(", window: 1", ""), &real(&[1, 2, 2], &y));
    let y = [1.0, 1.0, mean([0.0, none, 0.0]), mean([0.5, none, 1.0])];
    check(&attended(), &all(", causal: true", ", mask"), &real(&[1, 2, 2], &y));
    // What sees nothing is 0: a causal query before the first key, and where everything is masked.
    let mut few = attended();
    few[1] = ("k", real(&[1, 1, 2], &[1.0, 0.0]));
    few[2] = ("v", real(&[1, 1, 1], &[4.0]));
    check(&few, &all(", causal: true", ""), &real(&[1, 2, 2], &[0.0, 0.0, 4.0, 4.0]));
    let mut masked = attended();
    masked[3] = ("mask", ids(&[1, 3], &[0, 0, 0]));
    check(&masked, &all("", ", mask"), &real(&[1, 2, 2], &[0.0; 4]));
    let mut empty = attended();
    empty[1] = ("k", real(&[1, 0, 2], &[]));
    empty[2] = ("v", real(&[1, 0, 1], &[]));
    check(&empty, &all("", ""), &real(&[1, 2, 2], &[0.0; 4]));
}

#[test]
fn grouped_heads_share_keys_in_order() {
    // Four heads, two of keys: with one key, head h gives the value of its group.
    let sources = [
        ("q", real(&[1, 1, 4], &[1.0, 2.0, 3.0, 4.0])),
        ("k", real(&[1, 1, 2], &[1.0, 1.0])),
        ("v", real(&[1, 1, 4], &[1.0, 2.0, 3.0, 4.0])),
    ];
    let line = "y = attention(q, k, v) {heads: 4, kv_heads: 2, scale: 1}";
    check(&sources, line, &real(&[1, 1, 8], &[1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]));
}

#[test]
fn integers_as_floats() {
    check(&[("x", ids(&[3], &[-1, 0, 7]))], "y = cast(x) {dtype: \"f32\"}", &real(&[3], &[-1.0, 0.0, 7.0]));
}

#[test]
fn every_op_is_tested_here() {
    let source = include_str!("ops_meaning.rs");
    let named = |name: &str| source.contains(&format!(" {name}("));
    let apart: BTreeSet<_> =
        Unary::ALL.into_iter().map(|f| Op::from(f).name()).chain(["param", "input"]).collect();
    let missing: Vec<_> =
        Op::table().map(|info| info.name).filter(|name| !named(name) && !apart.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
