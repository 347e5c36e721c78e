//! Reads the text form. Knows the syntax of a line; what a node may be is the graph's to say.

use super::VERSION;
use crate::op::MAX_OPERANDS;
use crate::reader::{Draft, MAX_BYTES, NodeError, Reader, Strict, list};
use crate::ty::TypeSyntaxError;
use crate::{Graph, GraphError, Stage, TensorType, VerifyError};
use serde_json::{Map, Value as Json};
use thiserror::Error;

/// Why a text is not a graph. Lines count from 1.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum TextError {
    /// The text is too long.
    #[error("the text has {found} bytes, expected at most {MAX_BYTES}")]
    TooLong {
        /// Its length in bytes.
        found: usize,
    },
    /// The text ends too early.
    #[error("the text ends where {expected} is expected")]
    Ended {
        /// What is missing.
        expected: &'static str,
    },
    /// The version is not ours.
    #[error("line {line}: found version `{found}`, expected {VERSION}")]
    Version {
        /// The line.
        line: usize,
        /// The version found.
        found: String,
    },
    /// A line has something else where something is expected.
    #[error("line {line}: expected {expected}, found `{found}`")]
    Syntax {
        /// The line.
        line: usize,
        /// What is expected.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A type is not written as one.
    #[error("line {line}: {source}")]
    Type {
        /// The line.
        line: usize,
        /// What is wrong.
        source: TypeSyntaxError,
    },
    /// An attribute's value is not JSON.
    #[error("line {line}: the value of attribute `{attribute}` is no JSON value: {reason}")]
    Value {
        /// The line.
        line: usize,
        /// The attribute's name.
        attribute: String,
        /// What the JSON reader says.
        reason: String,
    },
    /// An attribute is there twice.
    #[error("line {line}: attribute `{attribute}` is there twice")]
    DuplicateAttribute {
        /// The line.
        line: usize,
        /// The attribute's name.
        attribute: String,
    },
    /// An attribute repeats what the line says itself.
    #[error(
        "line {line}: attribute `{attribute}` stands before the `=`, as in `name: f32[2] @base = param()`"
    )]
    ImpliedAttribute {
        /// The line.
        line: usize,
        /// The attribute's name.
        attribute: &'static str,
    },
    /// An input or a parameter has no type.
    #[error("line {line}: `{node}` needs a type, as in `{node}: f32[batch, 24] = {op}()`")]
    Untyped {
        /// The line.
        line: usize,
        /// The node's name.
        node: String,
        /// Its op.
        op: String,
    },
    /// A node is wrong.
    #[error("line {line}: {source}")]
    Node {
        /// The line.
        line: usize,
        /// What is wrong.
        source: NodeError,
    },
    /// The graph's name or an output is wrong.
    #[error("line {line}: {source}")]
    Graph {
        /// The line.
        line: usize,
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

/// Reads a graph from its text form; see the [module](super).
///
/// ```
/// use engraft_ir::text;
/// let graph = text::parse(
///     "engraft 1
///     graph layer
///     x: f32[batch, 24] = input()
///     w: f32[40, 24] = param()
///     y = dense(x, w)
///     output y = y",
/// )?;
/// assert_eq!(graph.output_types()[0].1.to_string(), "f32[batch, 40]");
/// # Ok::<(), text::TextError>(())
/// ```
///
/// # Errors
/// The first thing that is wrong, with its line.
pub fn parse(text: &str) -> Result<Graph, TextError> {
    if text.len() > MAX_BYTES {
        return Err(TextError::TooLong { found: text.len() });
    }
    let lines = text.lines().enumerate().map(|(i, text)| Line { number: i + 1, rest: text.trim() });
    let mut lines = lines.filter(|line| !line.rest.is_empty() && !line.rest.starts_with('#'));

    let mut header = lines.next().ok_or(TextError::Ended { expected: "`engraft 1`" })?;
    header.expect("engraft ", "`engraft` and the version")?;
    if header.rest.parse() != Ok(VERSION) {
        return Err(TextError::Version { line: header.number, found: header.excerpt() });
    }
    let mut header = lines.next().ok_or(TextError::Ended { expected: "`graph` and the graph's name" })?;
    header.expect("graph ", "`graph` and the graph's name")?;
    let mut reader =
        Reader::new(header.rest).map_err(|source| TextError::Graph { line: header.number, source })?;

    for mut line in lines {
        let at = line.number;
        if line.eat_output() {
            let name = line.name("the output's name")?;
            line.expect("=", "`=`")?;
            let node = line.name("the name of a node")?;
            line.end()?;
            reader.output(name, node).map_err(|source| TextError::Graph { line: at, source })?;
        } else {
            let draft = line.node()?;
            reader.node(at, draft).map_err(|source| TextError::Node { line: at, source })?;
        }
    }
    reader.finish(|line, source| TextError::Node { line, source }, |errors| TextError::Invalid { errors })
}

/// What is left of a line.
struct Line<'a> {
    number: usize,
    rest: &'a str,
}

impl<'a> Line<'a> {
    /// The start of the rest, short enough for a message.
    fn excerpt(&self) -> String {
        let end = self.rest.char_indices().nth(40).map_or(self.rest.len(), |(i, _)| i);
        self.rest[..end].to_owned()
    }

    fn error(&self, expected: &'static str) -> TextError {
        let found = if self.rest.is_empty() { "the end of the line".to_owned() } else { self.excerpt() };
        TextError::Syntax { line: self.number, expected, found }
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest.trim_start();
        taken
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest.starts_with(token);
        if found {
            self.advance(token.len());
        }
        found
    }

    fn expect(&mut self, token: &str, expected: &'static str) -> Result<(), TextError> {
        if self.eat(token) { Ok(()) } else { Err(self.error(expected)) }
    }

    fn end(&self) -> Result<(), TextError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.error("the end of the line")) }
    }

    fn take_while(
        &mut self,
        allowed: impl Fn(char) -> bool,
        expected: &'static str,
    ) -> Result<&'a str, TextError> {
        let end = self.rest.find(|c| !allowed(c)).unwrap_or(self.rest.len());
        if end == 0 { Err(self.error(expected)) } else { Ok(self.advance(end)) }
    }

    /// Everything that a name may be made of; the graph checks the rest.
    fn name(&mut self, expected: &'static str) -> Result<&'a str, TextError> {
        self.take_while(|c| c.is_ascii_alphanumeric() || "_.-/:".contains(c), expected)
    }

    fn word(&mut self, expected: &'static str) -> Result<&'a str, TextError> {
        self.take_while(|c| c.is_ascii_alphanumeric() || c == '_', expected)
    }

    /// Whether this is `output name = node`; a node of the name `output` goes on with `:`, `@` or `=`.
    fn eat_output(&mut self) -> bool {
        let after = self.rest.strip_prefix("output ").map(str::trim_start);
        after.is_some_and(|after| !after.starts_with(['@', '='])) && self.eat("output ")
    }

    /// `name: type @stage = op(operands) {attributes}`
    fn node(&mut self) -> Result<Draft<'a>, TextError> {
        let head = self.name("a node's name or `output`")?;
        let (name, ty) = match head.strip_suffix(':') {
            Some(name) => (name, Some(self.ty()?)),
            None => (head, None),
        };
        let stage = if self.eat("@") { Some(self.stage()?) } else { None };
        self.expect("=", "`: type`, ` @stage` or ` =` after the name")?;
        let op = self.word("an op")?;
        let operands = self.operands()?;
        let mut attributes = self.attributes()?;
        self.end()?;
        let implied: &[_] = match op {
            "input" => &["dtype", "shape"],
            "param" => &["dtype", "shape", "binding"],
            _ => &[],
        };
        if !implied.is_empty() {
            if let Some(&attribute) = implied.iter().find(|key| attributes.contains_key(**key)) {
                return Err(TextError::ImpliedAttribute { line: self.number, attribute });
            }
            let Some(ty) = &ty else {
                let (node, op) = (name.to_owned(), op.to_owned());
                return Err(TextError::Untyped { line: self.number, node, op });
            };
            attributes.extend(crate::op::fields(ty));
            if op == "param" {
                attributes.insert("binding".to_owned(), stage.unwrap_or_default().name().into());
            }
        }
        Ok(Draft { name, op, attributes, operands, ty, stage })
    }

    fn ty(&mut self) -> Result<TensorType, TextError> {
        let Some(end) = self.rest.find(']') else {
            return Err(self.error("a type such as `f32[batch, 24]`"));
        };
        let line = self.number;
        self.advance(end + 1).parse().map_err(|source| TextError::Type { line, source })
    }

    fn stage(&mut self) -> Result<Stage, TextError> {
        let expected = "compile, base, adapter or call after `@`";
        let start = Line { ..*self };
        Stage::from_name(self.word(expected)?).ok_or_else(|| start.error(expected))
    }

    fn operands(&mut self) -> Result<Vec<Option<&'a str>>, TextError> {
        self.expect("(", "`(` and the operands")?;
        let mut operands = Vec::new();
        if self.eat(")") {
            return Ok(operands);
        }
        loop {
            if operands.len() == MAX_OPERANDS {
                return Err(self.error("no more than 1024 operands"));
            }
            let name = self.name("an operand or `_`")?;
            operands.push(Some(name).filter(|name| *name != "_"));
            if self.eat(")") {
                return Ok(operands);
            }
            self.expect(",", "`,` or `)` after an operand")?;
        }
    }

    fn attributes(&mut self) -> Result<Map<String, Json>, TextError> {
        let mut attributes = Map::new();
        if !self.eat("{") {
            return Ok(attributes);
        }
        loop {
            let key = self.word("an attribute's name")?;
            self.expect(":", "`:` after an attribute's name")?;
            let value = self.value(key)?;
            if attributes.insert(key.to_owned(), value).is_some() {
                return Err(TextError::DuplicateAttribute { line: self.number, attribute: key.to_owned() });
            }
            if self.eat("}") {
                return Ok(attributes);
            }
            self.expect(",", "`,` or `}` after an attribute")?;
        }
    }

    fn value(&mut self, attribute: &str) -> Result<Json, TextError> {
        let mut values = serde_json::Deserializer::from_str(self.rest).into_iter::<Strict>();
        let error =
            |reason: String| TextError::Value { line: self.number, attribute: attribute.to_owned(), reason };
        let value = match values.next() {
            Some(Ok(Strict(value))) => value,
            Some(Err(reason)) => return Err(error(reason.to_string())),
            None => return Err(error("there is none".to_owned())),
        };
        let end = values.byte_offset();
        self.advance(end);
        Ok(value)
    }
}
