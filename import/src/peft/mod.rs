//! PEFT adapters: reading a directory that PEFT saved, and attaching it to a graph of its base model.
//!
//! Each file has one concern: `fields` a JSON object, `config` what the adapter says of itself, `select` which modules it
//! means, `adapter` the directory, `modules` the modules of a graph, `tensors` the bookkeeping of the file's tensors,
//! `replaced` what takes the place of the base's own parameters, `arithmetic` LoRA and DoRA, `attach` how all of it goes
//! together, `bank` the same as data, for graphs that adapters are put on while they run. The facts are those of PEFT 0.21.2.

mod adapter;
mod arithmetic;
mod attach;
mod bank;
mod config;
pub(crate) mod fields;
mod modules;
mod replaced;
mod select;
mod tensors;

pub use adapter::{AdapterError, PeftAdapter};
pub use attach::{AdaptedModule, AttachError, AttachReport, Attached, attach};
pub use bank::{adaptable, updates};
pub use config::{BiasMode, ConfigError, Init, LoraConfig};
pub use modules::{Layer, Module, NotAModule, modules};
pub use select::{PatternError, Selection};
pub use tensors::TensorsError;
