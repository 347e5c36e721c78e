//! The normal form of a linear layer with a low-rank update, `x Wᵀ + s (x Aᵀ) Bᵀ + bias` with vectors around it:
//! finding it in a combination, checking that nobody else needs its inside, and writing its operands back as nodes.
//! It knows neither LoRA's nor DoRA's own rules.

use super::expand::Linear;
use super::linear::{Atom, Combination, Factor, Monomial, Term};
use super::{Editor, is_factor};
use crate::trace::Reason;
use engraft_ir::ops::{Binary, Reshape, Scale, Transpose};
use engraft_ir::{GraphError, NodeId, Shape};
use std::collections::{BTreeMap, BTreeSet};

/// `c · lanes ∘ (x Wᵀ + s (x Aᵀ) Bᵀ) ∘ last + bias`.
#[derive(Clone, Debug)]
pub(super) struct Adapted {
    pub x: Factor,
    /// `[out, in]`.
    pub weight: Factor,
    /// `[r, in]`.
    pub a: Factor,
    /// `[out, r]`.
    pub b: Factor,
    pub scale: f64,
    pub coefficient: f64,
    pub lanes: Monomial,
    pub last: Monomial,
    /// The terms without matrices.
    pub bias: Combination,
}

/// What a combination is, seen as an adapted layer.
pub(super) enum Split {
    /// It is one.
    Adapted(Adapted),
    /// It would be one if the update had the layer's input; both inputs, layer's first.
    OtherInput(Factor, Factor),
    /// It is something else.
    Other,
}

/// Takes a combination apart.
pub(super) fn split(linear: &Linear<'_>, editor: &Editor, sum: &Combination) -> Split {
    let mut bias = Combination::default();
    let mut products = Vec::new();
    for (term, c) in sum.terms() {
        match term.chain() {
            Some(chain) => products.push((term, chain, c)),
            None => bias.add_term(term.clone(), c),
        }
    }
    let is_base = |chain: &[Factor]| chain.len() == 2 && editor.is_weight(chain[1].node);
    let mut other_input = None;
    for &(base, chain, coefficient) in products.iter().filter(|(_, chain, _)| is_base(chain)) {
        let (x, weight) = (chain[0], chain[1].flip());
        let updates: Vec<_> = products.iter().filter(|(term, ..)| *term != base).collect();
        let &[&(update, chain, c)] = updates.as_slice() else { continue };
        if update.lanes != base.lanes || update.last != base.last {
            continue;
        }
        if let Some((d, low_rank)) = linear.chain_from(x, chain)
            && let Some((a, b)) = factors(editor, &low_rank)
            && let scale = c * d / coefficient
            && is_factor(scale)
        {
            return Split::Adapted(Adapted {
                x,
                weight,
                a,
                b,
                scale,
                coefficient,
                lanes: base.lanes.clone(),
                last: base.last.clone(),
                bias,
            });
        }
        other_input = other_input.or_else(|| update_input(linear, editor, chain).map(|input| (x, input)));
    }
    match other_input {
        Some((layer, update)) if layer != update => Split::OtherInput(layer, update),
        _ => Split::Other,
    }
}

/// A and B of `x Aᵀ Bᵀ`.
fn factors(editor: &Editor, chain: &[Factor]) -> Option<(Factor, Factor)> {
    match *chain {
        [_, a, b] if editor.is_weight(a.node) && editor.is_weight(b.node) => Some((a.flip(), b.flip())),
        _ => None,
    }
}

/// The input of a low-rank update that is written out.
fn update_input(linear: &Linear<'_>, editor: &Editor, chain: &[Factor]) -> Option<Factor> {
    let (term, _) = linear.combination(chain[0].node).only().filter(|(term, _)| term.is_bare())?;
    let inner = term.chain().filter(|inner| inner.len() == 2).map(|inner| inner[0]);
    let start = if chain.len() == 3 { Some(chain[0]) } else { inner };
    start.filter(|&x| linear.chain_from(x, chain).is_some_and(|(_, c)| factors(editor, &c).is_some()))
}

impl Adapted {
    /// `W + s B A`, of which the norm of weight DoRA is taken.
    pub fn weight_sum(&self) -> Combination {
        let update = Combination::chain(vec![self.b, self.a], self.scale);
        Combination::chain(vec![self.weight], 1.0).plus(&update, 1.0)
    }

    /// x, W, A and B as nodes, in the order in which every fused op takes them.
    pub fn operands(&self, editor: &mut Editor) -> Result<[Option<NodeId>; 4], GraphError> {
        let mut node = |operand| factor(editor, operand).map(Some);
        Ok([node(self.x)?, node(self.weight)?, node(self.a)?, node(self.b)?])
    }

    /// The bias, if it is a sum of vectors along the outputs that can be written down; empty if there is none.
    pub fn plain_bias(&self) -> Option<Bias> {
        let vectors = |(term, c): (&Term, f64)| Some((Vectors::of(&term.last)?, c));
        let plain = self.bias.terms().all(|(term, _)| term.lanes.is_one());
        self.bias.terms().map(vectors).collect::<Option<_>>().filter(|_| plain)
    }

    /// A value inside the pattern that something outside it needs.
    pub fn shared(&self, linear: &Linear<'_>, editor: &Editor, root: NodeId) -> Option<Reason> {
        let mut leaves: BTreeSet<_> = [self.x, self.weight, self.a, self.b].iter().map(|f| f.node).collect();
        leaves.extend(vector_nodes(&self.last));
        leaves.extend(self.bias.terms().flat_map(|(term, _)| vector_nodes(&term.last)));
        shared(linear, editor, root, &leaves)
    }
}

/// A sum of products of vectors, each with its coefficient.
pub(super) type Bias = Vec<(Vectors, f64)>;

/// A product of nodes over another, with something above the line: what can be written down as a node.
#[derive(Clone, Debug)]
pub(super) struct Vectors {
    over: Vec<NodeId>,
    under: Vec<NodeId>,
}

impl Vectors {
    /// The vectors of a monomial; `None` if it has norms, which are no nodes, or nothing above the line.
    pub fn of(monomial: &Monomial) -> Option<Self> {
        let nodes = |atoms: &BTreeMap<Atom, u32>| {
            let node = |(atom, &count): (&Atom, &u32)| match atom {
                Atom::Vector(id) => Some(vec![*id; count as usize]),
                Atom::Norm(_) => None,
            };
            Some(atoms.iter().map(node).collect::<Option<Vec<_>>>()?.concat())
        };
        let vectors = Self { over: nodes(&monomial.over)?, under: nodes(&monomial.under)? };
        (!vectors.over.is_empty()).then_some(vectors)
    }
}

fn vector_nodes(monomial: &Monomial) -> impl Iterator<Item = NodeId> {
    monomial.atoms().filter_map(|atom| match atom {
        Atom::Vector(id) => Some(*id),
        Atom::Norm(_) => None,
    })
}

/// A value between `root` and `leaves` that something else uses. Vectors and mere views of a leaf do not count: to
/// have them twice costs nothing.
pub(super) fn shared(
    linear: &Linear<'_>,
    editor: &Editor,
    root: NodeId,
    leaves: &BTreeSet<NodeId>,
) -> Option<Reason> {
    let mut inside = BTreeSet::new();
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        if !leaves.contains(&id) && inside.insert(id) {
            open.extend(editor.graph().operands(id).into_iter().flatten());
        }
    }
    let graph = editor.graph();
    let counts = |id: &NodeId| {
        *id != root && !linear.combination(*id).is_vector() && !leaves.contains(&linear.peel(*id).1.node)
    };
    inside.iter().copied().filter(counts).find_map(|id| {
        let user = editor.users(id).into_iter().find(|user| !inside.contains(user));
        let user = user.map(|user| format!("`{}`", graph.node(user).name()));
        let user = user.or_else(|| editor.output(id).map(|output| format!("output `{output}`")))?;
        Some(Reason::Shared { node: graph.node(id).name().to_owned(), user })
    })
}

/// A factor as a node.
pub(super) fn factor(editor: &mut Editor, factor: Factor) -> Result<NodeId, GraphError> {
    if !factor.transposed {
        return Ok(factor.node);
    }
    let name = format!("{}.t", editor.graph().node(factor.node).name());
    editor.intern(&name, Transpose { permutation: vec![1, 0] }, &[Some(factor.node)])
}

/// A sum of vectors as a node `[d]`; `None` if there are none.
pub(super) fn sum(editor: &mut Editor, name: &str, bias: &Bias) -> Result<Option<NodeId>, GraphError> {
    let mut total = None;
    for (vectors, c) in bias {
        let part = product(editor, name, vectors, *c)?;
        total = Some(match total {
            None => part,
            Some(total) => editor.intern(name, Binary::Add, &[Some(total), Some(part)])?,
        });
    }
    Ok(total)
}

/// `c` times a product of vectors as a node `[d]`.
pub(super) fn product(
    editor: &mut Editor,
    name: &str,
    vectors: &Vectors,
    coefficient: f64,
) -> Result<NodeId, GraphError> {
    let mut total = None;
    for &id in &vectors.over {
        let id = flat(editor, id)?;
        total = Some(match total {
            None => id,
            Some(total) => editor.intern(name, Binary::Mul, &[Some(total), Some(id)])?,
        });
    }
    let mut total = total.expect("`Vectors::of` wants something above the line");
    if coefficient != 1.0 {
        total = editor.intern(name, Scale { factor: coefficient }, &[Some(total)])?;
    }
    for &id in &vectors.under {
        let id = flat(editor, id)?;
        total = editor.intern(name, Binary::Div, &[Some(total), Some(id)])?;
    }
    Ok(total)
}

/// A vector of any layout as `[d]`.
fn flat(editor: &mut Editor, id: NodeId) -> Result<NodeId, GraphError> {
    let node = editor.graph().node(id);
    if node.ty().rank() == 1 {
        return Ok(id);
    }
    let (name, shape) = (format!("{}.flat", node.name()), Shape::new(vec![node.shape().elements()]));
    editor.intern(&name, Reshape { shape }, &[Some(id)])
}
