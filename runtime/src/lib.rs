//! Where compiled adapter models run: kernels, memory, threads, loading and calling.
//!
//! A program comes from a compiler as machine code ([`Code`]) and a description of what it takes and gives
//! ([`ProgramSpec`]). Its life is three stages, each computing what can be computed by then:
//!
//! 1. [`Program::load_base`] takes the base weights and makes a [`Base`],
//! 2. [`Base::load_adapter`] takes an adapter's weights and makes a [`Model`], as often as there are adapters,
//! 3. a [`Session`] of a model runs calls.
//!
//! Where a program has adaptable layers, a [`Bank`] loads adapters of any kind and rank onto a base, and each item of a
//! call's batch may have another: [`Session::run_rows`].
//!
//! The runtime knows no graphs and compiles nothing. What compiled code and runtime agree on is [`abi`].

pub mod abi;
#[cfg(feature = "ndarray")]
mod arrays;
mod arriving;
mod bank;
mod bind;
mod context;
mod elements;
mod entry;
mod kernels;
mod load;
mod mapped;
pub mod measure;
mod memory;
pub mod panels;
mod placement;
mod profile;
mod program;
mod session;
mod slices;
mod stage;
mod state;
mod stored;
mod tensor;
mod weights;
mod workers;

pub use arriving::Arriving;
pub use bank::{
    Adapter, AdapterError, AdapterWeights, Bank, BankError, FormError, LayerWeights, OrderError, Rows, Runs,
    Update, in_order,
};
pub use bind::{BindError, Bound, SYMBOL_LIMIT};
pub use context::{Context, ContextError, KERNELS_VARIABLE, Options};
pub use entry::{
    engraft_attention, engraft_dot, engraft_layer_norm, engraft_linear, engraft_merge, engraft_pack,
    engraft_row_norm, engraft_unary, symbols,
};
pub use kernels::{KernelSet, Kernels, UnknownKernels};
pub use load::{Base, LoadError, Model};
pub use mapped::MappedFile;
pub use profile::{Profile, StepProfile, engraft_mark};
pub use program::{
    AdaptableSpec, Binder, CarriedSpec, Code, Extent, ItemsSpec, ParamSpec, Program, ProgramError,
    ProgramSpec, StagedSpec, SymbolSpec, TensorSpec,
};
pub use session::{CallError, Session};
pub use stage::StageError;
pub use state::StateError;
pub use stored::Source;
pub use tensor::{DType, Tensor, TensorError};
pub use weights::Weights;
pub use workers::Workers;
