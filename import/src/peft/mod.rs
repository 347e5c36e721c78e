//! PEFT adapters: reading a directory that PEFT saved, and attaching it to a graph of its base model.
//!
//! Each file has one concern: `fields` a JSON object, `config` what the adapter says of itself, `select` which modules it
//! means, `adapter` the directory, `modules` the modules of a graph, `tensors` the bookkeeping of the file's tensors,
//! `replaced` what takes the place of the base's own parameters, `arithmetic` LoRA and DoRA, `attach` how all of it goes
//! together, `bank` the same as data, for graphs that adapters are put on while they run. The facts are those of PEFT 0.21.2.
//!
//! Adapters as numbers, without a graph to run: `factors` one module's part of an adapter, `form` the normal form of several
//! on one module and the merged weight it stands for, `compose` several adapters on one base, `combine` weighted
//! combinations, `gram` sizes and angles, `export` the way back to PEFT's files.

mod adapter;
mod arithmetic;
mod attach;
mod bank;
mod combine;
mod compose;
mod config;
mod export;
mod factors;
pub(crate) mod fields;
mod form;
mod gram;
mod modules;
mod replaced;
mod select;
mod tensors;

pub use adapter::{AdapterError, PeftAdapter};
pub use attach::{AdaptedModule, AttachError, AttachReport, Attached, attach};
pub use bank::{AdaptableLayers, adaptable, updates};
pub use combine::{CombineError, combine};
pub use compose::{ComposeError, ComposedModule, Composition};
pub use config::{BiasMode, ConfigError, Init, LoraConfig};
pub use factors::{Contents, Factors, FactorsError};
pub use form::{BaseWeight, FormError, FormTensors, LinearForm, Merger, WeightedError, gain};
pub use gram::{Relation, inner_product, norm, relation, update_norm};
pub use modules::{Layer, Module, NotAModule, modules};
pub use select::{PatternError, Selection};
pub use tensors::TensorsError;
