//! The hand that passes edit a graph with: it replaces nodes, keeps the names that people gave, and writes down each
//! rewrite. It knows nothing about patterns.

use super::{Pass, PassError};
use crate::merging::Decision;
use crate::trace::{Event, Reason, Refusal, Rewrite, Staged};
use engraft_ir::{Graph, GraphError, NodeId, Op, Stage, Stages, text};
use std::collections::{BTreeMap, BTreeSet};

/// A graph being edited by a pass.
///
/// What a rewrite leaves without users is *retired*: it stays in the graph until the pass is over, so that ids stay
/// valid, but no question asked of the editor sees it.
#[derive(Debug)]
pub struct Editor {
    graph: Graph,
    inferred: Stages,
    /// The stages of nodes that were added since.
    added_stages: BTreeMap<NodeId, Stage>,
    retired: BTreeSet<NodeId>,
    /// Nodes added since the last rewrite was written down.
    added: Vec<NodeId>,
    events: Vec<Event>,
}

/// What a pass made.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The graph.
    pub graph: Graph,
    /// What was done, in order.
    pub events: Vec<Event>,
}

impl Editor {
    /// Runs a pass on a copy of a graph.
    ///
    /// # Errors
    /// The pass's own.
    pub fn apply(pass: &Pass<'_>, graph: &Graph) -> Result<Outcome, PassError> {
        let mut editor = Self {
            graph: graph.clone(),
            inferred: Stages::of(graph),
            added_stages: BTreeMap::new(),
            retired: BTreeSet::new(),
            added: Vec::new(),
            events: Vec::new(),
        };
        pass.run.run(&mut editor)?;
        editor.graph.prune();
        Ok(Outcome { graph: editor.graph, events: editor.events })
    }

    /// The graph as it is now, retired nodes included.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The nodes that count, operands before users.
    pub fn order(&self) -> Vec<NodeId> {
        self.graph.order().into_iter().filter(|id| !self.is_retired(*id)).collect()
    }

    /// Whether a rewrite left the node without users.
    pub fn is_retired(&self, id: NodeId) -> bool {
        self.retired.contains(&id)
    }

    /// Who uses a node, once per slot.
    pub fn users(&self, id: NodeId) -> Vec<NodeId> {
        let users = self.graph.users(id).into_iter().map(|(user, _)| user);
        users.filter(|user| !self.is_retired(*user)).collect()
    }

    /// The output that a node is, if it is one.
    pub fn output(&self, id: NodeId) -> Option<&str> {
        self.graph.outputs().iter().find(|o| o.node == id).map(|o| o.name.as_str())
    }

    /// Whether exactly one slot uses the node, and no output.
    pub fn is_used_once(&self, id: NodeId) -> bool {
        self.output(id).is_none() && self.users(id).len() == 1
    }

    /// When a node is known. After a rewrite it may be known earlier than this says, never later.
    pub fn stage(&self, id: NodeId) -> Stage {
        self.added_stages.get(&id).copied().unwrap_or_else(|| self.inferred.node(id))
    }

    /// Whether a node is a parameter or known before the call: what stands on the weight's side of a product.
    pub fn is_weight(&self, id: NodeId) -> bool {
        self.stage(id) < Stage::Call || matches!(self.graph.node(id).op(), Op::Param(_))
    }

    /// Adds a node named `name`, or like it if the name is taken.
    ///
    /// # Errors
    /// The op's rule is broken.
    pub fn add(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        operands: &[Option<NodeId>],
    ) -> Result<NodeId, GraphError> {
        let op = op.into();
        let name = self.graph.fresh_name(name);
        let latest = operands.iter().flatten().map(|&o| self.stage(o)).max().unwrap_or(Stage::Compile);
        let stage = op.stage(latest);
        let id = self.graph.add(&name, op, operands)?;
        let symbols = self.graph.node(id).shape().symbols();
        let stage = symbols.iter().filter_map(|s| self.inferred.symbol(s)).fold(stage, Stage::max);
        self.added_stages.insert(id, stage);
        self.added.push(id);
        Ok(id)
    }

    /// A node with this op on these operands: one that is there, or else a new one named `name`.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn intern(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        operands: &[Option<NodeId>],
    ) -> Result<NodeId, GraphError> {
        let op = op.into();
        let twin = operands.iter().flatten().next().and_then(|&first| {
            let is_twin =
                |&id: &NodeId| *self.graph.node(id).op() == op && self.graph.operands(id) == trim(operands);
            self.users(first).into_iter().find(is_twin)
        });
        match twin {
            Some(id) => Ok(id),
            None => self.add(name, op, operands),
        }
    }

    /// Puts `new` in the place of `old` and writes the rewrite down. A `new` that was just added takes `old`'s name.
    ///
    /// # Errors
    /// [`GraphError::TypeChange`].
    pub fn replace(
        &mut self,
        rule: &'static str,
        old: NodeId,
        new: NodeId,
        conditions: Vec<String>,
    ) -> Result<(), GraphError> {
        let name = self.graph.node(old).name().to_owned();
        self.graph.replace_uses(old, new)?;
        let dead = self.dying(old);
        let before = dead.iter().map(|&id| self.line(id)).collect();
        for &id in &dead {
            self.retire(id)?;
        }
        if self.added.contains(&new) && self.is_retired(old) {
            self.graph.rename(new, &name)?;
        }
        let mut added = std::mem::take(&mut self.added);
        added.retain(|id| !self.is_retired(*id));
        if added.is_empty() {
            added.push(new);
        }
        let after = added.iter().map(|&id| self.line(id)).collect();
        self.events.push(Event::Rewrite(Rewrite { rule, node: name, before, after, conditions }));
        Ok(())
    }

    /// Removes what no output needs, and writes each node down.
    pub(super) fn remove_dead(&mut self, rule: &'static str) {
        let lines: BTreeMap<String, String> = self
            .graph
            .order()
            .into_iter()
            .map(|id| (self.graph.node(id).name().to_owned(), self.line(id)))
            .collect();
        for name in self.graph.prune() {
            let before = lines.get(&name).cloned().into_iter().collect();
            let rewrite = Rewrite { rule, node: name, before, after: Vec::new(), conditions: Vec::new() };
            self.events.push(Event::Rewrite(rewrite));
        }
    }

    /// Writes down that a pattern nearly matched at a node.
    pub fn refuse(&mut self, rule: &'static str, id: NodeId, reason: Reason) {
        let node = self.graph.node(id).name().to_owned();
        self.events.push(Event::Refusal(Refusal { rule, node, reason }));
    }

    /// Writes down that a value is kept for a later stage.
    pub(super) fn staged(&mut self, staged: Staged) {
        self.events.push(Event::Staged(staged));
    }

    /// Writes down whether a layer is merged.
    pub(super) fn decided(&mut self, decision: Decision) {
        self.events.push(Event::Decided(decision));
    }

    /// What would go with a node that has no users: itself and whatever only it needs. Operands before users.
    fn dying(&self, root: NodeId) -> Vec<NodeId> {
        let mut dead = BTreeSet::new();
        let mut open = vec![root];
        while let Some(id) = open.pop() {
            let is_alive =
                || self.output(id).is_some() || self.users(id).iter().any(|user| !dead.contains(user));
            // Sources first: thousands may use one.
            let is_source = matches!(self.graph.node(id).op(), Op::Input(_) | Op::Param(_));
            if is_source || is_alive() || !dead.insert(id) {
                continue;
            }
            open.extend(self.graph.operands(id).into_iter().flatten());
        }
        self.operands_first(root, &dead)
    }

    /// The nodes of `set` that `root` is computed from through `set`, and `root`.
    fn operands_first(&self, root: NodeId, set: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        let mut open = vec![(root, false)];
        while let Some((id, operands_done)) = open.pop() {
            if operands_done {
                order.push(id);
            } else if set.contains(&id) && seen.insert(id) {
                open.push((id, true));
                open.extend(self.graph.operands(id).into_iter().rev().flatten().map(|o| (o, false)));
            }
        }
        order
    }

    /// A retired node gives its name back.
    fn retire(&mut self, id: NodeId) -> Result<(), GraphError> {
        self.retired.insert(id);
        let name = self.graph.fresh_name(&format!("retired.{}", id.index()));
        self.graph.rename(id, &name)
    }

    fn line(&self, id: NodeId) -> String {
        format!("{} = {}", self.graph.node(id).name(), text::expression(&self.graph, id))
    }
}

/// The operands without the empty slots at the end, as [`Graph::operands`] gives them.
fn trim(operands: &[Option<NodeId>]) -> &[Option<NodeId>] {
    let filled = operands.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    &operands[..filled]
}
