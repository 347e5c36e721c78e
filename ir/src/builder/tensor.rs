//! The vocabulary of the builder: one method per op, on a handle that is copied freely.

use super::GraphBuilder;
use super::error::Cause;
use crate::ops::{
    Adaptable, Attention, Binary, Broadcast, Cast, Concat, Constant, Dense, EpsilonAt, Gather, Init,
    LayerNorm, Lora, LoraApply, LoraDelta, LoraNorm, Magnitude, Matmul, Normalize, OutputDora, Reduce,
    Reduction, Reshape, RmsNorm, Scale, Slice, Softmax, Transpose, Unary,
};
use crate::ops::{Dora, Param};
use crate::{Axis, DType, Dim, NodeId, Op, RuleError, Shape, Stage, TensorType};
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A value in a graph under construction. What follows from an error is silent; the error itself is reported by
/// [`GraphBuilder::finish`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a tensor that nothing uses is no part of the finished graph"]
pub struct Tensor<'g> {
    builder: &'g GraphBuilder,
    id: Option<NodeId>,
}

impl<'g> Tensor<'g> {
    pub(super) fn new(builder: &'g GraphBuilder, id: Option<NodeId>) -> Self {
        Self { builder, id }
    }

    pub(super) fn id(self) -> Option<NodeId> {
        self.id
    }

    /// The builder that the tensor belongs to.
    pub fn builder(self) -> &'g GraphBuilder {
        self.builder
    }

    pub(super) fn describe(self) -> Option<(String, TensorType)> {
        let state = self.builder.state.borrow();
        self.id.map(|id| (state.graph.node(id).name().to_owned(), state.graph.node(id).ty().clone()))
    }

    /// The type; `None` if the tensor could not be built.
    pub fn ty(self) -> Option<TensorType> {
        self.describe().map(|(_, ty)| ty)
    }

    /// The name, with its blocks; `None` if the tensor could not be built.
    pub fn name(self) -> Option<String> {
        self.describe().map(|(name, _)| name)
    }

    /// The op; `None` if the tensor could not be built.
    pub fn op(self) -> Option<Op> {
        self.id.map(|id| self.builder.state.borrow().graph.node(id).op().clone())
    }

    /// The operand in a slot, if it is there.
    pub fn operand(self, slot: usize) -> Option<Self> {
        let operand = self.builder.state.borrow().graph.operand(self.id?, slot)?;
        Some(Self { id: Some(operand), ..self })
    }

    /// Gives the node this name, under the open blocks.
    #[track_caller]
    pub fn named(self, name: &str) -> Self {
        if let Some(id) = self.id {
            let result = {
                let mut state = self.builder.state.borrow_mut();
                let name = format!("{}{name}", state.scope);
                state.stems.remove(&id);
                state.graph.rename(id, &name)
            };
            self.builder.check(result);
        }
        self
    }

    #[track_caller]
    fn edit_param(self, property: &'static str, edit: impl FnOnce(&mut Param)) -> Self {
        let (Some(id), Some(op)) = (self.id, self.op()) else { return self };
        let Op::Param(mut param) = op else {
            self.builder.report(Cause::NotAParam { node: self.name().unwrap_or_default(), property });
            return self;
        };
        edit(&mut param);
        let result = self.builder.state.borrow_mut().graph.set_op(id, param);
        self.builder.check(result);
        self
    }

    /// Makes a parameter one of the adapter's, known when an adapter is loaded.
    #[track_caller]
    pub fn adapter(self) -> Self {
        self.edit_param("binding time", |param| param.binding = Stage::Adapter)
    }

    /// Makes a parameter live: given anew with each call, as in fine-tuning.
    #[track_caller]
    pub fn live(self) -> Self {
        self.edit_param("binding time", |param| param.binding = Stage::Call)
    }

    /// Labels a parameter for optimizers.
    #[track_caller]
    pub fn group(self, group: &str) -> Self {
        self.edit_param("group", |param| group.clone_into(&mut param.group))
    }

    /// Says how a parameter starts out when nobody trained it.
    #[track_caller]
    pub fn init(self, init: Init) -> Self {
        self.edit_param("initial value", |param| param.init = Some(init))
    }

    #[track_caller]
    fn apply(self, op: impl Into<Op>, others: &[Option<Self>]) -> Self {
        let operands: Vec<_> = std::iter::once(Some(self)).chain(others.iter().copied()).collect();
        self.builder.add(op, &operands)
    }

    /// Adds the op that `make` gives for this tensor's type.
    #[track_caller]
    fn apply_with<O: Into<Op>>(
        self,
        others: &[Option<Self>],
        make: impl FnOnce(&TensorType) -> Result<O, RuleError>,
    ) -> Self {
        let Some((node, ty)) = self.describe() else { return self };
        match make(&ty) {
            Ok(op) => self.apply(op, others),
            Err(source) => {
                self.builder.report(Cause::Argument { node, source });
                Self { id: None, ..self }
            }
        }
    }

    /// See [`Dense`]: `x Wᵀ + bias`, with `weight` `[out, in]`.
    #[track_caller]
    pub fn dense(self, weight: Self, bias: Option<Self>) -> Self {
        self.apply(Dense {}, &[Some(weight), bias])
    }

    /// See [`Adaptable`]: `x Wᵀ + bias`, with `weight` `[out, in]`, on which a bank may put adapters of `module`.
    #[track_caller]
    pub fn adaptable(self, module: &str, weight: Self, bias: Option<Self>) -> Self {
        self.apply(Adaptable { module: module.to_owned() }, &[Some(weight), bias])
    }

    /// See [`Matmul`]: `self · other`, batched.
    #[track_caller]
    pub fn matmul(self, other: Self) -> Self {
        self.apply(Matmul {}, &[Some(other)])
    }

    /// See [`LoraApply`]: `s (x Aᵀ) Bᵀ`, with `a` `[r, in]` and `b` `[out, r]`.
    #[track_caller]
    pub fn lora_apply(self, a: Self, b: Self, scale: f64) -> Self {
        self.apply(LoraApply { scale }, &[Some(a), Some(b)])
    }

    /// See [`LoraNorm`]: the row norms of this weight `[out, in]` with its update.
    #[track_caller]
    pub fn lora_norm(self, a: Self, b: Self, scale: f64) -> Self {
        self.apply(LoraNorm { scale }, &[Some(a), Some(b)])
    }

    /// See [`Lora`](crate::ops::Lora): the fused layer.
    #[track_caller]
    pub fn lora(self, weight: Self, a: Self, b: Self, bias: Option<Self>, scale: f64) -> Self {
        self.apply(Lora { scale }, &[Some(weight), Some(a), Some(b), bias])
    }

    /// See [`Dora`](crate::ops::Dora): the fused layer; `gain` is `m / lora_norm`.
    #[track_caller]
    pub fn dora(self, weight: Self, a: Self, b: Self, gain: Self, bias: Option<Self>, scale: f64) -> Self {
        self.apply(Dora { scale }, &[Some(weight), Some(a), Some(b), Some(gain), bias])
    }

    /// See [`OutputDora`](crate::ops::OutputDora): the fused layer in Edifice's meaning.
    #[track_caller]
    pub fn output_dora(
        self,
        weight: Self,
        (a, b): (Self, Self),
        magnitude: Self,
        bias: Option<Self>,
        op: OutputDora,
    ) -> Self {
        self.apply(op, &[Some(weight), Some(a), Some(b), Some(magnitude), bias])
    }

    /// See [`Normalize`]: division by the L2 norm along `axis`, without epsilon.
    #[track_caller]
    pub fn normalize(self, axis: impl Into<Axis>) -> Self {
        self.normalize_with(axis, 0.0, EpsilonAt::Inside)
    }

    /// See [`Normalize`]: division by the L2 norm along `axis`.
    #[track_caller]
    pub fn normalize_with(self, axis: impl Into<Axis>, epsilon: f64, epsilon_at: EpsilonAt) -> Self {
        let axis = axis.into();
        self.apply_with(&[], |ty| Ok(Normalize { axis: axis.resolve(ty)?, epsilon, epsilon_at }))
    }

    /// See [`Magnitude`]: scaling by `m` along `axis`.
    #[track_caller]
    pub fn magnitude(self, m: Self, axis: impl Into<Axis>) -> Self {
        let axis = axis.into();
        self.apply_with(&[Some(m)], |ty| Ok(Magnitude { axis: axis.resolve(ty)? }))
    }

    #[track_caller]
    fn binary(self, op: Binary, other: Self) -> Self {
        self.apply(op, &[Some(other)])
    }

    #[track_caller]
    fn scalar(self, value: f64) -> Self {
        match self.ty() {
            Some(ty) => self.builder.constant(Constant::scalar(ty.dtype, value)),
            None => self,
        }
    }

    /// See [`Scale`].
    #[track_caller]
    pub fn scale(self, factor: f64) -> Self {
        self.apply(Scale { factor }, &[])
    }

    /// See [`Unary::Sqrt`].
    #[track_caller]
    pub fn sqrt(self) -> Self {
        self.apply(Unary::Sqrt, &[])
    }

    /// See [`Unary::Rsqrt`].
    #[track_caller]
    pub fn rsqrt(self) -> Self {
        self.apply(Unary::Rsqrt, &[])
    }

    /// See [`Unary::Square`].
    #[track_caller]
    pub fn square(self) -> Self {
        self.apply(Unary::Square, &[])
    }

    /// See [`Unary::Exp`].
    #[track_caller]
    pub fn exp(self) -> Self {
        self.apply(Unary::Exp, &[])
    }

    /// See [`Unary::Relu`].
    #[track_caller]
    pub fn relu(self) -> Self {
        self.apply(Unary::Relu, &[])
    }

    /// See [`Unary::Gelu`].
    #[track_caller]
    pub fn gelu(self) -> Self {
        self.apply(Unary::Gelu, &[])
    }

    /// See [`Unary::GeluTanh`].
    #[track_caller]
    pub fn gelu_tanh(self) -> Self {
        self.apply(Unary::GeluTanh, &[])
    }

    /// See [`Unary::Silu`].
    #[track_caller]
    pub fn silu(self) -> Self {
        self.apply(Unary::Silu, &[])
    }

    /// See [`Unary::Tanh`].
    #[track_caller]
    pub fn tanh(self) -> Self {
        self.apply(Unary::Tanh, &[])
    }

    /// See [`Unary::Sigmoid`].
    #[track_caller]
    pub fn sigmoid(self) -> Self {
        self.apply(Unary::Sigmoid, &[])
    }

    /// See [`Unary::Sin`].
    #[track_caller]
    pub fn sin(self) -> Self {
        self.apply(Unary::Sin, &[])
    }

    /// See [`Unary::Cos`].
    #[track_caller]
    pub fn cos(self) -> Self {
        self.apply(Unary::Cos, &[])
    }

    /// Any elementwise function of [`Unary`].
    #[track_caller]
    pub fn unary(self, function: Unary) -> Self {
        self.apply(function, &[])
    }

    /// Any reduction of [`Reduction`] over `axes`.
    #[track_caller]
    pub fn reduce(self, reduction: Reduction, axes: &[i64], keep_dims: bool) -> Self {
        self.apply_with(&[], |ty| {
            let mut axes = axes.iter().map(|&axis| Axis(axis).resolve(ty)).collect::<Result<Vec<_>, _>>()?;
            axes.sort_unstable();
            Ok(Reduce { reduction, axes, keep_dims })
        })
    }

    /// The sum over `axes`, which disappear.
    #[track_caller]
    pub fn sum(self, axes: &[i64]) -> Self {
        self.reduce(Reduction::Sum, axes, false)
    }

    /// The mean over `axes`, which disappear.
    #[track_caller]
    pub fn mean(self, axes: &[i64]) -> Self {
        self.reduce(Reduction::Mean, axes, false)
    }

    /// The maximum over `axes`, which disappear.
    #[track_caller]
    pub fn max(self, axes: &[i64]) -> Self {
        self.reduce(Reduction::Max, axes, false)
    }

    /// See [`Softmax`].
    #[track_caller]
    pub fn softmax(self, axis: impl Into<Axis>) -> Self {
        let axis = axis.into();
        self.apply_with(&[], |ty| Ok(Softmax { axis: axis.resolve(ty)? }))
    }

    /// See [`LayerNorm`].
    #[track_caller]
    pub fn layer_norm(self, weight: Option<Self>, bias: Option<Self>, epsilon: f64) -> Self {
        self.apply(LayerNorm { epsilon }, &[weight, bias])
    }

    /// See [`RmsNorm`].
    #[track_caller]
    pub fn rms_norm(self, weight: Option<Self>, epsilon: f64) -> Self {
        self.apply(RmsNorm { epsilon }, &[weight])
    }

    /// See [`Reshape`].
    #[track_caller]
    pub fn reshape(self, shape: Shape) -> Self {
        self.apply(Reshape { shape }, &[])
    }

    /// See [`Broadcast`].
    #[track_caller]
    pub fn broadcast(self, shape: Shape) -> Self {
        self.apply(Broadcast { shape }, &[])
    }

    /// See [`Transpose`].
    #[track_caller]
    pub fn transpose(self, permutation: &[usize]) -> Self {
        self.apply(Transpose { permutation: permutation.to_vec() }, &[])
    }

    /// The transpose of a matrix.
    #[track_caller]
    pub fn t(self) -> Self {
        self.transpose(&[1, 0])
    }

    /// See [`Concat`]: this tensor, then the others, along `axis`.
    #[track_caller]
    pub fn concat(self, others: &[Self], axis: impl Into<Axis>) -> Self {
        let axis = axis.into();
        let others: Vec<_> = others.iter().copied().map(Some).collect();
        self.apply_with(&others, |ty| Ok(Concat { axis: axis.resolve(ty)? }))
    }

    /// See [`Slice`].
    #[track_caller]
    pub fn slice(self, axis: impl Into<Axis>, start: impl Into<Dim>, length: impl Into<Dim>) -> Self {
        let (axis, start, length) = (axis.into(), start.into(), length.into());
        self.apply_with(&[], |ty| Ok(Slice { axis: axis.resolve(ty)?, start, length }))
    }

    /// See [`Gather`]: the rows of this table with these ids.
    #[track_caller]
    pub fn gather(self, ids: Self) -> Self {
        self.apply(Gather {}, &[Some(ids)])
    }

    /// See [`Attention`]: these queries on keys and values, where the mask, if there is one, is not 0.
    #[track_caller]
    pub fn attention(self, keys: Self, values: Self, mask: Option<Self>, op: Attention) -> Self {
        self.apply(op, &[Some(keys), Some(values), mask])
    }

    /// See [`Cast`].
    #[track_caller]
    pub fn cast(self, dtype: DType) -> Self {
        self.apply(Cast { dtype }, &[])
    }
}

impl Tensor<'_> {
    /// See [`LoraDelta`]: `s B A` from `a` `[r, in]` and `b` `[out, r]`.
    #[track_caller]
    pub fn lora_delta(a: Self, b: Self, scale: f64) -> Self {
        a.apply(LoraDelta { scale }, &[Some(b)])
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $op:expr) => {
        impl<'g> $trait for Tensor<'g> {
            type Output = Tensor<'g>;
            #[track_caller]
            fn $method(self, other: Self) -> Self {
                self.binary($op, other)
            }
        }
    };
}

operator!(Add, add, Binary::Add);
operator!(Sub, sub, Binary::Sub);
operator!(Mul, mul, Binary::Mul);
operator!(Div, div, Binary::Div);

impl<'g> Neg for Tensor<'g> {
    type Output = Tensor<'g>;
    #[track_caller]
    fn neg(self) -> Self {
        self.apply(Unary::Neg, &[])
    }
}

impl<'g> Mul<f64> for Tensor<'g> {
    type Output = Tensor<'g>;
    #[track_caller]
    fn mul(self, factor: f64) -> Self {
        self.scale(factor)
    }
}

impl<'g> Add<f64> for Tensor<'g> {
    type Output = Tensor<'g>;
    #[track_caller]
    fn add(self, value: f64) -> Self {
        self.binary(Binary::Add, self.scalar(value))
    }
}

impl<'g> Sub<f64> for Tensor<'g> {
    type Output = Tensor<'g>;
    #[track_caller]
    fn sub(self, value: f64) -> Self {
        self.binary(Binary::Sub, self.scalar(value))
    }
}

impl<'g> Div<f64> for Tensor<'g> {
    type Output = Tensor<'g>;
    #[track_caller]
    fn div(self, value: f64) -> Self {
        self.binary(Binary::Div, self.scalar(value))
    }
}

impl<'g> Mul<Tensor<'g>> for f64 {
    type Output = Tensor<'g>;
    #[track_caller]
    fn mul(self, tensor: Tensor<'g>) -> Tensor<'g> {
        tensor.scale(self)
    }
}
