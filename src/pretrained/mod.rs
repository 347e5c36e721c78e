//! Whole models that others trained, from their files to numbers: a base from a Hugging Face directory or a GGUF file, PEFT
//! adapters on it, compiled, loaded and run. Ties what `import` reads to what `compiler` makes of it; what is computed is
//! decided there.
//!
//! ```no_run
//! use engraft::pretrained::{CompileOptions, Pretrained};
//! let model = Pretrained::open("all-MiniLM-L6-v2")?.adapter("my-dora")?.compile(CompileOptions::default())?;
//! let vectors = model.embedder()?.embed(&["I forgot my login details", "the package is late again"])?;
//! println!("{:?}", vectors.row(0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bank;
mod base;
mod compiled;
mod embedder;
mod error;
mod generator;
mod layers;
pub mod sampling;

pub use bank::AdapterBank;
pub use base::{Assembled, Pretrained};
pub use compiled::{CompileOptions, CompiledModel};
pub use embedder::{Embedder, MAX_TOKENS};
pub use error::PretrainedError;
pub use generator::{End, GenerateError, Generation, Generator, Prompt};
pub use layers::BankLayers;
