//! What nearly is DoRA is left alone, with the reason in the trace, and still means the same. The layer is square, so
//! that wrong axes type-check.

mod layer;

use engraft_compiler::trace::Reason;
use engraft_ir::Tensor;
use engraft_ir::ops::EpsilonAt;
use layer::{Layer, SCALE, Write, column, layer, norms, optimized, same, shapes, squares};

type Refused = fn(&Reason) -> bool;

/// Each is refused by its rule for its reason, and for no other.
fn check(rows: &[(&str, &str, Write, Refused)]) {
    for (name, rule, write, refused) in rows {
        let optimized = optimized(&layer(shapes()[0].clone(), *write));
        let refusals: Vec<_> = optimized.trace.refusals().filter(|(_, r)| r.rule == *rule).collect();
        let expected = !refusals.is_empty() && refusals.iter().all(|(_, r)| refused(&r.reason));
        assert!(expected, "{name}: {refusals:?}\n{}", optimized.trace);
        let counts = optimized.graph.op_counts();
        assert!(!counts.contains_key(*rule), "{name}: {counts:?}");
        same(name, &optimized);
    }
}

fn base<'g>(l: &Layer<'g>) -> Tensor<'g> {
    l.x.dense(l.w, None)
}

/// The output form's layer.
fn output<'g>(l: &Layer<'g>) -> Tensor<'g> {
    base(l) + l.update()
}

#[test]
fn norm_over_the_wrong_axis() {
    let refused: Refused = |reason| matches!(reason, Reason::NormAxis { .. });
    check(&[
        ("in the weight", "dora", |l| l.x.dense(l.adapted().normalize(0).magnitude(l.m, 0), None), refused),
        (
            "written out",
            "dora",
            |l| {
                let v = l.adapted();
                l.x.dense(column(l.m) * (v / squares(v, 0).sqrt()), Some(l.bias))
            },
            refused,
        ),
        (
            "in the gain",
            "dora",
            |l| {
                let n = l.adapted().square().sum(&[0]).sqrt();
                (base(&l) + l.update()) * (l.m / n) + l.bias
            },
            refused,
        ),
        ("transposed", "dora", |l| l.x.matmul(l.adapted().t().normalize(1).magnitude(l.m, 1)), refused),
        (
            "over the batch",
            "output_dora",
            |l| output(&l).normalize_with(0, 1e-8, EpsilonAt::Inside).magnitude(l.m, 1),
            refused,
        ),
    ]);
}

#[test]
fn magnitude_along_the_wrong_axis() {
    let refused: Refused =
        |reason| matches!(reason, Reason::MagnitudeAxis { magnitude } if magnitude == "magnitude");
    check(&[
        ("in the weight", "dora", |l| l.x.dense(l.adapted().normalize(1).magnitude(l.m, 1), None), refused),
        ("row for column", "dora", |l| l.x.dense(l.adapted().normalize(1) * l.m, None), refused),
        ("of the input", "dora", |l| l.x.matmul((l.adapted().normalize(1) * l.m).t()), refused),
    ]);
    let graph = layer(engraft_ir::dims![6, 6], |l| {
        output(&l).normalize_with(1, 1e-8, EpsilonAt::Inside).magnitude(l.m, 0)
    });
    let optimized = optimized(&graph);
    let reasons: Vec<_> = optimized.trace.refusals().map(|(_, r)| (r.rule, refused(&r.reason))).collect();
    assert_eq!(reasons, [("output_dora", true)], "{}", optimized.trace);
}

#[test]
fn update_of_another_input() {
    let refused: Refused =
        |reason| matches!(reason, Reason::OtherInput { layer, update } if layer == "x" && update == "z");
    check(&[
        ("gain", "dora", |l| (base(&l) + l.z.lora_apply(l.a, l.b, SCALE)) * l.gain(), refused),
        (
            "gain, update written out, bias",
            "dora",
            |l| {
                let update = l.z.dense(l.a, None).dense(l.b, None) * SCALE;
                update * l.gain() + base(&l) * l.gain() + l.bias
            },
            refused,
        ),
        (
            "output form",
            "output_dora",
            |l| {
                let c = base(&l) + l.z.lora_apply(l.a, l.b, SCALE);
                c.normalize_with(-1, 1e-8, EpsilonAt::Inside).magnitude(l.m, -1)
            },
            refused,
        ),
    ]);
}

#[test]
fn norm_of_another_weight() {
    let refused: Refused = |reason| matches!(reason, Reason::OtherNorm { .. });
    check(&[
        ("another scale", "dora", |l| output(&l) * (l.m / l.w.lora_norm(l.a, l.b, 3.0)), refused),
        ("another weight", "dora", |l| output(&l) * (l.m / l.v.lora_norm(l.a, l.b, SCALE)), refused),
        ("another A", "dora", |l| output(&l) * (l.m / l.w.lora_norm(l.b.t(), l.b, SCALE)) + l.bias, refused),
        ("no update in the norm", "dora", |l| output(&l) * (l.m / norms(l.w)), refused),
        (
            "in the weight",
            "dora",
            |l| l.x.dense(l.adapted().magnitude(l.m / l.w.lora_norm(l.a, l.b, 3.0), 0), None),
            refused,
        ),
        (
            "output form, without its bias",
            "output_dora",
            |l| {
                let n = (squares(output(&l), -1) + 1e-8).sqrt();
                (output(&l) + l.bias) / n * l.m
            },
            refused,
        ),
    ]);
}

#[test]
fn intermediate_that_somebody_else_uses() {
    fn weight(l: Layer<'_>) -> Tensor<'_> {
        let w = l.adapted().normalize(1).magnitude(l.m, 0).named("adapted");
        l.x.dense(w, None).relu() + l.z.dense(w, None)
    }
    let refused: Refused = |reason| matches!(reason, Reason::Shared { .. });
    check(&[
        ("two layers of one weight", "dora", weight, refused),
        (
            "output",
            "dora",
            |l| {
                let v = l.adapted();
                l.g.output("v", v);
                l.x.dense(v.normalize(1).magnitude(l.m, 0), None)
            },
            refused,
        ),
        (
            "activation",
            "dora",
            |l| {
                let base = base(&l).named("base");
                ((base + l.update()) * l.gain() + l.bias) * base.relu()
            },
            refused,
        ),
        (
            "output form",
            "output_dora",
            |l| {
                let c = output(&l);
                c.normalize_with(-1, 1e-8, EpsilonAt::Inside).magnitude(l.m, -1) - c.relu()
            },
            refused,
        ),
    ]);
}

#[test]
fn bias_inside_the_norm_of_a_weight() {
    let refused: Refused = |reason| matches!(reason, Reason::BiasInNorm { .. });
    check(&[
        (
            "in the weight",
            "dora",
            |l| l.x.dense((l.adapted() + column(l.bias)).normalize(1).magnitude(l.m, 0), None),
            refused,
        ),
        ("in the gain", "dora", |l| output(&l) * (l.m / norms(l.adapted() + column(l.bias))), refused),
    ]);
}

#[test]
fn scaled_bias() {
    let refused: Refused = |reason| matches!(reason, Reason::ScaledBias { .. });
    check(&[
        ("in the layer", "dora", |l| (l.x.dense(l.w, Some(l.bias)) + l.update()) * l.gain(), refused),
        (
            "in lora",
            "dora",
            |l| l.x.lora(l.w, l.a, l.b, Some(l.bias), SCALE).magnitude(l.gain(), -1),
            refused,
        ),
    ]);
}

#[test]
fn epsilon_that_the_form_does_not_have() {
    let refused: Refused = |reason| matches!(reason, Reason::Epsilon { .. });
    check(&[
        (
            "weight form, inside",
            "dora",
            |l| {
                let v = l.adapted().normalize_with(1, 1e-8, EpsilonAt::Inside);
                l.x.dense(v.magnitude(l.m, 0), None)
            },
            refused,
        ),
        (
            "weight form, as a bound",
            "dora",
            |l| {
                let v = l.adapted().normalize_with(1, 1e-8, EpsilonAt::Max);
                l.x.dense(v.magnitude(l.m, 0), Some(l.bias))
            },
            refused,
        ),
        (
            "output form, outside",
            "output_dora",
            |l| output(&l).normalize_with(-1, 1e-8, EpsilonAt::Outside).magnitude(l.m, -1),
            refused,
        ),
        (
            "output form, outside, written out",
            "output_dora",
            |l| {
                let c = output(&l);
                c / (squares(c, -1).sqrt() + 1e-8) * l.m
            },
            refused,
        ),
    ]);
}

/// The two meanings never turn into each other.
#[test]
fn forms_stay_apart() {
    let graph = layer(shapes()[1].clone(), |l| {
        let weight = l.x.dense(l.adapted().normalize(1).magnitude(l.m, 0), None);
        weight + output(&l).normalize_with(-1, 1e-8, EpsilonAt::Inside).magnitude(l.m, -1)
    });
    let optimized = optimized(&graph);
    let counts = optimized.graph.op_counts();
    assert_eq!((counts["dora"], counts["output_dora"]), (1, 1), "{}", optimized.trace);
    same("both", &optimized);
}
