//! Each op's meaning in the algebra of `linear.rs`: how a node's combination follows from its operands'. An op that
//! has none, and any use of one that the algebra cannot express, is a value of its own. It changes no graph.

use super::linear::{Atom, Combination, Factor, Monomial, Norm, Number, Product, Term};
use engraft_ir::ops::{
    Binary, Constant, Dense, Elements, EpsilonAt, Lora, LoraApply, LoraDelta, LoraNorm, Magnitude, Matmul,
    Normalize, Reduce, Reduction, Unary,
};
use engraft_ir::{Dim, Graph, NodeId, Op, Shape};
use std::collections::BTreeMap;

/// A sum of more terms is taken as a value of its own.
const MAX_TERMS: usize = 64;

/// A longer product of matrices is taken as a value of its own.
const MAX_CHAIN: usize = 4;

/// As many scales, signs and transposes in a row are peeled off; canonical forms have two.
const MAX_PEELS: usize = 16;

/// What is written with more matrices and vectors is taken as a value of its own: a norm of a norm of a norm doubles
/// with each.
const MAX_SIZE: usize = 256;

/// The combination of every node of a graph.
pub(super) struct Linear<'g> {
    pub graph: &'g Graph,
    combinations: BTreeMap<NodeId, Combination>,
}

/// How a shape stands among vectors. A fixed length of 1 makes no vector: it would be repeated where it is used.
enum Layout {
    /// `[d]` or `[1, d]`: along the last axis.
    Row,
    /// `[d, 1]`: along the axis before it.
    Column,
    /// Anything else.
    Full,
}

fn layout(shape: &Shape) -> Layout {
    let one = Dim::fixed(1);
    match &shape[..] {
        [d] if *d != one => Layout::Row,
        [n, d] if *n == one && *d != one => Layout::Row,
        [d, n] if *n == one && *d != one => Layout::Column,
        _ => Layout::Full,
    }
}

impl<'g> Linear<'g> {
    /// Expands every node.
    pub fn of(graph: &'g Graph) -> Self {
        let mut linear = Self { graph, combinations: BTreeMap::new() };
        for id in graph.order() {
            let combination = linear.expand(id).filter(is_within_bounds).unwrap_or_else(|| linear.leaf(id));
            linear.combinations.insert(id, combination);
        }
        linear
    }

    /// A node's combination.
    pub fn combination(&self, id: NodeId) -> &Combination {
        &self.combinations[&id]
    }

    /// A value that is not taken apart.
    pub fn leaf(&self, id: NodeId) -> Combination {
        let node = self.graph.node(id);
        match layout(node.shape()) {
            Layout::Row if node.ty().dtype.is_float() => Combination::vector(Atom::Vector(id)),
            Layout::Column if node.ty().dtype.is_float() => Combination::lanes(Atom::Vector(id)),
            _ => Combination::chain(vec![Factor::of(id)], 1.0),
        }
    }

    /// Whether a node is not taken apart.
    pub fn is_leaf(&self, id: NodeId) -> bool {
        *self.combination(id) == self.leaf(id)
    }

    /// A node as a number times a factor: scales, signs and transposes peeled off.
    pub fn peel(&self, id: NodeId) -> (f64, Factor) {
        let (mut c, mut factor) = (1.0, Factor::of(id));
        for _ in 0..MAX_PEELS {
            let (by, flips) = match self.graph.node(factor.node).op() {
                Op::Scale(scale) => (scale.factor, false),
                Op::Unary(Unary::Neg) => (-1.0, false),
                Op::Transpose(t) if t.permutation == [1, 0] => (1.0, true),
                _ => break,
            };
            let Some(node) = self.graph.operand(factor.node, 0) else { break };
            (c, factor) = (c * by, Factor { node, transposed: factor.transposed != flips });
        }
        (c, factor)
    }

    /// A matrix as a sum of products of matrices, with vectors; `None` if it has other parts.
    pub fn matrix(&self, id: NodeId) -> Option<Combination> {
        let (c, factor) = self.peel(id);
        if self.is_leaf(factor.node) {
            return Some(Combination::chain(vec![factor], c));
        }
        let sum = self.combination(id);
        sum.terms().all(|(term, _)| term.chain().is_some()).then(|| sum.clone())
    }

    /// A product of matrices as one that starts with `x`, if it does or its first factor is such a product.
    pub fn chain_from(&self, x: Factor, chain: &[Factor]) -> Option<(f64, Vec<Factor>)> {
        let (&first, rest) = chain.split_first()?;
        if first == x {
            return Some((1.0, chain.to_vec()));
        }
        let (term, c) = self.combination(first.node).only().filter(|(term, _)| term.is_bare())?;
        let inner = term.chain().filter(|inner| inner.first() == Some(&x) && !first.transposed)?;
        Some((c, inner.iter().chain(rest).copied().collect()))
    }

    fn operand(&self, id: NodeId, slot: usize) -> Option<&Combination> {
        self.graph.operand(id, slot).map(|operand| self.combination(operand))
    }

    fn rank(&self, id: NodeId) -> usize {
        self.graph.node(id).ty().rank()
    }

    fn expand(&self, id: NodeId) -> Option<Combination> {
        match self.graph.node(id).op() {
            Op::Constant(constant) => number(constant).map(Combination::number),
            Op::Binary(op) => self.binary(id, *op),
            // 0 · ∞ is not 0.
            Op::Scale(scale) if scale.factor == 0.0 => None,
            Op::Scale(scale) => Some(self.operand(id, 0)?.scaled(scale.factor)),
            Op::Unary(Unary::Neg) => Some(self.operand(id, 0)?.scaled(-1.0)),
            Op::Unary(Unary::Sqrt) => self.root(id),
            Op::Unary(Unary::Rsqrt) => self.root(id)?.inverse(),
            Op::Magnitude(magnitude) => self.magnitude(id, *magnitude),
            Op::Normalize(normalize) => self.normalize(id, normalize),
            Op::Transpose(t) if t.permutation == [1, 0] => Some(self.operand(id, 0)?.transposed()),
            Op::Reshape(_) => self.reshape(id),
            Op::Broadcast(_) => self.operand(id, 0).filter(|v| v.is_vector()).cloned(),
            Op::Dense(_) => self.dense(id),
            Op::Matmul(_) => self.matmul(id),
            Op::LoraDelta(op) => {
                let (a, b) = (self.graph.operand(id, LoraDelta::A)?, self.graph.operand(id, LoraDelta::B)?);
                Some(self.low_rank(a, b, op.scale))
            }
            Op::LoraApply(op) => {
                let (x, slots) = (self.graph.operand(id, LoraApply::X)?, (LoraApply::A, LoraApply::B));
                self.applied(id, x, slots, op.scale)
            }
            Op::LoraNorm(op) => {
                let weight = self.graph.operand(id, LoraNorm::WEIGHT)?;
                let (a, b) = (self.graph.operand(id, LoraNorm::A)?, self.graph.operand(id, LoraNorm::B)?);
                let of = self.adapted_weight(weight, a, b, op.scale);
                Some(Combination::vector(norm(of, 0.0, true)))
            }
            Op::Lora(op) => self.lora(id, *op),
            _ => None,
        }
    }

    /// `W + s B A`, as it is.
    fn adapted_weight(&self, weight: NodeId, a: NodeId, b: NodeId, scale: f64) -> Combination {
        let (c, weight) = self.peel(weight);
        Combination::chain(vec![weight], c).plus(&self.low_rank(a, b, scale), 1.0)
    }

    /// `s B A`.
    fn low_rank(&self, a: NodeId, b: NodeId, scale: f64) -> Combination {
        let ((c, a), (d, b)) = (self.peel(a), self.peel(b));
        Combination::chain(vec![b, a], scale * c * d)
    }

    /// `s (x Aᵀ) Bᵀ`, with A and B in these slots.
    fn applied(&self, id: NodeId, x: NodeId, slots: (usize, usize), scale: f64) -> Option<Combination> {
        let (c, x) = self.peel(x);
        let (d, a) = self.peel(self.graph.operand(id, slots.0)?);
        let (e, b) = self.peel(self.graph.operand(id, slots.1)?);
        Some(Combination::chain(vec![x, a.flip(), b.flip()], scale * c * d * e))
    }

    fn lora(&self, id: NodeId, op: Lora) -> Option<Combination> {
        let x = self.graph.operand(id, Lora::X)?;
        let base = self.product(x, self.graph.operand(id, Lora::WEIGHT)?, true)?;
        let update = self.applied(id, x, (Lora::A, Lora::B), op.scale)?;
        self.with_bias(id, base.plus(&update, 1.0), Lora::BIAS)
    }

    fn dense(&self, id: NodeId) -> Option<Combination> {
        let (x, weight) = (self.graph.operand(id, Dense::X)?, self.graph.operand(id, Dense::WEIGHT)?);
        self.with_bias(id, self.product(x, weight, true)?, Dense::BIAS)
    }

    fn matmul(&self, id: NodeId) -> Option<Combination> {
        let (a, b) = (self.graph.operand(id, Matmul::A)?, self.graph.operand(id, Matmul::B)?);
        if self.rank(b) == 2 { self.product(a, b, false) } else { None }
    }

    /// `x Mᵀ`, or `x M`. Vectors along M's outputs become vectors along the last axis; vectors along its inputs stand
    /// in the middle of the product, which a term cannot express.
    fn product(&self, x: NodeId, m: NodeId, transposed: bool) -> Option<Combination> {
        let (c, x) = self.peel(x);
        let matrix = self.matrix(m)?;
        let matrix = if transposed { matrix.transposed() } else { matrix };
        let mut sum = Combination::default();
        for (term, d) in matrix.terms() {
            let chain = std::iter::once(x).chain(term.chain()?.iter().copied()).collect();
            if !term.lanes.is_one() {
                return None;
            }
            let product = Product::Chain(chain);
            sum.add_term(Term { product, lanes: Monomial::default(), last: term.last.clone() }, c * d);
        }
        Some(sum)
    }

    fn with_bias(&self, id: NodeId, y: Combination, slot: usize) -> Option<Combination> {
        match self.operand(id, slot) {
            None => Some(y),
            Some(bias) if bias.is_vector() => Some(y.plus(bias, 1.0)),
            Some(_) => None,
        }
    }

    fn binary(&self, id: NodeId, op: Binary) -> Option<Combination> {
        let shape = self.graph.node(id).shape();
        // A vector is repeated by its nature; anything else that is repeated is another value than its combination.
        let fits = |slot| {
            let operand = self.graph.operand(id, slot)?;
            let sum = self.combination(operand);
            (sum.is_vector() || self.graph.node(operand).shape() == shape).then_some(sum)
        };
        let (a, b) = (fits(0)?, fits(1)?);
        match op {
            Binary::Add => Some(a.plus(b, 1.0)),
            Binary::Sub => Some(a.plus(b, -1.0)),
            Binary::Mul => a.times(b),
            Binary::Div => a.times(&b.inverse()?),
        }
    }

    fn magnitude(&self, id: NodeId, op: Magnitude) -> Option<Combination> {
        let v = self.operand(id, Magnitude::V)?;
        let m = self.operand(id, Magnitude::M).filter(|m| m.is_vector())?;
        if op.axis + 1 == self.rank(id) {
            v.times(m)
        } else if op.axis == 0 && self.rank(id) == 2 {
            v.times(&m.transposed())
        } else {
            None
        }
    }

    fn normalize(&self, id: NodeId, op: &Normalize) -> Option<Combination> {
        let v = self.operand(id, 0)?;
        let inside = op.epsilon_at == EpsilonAt::Inside;
        let norm = self.norm_over(self.graph.operand(id, 0)?, op.axis, op.epsilon, inside)?;
        v.times(&norm.inverse()?)
    }

    /// The norm of a value over one axis, which stays with length 1.
    fn norm_over(&self, v: NodeId, axis: usize, epsilon: f64, inside: bool) -> Option<Combination> {
        let of = self.matrix(v).unwrap_or_else(|| self.combination(v).clone());
        if axis + 1 == self.rank(v) {
            Some(Combination::lanes(norm(of, epsilon, inside)))
        } else if axis == 0 && self.rank(v) == 2 {
            Some(Combination::vector(norm(of.transposed(), epsilon, inside)))
        } else {
            None
        }
    }

    /// `sqrt(Σ v²)` or `sqrt(Σ v² + ε)` over one axis.
    fn root(&self, id: NodeId) -> Option<Combination> {
        let under = self.graph.operand(id, 0)?;
        let (sum, epsilon) = match self.graph.node(under).op() {
            Op::Binary(Binary::Add) => {
                let (a, b) = (self.graph.operand(under, 0)?, self.graph.operand(under, 1)?);
                match (self.scalar(a), self.scalar(b)) {
                    (None, Some(epsilon)) => (a, epsilon),
                    (Some(epsilon), None) => (b, epsilon),
                    _ => return None,
                }
            }
            _ => (under, 0.0),
        };
        let Op::Reduce(Reduce { reduction: Reduction::Sum, axes, keep_dims }) = self.graph.node(sum).op()
        else {
            return None;
        };
        let squares = self.graph.operand(sum, 0)?;
        let v = self.squared(squares)?;
        let &[axis] = axes.as_slice() else { return None };
        let norm = self.norm_over(v, axis, epsilon, true)?;
        match (keep_dims, self.rank(v), axis) {
            (true, _, _) | (false, 2, 0) => Some(norm),
            // The axis that is left is the last one now.
            (false, 2, 1) => Some(norm.transposed()),
            _ => None,
        }
    }

    /// A number that a node is everywhere; only one that repeats freely.
    fn scalar(&self, id: NodeId) -> Option<f64> {
        match self.graph.node(id).op() {
            Op::Constant(constant) => number(constant).filter(|&n| n >= 0.0),
            _ => None,
        }
    }

    /// v, if the node is v².
    fn squared(&self, id: NodeId) -> Option<NodeId> {
        let operand = self.graph.operand(id, 0)?;
        match self.graph.node(id).op() {
            Op::Unary(Unary::Square) => Some(operand),
            Op::Binary(Binary::Mul) if self.graph.operand(id, 1) == Some(operand) => Some(operand),
            _ => None,
        }
    }

    /// A vector turned into a column, or back.
    fn reshape(&self, id: NodeId) -> Option<Combination> {
        let v = self.operand(id, 0).filter(|v| v.is_vector())?;
        let from = layout(self.graph.node(self.graph.operand(id, 0)?).shape());
        match (from, layout(self.graph.node(id).shape())) {
            (Layout::Row, Layout::Row) | (Layout::Column, Layout::Column) => Some(v.clone()),
            (Layout::Row, Layout::Column) | (Layout::Column, Layout::Row) => Some(v.transposed()),
            _ => None,
        }
    }
}

fn is_within_bounds(sum: &Combination) -> bool {
    let is_short = |(term, _): (&Term, f64)| term.chain().is_none_or(|chain| chain.len() <= MAX_CHAIN);
    sum.len() <= MAX_TERMS && sum.terms().all(is_short) && sum.size() <= MAX_SIZE && sum.is_moderate()
}

fn norm(of: Combination, epsilon: f64, inside: bool) -> Atom {
    // Where there is no epsilon its place does not matter.
    Atom::Norm(Box::new(Norm { of, epsilon: Number(epsilon), inside: inside || epsilon == 0.0 }))
}

/// The only element of a constant of floats that repeats over any shape.
fn number(constant: &Constant) -> Option<f64> {
    match &constant.values {
        Elements::F32(v) if v.len() == 1 => Some(f64::from(v[0])),
        Elements::F64(v) if v.len() == 1 => Some(v[0]),
        _ => None,
    }
}
