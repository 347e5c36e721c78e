//! Why a graph cannot be planned.

use engraft_ir::{Stage, Symbol, TensorType, VerifyError};
use thiserror::Error;

/// Why a graph cannot be planned.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum PlanError {
    /// The graph breaks an invariant.
    #[error("graph `{graph}` is not valid: {}", list(errors))]
    Invalid {
        /// The graph's name.
        graph: String,
        /// What is broken.
        errors: Vec<VerifyError>,
    },
    /// A node has a type that compiled programs do not compute in.
    #[error("`{node}` is {ty}: compiled programs compute in f32 (f64 is for the reference interpreter only)")]
    Unsupported {
        /// The node's name.
        node: String,
        /// Its type.
        ty: TensorType,
    },
    /// A symbol that only a carried input has, elsewhere than along its first axis.
    #[error(
        "graph `{graph}`: dim `{symbol}` of `{input}`, which is carried and empty before the first call, must be an axis of \
         another input or parameter too"
    )]
    CarriedSymbol {
        /// The graph's name.
        graph: String,
        /// The symbol.
        symbol: Symbol,
        /// The carried input.
        input: String,
    },
    /// An adaptable layer whose weight is not the base's.
    #[error(
        "`{node}` is adaptable as `{module}`, but its weight `{weight}` is known at stage {stage}, expected base: \
         adapters are loaded onto the base's weight"
    )]
    AdaptableWeight {
        /// The node's name.
        node: String,
        /// The name by which adapters refer to it.
        module: String,
        /// The weight.
        weight: String,
        /// When it is known.
        stage: Stage,
    },
    /// An adaptable layer that runs before the call, which has the adapters.
    #[error(
        "`{node}` is adaptable as `{module}`, but is computed at stage {stage}, expected call: adapters come with the call"
    )]
    AdaptableStage {
        /// The node's name.
        node: String,
        /// The name by which adapters refer to it.
        module: String,
        /// When it is computed.
        stage: Stage,
    },
    /// A number that the graph knows is infinity or 0 in f32.
    #[error(
        "`{node}`: its {attribute} is {value:e}: compiled programs compute in f32, which holds no such number"
    )]
    Number {
        /// The node's name.
        node: String,
        /// The attribute.
        attribute: String,
        /// The number.
        value: f64,
    },
}

fn list(errors: &[VerifyError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
