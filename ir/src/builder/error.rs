//! What the builder reports: every error with the source line that caused it.

use crate::{GraphError, RuleError, VerifyError};
use std::fmt;
use std::panic::Location;
use thiserror::Error;

/// What went wrong.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Cause {
    /// A node could not be built.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The finished graph breaks an invariant.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// An argument does not fit the tensor it was given with.
    #[error("at `{node}`: {source}")]
    Argument {
        /// The tensor's name.
        node: String,
        /// Why.
        source: RuleError,
    },
    /// A method meant for parameters was called on something else.
    #[error("`{node}` is not a parameter, so it has no {property}")]
    NotAParam {
        /// The tensor's name.
        node: String,
        /// What was to be set.
        property: &'static str,
    },
    /// A method meant for the results of one op was called on another's.
    #[error("`{node}` is {found}, expected {expected}")]
    NotA {
        /// The tensor's name.
        node: String,
        /// The op it is.
        found: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// A layer's option is out of range.
    #[error("`{layer}`: {option} is {found}, expected {expected}")]
    LayerOption {
        /// The layer's name.
        layer: String,
        /// The option's name.
        option: &'static str,
        /// Its value, printed.
        found: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A tensor belongs to another builder.
    #[error("`{node}` belongs to another graph")]
    Foreign {
        /// The tensor's name.
        node: String,
    },
}

/// One error, with the line that caused it.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{location}: {cause}")]
pub struct BuildError {
    /// The source line of the call that failed.
    pub location: &'static Location<'static>,
    /// What went wrong.
    pub cause: Cause,
}

impl BuildError {
    pub(super) fn new(location: &'static Location<'static>, cause: impl Into<Cause>) -> Self {
        Self { location, cause: cause.into() }
    }

    pub(super) fn foreign(node: String) -> Cause {
        Cause::Foreign { node }
    }
}

/// Everything that went wrong while a graph was built; never empty.
#[derive(Clone, Debug, Error, PartialEq)]
pub struct BuildErrors {
    graph: String,
    errors: Vec<BuildError>,
}

impl BuildErrors {
    pub(super) fn new(graph: &str, errors: Vec<BuildError>) -> Self {
        Self { graph: graph.to_owned(), errors }
    }

    /// The errors, in the order they arose.
    pub fn errors(&self) -> &[BuildError] {
        &self.errors
    }
}

impl fmt::Display for BuildErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.errors.len() == 1 { "error" } else { "errors" };
        write!(f, "graph `{}` has {} {plural}", self.graph, self.errors.len())?;
        self.errors.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}
