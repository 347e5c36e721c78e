//! How parameters that nobody trained start out: each by its [`Init`], from a seed, the same on every platform.
//! Knows nothing about training.

use crate::eval::{Values, eval_node};
use crate::ops::{Binary, Init, LoraNorm, Magnitude, Param};
use crate::random::{Stream, integers, reals};
use crate::value::{EvalError, Value};
use crate::{Bindings, DimError, Graph, NodeId, Op, TensorType};
use ndarray::Axis as NdAxis;
use thiserror::Error;

/// Why a parameter has no initial value.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum InitError {
    /// Nothing says how it starts.
    #[error("parameter `{param}` {ty} has no value and no `init` to start from")]
    NoInit {
        /// The parameter.
        param: String,
        /// Its type.
        ty: TensorType,
    },
    /// A dim is open.
    #[error("parameter `{param}`: {source}")]
    Dim {
        /// The parameter.
        param: String,
        /// Which dim.
        source: DimError,
    },
    /// The value does not fit into memory.
    #[error("parameter `{param}` {ty} does not fit into memory")]
    TooLarge {
        /// The parameter.
        param: String,
        /// Its type.
        ty: TensorType,
    },
    /// There is no norm to start from.
    #[error(
        "parameter `{param}` starts as a norm, but scales no direction: expected `magnitude` of `normalize`, or `div` \
         by `lora_norm`"
    )]
    NoNorm {
        /// The parameter.
        param: String,
    },
    /// The norm to start from could not be computed.
    #[error("parameter `{param}` starts as a norm: {source}")]
    Norm {
        /// The parameter.
        param: String,
        /// Why.
        source: EvalError,
    },
}

/// Initial values of all parameters.
///
/// # Errors
/// The first parameter that has none; see [`InitError`].
pub fn initialize(graph: &Graph, seed: u64) -> Result<Values, InitError> {
    complete(graph, Values::new(), seed)
}

/// The given values, and initial values of the parameters that are not among them: an adapter over a loaded base.
///
/// # Errors
/// As [`initialize`].
pub fn complete(graph: &Graph, given: Values, seed: u64) -> Result<Values, InitError> {
    let mut values = given;
    let mut norms = Vec::new();
    for id in graph.order() {
        let node = graph.node(id);
        let Op::Param(param) = node.op() else { continue };
        if values.contains_key(node.name()) {
            continue;
        }
        match param.init {
            None => return Err(InitError::NoInit { param: node.name().to_owned(), ty: node.ty().clone() }),
            // Norms are of the others' values.
            Some(Init::Norm) => norms.push(id),
            Some(init) => {
                values.insert(node.name().to_owned(), draw(node.name(), param, init, seed)?);
            }
        }
    }
    for id in norms {
        let name = graph.node(id).name().to_owned();
        let norm = norm(graph, &values, id).ok_or_else(|| InitError::NoNorm { param: name.clone() })?;
        let norm = norm.map_err(|source| InitError::Norm { param: name.clone(), source })?;
        values.insert(name, norm);
    }
    Ok(values)
}

fn draw(name: &str, param: &Param, init: Init, seed: u64) -> Result<Value, InitError> {
    let shape = param
        .shape
        .eval(&Bindings::new())
        .map_err(|source| InitError::Dim { param: name.to_owned(), source })?;
    let mut stream = Stream::new(seed, name);
    let fans: usize = shape.iter().sum();
    let limit = libm::sqrt(6.0 / fans as f64);
    let value = match init {
        Init::Zeros | Init::Ones if !param.dtype.is_float() => {
            integers(&shape, || i64::from(init == Init::Ones))
        }
        Init::Zeros => reals(param.dtype, &shape, || 0.0),
        Init::Ones | Init::Norm => reals(param.dtype, &shape, || 1.0),
        Init::Normal { std } => reals(param.dtype, &shape, || std * stream.normal()),
        Init::GlorotUniform => reals(param.dtype, &shape, || limit * (2.0 * stream.uniform() - 1.0)),
    };
    let ty = || TensorType::new(param.dtype, param.shape.clone());
    value.ok_or_else(|| InitError::TooLarge { param: name.to_owned(), ty: ty() })
}

/// The norm of the direction that a magnitude scales; `None` if it scales none.
fn norm(graph: &Graph, values: &Values, magnitude: NodeId) -> Option<Result<Value, EvalError>> {
    graph.users(magnitude).into_iter().find_map(|(user, slot)| match (graph.node(user).op(), slot) {
        (Op::Magnitude(scaling), Magnitude::M) => {
            let direction = graph.operand(user, Magnitude::V)?;
            let Op::Normalize(normalize) = graph.node(direction).op() else { return None };
            let vectors = graph.operand(direction, 0)?;
            if graph.node(vectors).ty().rank() != 2 || normalize.axis == scaling.axis {
                return None;
            }
            Some(eval_node(graph, values, vectors).and_then(|v| {
                let squares = v.as_real()?.mapv(|v| v * v).sum_axis(NdAxis(normalize.axis));
                Ok(squares.mapv(|sum| normalize.denominator(sum)).into())
            }))
        }
        (Op::Binary(Binary::Div), 0) => {
            let divisor = graph.operand(user, 1)?;
            matches!(graph.node(divisor).op(), Op::LoraNorm(LoraNorm { .. }))
                .then(|| eval_node(graph, values, divisor))
        }
        _ => None,
    })
}
