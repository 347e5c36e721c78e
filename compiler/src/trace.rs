//! What the pipeline did: for each pass the graph before and after, and every rewrite, refusal and staged value.
//! It knows how to print itself, and nothing about any particular pass.

use crate::merging::Decision;
use engraft_ir::{Graph, Stage, TensorType};
use std::fmt;
use std::sync::Arc;
use thiserror::Error;

/// Everything that happened to a graph, pass by pass. Prints as a report.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The passes, in the order they ran.
    pub passes: Vec<PassTrace>,
}

/// What one pass did.
#[derive(Clone, Debug)]
pub struct PassTrace {
    /// The pass's name.
    pub pass: &'static str,
    /// What the pass is for.
    pub summary: &'static str,
    /// The graph that the pass was given.
    pub before: Arc<Graph>,
    /// The graph that it made.
    pub after: Arc<Graph>,
    /// What it did, in order.
    pub events: Vec<Event>,
}

/// One thing that a pass did, or declined to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Part of the graph was replaced.
    Rewrite(Rewrite),
    /// Something looked like a pattern and was left alone.
    Refusal(Refusal),
    /// A value is computed earlier than it is used, and kept.
    Staged(Staged),
    /// A layer is merged or not.
    Decided(Decision),
}

/// A replacement. Lines read `name = op(operands) {attributes}`, as in the text form.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewrite {
    /// The rule's name.
    pub rule: &'static str,
    /// The node that was replaced.
    pub node: String,
    /// What went away, operands before users.
    pub before: Vec<String>,
    /// What came, operands before users.
    pub after: Vec<String>,
    /// The side conditions that held.
    pub conditions: Vec<String>,
}

/// A pattern that nearly matched.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The rule's name.
    pub rule: &'static str,
    /// The node that would have been replaced.
    pub node: String,
    /// Why it was not.
    pub reason: Reason,
}

/// A value that crosses into a later stage, so that the runtime keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Staged {
    /// The node.
    pub node: String,
    /// When it is computed.
    pub stage: Stage,
    /// What it is.
    pub ty: TensorType,
    /// The latest stage that uses it.
    pub consumer: Stage,
}

/// Why a pattern that nearly matched was left alone. Combinations read like `weight + 2·lora_B·lora_A`.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// The norm sums over another axis than the form's.
    #[error("the norm of {norm} sums over the wrong axis: expected the {expected} axis")]
    NormAxis {
        /// What the norm is taken of.
        norm: String,
        /// The axis that it should sum over.
        expected: &'static str,
    },
    /// The magnitude runs along another axis than the form's.
    #[error("the magnitude `{magnitude}` runs along the wrong axis: expected the output axis")]
    MagnitudeAxis {
        /// The magnitude.
        magnitude: String,
    },
    /// The low-rank update has another input than the layer.
    #[error("the layer's input is `{layer}`, but the low-rank update's is `{update}`")]
    OtherInput {
        /// The input of the frozen product.
        layer: String,
        /// The input of the update.
        update: String,
    },
    /// The norm is of another weight, other factors or another scale than the product's.
    #[error("the norm is of {norm}, but the product is with {product}")]
    OtherNorm {
        /// What the norm is taken of.
        norm: String,
        /// The weight that the product uses.
        product: String,
    },
    /// A value inside the pattern is needed elsewhere, so that fusing would compute it twice.
    #[error("`{node}` is also used by {user}")]
    Shared {
        /// The value inside the pattern.
        node: String,
        /// Who else uses it.
        user: String,
    },
    /// The norm of a weight includes something that is neither the weight nor its update.
    #[error("the norm is of {norm}: a bias is no part of a weight's norm")]
    BiasInNorm {
        /// What the norm is taken of.
        norm: String,
    },
    /// The gain scales the bias, which weight DoRA's never does.
    #[error("the gain scales the bias {bias}; the bias of weight DoRA is added after it")]
    ScaledBias {
        /// The bias.
        bias: String,
    },
    /// The norm has an epsilon where the form has none, or in another place.
    #[error("the norm has epsilon {epsilon:?}{}; {expected}", if *.inside { " inside the root" } else { " outside the root" })]
    Epsilon {
        /// The epsilon found.
        epsilon: f64,
        /// Whether it is inside the root.
        inside: bool,
        /// What the form has.
        expected: &'static str,
    },
    /// The folded value is not finite, and constants are.
    #[error("the value is not finite")]
    NotFinite,
}

impl Trace {
    /// The rewrites, each with its pass.
    pub fn rewrites(&self) -> impl Iterator<Item = (&'static str, &Rewrite)> {
        self.events().filter_map(|(pass, event)| match event {
            Event::Rewrite(rewrite) => Some((pass, rewrite)),
            _ => None,
        })
    }

    /// The refusals, each with its pass.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, &Refusal)> {
        self.events().filter_map(|(pass, event)| match event {
            Event::Refusal(refusal) => Some((pass, refusal)),
            _ => None,
        })
    }

    /// The staged values.
    pub fn staged(&self) -> impl Iterator<Item = &Staged> {
        self.events().filter_map(|(_, event)| match event {
            Event::Staged(staged) => Some(staged),
            _ => None,
        })
    }

    /// What was decided of each adapted layer, if anything was to be.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.events().filter_map(|(_, event)| match event {
            Event::Decided(decision) => Some(decision),
            _ => None,
        })
    }

    /// The graph in which adapted layers are recognised and none is merged; none where no pass ran.
    pub fn unmerged(&self) -> Option<&Graph> {
        let merge = self.passes.iter().find(|pass| pass.pass == crate::passes::merge::NAME);
        merge.map(|pass| &*pass.before).or_else(|| self.passes.last().map(|pass| &*pass.after))
    }

    fn events(&self) -> impl Iterator<Item = (&'static str, &Event)> {
        self.passes.iter().flat_map(|pass| pass.events.iter().map(|event| (pass.pass, event)))
    }
}

impl PassTrace {
    /// How many rewrites the pass made.
    pub fn rewrite_count(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Rewrite(_))).count()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.passes.iter().try_for_each(|pass| writeln!(f, "{pass}"))
    }
}

impl fmt::Display for PassTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.pass, self.summary)?;
        if self.events.is_empty() {
            return write!(f, "\n  nothing to do");
        }
        self.events.iter().try_for_each(|event| write!(f, "\n{event}"))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rewrite(rewrite) => rewrite.fmt(f),
            Self::Refusal(refusal) => refusal.fmt(f),
            Self::Staged(staged) => staged.fmt(f),
            Self::Decided(decision) => wrapped(f, "", &decision.to_string()),
        }
    }
}

impl fmt::Display for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {} at {}", self.rule, self.node)?;
        self.before.iter().try_for_each(|line| wrapped(f, "- ", line))?;
        self.after.iter().try_for_each(|line| wrapped(f, "+ ", line))?;
        self.conditions.iter().try_for_each(|condition| wrapped(f, "where ", condition))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  refused {} at {}", self.rule, self.node)?;
        wrapped(f, "since ", &self.reason.to_string())
    }
}

/// A line of an event, broken between words where it is too long.
fn wrapped(f: &mut fmt::Formatter<'_>, mark: &str, text: &str) -> fmt::Result {
    let first = format!("    {mark}");
    let options = textwrap::Options::new(80)
        .initial_indent(&first)
        .subsequent_indent("        ")
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    textwrap::wrap(text, options).iter().try_for_each(|line| write!(f, "\n{line}"))
}

impl fmt::Display for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, stage, ty, consumer } = self;
        write!(f, "  {node}: {ty} computed at {stage}, used at {consumer}")
    }
}
