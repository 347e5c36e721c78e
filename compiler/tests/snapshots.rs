//! What people read: the trace and the optimised graph of one layer in each form.

mod layer;

use engraft_ir::text;
use layer::{SCALE, Write, column, layer, norms, optimized, shapes, squares};

fn report(write: Write) -> String {
    let optimized = optimized(&layer(shapes()[0].clone(), write));
    format!("{}\n{}", optimized.trace, text::print(&optimized.graph))
}

#[test]
fn weight_form() {
    insta::assert_snapshot!(report(|l| {
        let v = (l.w + l.b.matmul(l.a) * SCALE).named("v");
        let direction = v / squares(v, 1).sqrt();
        l.x.dense(column(l.m) * direction, None) + l.bias
    }));
}

#[test]
fn activation_form() {
    insta::assert_snapshot!(report(|l| {
        let update = l.x.dense(l.a, None).dense(l.b, None) * SCALE;
        let gain = (l.m / norms(l.adapted())).named("gain");
        (l.x.dense(l.w, None) + update) * gain + l.bias
    }));
}

#[test]
fn peft_form() {
    insta::assert_snapshot!(report(|l| {
        let (gain, base) = (l.gain(), l.x.dense(l.w, Some(l.bias)).named("base"));
        base + ((gain - 1.0) * (base - l.bias) + gain * l.update())
    }));
}

#[test]
fn output_form() {
    insta::assert_snapshot!(report(|l| {
        let c = (l.x.dense(l.w, Some(l.bias)) + l.update()).named("c");
        c / (squares(c, -1) + 1e-8).sqrt() * l.m
    }));
}

#[test]
fn refused() {
    insta::assert_snapshot!(report(|l| l.x.dense(l.adapted().normalize(0).magnitude(l.m, 0), None)));
}
