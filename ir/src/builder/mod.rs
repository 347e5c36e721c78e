//! The builder: an Axon-like way to write graphs. A wrong shape is caught where the node is built; all errors are
//! reported together, each with its source line, when the graph is finished. It knows no ops of its own: the methods
//! in `tensor.rs` are the vocabulary.

mod error;
mod tensor;

pub use error::{BuildError, BuildErrors, Cause};
pub use tensor::Tensor;

use crate::ops::{Constant, Input, Param};
use crate::{DType, Graph, GraphError, NodeId, Op, Shape, Stage, verify};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::Location;

/// Builds a graph.
///
/// ```
/// use engraft_ir::{DType::F32, GraphBuilder, dims};
/// let g = GraphBuilder::new("layer");
/// let x = g.input("x", F32, dims!["batch", 24]);
/// let w = g.param("fc.weight", F32, dims![40, 24]);
/// g.output("y", x.dense(w, None).named("fc").relu());
/// let graph = g.finish()?;
/// assert_eq!(graph.output_types()[0].1.to_string(), "f32[batch, 40]");
/// # Ok::<(), engraft_ir::BuildErrors>(())
/// ```
#[derive(Debug)]
pub struct GraphBuilder {
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    graph: Graph,
    errors: Vec<BuildError>,
    /// The names of the open blocks, each ending in `.`.
    scope: String,
    /// What the automatic names of a node's users start with: the nearest name that a person gave.
    stems: BTreeMap<NodeId, String>,
}

impl GraphBuilder {
    /// An empty builder.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        let (graph, error) = match Graph::new(name) {
            Ok(graph) => (graph, None),
            Err(error) => (Graph::default(), Some(error)),
        };
        let builder = Self::edit(graph);
        if let Some(error) = error {
            builder.report(error);
        }
        builder
    }

    /// A builder that goes on from a finished graph: look nodes up with [`find`](Self::find), add to them, and put
    /// new ones in the place of old ones with [`replace`](Self::replace).
    pub fn edit(graph: Graph) -> Self {
        let state = State { graph, errors: Vec::new(), scope: String::new(), stems: BTreeMap::new() };
        Self { state: RefCell::new(state) }
    }

    /// A value given with each call.
    #[track_caller]
    pub fn input(&self, name: &str, dtype: DType, shape: Shape) -> Tensor<'_> {
        self.add_named(name, Input { dtype, shape, carries: None }, &[])
    }

    /// A value that the session keeps from call to call, along axis 0 of `shape`, a symbol: what the output of the same
    /// full name was in the last call, and empty before the first. See [`Input::carries`]; [`append`](Self::append) makes
    /// that output.
    #[track_caller]
    pub fn carried(&self, name: &str, dtype: DType, shape: Shape) -> Tensor<'_> {
        let output = format!("{}{name}", self.state.borrow().scope);
        self.add_named(name, Input { dtype, shape, carries: Some(output) }, &[])
    }

    /// Appends `new` to a [`carried`](Self::carried) value along axis 0, for this call and those to come.
    #[track_caller]
    pub fn append<'g>(&'g self, carried: Tensor<'g>, new: Tensor<'g>) -> Tensor<'g> {
        let all = carried.concat(&[new], 0);
        if let Some(name) = carried.name() {
            self.output(&name, all);
        }
        all
    }

    /// A frozen parameter, known when the base is loaded; `name` is its tensor's name in a weights file. See
    /// [`Tensor::adapter`] and [`Tensor::live`] for other binding times.
    #[track_caller]
    pub fn param(&self, name: &str, dtype: DType, shape: Shape) -> Tensor<'_> {
        let param = Param { dtype, shape, binding: Stage::Base, group: String::new(), init: None };
        self.add_named(name, param, &[])
    }

    /// A value written in the graph.
    #[track_caller]
    pub fn constant(&self, constant: impl Into<Constant>) -> Tensor<'_> {
        self.add(constant.into(), &[])
    }

    /// The node of this name, as written by [`Tensor::named`] (blocks in front).
    #[track_caller]
    pub fn find(&self, name: &str) -> Tensor<'_> {
        let found = self.state.borrow().graph.find(name);
        if found.is_none() {
            self.report(GraphError::UnknownName { name: name.to_owned() });
        }
        Tensor::new(self, found)
    }

    /// Everything that `body` names is named under `name.`.
    pub fn block<R>(&self, name: &str, body: impl FnOnce() -> R) -> R {
        let outer = {
            let mut state = self.state.borrow_mut();
            let inner = format!("{}{name}.", state.scope);
            std::mem::replace(&mut state.scope, inner)
        };
        let result = body();
        self.state.borrow_mut().scope = outer;
        result
    }

    /// Reports an error of a layer's own, as the ops report theirs, and gives the tensor to return: what is built on
    /// it is silent.
    #[track_caller]
    pub fn fail(&self, cause: impl Into<Cause>) -> Tensor<'_> {
        self.report(cause);
        Tensor::new(self, None)
    }

    /// Makes a tensor an output.
    #[track_caller]
    pub fn output(&self, name: &str, tensor: Tensor<'_>) {
        let Some(id) = self.own(tensor) else { return };
        let result = self.state.borrow_mut().graph.add_output(name, id);
        self.check(result);
    }

    /// Makes every use of `old` a use of `new`, except those that `new` itself is computed from.
    #[track_caller]
    pub fn replace(&self, old: Tensor<'_>, new: Tensor<'_>) {
        let (Some(old), Some(new)) = (self.own(old), self.own(new)) else { return };
        let result = self.state.borrow_mut().graph.replace_uses(old, new);
        self.check(result);
    }

    /// Copies another graph in. Its inputs, and any parameters to be shared, are given by name; its other nodes are
    /// copied under `name.`. Returns its outputs, by name.
    #[track_caller]
    pub fn instantiate<'g>(
        &'g self,
        name: &str,
        graph: &Graph,
        given: &[(&str, Tensor<'g>)],
    ) -> BTreeMap<String, Tensor<'g>> {
        let mut copies: BTreeMap<NodeId, Tensor<'_>> = BTreeMap::new();
        for (given_name, tensor) in given {
            match graph.find(given_name) {
                Some(id) => drop(copies.insert(id, *tensor)),
                None => self.report(GraphError::UnknownName { name: (*given_name).to_owned() }),
            }
        }
        for id in graph.order() {
            let node = graph.node(id);
            match (copies.get(&id), node.op()) {
                (Some(given), _) => self.expect_type(*given, node),
                (None, Op::Input(_)) => {
                    self.report(GraphError::UnknownName { name: node.name().to_owned() });
                    copies.insert(id, Tensor::new(self, None));
                }
                (None, op) => {
                    let operands: Vec<_> = graph.operands(id).iter().map(|o| o.map(|o| copies[&o])).collect();
                    let copy = self.add_named(&format!("{name}.{}", node.name()), op.clone(), &operands);
                    copies.insert(id, copy);
                }
            }
        }
        graph.outputs().iter().map(|o| (o.name.clone(), copies[&o.node])).collect()
    }

    #[track_caller]
    fn expect_type(&self, given: Tensor<'_>, node: &crate::Node) {
        let Some((name, ty)) = given.describe() else { return };
        if ty != *node.ty() {
            self.report(GraphError::TypeChange {
                old: node.name().to_owned(),
                old_type: node.ty().clone(),
                new: name,
                new_type: ty,
            });
        }
    }

    /// The graph, without what no output needs.
    ///
    /// # Errors
    /// Everything that went wrong since the builder was made.
    #[track_caller]
    pub fn finish(self) -> Result<Graph, BuildErrors> {
        let location = Location::caller();
        let State { mut graph, mut errors, .. } = self.state.into_inner();
        graph.prune();
        if errors.is_empty() {
            let broken = verify(&graph).err().into_iter().flatten();
            errors.extend(broken.map(|error| BuildError::new(location, error)));
        }
        if errors.is_empty() { Ok(graph) } else { Err(BuildErrors::new(graph.name(), errors)) }
    }

    /// Adds a node with a name of its own, under the open blocks.
    #[track_caller]
    fn add_named(&self, name: &str, op: impl Into<Op>, operands: &[Option<Tensor<'_>>]) -> Tensor<'_> {
        let name = format!("{}{name}", self.state.borrow().scope);
        self.add_as(&name, true, &op.into(), operands)
    }

    /// Adds a node named after the nearest named node it is computed from.
    #[track_caller]
    fn add(&self, op: impl Into<Op>, operands: &[Option<Tensor<'_>>]) -> Tensor<'_> {
        let op = op.into();
        let name = {
            let state = self.state.borrow();
            let first = operands.iter().flatten().find_map(|t| t.id());
            let stem = first.map(|id| match state.stems.get(&id) {
                Some(stem) => stem.as_str(),
                None => state.graph.node(id).name(),
            });
            let name = match stem {
                Some(stem) if stem.starts_with(&state.scope) => format!("{stem}.{}", op.name()),
                _ => format!("{}{}", state.scope, op.name()),
            };
            state.graph.fresh_name(&name)
        };
        self.add_as(&name, false, &op, operands)
    }

    #[track_caller]
    fn add_as(&self, name: &str, named: bool, op: &Op, operands: &[Option<Tensor<'_>>]) -> Tensor<'_> {
        // An operand that failed was reported where it failed.
        let mut ids = Vec::with_capacity(operands.len());
        for operand in operands {
            let Some(tensor) = *operand else {
                ids.push(None);
                continue;
            };
            match self.own(tensor) {
                Some(id) => ids.push(Some(id)),
                None => return Tensor::new(self, None),
            }
        }
        let result = self.state.borrow_mut().graph.add(name, op.clone(), &ids);
        let id = self.check(result);
        if let (Some(id), false) = (id, named) {
            let mut state = self.state.borrow_mut();
            let stem = name.rsplit_once(&format!(".{}", op.name())).map_or(name, |(stem, _)| stem).to_owned();
            state.stems.insert(id, stem);
        }
        Tensor::new(self, id)
    }

    /// The id of a tensor of this builder; a tensor of another one is an error.
    #[track_caller]
    fn own(&self, tensor: Tensor<'_>) -> Option<NodeId> {
        if !std::ptr::eq(tensor.builder(), self) {
            self.report(BuildError::foreign(tensor.describe().map_or_else(String::new, |(name, _)| name)));
            return None;
        }
        tensor.id()
    }

    #[track_caller]
    fn check<T>(&self, result: Result<T, GraphError>) -> Option<T> {
        // Not `map_err`: a closure would report its own line instead of the caller's.
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.report(error);
                None
            }
        }
    }

    #[track_caller]
    fn report(&self, error: impl Into<Cause>) {
        self.state.borrow_mut().errors.push(BuildError::new(Location::caller(), error));
    }
}
