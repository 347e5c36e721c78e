//! What each level of a graph's lowering looks like, as text to compare in tests: deterministic, and readable in a diff.
//! It is the same on every machine, but for the code, which names the platform's calling convention, and the machine
//! code, which is this machine's. It knows nothing about how snapshots are stored.
//!
//! A test of one's own graph, with [insta](https://insta.rs):
//!
//! ```
//! use engraft::prelude::*;
//! use engraft::snapshot;
//!
//! fn adapted() -> Result<Graph, BuildErrors> {
//!     let g = GraphBuilder::new("adapted");
//!     let x = g.input("x", F32, dims!["batch", 24]);
//!     let w = g.param("fc.weight", F32, dims![40, 24]);
//!     let a = g.param("fc.lora_A", F32, dims![4, 24]).adapter();
//!     let b = g.param("fc.lora_B", F32, dims![40, 4]).adapter();
//!     g.output("y", (x.dense(w, None) + x.lora_apply(a, b, 2.0)).named("fc"));
//!     g.finish()
//! }
//!
//! // #[test]
//! fn lowering() -> Result<(), Box<dyn std::error::Error>> {
//!     let graph = adapted()?;
//!     let optimized = snapshot::optimized(&graph)?;
//!     // insta::assert_snapshot!("optimized", optimized);
//!     // insta::assert_snapshot!("plan", snapshot::plan(&graph)?);
//!     assert!(optimized.contains("fc: f32[batch, 40] @call = lora("));
//!     Ok(())
//! }
//! # lowering().unwrap();
//! ```
//!
//! `cargo insta review` shows what changed since a snapshot was accepted; with `INSTA_UPDATE=no` nothing is accepted in
//! silence.

use engraft_compiler::{CompileError, Listing, Options, listings, optimize, plan as planned};
use engraft_ir::{Graph, text};

/// A level of the lowering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The graph as it was built.
    Built,
    /// What each pass did: rewrites, refusals, staged values.
    Trace,
    /// The graph after the passes.
    Optimized,
    /// Kernels and what they cost, buffers and where they live.
    Plan,
    /// The code, in Cranelift's text form, before it is made into machine code.
    Clif,
    /// The machine code of this machine, in Cranelift's text form.
    Asm,
}

impl Level {
    /// All levels, in the order of lowering.
    pub const ALL: [Self; 6] = [Self::Built, Self::Trace, Self::Optimized, Self::Plan, Self::Clif, Self::Asm];

    /// The name, as the command `engraft show --stage` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Built => "built",
            Self::Trace => "trace",
            Self::Optimized => "optimized",
            Self::Plan => "plan",
            Self::Clif => "clif",
            Self::Asm => "asm",
        }
    }

    /// The level with this [`name`](Self::name), if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// One level of a graph's lowering under these options. The functions below are this with the default options.
///
/// # Errors
/// The graph cannot be lowered that far.
pub fn at(level: Level, graph: &Graph, options: &Options) -> Result<String, CompileError> {
    Ok(match level {
        Level::Built => built(graph),
        Level::Trace => optimize(graph, options)?.trace.to_string(),
        Level::Optimized => text::print(&optimize(graph, options)?.graph),
        Level::Plan => planned(&optimize(graph, options)?.graph, options)?.to_string(),
        Level::Clif => code(graph, options, |function| &function.clif)?,
        Level::Asm => code(graph, options, |function| &function.assembly)?,
    })
}

/// The functions one after the other, each under its name.
fn code(graph: &Graph, options: &Options, text: fn(&Listing) -> &str) -> Result<String, CompileError> {
    let functions = listings(&planned(&optimize(graph, options)?.graph, options)?)?;
    let titled = |function: &Listing| format!("; {}\n{}", function.name, text(function));
    Ok(functions.iter().map(titled).collect::<Vec<_>>().join("\n"))
}

/// The graph as it was built.
pub fn built(graph: &Graph) -> String {
    text::print(graph)
}

/// What each pass does to the graph.
///
/// # Errors
/// The graph is broken.
pub fn trace(graph: &Graph) -> Result<String, CompileError> {
    at(Level::Trace, graph, &Options::default())
}

/// The graph after the passes.
///
/// # Errors
/// The graph is broken.
pub fn optimized(graph: &Graph) -> Result<String, CompileError> {
    at(Level::Optimized, graph, &Options::default())
}

/// The plan.
///
/// # Errors
/// The graph is broken, or has a type that compiled programs do not compute in.
pub fn plan(graph: &Graph) -> Result<String, CompileError> {
    at(Level::Plan, graph, &Options::default())
}

/// The code in Cranelift's text form.
///
/// # Errors
/// As [`plan`], or this machine is not one that code can be made for.
pub fn clif(graph: &Graph) -> Result<String, CompileError> {
    at(Level::Clif, graph, &Options::default())
}
