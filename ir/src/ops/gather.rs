//! `gather`: rows of a table by id, as an embedding layer does.

use crate::op::{Args, OpInfo, Operands, Operator, RuleError, decode, fields, required};
use crate::value::{EvalError, Value};
use crate::{DType, Shape, TensorType};
use ndarray::{ArrayD, Axis as NdAxis, IxDyn};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// `y[.., :] = table[ids[..], :]`: table `[rows, ..]`, ids of any shape, y `ids.shape ++ table.shape[1..]`.
/// An id outside `0 .. rows` is an error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gather {}

impl Gather {
    /// The table, `[rows, ..]`.
    pub const TABLE: usize = 0;
    /// The ids.
    pub const IDS: usize = 1;

    pub(super) const INFOS: &'static [OpInfo] = &[OpInfo {
        name: "gather",
        formula: "y[.., :] = table[ids[..], :]: table [rows, ..], ids i32 or i64 of any shape",
        slots: &[required("table"), required("ids")],
        variadic: false,
        attributes: &[],
        decode: decode::<Self>,
    }];
}

impl Operator for Gather {
    fn info(&self) -> &'static OpInfo {
        &Self::INFOS[0]
    }

    fn attributes(&self) -> Map<String, Json> {
        fields(self)
    }

    fn infer(&self, operands: Operands<'_>) -> Result<TensorType, RuleError> {
        let (table, ids) = (operands.required(Self::TABLE), operands.required(Self::IDS));
        if !matches!(ids.dtype, DType::I32 | DType::I64) {
            return Err(RuleError::DType {
                operand: "ids",
                expected: "i32 or i64".to_owned(),
                found: ids.clone(),
            });
        }
        operands.rank_at_least(Self::TABLE, 1, "at least one axis, [rows, ..]")?;
        let shape = ids.shape.iter().chain(&table.shape[1..]).cloned();
        Ok(TensorType::new(table.dtype, shape.collect::<Shape>()))
    }

    fn eval(&self, args: Args<'_>) -> Result<Value, EvalError> {
        let ids = args.value(Self::IDS)?.as_int()?;
        let table = args.value(Self::TABLE)?;
        let rows = table.shape()[0];
        let index =
            |&id: &i64| usize::try_from(id).ok().filter(|&i| i < rows).ok_or(EvalError::Id { id, rows });
        let indices = ids.iter().map(index).collect::<Result<Vec<_>, _>>()?;
        Ok(match table {
            Value::Real(table) => select(table, &indices, args.shape)?.into(),
            Value::Int(table) => select(table, &indices, args.shape)?.into(),
        })
    }
}

fn select<T: Copy>(table: &ArrayD<T>, indices: &[usize], shape: &[usize]) -> Result<ArrayD<T>, EvalError> {
    let picked = table.select(NdAxis(0), indices);
    Ok(picked.as_standard_layout().into_owned().into_shape_with_order(IxDyn(shape))?)
}
