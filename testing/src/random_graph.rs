//! Random valid graphs: a list of steps, each adding some ops on what is there. A step that does not fit is skipped, so
//! that every list of steps is a graph, and a shorter list a smaller one: proptest shrinks well. Values stay where floats
//! behave: no roots of negatives, no division by nearly 0, no growth without bound.

#![expect(clippy::unnecessary_wraps, reason = "every kind of step has one signature")]

use engraft_ir::DType::{F32, I64};
use engraft_ir::ops::{Attention, Constant, Elements, EpsilonAt, OutputDora, Reduction, Unary};
use engraft_ir::{Axis, Bindings, Dim, Graph, GraphBuilder, Shape, Symbol, Tensor, TensorType, dims};
use proptest::prelude::*;

/// One step: which kind, on which tensors, with which small numbers.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    kind: u8,
    on: u16,
    with: u16,
    choice: u8,
    size: u8,
}

/// Random steps.
pub fn arb_steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..KINDS.len() as u8, any::<u16>(), any::<u16>(), any::<u8>(), 1..6u8)
        .prop_map(|(kind, on, with, choice, size)| Step { kind, on, with, choice, size });
    prop::collection::vec(step, 1..16)
}

/// Random graphs over the symbols `batch` and `seq`, with parameters of every stage.
pub fn arb_graph() -> impl Strategy<Value = Graph> {
    arb_steps().prop_map(|steps| graph_of(&steps))
}

/// Random values of the symbols that the graphs use.
pub fn arb_bindings() -> impl Strategy<Value = Bindings> {
    (1..6u64, 1..5u64)
        .prop_map(|(batch, seq)| [(Symbol::new("batch"), batch), (Symbol::new("seq"), seq)].into())
}

/// The graph that these steps make.
///
/// # Panics
/// Never: every list of steps is a valid graph.
pub fn graph_of(steps: &[Step]) -> Graph {
    let g = GraphBuilder::new("random");
    let pool = vec![
        g.input("x", F32, dims!["batch", 4]),
        g.input("h", F32, dims!["batch", "seq", 3]),
        g.param("table", F32, dims![5, 3]).gather(g.input("ids", I64, dims!["batch", "seq"])),
    ];
    let mut making = Making { g: &g, pool, params: 0 };
    for &step in steps {
        let on = making.pick(step.on);
        let Some(ty) = on.ty() else { continue };
        let kind = KINDS[usize::from(step.kind) % KINDS.len()];
        if let Some(made) = kind(&mut making, step, on, &ty) {
            making.pool.push(made);
        }
    }
    let made = making.pool.len();
    for (i, tensor) in making.pool.drain(made.saturating_sub(3)..).enumerate() {
        g.output(&format!("y{i}"), tensor);
    }
    g.finish().expect("a step adds only what fits")
}

struct Making<'g> {
    g: &'g GraphBuilder,
    pool: Vec<Tensor<'g>>,
    params: usize,
}

/// Adds to a tensor of this type; `None` if it does not fit.
type Kind = for<'g> fn(&mut Making<'g>, Step, Tensor<'g>, &TensorType) -> Option<Tensor<'g>>;

const KINDS: &[Kind] = &[
    unary,
    guarded_unary,
    scale,
    binary,
    binary_with_param,
    divide,
    constant,
    dense,
    dense,
    adaptable,
    lora,
    dora,
    output_dora,
    fused,
    normalize,
    magnitude,
    reduce,
    softmax,
    layer_norm,
    matmul,
    attention,
    reshape,
    broadcast,
    transpose,
    concat,
    slice,
    rotate,
];

impl<'g> Making<'g> {
    fn pick(&self, index: u16) -> Tensor<'g> {
        self.pool[usize::from(index) % self.pool.len()]
    }

    /// A new parameter; the choice says its stage.
    fn param(&mut self, choice: u8, shape: Shape) -> Tensor<'g> {
        self.params += 1;
        let param = self.g.param(&format!("p{}", self.params), F32, shape);
        match choice % 4 {
            0 | 1 => param,
            2 => param.adapter(),
            _ => param.live(),
        }
    }

    /// Another tensor of this type, if there is one.
    fn like(&self, ty: &TensorType, with: u16) -> Option<Tensor<'g>> {
        let alike: Vec<_> =
            self.pool.iter().copied().filter(|other| other.ty().as_ref() == Some(ty)).collect();
        alike.get(usize::from(with) % alike.len().max(1)).copied()
    }

    /// Weight, A, B of a layer on a last dim that is fixed.
    fn layer(&mut self, step: Step, ty: &TensorType) -> Option<[Tensor<'g>; 3]> {
        let (input, output, rank) = (fixed_last(ty)?, usize::from(step.size), usize::from(step.with % 3) + 1);
        Some([
            self.param(0, dims![output, input]),
            self.param(step.choice, dims![rank, input]),
            self.param(step.choice, dims![output, rank]),
        ])
    }
}

fn fixed_last(ty: &TensorType) -> Option<usize> {
    ty.shape.last()?.as_fixed().map(|dim| dim as usize)
}

/// An axis that exists.
fn axis(step: Step, ty: &TensorType) -> Option<usize> {
    usize::from(step.with).checked_rem(ty.rank())
}

fn unary<'g>(_: &mut Making<'g>, step: Step, on: Tensor<'g>, _: &TensorType) -> Option<Tensor<'g>> {
    let safe =
        [Unary::Neg, Unary::Relu, Unary::Gelu, Unary::GeluTanh, Unary::Silu, Unary::Tanh, Unary::Sigmoid];
    Some(on.unary(safe[usize::from(step.choice) % safe.len()]))
}

fn guarded_unary<'g>(_: &mut Making<'g>, step: Step, on: Tensor<'g>, _: &TensorType) -> Option<Tensor<'g>> {
    let bounded = on.tanh();
    Some(match step.choice % 6 {
        0 => bounded.exp(),
        1 => bounded.square(),
        2 => (bounded.square() + 0.5).sqrt(),
        // Several turns, but no so large a number that its rounding shows.
        3 => bounded.scale(20.0).sin(),
        4 => bounded.scale(20.0).cos(),
        _ => (bounded.square() + 0.5).rsqrt(),
    })
}

fn scale<'g>(_: &mut Making<'g>, step: Step, on: Tensor<'g>, _: &TensorType) -> Option<Tensor<'g>> {
    Some(on.scale(f64::from(step.choice) / 128.0 - 1.0))
}

fn combine<'g>(choice: u8, a: Tensor<'g>, b: Tensor<'g>) -> Tensor<'g> {
    match choice % 3 {
        0 => a + b,
        1 => a - b,
        _ => a * b.tanh(),
    }
}

fn binary<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    Some(combine(step.choice, on, making.like(ty, step.with)?))
}

fn binary_with_param<'g>(
    making: &mut Making<'g>,
    step: Step,
    on: Tensor<'g>,
    ty: &TensorType,
) -> Option<Tensor<'g>> {
    let last = fixed_last(ty)?;
    let shape = if step.size.is_multiple_of(2) { dims![last] } else { dims![1, 1] };
    let other = making.param(step.size, shape);
    Some(if step.with.is_multiple_of(2) {
        combine(step.choice, on, other)
    } else {
        combine(step.choice, other, on)
    })
}

fn divide<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let other = making.like(ty, step.with)?;
    Some(on / (other.tanh().square() + 0.5))
}

fn constant<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let last = fixed_last(ty).filter(|&last| last <= 64)?;
    let elements: Vec<f32> = (0..last).map(|i| (i as f32 - f32::from(step.choice)) / 64.0).collect();
    Some(on + making.g.constant(Constant::from(elements.as_slice())))
}

fn dense<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let (input, output) = (fixed_last(ty)?, usize::from(step.size));
    let weight = making.param(step.choice / 2, dims![output, input]);
    let bias = (step.choice.is_multiple_of(2)).then(|| making.param(0, dims![output]));
    Some(on.dense(weight, bias))
}

fn adaptable<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let (input, output) = (fixed_last(ty).filter(|_| ty.rank() > 1)?, usize::from(step.size));
    let weight = making.param(0, dims![output, input]);
    let bias = (step.choice.is_multiple_of(2)).then(|| making.param(0, dims![output]));
    Some(on.adaptable("fc", weight, bias))
}

fn lora<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let [weight, a, b] = making.layer(step, ty)?;
    Some(if step.choice.is_multiple_of(2) {
        on.dense(weight, None) + on.lora_apply(a, b, 0.5)
    } else {
        on.dense(weight + Tensor::lora_delta(a, b, 0.5), None)
    })
}

fn dora<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let [weight, a, b] = making.layer(step, ty)?;
    let m = making.param(step.choice, dims![usize::from(step.size)]);
    let bias = (step.choice.is_multiple_of(3)).then(|| making.param(0, dims![usize::from(step.size)]));
    let direction = (weight + Tensor::lora_delta(a, b, 0.5)).normalize(Axis::IN);
    Some(on.dense(direction.magnitude(m, Axis::OUT), bias))
}

fn output_dora<'g>(
    making: &mut Making<'g>,
    step: Step,
    on: Tensor<'g>,
    ty: &TensorType,
) -> Option<Tensor<'g>> {
    let [weight, a, b] = making.layer(step, ty)?;
    let m = making.param(step.choice, dims![usize::from(step.size)]);
    let c = on.dense(weight, None) + on.lora_apply(a, b, 0.5);
    Some(c.normalize_with(Axis::LAST, 1e-3, EpsilonAt::Inside).magnitude(m, Axis::LAST))
}

fn fused<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let [weight, a, b] = making.layer(step, ty)?;
    let m = making.param(step.choice, dims![usize::from(step.size)]);
    let bias = (step.with.is_multiple_of(2)).then(|| making.param(0, dims![usize::from(step.size)]));
    Some(match step.choice % 3 {
        0 => on.lora(weight, a, b, bias, 0.5),
        1 => on.dora(weight, a, b, m / weight.lora_norm(a, b, 0.5), bias, 0.5),
        _ => on.output_dora(weight, (a, b), m, bias, OutputDora { scale: 0.5, epsilon: 1e-3 }),
    })
}

fn normalize<'g>(_: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let places = [EpsilonAt::Inside, EpsilonAt::Outside, EpsilonAt::Max];
    Some(on.normalize_with(axis(step, ty)? as i64, 1e-2, places[usize::from(step.choice) % 3]))
}

fn magnitude<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let axis = axis(step, ty)?;
    let length = ty.shape[axis].as_fixed()?;
    let m = making.param(step.choice, dims![length]);
    Some(on.magnitude(m, axis as i64))
}

fn reduce<'g>(_: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let reductions = [Reduction::Sum, Reduction::Mean, Reduction::Max];
    let axis = axis(step, ty)? as i64;
    // Some tensors must keep axes to go on with.
    let keep = ty.rank() < 3 || step.size.is_multiple_of(2);
    Some(on.reduce(reductions[usize::from(step.choice) % 3], &[axis], keep))
}

fn softmax<'g>(_: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    Some(on.softmax(axis(step, ty)? as i64))
}

fn layer_norm<'g>(
    making: &mut Making<'g>,
    step: Step,
    on: Tensor<'g>,
    ty: &TensorType,
) -> Option<Tensor<'g>> {
    let last = fixed_last(ty)?;
    let weight = (step.choice.is_multiple_of(2)).then(|| making.param(step.size, dims![last]));
    let bias = (step.choice.is_multiple_of(3)).then(|| making.param(step.size, dims![last]));
    Some(if step.with.is_multiple_of(2) {
        on.layer_norm(weight, bias, 1e-3)
    } else {
        on.rms_norm(weight, 1e-3)
    })
}

fn matmul<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    if ty.rank() < 2 {
        return None;
    }
    if step.choice.is_multiple_of(2) {
        let last = fixed_last(ty)?;
        let right = making.param(step.choice / 2, dims![last, usize::from(step.size)]);
        return Some(on.matmul(right));
    }
    let mut permutation: Vec<_> = (0..ty.rank()).collect();
    permutation.swap(ty.rank() - 2, ty.rank() - 1);
    // Scores of rows against rows, tamed as in attention.
    Some(on.tanh().matmul(on.tanh().transpose(&permutation)).softmax(Axis::LAST))
}

/// Of rows of a batch on themselves, or on others of the same type; with heads where the width has a divisor.
fn attention<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let width = fixed_last(ty).filter(|&width| width > 0 && ty.rank() == 3)? as u64;
    let heads =
        (1..=4).rev().find(|heads| width.is_multiple_of(*heads)).filter(|_| step.size.is_multiple_of(2));
    let heads = heads.unwrap_or(1);
    let (keys, values) = (making.like(ty, step.with)?, making.like(ty, step.with / 7)?);
    let causal = step.choice.is_multiple_of(3);
    let window = step.choice.is_multiple_of(5).then_some(u64::from(step.size));
    let op = Attention { heads, kv_heads: heads, scale: 0.5, causal, window };
    Some(on.tanh().attention(keys.tanh(), values, None, op))
}

fn reshape<'g>(_: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let dims = ty.shape.to_vec();
    let shape = match (dims.as_slice(), step.choice % 2) {
        ([a, b, rest @ ..], 0) => [&[a.clone() * b], rest].concat(),
        (all, _) if all.len() < 4 => [all, &[Dim::fixed(1)]].concat(),
        _ => return None,
    };
    Some(on.reshape(Shape::new(shape)))
}

fn broadcast<'g>(_: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    if ty.rank() >= 4 {
        return None;
    }
    let lead = if step.choice.is_multiple_of(2) { Dim::fixed(2) } else { Dim::symbol("seq") };
    Some(on.broadcast(std::iter::once(lead).chain(ty.shape.iter().cloned()).collect()))
}

fn transpose<'g>(_: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let mut permutation: Vec<_> = (0..ty.rank()).collect();
    permutation.rotate_left(axis(step, ty)?);
    Some(on.transpose(&permutation))
}

fn concat<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let axis = axis(step, ty)?;
    // Keeps dims short.
    let short = ty.shape[axis].as_fixed().is_some_and(|dim| dim <= 8) || ty.shape[axis].as_symbol().is_some();
    let other = making.like(ty, step.with).filter(|_| short)?;
    Some(on.concat(&[other], axis as i64))
}

/// By the angle that an integer is, as in rotary embeddings.
fn rotate<'g>(making: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let last = fixed_last(ty).filter(|&last| last <= 64)?;
    let from = i32::from(step.choice);
    let integers = if step.with.is_multiple_of(2) {
        making
            .g
            .constant(Constant { shape: dims![last], values: Elements::I32((from..).take(last).collect()) })
    } else {
        making.params += 1;
        making.g.input(&format!("p{}", making.params), I64, dims![last])
    };
    let angle = integers.cast(F32);
    Some(if step.size.is_multiple_of(2) { on * angle.cos() } else { on + angle.sin() })
}

fn slice<'g>(_: &mut Making<'g>, step: Step, on: Tensor<'g>, ty: &TensorType) -> Option<Tensor<'g>> {
    let axis = axis(step, ty)?;
    let length = ty.shape[axis].as_fixed().filter(|&length| length > 0)?;
    let start = u64::from(step.choice) % length;
    let taken = 1 + u64::from(step.size) % (length - start);
    Some(on.slice(axis as i64, start, taken))
}
