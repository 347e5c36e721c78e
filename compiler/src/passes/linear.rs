//! The algebra behind the fusions: a value as a sum of products, whatever the bracketing it was written in.
//!
//! A value is a [`Combination`]: a sum of terms `c · lanes ∘ chain ∘ last`, where `c` is a number, `chain` a product
//! of matrices (`x · Wᵀ`, `B · A`), `last` a product of vectors along the last axis and `lanes` one along all the
//! others. `(m / n)[:, None] * (W + s B A)`, `m * W / n + ...` and every other way to write it are one combination, so
//! a pattern is compared with one normal form and needs no case per bracketing.
//!
//! Division is kept as written: `v / v` is not 1, because `v` may be 0. It knows no adapters and no ops.

use engraft_ir::{Graph, NodeId};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Scales that differ by no more than this, relatively, are the same scale computed in another order.
const SAME_SCALE: f64 = 1e-12;

/// The size of coefficients with which the algebra reckons; also as factors in f32.
const MODERATE: RangeInclusive<f64> = 1e-30..=1e30;

/// A number with a total order, so that combinations can be keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number(pub f64);

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Number {}

/// A node's value as a factor of a product, transposed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Factor {
    pub node: NodeId,
    pub transposed: bool,
}

impl Factor {
    /// A node's value as it is.
    pub fn of(node: NodeId) -> Self {
        Self { node, transposed: false }
    }

    pub fn flip(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }
}

/// What a term multiplies its vectors with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Product {
    /// 1 everywhere.
    Ones,
    /// A product of matrices; the first may have any rank.
    Chain(Vec<Factor>),
}

/// A vector that is not taken apart further.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Atom {
    /// A node's value.
    Vector(NodeId),
    /// A norm over the last axis.
    Norm(Box<Norm>),
}

/// `sqrt(Σ_last of² + ε)`, or with ε added outside the root or as a lower bound.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Norm {
    pub of: Combination,
    pub epsilon: Number,
    pub inside: bool,
}

/// A product of vectors over another, not reduced.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Monomial {
    pub over: BTreeMap<Atom, u32>,
    pub under: BTreeMap<Atom, u32>,
}

impl Monomial {
    pub fn of(atom: Atom) -> Self {
        Self { over: BTreeMap::from([(atom, 1)]), under: BTreeMap::new() }
    }

    pub fn under(atom: Atom) -> Self {
        Self::of(atom).inverse()
    }

    pub fn is_one(&self) -> bool {
        self.over.is_empty() && self.under.is_empty()
    }

    pub fn inverse(&self) -> Self {
        Self { over: self.under.clone(), under: self.over.clone() }
    }

    pub fn times(&self, other: &Self) -> Self {
        let merge = |a: &BTreeMap<Atom, u32>, b: &BTreeMap<Atom, u32>| {
            let mut merged = a.clone();
            for (atom, count) in b {
                *merged.entry(atom.clone()).or_insert(0) += count;
            }
            merged
        };
        Self { over: merge(&self.over, &other.over), under: merge(&self.under, &other.under) }
    }

    /// What is left of this after taking `part` out of it; `None` if it does not contain `part`.
    pub fn without(&self, part: &Self) -> Option<Self> {
        let take = |a: &BTreeMap<Atom, u32>, b: &BTreeMap<Atom, u32>| {
            let mut left = a.clone();
            for (atom, count) in b {
                let rest = left.get(atom)?.checked_sub(*count)?;
                if rest == 0 {
                    left.remove(atom);
                } else {
                    left.insert(atom.clone(), rest);
                }
            }
            Some(left)
        };
        Some(Self { over: take(&self.over, &part.over)?, under: take(&self.under, &part.under)? })
    }

    pub fn atoms(&self) -> impl Iterator<Item = &Atom> {
        self.over.keys().chain(self.under.keys())
    }

    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        self.atoms().filter_map(|atom| match atom {
            Atom::Norm(norm) => Some(norm.as_ref()),
            Atom::Vector(_) => None,
        })
    }
}

/// A product with its vectors: `lanes ∘ product ∘ last`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Term {
    pub product: Product,
    pub lanes: Monomial,
    pub last: Monomial,
}

impl Term {
    pub fn bare(product: Product) -> Self {
        Self { product, lanes: Monomial::default(), last: Monomial::default() }
    }

    pub fn is_bare(&self) -> bool {
        self.lanes.is_one() && self.last.is_one()
    }

    pub fn chain(&self) -> Option<&[Factor]> {
        match &self.product {
            Product::Chain(chain) => Some(chain),
            Product::Ones => None,
        }
    }

    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        self.lanes.norms().chain(self.last.norms())
    }

    pub fn transposed(&self) -> Self {
        let product = match &self.product {
            Product::Ones => Product::Ones,
            Product::Chain(chain) => Product::Chain(chain.iter().rev().map(|f| f.flip()).collect()),
        };
        Self { product, lanes: self.last.clone(), last: self.lanes.clone() }
    }
}

/// A sum of terms, each with its coefficient. Terms that cancel are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Combination(BTreeMap<Term, Number>);

impl Combination {
    pub fn single(term: Term, coefficient: f64) -> Self {
        let mut sum = Self::default();
        sum.add_term(term, coefficient);
        sum
    }

    /// `c` times a product of matrices.
    pub fn chain(chain: Vec<Factor>, coefficient: f64) -> Self {
        Self::single(Term::bare(Product::Chain(chain)), coefficient)
    }

    /// A number everywhere.
    pub fn number(value: f64) -> Self {
        if value == 0.0 { Self::default() } else { Self::single(Term::bare(Product::Ones), value) }
    }

    pub fn vector(atom: Atom) -> Self {
        Self::single(Term { last: Monomial::of(atom), ..Term::bare(Product::Ones) }, 1.0)
    }

    pub fn lanes(atom: Atom) -> Self {
        Self::single(Term { lanes: Monomial::of(atom), ..Term::bare(Product::Ones) }, 1.0)
    }

    pub fn add_term(&mut self, term: Term, coefficient: f64) {
        match self.0.get(&term).map(|c| c.0 + coefficient) {
            Some(0.0) => drop(self.0.remove(&term)),
            Some(sum) => drop(self.0.insert(term, Number(sum))),
            None => drop(self.0.insert(term, Number(coefficient))),
        }
    }

    pub fn terms(&self) -> impl Iterator<Item = (&Term, f64)> {
        self.0.iter().map(|(term, c)| (term, c.0))
    }

    /// A term's coefficient.
    pub fn coefficient(&self, term: &Term) -> Option<f64> {
        self.0.get(term).map(|c| c.0)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How many matrices and vectors it is written with, those in norms included, each as often as it is written.
    pub fn size(&self) -> usize {
        let vectors = |(atom, &count): (&Atom, &u32)| {
            let size = match atom {
                Atom::Vector(_) => 1,
                Atom::Norm(norm) => 1 + norm.of.size(),
            };
            size * count as usize
        };
        let monomial = |m: &Monomial| m.over.iter().chain(&m.under).map(vectors).sum::<usize>();
        let term =
            |term: &Term| term.chain().map_or(1, <[_]>::len) + monomial(&term.lanes) + monomial(&term.last);
        self.0.keys().map(term).sum()
    }

    /// Whether every coefficient, those in norms included, is of a size that products of a few of them neither reach
    /// infinity nor 0.
    pub fn is_moderate(&self) -> bool {
        self.terms()
            .all(|(term, c)| MODERATE.contains(&c.abs()) && term.norms().all(|norm| norm.of.is_moderate()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The only term, if there is one.
    pub fn only(&self) -> Option<(&Term, f64)> {
        self.terms().next().filter(|_| self.len() == 1)
    }

    /// Whether no term has a matrix: a vector, a column or a number.
    pub fn is_vector(&self) -> bool {
        self.terms().all(|(term, _)| term.product == Product::Ones)
    }

    /// Whether the terms are the same and the coefficients too, but for rounding.
    pub fn is_same(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.terms().zip(other.terms()).all(|((s, c), (t, d))| s == t && same_scale(c, d))
    }

    pub fn map(&self, change: impl Fn(&Term, f64) -> (Term, f64)) -> Self {
        let mut sum = Self::default();
        for (term, c) in self.terms() {
            let (term, c) = change(term, c);
            sum.add_term(term, c);
        }
        sum
    }

    pub fn scaled(&self, factor: f64) -> Self {
        self.map(|term, c| (term.clone(), c * factor))
    }

    pub fn plus(&self, other: &Self, sign: f64) -> Self {
        let mut sum = self.clone();
        for (term, c) in other.terms() {
            sum.add_term(term.clone(), c * sign);
        }
        sum
    }

    /// The elementwise product, if at most one side has matrices and neither is 0 (0 · ∞ is not 0).
    pub fn times(&self, other: &Self) -> Option<Self> {
        let (values, vectors) = if other.is_vector() { (self, other) } else { (other, self) };
        if !vectors.is_vector() || self.is_empty() || other.is_empty() {
            return None;
        }
        let mut sum = Self::default();
        for (value, c) in values.terms() {
            for (vector, d) in vectors.terms() {
                let lanes = value.lanes.times(&vector.lanes);
                let last = value.last.times(&vector.last);
                sum.add_term(Term { product: value.product.clone(), lanes, last }, c * d);
            }
        }
        Some(sum)
    }

    /// `1 / v`, if this is one term without matrices.
    pub fn inverse(&self) -> Option<Self> {
        let (term, c) = self.only().filter(|(term, _)| term.product == Product::Ones)?;
        let term = Term { product: Product::Ones, lanes: term.lanes.inverse(), last: term.last.inverse() };
        (1.0 / c).is_finite().then(|| Self::single(term, 1.0 / c))
    }

    /// The transpose of a value of rank 2.
    pub fn transposed(&self) -> Self {
        self.map(|term, c| (term.transposed(), c))
    }

    /// How a person would write it: `weight + 2·lora_B·lora_A`.
    pub fn describe(&self, graph: &Graph) -> String {
        let terms: Vec<_> = self.terms().map(|(term, c)| describe_term(graph, term, c)).collect();
        if terms.is_empty() { "0".to_owned() } else { terms.join(" + ") }
    }
}

/// Whether two scales are one, computed in different orders.
pub(super) fn same_scale(a: f64, b: f64) -> bool {
    (a - b).abs() <= SAME_SCALE * a.abs().max(b.abs())
}

fn describe_term(graph: &Graph, term: &Term, coefficient: f64) -> String {
    let mut parts = Vec::new();
    if coefficient != 1.0 {
        parts.push(coefficient.to_string());
    }
    let atom = |atom: &Atom| match atom {
        Atom::Vector(id) => graph.node(*id).name().to_owned(),
        Atom::Norm(norm) => format!("norm({})", norm.of.describe(graph)),
    };
    let over = term.lanes.over.keys().chain(term.last.over.keys());
    parts.extend(over.map(atom));
    let factor = |f: &Factor| format!("{}{}", graph.node(f.node).name(), if f.transposed { "ᵀ" } else { "" });
    parts.extend(term.chain().into_iter().flatten().map(factor));
    if parts.is_empty() {
        parts.push("1".to_owned());
    }
    let under = term.lanes.under.keys().chain(term.last.under.keys());
    under.fold(parts.join("·"), |text, divisor| format!("{text}/{}", atom(divisor)))
}
