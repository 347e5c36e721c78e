//! The JSON form of a graph, version 1: nodes in topological order, operands by name. The schema, written for people,
//! is `docs/json-format.md`. Reading is strict and bounded; it knows nothing about weights.

use crate::op::MAX_OPERANDS;
use crate::reader::{Bounded, Draft, MAX_BYTES, NodeError, Object, Reader, StrictMap, list};
use crate::text::VERSION;
use crate::{Graph, GraphError, MAX_NODES, MAX_OUTPUTS, Stage, Stages, TensorType, VerifyError};
use serde::{Deserialize, Serialize};
use serde_json::ser::Formatter;
use serde_json::{Map, Value as Json};
use std::fmt::Write as _;
use std::io;
use thiserror::Error;

/// Why JSON is not a graph.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum JsonError {
    /// The input is too long.
    #[error("the JSON has {found} bytes, expected at most {MAX_BYTES}")]
    TooLong {
        /// Its length in bytes.
        found: usize,
    },
    /// The input is not JSON, or not of the schema: an unknown or repeated field, a wrong type, a list too long.
    #[error("line {line}, column {column}: {reason}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// The column, from 1; 0 at the start of a line.
        column: usize,
        /// What the JSON reader says.
        reason: String,
    },
    /// The version is not ours.
    #[error("field `engraft` must be the version, {VERSION}; found {}", .found.map_or("none".to_owned(), |v| v.to_string()))]
    Version {
        /// The version found.
        found: Option<u64>,
    },
    /// A node is wrong.
    #[error("nodes[{index}]: {source}")]
    Node {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong.
        source: NodeError,
    },
    /// The graph's name is wrong.
    #[error("field `name`: {source}")]
    Name {
        /// What is wrong.
        source: GraphError,
    },
    /// An output is wrong.
    #[error("outputs[{index}]: {source}")]
    Output {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong.
        source: GraphError,
    },
    /// The graph as a whole breaks invariants.
    #[error("the graph is not valid:{}", list(.errors))]
    Invalid {
        /// Which ones.
        errors: Vec<VerifyError>,
    },
}

impl From<serde_json::Error> for JsonError {
    fn from(error: serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let mut reason = error.to_string();
        let place = format!(" at line {line} column {column}");
        if reason.ends_with(&place) {
            reason.truncate(reason.len() - place.len());
        }
        Self::Syntax { line, column, reason }
    }
}

/// The version alone: another version may have other fields.
#[derive(Deserialize)]
struct Version {
    engraft: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "engraft")]
    _version: u64,
    name: String,
    nodes: Bounded<Object<NodeRead>, MAX_NODES>,
    outputs: Bounded<Object<OutputEntry<String>>, MAX_OUTPUTS>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeRead {
    name: String,
    op: String,
    #[serde(default)]
    operands: Bounded<Option<String>, MAX_OPERANDS>,
    #[serde(default)]
    attributes: StrictMap,
    #[serde(rename = "type")]
    ty: Option<Object<TensorType>>,
    stage: Option<Stage>,
}

#[derive(Serialize)]
struct NodeWritten<'a> {
    name: &'a str,
    op: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    operands: Vec<Option<&'a str>>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    attributes: Map<String, Json>,
    #[serde(rename = "type")]
    ty: &'a TensorType,
    stage: Stage,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputEntry<S> {
    name: S,
    node: S,
}

/// Reads a graph from JSON.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn from_str(json: &str) -> Result<Graph, JsonError> {
    from_slice(json.as_bytes())
}

/// Reads a graph from the bytes of JSON.
///
/// # Errors
/// As [`from_str`].
pub fn from_slice(json: &[u8]) -> Result<Graph, JsonError> {
    if json.len() > MAX_BYTES {
        return Err(JsonError::TooLong { found: json.len() });
    }
    let Object(Version { engraft }) = serde_json::from_slice(json)?;
    if engraft != Some(VERSION) {
        return Err(JsonError::Version { found: engraft });
    }
    let Object(document) = serde_json::from_slice::<Object<Document>>(json)?;
    let mut reader = Reader::new(&document.name).map_err(|source| JsonError::Name { source })?;
    for (index, Object(node)) in document.nodes.0.into_iter().enumerate() {
        let draft = Draft {
            name: &node.name,
            op: &node.op,
            attributes: node.attributes.0,
            operands: node.operands.0.iter().map(Option::as_deref).collect(),
            ty: node.ty.map(|ty| ty.0),
            stage: node.stage,
        };
        reader.node(index, draft).map_err(|source| JsonError::Node { index, source })?;
    }
    for (index, Object(output)) in document.outputs.0.iter().enumerate() {
        reader.output(&output.name, &output.node).map_err(|source| JsonError::Output { index, source })?;
    }
    reader.finish(|index, source| JsonError::Node { index, source }, |errors| JsonError::Invalid { errors })
}

/// Prints a graph as JSON: deterministic, a node per line, ending in a newline.
pub fn to_string(graph: &Graph) -> String {
    let stages = Stages::of(graph);
    let nodes = graph.order().into_iter().map(|id| {
        let node = graph.node(id);
        let name = |id| graph.node(id).name();
        entry(&NodeWritten {
            name: node.name(),
            op: node.op().name(),
            operands: graph.operands(id).into_iter().map(|operand| operand.map(name)).collect(),
            attributes: node.op().attributes(),
            ty: node.ty(),
            stage: stages.node(id),
        })
    });
    let outputs = graph.outputs().iter().map(|output| {
        entry(&OutputEntry { name: output.name.as_str(), node: graph.node(output.node).name() })
    });
    let mut json = format!("{{\n  \"engraft\": {VERSION},\n  \"name\": {},\n", entry(graph.name()));
    push_list(&mut json, "nodes", nodes, ",");
    push_list(&mut json, "outputs", outputs, "");
    json.push_str("}\n");
    json
}

fn push_list(json: &mut String, key: &str, entries: impl Iterator<Item = String>, end: &str) {
    let entries: Vec<_> = entries.map(|entry| format!("\n    {entry}")).collect();
    let close = if entries.is_empty() { "]" } else { "\n  ]" };
    let _ = writeln!(json, "  \"{key}\": [{}{close}{end}", entries.join(","));
}

/// One value on one line, with a space after `:` and `,`.
fn entry<T: Serialize + ?Sized>(value: &T) -> String {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, OneLine);
    value.serialize(&mut serializer).expect("strings, numbers and lists of them always serialise");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
