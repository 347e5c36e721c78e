//! What the readers of text and JSON share: limits, strict JSON values, and putting a graph together node by node
//! with every claim about a node checked. Knows no syntax of either form.

use crate::op::AttributeError;
use crate::ops::MAX_CONSTANT;
use crate::{Graph, GraphError, NodeId, Op, Stage, Stages, TensorType, VerifyError, verify};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value as Json};
use std::fmt;
use std::marker::PhantomData;
use thiserror::Error;

/// The most bytes that the text or JSON form of a graph may have (64 MiB).
pub const MAX_BYTES: usize = 64 << 20;

/// Why a node that was read is not one.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum NodeError {
    /// There is no such op.
    #[error("`{node}`: there is no op `{op}`")]
    UnknownOp {
        /// The node's name.
        node: String,
        /// The op's name as found.
        op: String,
    },
    /// The attributes are not the op's.
    #[error("`{node}`: {source}")]
    Attributes {
        /// The node's name.
        node: String,
        /// What is wrong.
        source: AttributeError,
    },
    /// An operand's name is not that of an earlier node.
    #[error(
        "`{node}`: operand `{operand}` is not defined before it; operands come first, so a cycle cannot be written"
    )]
    UndefinedOperand {
        /// The node's name.
        node: String,
        /// The operand's name.
        operand: String,
    },
    /// The name is bad or taken, or the op's rule is broken.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The type written is not the one inferred.
    #[error("`{node}`: found type {found}, expected {expected}")]
    Type {
        /// The node's name.
        node: String,
        /// What its op gives.
        expected: TensorType,
        /// What is written.
        found: TensorType,
    },
    /// The stage written is not the one inferred.
    #[error("`{node}`: found stage {found}, expected {expected}")]
    Stage {
        /// The node's name.
        node: String,
        /// What its operands give.
        expected: Stage,
        /// What is written.
        found: Stage,
    },
}

/// A node as read.
pub(crate) struct Draft<'a> {
    pub name: &'a str,
    pub op: &'a str,
    pub attributes: Map<String, Json>,
    pub operands: Vec<Option<&'a str>>,
    pub ty: Option<TensorType>,
    pub stage: Option<Stage>,
}

/// A graph being read; `At` says where in the source a node stands.
pub(crate) struct Reader<At> {
    graph: Graph,
    /// The stages written; they can be checked only when every source is known.
    stages: Vec<(At, NodeId, Stage)>,
}

impl<At> Reader<At> {
    pub fn new(name: &str) -> Result<Self, GraphError> {
        Ok(Self { graph: Graph::new(name)?, stages: Vec::new() })
    }

    pub fn node(&mut self, at: At, draft: Draft<'_>) -> Result<(), NodeError> {
        let node = || draft.name.to_owned();
        let op = Op::from_attributes(draft.op, draft.attributes)
            .map_err(|source| NodeError::Attributes { node: node(), source })?
            .ok_or_else(|| NodeError::UnknownOp { node: node(), op: draft.op.to_owned() })?;
        let find = |name: &str| {
            self.graph
                .find(name)
                .ok_or_else(|| NodeError::UndefinedOperand { node: node(), operand: name.to_owned() })
        };
        let operands =
            draft.operands.iter().map(|o| o.map(find).transpose()).collect::<Result<Vec<_>, _>>()?;
        let id = self.graph.add(draft.name, op, &operands)?;
        if let Some(found) = draft.ty.filter(|found| found != self.graph.node(id).ty()) {
            return Err(NodeError::Type { node: node(), expected: self.graph.node(id).ty().clone(), found });
        }
        self.stages.extend(draft.stage.map(|stage| (at, id, stage)));
        Ok(())
    }

    pub fn output(&mut self, name: &str, node: &str) -> Result<(), GraphError> {
        let id = self.graph.find(node).ok_or_else(|| GraphError::UnknownName { name: node.to_owned() })?;
        self.graph.add_output(name, id)
    }

    /// The graph, once the stages written are found to be right and the verifier has nothing to say.
    pub fn finish<E>(
        self,
        misplaced: impl FnOnce(At, NodeError) -> E,
        invalid: impl FnOnce(Vec<VerifyError>) -> E,
    ) -> Result<Graph, E> {
        let inferred = Stages::of(&self.graph);
        for (at, id, found) in self.stages {
            let expected = inferred.node(id);
            if found != expected {
                let node = self.graph.node(id).name().to_owned();
                return Err(misplaced(at, NodeError::Stage { node, expected, found }));
            }
        }
        match verify(&self.graph) {
            Ok(()) => Ok(self.graph),
            Err(errors) => Err(invalid(errors)),
        }
    }
}

/// Broken invariants, a line each.
pub(crate) fn list(errors: &[VerifyError]) -> String {
    errors.iter().fold(String::new(), |list, error| list + "\n  " + &error.to_string())
}

/// A JSON value without repeated keys and without arrays longer than a constant's elements.
pub(crate) struct Strict(pub Json);

/// A JSON object as [`Strict`].
#[derive(Default)]
pub(crate) struct StrictMap(pub Map<String, Json>);

/// A list that is refused while it is read, before it takes memory, once it has more than `MAX` elements.
pub(crate) struct Bounded<T, const MAX: usize>(pub Vec<T>);

impl<T, const MAX: usize> Default for Bounded<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor("a JSON value")).map(Self)
    }
}

impl<'de> Deserialize<'de> for StrictMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_map(StrictVisitor("an object"))? {
            Json::Object(map) => Ok(Self(map)),
            other => Err(D::Error::custom(format_args!("expected an object, found {other}"))),
        }
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(BoundedVisitor::<T, MAX>(PhantomData)).map(Self)
    }
}

/// A struct that is written as an object; serde's own would also take its fields as a bare array.
pub(crate) struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(entries))
    }
}

struct BoundedVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for BoundedVisitor<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = seq.next_element()? {
            if list.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            list.push(element);
        }
        Ok(list)
    }
}

/// Says in its errors what it expected.
struct StrictVisitor(&'static str);

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Json, A::Error> {
        let list = BoundedVisitor::<Strict, MAX_CONSTANT>(PhantomData).visit_seq(seq)?;
        Ok(Json::Array(list.into_iter().map(|value| value.0).collect()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut map = Map::new();
        while let Some((key, Strict(value))) = entries.next_entry::<String, _>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key `{key}` is there twice")));
            }
            map.insert(key, value);
        }
        Ok(Json::Object(map))
    }
}
