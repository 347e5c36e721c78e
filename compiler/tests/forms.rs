//! Every bracketing of every form fuses to the same few ops, and means the same afterwards.

mod layer;

use engraft_ir::Tensor;
use engraft_ir::ops::EpsilonAt;
use layer::{Layer, SCALE, Write, column, layer, norms, ops, optimized, same, shapes, squares};

/// What a form must become.
type Expected = &'static [(&'static str, usize)];

const LORA: Expected = &[("lora", 1)];
const DORA: Expected = &[("div", 1), ("dora", 1), ("lora_norm", 1)];
/// With weights stored `[in, out]`, one transpose each at load.
const DORA_TRANSPOSED: Expected = &[("div", 1), ("dora", 1), ("lora_norm", 1), ("transpose", 1)];
const OUTPUT_DORA: Expected = &[("output_dora", 1)];

fn check(rows: &[(&str, Write)], expected: Expected) {
    for (name, write) in rows {
        for shape in shapes() {
            let name = format!("{name} on {shape}");
            let optimized = optimized(&layer(shape, *write));
            let found: Vec<_> = ops(&optimized.graph).into_iter().collect();
            assert_eq!(found, expected, "{name}\n{}", optimized.trace);
            assert!(optimized.graph.find("fc").is_some(), "{name} lost its name");
            same(&name, &optimized);
        }
    }
}

#[test]
fn lora() {
    let rows: &[(&str, Write)] = &[
        ("base + update", |l| l.x.dense(l.w, None) + l.update()),
        ("update + base", |l| l.update() + l.x.dense(l.w, None)),
        ("bias in the layer", |l| l.x.dense(l.w, Some(l.bias)) + l.update()),
        ("bias after", |l| l.x.dense(l.w, None) + l.update() + l.bias),
        ("bias between", |l| l.x.dense(l.w, None) + (l.bias + l.update())),
        ("scale on the product", |l| l.x.dense(l.w, None) + l.x.dense(l.a, None).dense(l.b, None) * SCALE),
        ("scale on h", |l| l.x.dense(l.w, None) + (l.x.dense(l.a, None) * SCALE).dense(l.b, None)),
        ("scale on x", |l| l.x.dense(l.w, None) + (l.x * SCALE).dense(l.a, None).dense(l.b, None)),
        ("scale on A", |l| l.x.dense(l.w, None) + l.x.dense(l.a * SCALE, None).dense(l.b, None)),
        ("scale on B", |l| l.x.dense(l.w, None) + l.x.dense(l.a, None).dense(l.b * SCALE, None)),
        ("scale in two", |l| l.x.dense(l.w, None) - (l.x.dense(l.a * SCALE, None) * -1.0).dense(l.b, None)),
        ("no scale", |l| l.x.dense(l.w, None) + l.x.dense(l.a, None).dense(l.b, None)),
        ("delta", |l| l.x.dense(l.adapted(), None)),
        ("delta first", |l| l.x.dense(Tensor::lora_delta(l.a, l.b, SCALE) + l.w, Some(l.bias))),
        ("delta by matmul", |l| l.x.dense(l.w + l.b.matmul(l.a) * SCALE, None)),
        ("delta by dense", |l| l.x.dense(l.w + l.b.dense(l.a.t(), None) * SCALE, None)),
        ("delta of scaled A", |l| l.x.dense(l.w + l.b.matmul(l.a * SCALE), None)),
        ("delta of scaled B", |l| l.x.dense(l.w + (l.b * SCALE).matmul(l.a), None)),
        ("delta, transposed twice", |l| l.x.dense(l.w + l.a.t().matmul(l.b.t()).t() * SCALE, None)),
        ("delta, by matmul", |l| l.x.matmul(l.adapted().t())),
        ("negative scale", |l| l.x.dense(l.w, None) - l.update()),
    ];
    check(rows, LORA);
}

#[test]
fn weight_form_in_weight_space() {
    fn by_hand<'g>(l: &Layer<'g>, adapted: Tensor<'g>) -> Tensor<'g> {
        adapted / squares(adapted, 1).sqrt() * column(l.m)
    }
    let rows: &[(&str, Write)] = &[
        ("normalize, magnitude", |l| l.x.dense(l.adapted().normalize(1).magnitude(l.m, 0), None)),
        ("magnitude, normalize written out", |l| l.x.dense(by_hand(&l, l.adapted()), None)),
        ("bias", |l| l.x.dense(l.adapted().normalize(1).magnitude(l.m, 0), Some(l.bias))),
        ("bias after", |l| l.x.dense(l.adapted().normalize(1).magnitude(l.m, 0), None) + l.bias),
        ("bias before", |l| l.bias + l.x.dense(l.adapted().normalize(1).magnitude(l.m, 0), None)),
        ("m * normalize", |l| l.x.dense(column(l.m) * l.adapted().normalize(1), None)),
        ("(m / n) * V", |l| {
            let v = l.adapted();
            l.x.dense(column(l.m / norms(v)) * v, None)
        }),
        ("V * (m / n), columns", |l| {
            let v = l.adapted();
            l.x.dense(v * (column(l.m) / squares(v, 1).sqrt()), None)
        }),
        ("(m * V) / n", |l| {
            let v = l.adapted();
            l.x.dense(column(l.m) * v / squares(v, 1).sqrt(), None)
        }),
        ("m * (V / n)", |l| {
            let v = l.adapted();
            l.x.dense(column(l.m) * (v / column(norms(v))), None)
        }),
        ("V * rsqrt * m", |l| {
            let v = l.adapted();
            l.x.dense(v * squares(v, 1).rsqrt() * column(l.m), None)
        }),
        ("product by hand", |l| {
            let v = l.adapted();
            l.x.dense(
                v / (v * v).reduce(engraft_ir::ops::Reduction::Sum, &[1], true).sqrt() * column(l.m),
                None,
            )
        }),
        ("delta by matmul", |l| {
            l.x.dense((l.w + l.b.matmul(l.a) * SCALE).normalize(1).magnitude(l.m, 0), None)
        }),
        ("delta first, scale on A", |l| {
            l.x.dense((l.b.matmul(l.a * SCALE) + l.w).normalize(1).magnitude(l.m, 0), None)
        }),
        ("two deltas written apart", |l| {
            let v = l.w + (l.b * SCALE).matmul(l.a);
            l.x.dense(v.magnitude(l.gain(), 0), None)
        }),
        ("by matmul", |l| l.x.matmul(l.adapted().normalize(1).magnitude(l.m, 0).t())),
        ("transposed before the norm", |l| l.x.matmul(l.adapted().t().normalize(0).magnitude(l.m, 1))),
        ("gain on the product", |l| l.x.dense(l.adapted(), None).magnitude(l.gain(), -1) + l.bias),
        ("norm in the weight, magnitude on the product", |l| {
            l.x.dense(l.adapted().normalize(1), None) * l.m + l.bias
        }),
        ("scaled gain", |l| l.x.dense((l.adapted().normalize(1) * 1.0).magnitude(l.m, 0), None)),
    ];
    check(rows, DORA);
}

/// GPT-2's layout: W `[in, out]`, and the norm over its first axis.
#[test]
fn weight_form_transposed() {
    let rows: &[(&str, Write)] = &[
        ("delta transposed", |l| {
            let v = l.w + Tensor::lora_delta(l.a, l.b, SCALE).t();
            l.x.matmul(v.normalize(0).magnitude(l.m, 1))
        }),
        ("delta transposed, by dense", |l| {
            let v = l.w + (l.b.matmul(l.a) * SCALE).t();
            l.x.dense((v / squares(v, 0).sqrt() * l.m).t(), Some(l.bias))
        }),
        ("factors transposed", |l| {
            let v = l.w + l.a.t().matmul(l.b.t()) * SCALE;
            l.x.matmul(v.normalize(0)) * l.m + l.bias
        }),
        ("gain beside", |l| {
            let v = l.w + l.a.t().matmul(l.b.t()) * SCALE;
            let gain = l.m / v.square().sum(&[0]).sqrt();
            (l.x.matmul(l.w) + l.update()) * gain
        }),
    ];
    check(rows, DORA_TRANSPOSED);
}

#[test]
fn weight_form_in_activation_space() {
    let rows: &[(&str, Write)] = &[
        ("gain * (base + update)", |l| l.gain() * (l.x.dense(l.w, None) + l.update())),
        ("(base + update) * gain", |l| (l.update() + l.x.dense(l.w, None)) * l.gain()),
        ("by magnitude", |l| (l.x.dense(l.w, None) + l.update()).magnitude(l.gain(), -1) + l.bias),
        ("apart", |l| l.gain() * l.x.dense(l.w, None) + l.gain() * l.update() + l.bias),
        ("m, then n", |l| (l.x.dense(l.w, None) + l.update()) * l.m / norms(l.adapted())),
        ("n, then m", |l| (l.x.dense(l.w, None) + l.update()) / norms(l.adapted()) * l.m),
        ("lora", |l| l.x.lora(l.w, l.a, l.b, None, SCALE) * l.gain() + l.bias),
        ("lora_norm", |l| {
            l.x.lora(l.w, l.a, l.b, None, SCALE) * (l.m / l.w.lora_norm(l.a, l.b, SCALE)) + l.bias
        }),
        ("update written out", |l| {
            (l.x.dense(l.w, None) + l.x.dense(l.a, None).dense(l.b, None) * SCALE) * l.gain() + l.bias
        }),
        ("update written out, apart", |l| {
            let update = (l.x * SCALE).dense(l.a, None).dense(l.b, None);
            update * l.gain() + (l.x.dense(l.w, None) * l.gain() + l.bias)
        }),
        ("minus minus", |l| l.bias - (l.x.dense(l.w, None) + l.update()) * -l.gain()),
    ];
    check(rows, DORA);
}

/// PEFT computes the layer as it was, and adds what the adapter changes.
#[test]
fn weight_form_of_peft() {
    let rows: &[(&str, Write)] = &[
        ("base + (g - 1) base' + g update", |l| {
            let g = l.gain();
            l.x.dense(l.w, Some(l.bias)) + (g - l.one()) * l.x.dense(l.w, None) + g * l.update()
        }),
        ("base' = base - bias", |l| {
            let (g, base) = (l.gain(), l.x.dense(l.w, Some(l.bias)));
            base + ((g - l.one()) * (base - l.bias) + g * l.update())
        }),
        ("update written out", |l| {
            let g = l.gain();
            let update = l.x.dense(l.a, None).dense(l.b, None);
            l.x.dense(l.w, Some(l.bias)) + (g - 1.0) * l.x.dense(l.w, None) + g * update * SCALE
        }),
        ("no bias", |l| {
            let (g, base) = (l.gain(), l.x.dense(l.w, None));
            base + (g - 1.0) * base + g * l.update()
        }),
    ];
    check(rows, DORA);
}

#[test]
fn output_form() {
    let rows: &[(&str, Write)] = &[
        ("normalize, magnitude", |l| {
            let c = l.x.dense(l.w, None) + l.update();
            c.normalize_with(-1, 1e-8, EpsilonAt::Inside).magnitude(l.m, -1)
        }),
        ("bias inside", |l| {
            let c = l.x.dense(l.w, Some(l.bias)) + l.update();
            l.m * c.normalize_with(-1, 1e-8, EpsilonAt::Inside)
        }),
        ("magnitude first", |l| {
            let c = l.x.dense(l.w, Some(l.bias)) + l.update();
            c * l.m / (squares(c, -1) + 1e-8).sqrt()
        }),
        ("rsqrt", |l| {
            let c = l.x.dense(l.adapted(), Some(l.bias));
            c * (squares(c, -1) + 1e-8).rsqrt() * l.m
        }),
        ("m / n", |l| {
            let c = l.update() + l.bias + l.x.dense(l.w, None);
            c * (l.m / (squares(c, -1) + 1e-8).sqrt())
        }),
        ("without epsilon", |l| {
            let c = l.x.lora(l.w, l.a, l.b, Some(l.bias), SCALE);
            c.normalize(-1).magnitude(l.m, -1)
        }),
    ];
    check(rows, OUTPUT_DORA);
}

#[test]
fn a_residual_stays_outside() {
    let expected: Expected = &[("add", 1), ("div", 1), ("dora", 1), ("lora_norm", 1)];
    let rows: &[(&str, Write)] = &[
        ("before", |l| l.z + (l.x.dense(l.adapted().normalize(1).magnitude(l.m, 0), None) + l.bias)),
        ("after", |l| (l.x.dense(l.w, None) + l.update()) * l.gain() + l.bias + l.x),
    ];
    check(rows, expected);
}

/// The update alone is named where the layer's own product is needed as well.
#[test]
fn an_update_beside_a_shared_layer() {
    let expected: Expected = &[("add", 1), ("dense", 1), ("lora_apply", 1), ("relu", 1), ("mul", 1)];
    for shape in shapes() {
        let graph = layer(shape, |l| {
            let base = l.x.dense(l.w, None);
            (base + l.x.dense(l.a, None).dense(l.b, None) * SCALE) * base.relu()
        });
        let optimized = optimized(&graph);
        assert_eq!(ops(&optimized.graph), expected.iter().copied().collect(), "{}", optimized.trace);
        same("shared base", &optimized);
    }
}

/// Two ordinary layers are no update.
#[test]
fn two_layers_stay_two_layers() {
    let graph = layer(shapes()[0].clone(), |l| l.x.dense(l.w, None).dense(l.v, None));
    assert_eq!(ops(&optimized(&graph).graph), [("dense", 2)].into());
}
