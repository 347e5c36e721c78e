//! Engraft: a graph IR and compiler for adapter architectures (LoRA, DoRA and their relatives) on CPUs.
//!
//! This crate is the facade: it gathers the four crates that do the work and adds [`snapshot`], the texts that tests of
//! a graph's lowering compare, and [`pretrained`], what whole models need around their graphs. The way from a graph to numbers:
//!
//! ```
//! use engraft::prelude::*;
//! use engraft::runtime::{Context, Tensor as Array, Weights};
//!
//! let g = GraphBuilder::new("dora_layer");
//! let x = g.input("x", F32, dims!["batch", 2]);
//! let w = g.param("weight", F32, dims![2, 2]); // [out, in], as safetensors stores it
//! let a = g.param("lora_A", F32, dims![1, 2]).adapter();
//! let b = g.param("lora_B", F32, dims![2, 1]).adapter();
//! let m = g.param("magnitude", F32, dims![2]).adapter();
//! let direction = (w + Tensor::lora_delta(a, b, 2.0)).normalize(Axis::IN);
//! g.output("y", x.dense(direction.magnitude(m, Axis::OUT), None));
//! let program = compile(&g.finish()?, &Options::default())?.program;
//!
//! let mut weights = Weights::new();
//! weights.insert("weight", Array::f32(&[2, 2], vec![1.0, 0.0, 0.0, 1.0])?);
//! weights.insert("lora_A", Array::f32(&[1, 2], vec![1.0, 1.0])?);
//! weights.insert("lora_B", Array::f32(&[2, 1], vec![1.0, 0.0])?);
//! weights.insert("magnitude", Array::f32(&[2], vec![13.0_f32.sqrt(), 4.0])?);
//! let model = program.load_base(&weights, Context::new(Default::default())?)?.load_adapter(&weights)?;
//! let y = model.run(&[("x", &Array::f32(&[1, 2], vec![1.0, 1.0])?)])?;
//! // W + sBA is [[3, 2], [0, 1]], its rows' norms are sqrt(13) and 1.
//! assert_eq!(y[0].1.as_f32()?, [5.0, 4.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod pretrained;
pub mod snapshot;

#[doc(inline)]
pub use engraft_compiler as compiler;
#[doc(inline)]
pub use engraft_import as import;
#[doc(inline)]
pub use engraft_ir as ir;
#[doc(inline)]
pub use engraft_runtime as runtime;

pub use engraft_compiler::{CompileError, Compiled, Merging, Options, compile};
pub use engraft_ir::{Graph, GraphBuilder, dims};

/// What writing and compiling a graph takes. Here [`Tensor`](prelude::Tensor) is a value in a graph being built; the
/// one with numbers in it is [`runtime::Tensor`].
pub mod prelude {
    pub use engraft_compiler::{CompileError, Compiled, Merging, Options, compile};
    pub use engraft_ir::DType::{self, F32, F64, I32, I64};
    pub use engraft_ir::{Axis, BuildErrors, Dim, Graph, GraphBuilder, Stage, Tensor, dims};
}

/// The README's examples, which are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
