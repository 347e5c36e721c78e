//! A compiled program: what a compiler hands over, and the check that the description holds together. Knows nothing
//! about weights or calls.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::abi::{SizesFn, Stage, StageFn};
use crate::tensor::DType;

/// A tensor that a program takes or gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its elements.
    pub dtype: DType,
    /// How many dims it has.
    pub rank: usize,
    /// Its dims are `sizes[shape_at..shape_at + rank]`.
    pub shape_at: usize,
    /// Type and shape as people read them in errors: `f32[batch, 24]`.
    pub display: String,
}

/// A parameter, when it is known, and how long it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// The tensor.
    pub tensor: TensorSpec,
    /// When it arrives; a parameter of [`Stage::Call`] is live: passed with each call.
    pub stage: Stage,
    /// The last stage that reads it, or the stage at which it arrives where none does. What no later stage reads isn't
    /// kept after its own.
    pub last_read: Stage,
    /// Whether nothing is done with it but to pack it, at the stage at which it arrives: then its floats are made a piece
    /// at a time where they are [stored](crate::Tensor::stored) in another form. What is packed are matrices
    /// one after the other, each as its rows or its columns, which are the rows of the tensor (along its last axis).
    pub only_packed: bool,
}

/// The tensor from whose shape a symbol is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binder {
    /// An input, by its index.
    Input(usize),
    /// A parameter, by its index.
    Param(usize),
}

/// A symbolic dim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolSpec {
    /// Its name.
    pub name: String,
    /// The tensor that says what it is.
    pub bound_by: Binder,
    /// Which axis of that tensor.
    pub axis: usize,
    /// When it is known: the stage of that tensor.
    pub stage: Stage,
}

/// A value computed at load, which later stages read. The runtime allocates it when its stage runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedSpec {
    /// Its name.
    pub name: String,
    /// The stage that computes it: [`Stage::Base`] or [`Stage::Adapter`].
    pub stage: Stage,
    /// Its length in bytes is `sizes[bytes_at]`.
    pub bytes_at: usize,
}

/// An extent of a carried tensor, as far as it can be checked without a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Always this.
    Fixed(u64),
    /// The symbol of this index.
    Symbol(usize),
    /// Something that compiled code computes from symbols.
    Computed,
}

/// An input that a session carries from call to call: empty along axis 0 before the first call, afterwards what an
/// output was, which appends to it. The two are one piece of memory, so the code must leave the input's rows as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarriedSpec {
    /// The input, by its index.
    pub input: usize,
    /// The output that it becomes, by its index.
    pub output: usize,
    /// The input's extents; the first is a symbol that the input binds itself.
    pub extents: Vec<Extent>,
}

/// A batch that may be run in slices: a call on some of its items computes these items of the outputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemsSpec {
    /// The symbol of the batch, by its index; an input binds it.
    pub symbol: usize,
    /// The inputs whose first axis are the items, by their indices. Of the outputs, it is all of them.
    pub inputs: Vec<usize>,
}

/// A linear layer on which a bank may put adapters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdaptableSpec {
    /// The name by which adapters refer to it; several layers may have one name.
    pub module: String,
    /// `sizes[extents_at..]` are: items of the batch, rows of an item, columns of W, rows of W. The latter two are known
    /// with the base.
    pub extents_at: usize,
    /// The staged value, of stage base, that holds the panels of W.
    pub weight: usize,
    /// Whether the layer has a bias of its own.
    pub has_bias: bool,
}

/// What a program takes and gives. The table [`Frame::buffers`](crate::abi::Frame::buffers) lists inputs, params,
/// staged values and outputs, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramSpec {
    /// Symbolic dims, in the order of [`Frame::dims`](crate::abi::Frame::dims).
    pub symbols: Vec<SymbolSpec>,
    /// What is passed with each call.
    pub inputs: Vec<TensorSpec>,
    /// What is loaded, and what is passed with each call after the inputs.
    pub params: Vec<ParamSpec>,
    /// What is computed at load.
    pub staged: Vec<StagedSpec>,
    /// What a call computes.
    pub outputs: Vec<TensorSpec>,
    /// Which inputs a session carries: they aren't passed, and the outputs that they become aren't handed out.
    pub carried: Vec<CarriedSpec>,
    /// The layers that adapters may be put on, in the order in which code numbers them.
    pub adaptable: Vec<AdaptableSpec>,
    /// The batch, if it may be run in slices.
    pub items: Option<ItemsSpec>,
    /// The length of the sizes vector.
    pub sizes_len: usize,
    /// For each stage, where in the sizes vector the bytes of its arena are.
    pub arena_at: [usize; 3],
    /// The names of steps, by which a [`Fault`](crate::abi::Fault) is reported.
    pub steps: Vec<String>,
    /// Whether the code tells when each step ends, so that there is a [`Profile`](crate::Profile) of it.
    pub profiled: bool,
}

/// A description that doesn't hold together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// Two inputs or parameters, or two outputs, of one name.
    #[error("the program has two {role} called `{name}`")]
    DuplicateName {
        /// What the two are.
        role: &'static str,
        /// The name.
        name: String,
    },
    /// A place in the sizes vector beyond its end.
    #[error("`{name}` reads sizes {first}..{end}, but there are only {sizes_len}")]
    SizeOutOfRange {
        /// The tensor, staged value or arena.
        name: String,
        /// The first index read.
        first: usize,
        /// One past the last.
        end: usize,
        /// How many sizes there are.
        sizes_len: usize,
    },
    /// A symbol bound by a tensor or an axis that isn't there.
    #[error("symbol `{symbol}` is bound by axis {axis} of {binder:?}, which the program doesn't have")]
    NoSuchBinder {
        /// The symbol.
        symbol: String,
        /// The tensor it names.
        binder: Binder,
        /// The axis it names.
        axis: usize,
    },
    /// A symbol known at another stage than the tensor that binds it.
    #[error("symbol `{symbol}` is of stage {found}, but the tensor that binds it is of stage {expected}")]
    SymbolStage {
        /// The symbol.
        symbol: String,
        /// The stage of its tensor.
        expected: Stage,
        /// The stage it claims.
        found: Stage,
    },
    /// An input and an output that can't be one piece of memory: one of them isn't there or is carried already, or they
    /// differ in type or number of dims, or the input's extents aren't those described, the first a symbol.
    #[error("input {input} can't carry output {output}: {reason}")]
    Carried {
        /// The input's index.
        input: usize,
        /// The output's index.
        output: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// A symbol that is bound by what is carried, which has nothing but rows before the first call.
    #[error(
        "symbol `{symbol}` is bound by axis {axis} of `{input}`, which is carried and may bind its first axis only"
    )]
    CarriedSymbol {
        /// The symbol.
        symbol: String,
        /// The carried input.
        input: String,
        /// The axis.
        axis: usize,
    },
    /// A parameter that is read before it arrives.
    #[error("`{name}` arrives at stage {stage}, but is last read at stage {last_read}")]
    ReadBeforeItArrives {
        /// The parameter.
        name: String,
        /// When it arrives.
        stage: Stage,
        /// When it is said to be read.
        last_read: Stage,
    },
    /// A parameter that is said to be only packed when it is loaded, but is read later.
    #[error(
        "`{name}` is only packed when it arrives at stage {stage}, but is last read at stage {last_read}"
    )]
    PackedWhenItArrives {
        /// The parameter.
        name: String,
        /// When it arrives.
        stage: Stage,
        /// When it is said to be read.
        last_read: Stage,
    },
    /// A batch whose symbol or inputs aren't there, or that can't be taken in slices.
    #[error("the batch can't be taken in slices: {reason}")]
    Items {
        /// What is wrong.
        reason: &'static str,
    },
    /// An adaptable layer whose weight isn't staged with the base.
    #[error(
        "the weight of adaptable layer `{module}` is staged value {weight}, which isn't one of stage base"
    )]
    AdaptableWeight {
        /// The layer.
        module: String,
        /// The index.
        weight: usize,
    },
    /// A staged value of the call stage, which no later stage could read.
    #[error("staged value `{name}` is of stage call; it must be of stage base or adapter")]
    StagedAtCall {
        /// The value.
        name: String,
    },
}

/// The machine code of a program.
pub struct Code {
    pub(crate) stages: [StageFn; 3],
    pub(crate) sizes: SizesFn,
    /// Keeps the memory in which the functions lie.
    _owner: Box<dyn Any + Send + Sync>,
}

impl Code {
    /// Vouches for machine code.
    ///
    /// # Safety
    /// Of `stages` (base, adapter, call) and `sizes`, with the [`ProgramSpec`] they are put together with:
    /// - They may be called, from any thread and from several at once, as long as `owner` lives.
    /// - `sizes` reads one dim per symbol and writes `sizes_len` values, nothing else.
    /// - A stage reads and writes only what its frame gives: it reads inputs, params and staged values that are known
    ///   at its stage, within their shapes and bytes, and of the params none whose [`last_read`](ParamSpec::last_read)
    ///   is an earlier stage; of those that are [only packed](ParamSpec::only_packed) it reads nothing itself, but
    ///   hands what its frame has for them to `engraft_pack` as W, with the strides described there; writes its own stage's staged values, the outputs (call stage only) and its arena, of
    ///   `sizes[arena_at[stage]]` bytes; and relies on no alignment beyond that of [`abi`](crate::abi).
    /// - An input that is carried and the output that it becomes have one address; the stage writes there only what lies
    ///   beyond the input.
    /// - If the batch may be taken in slices: run on some neighbouring items of the inputs, with the symbol's extent their
    ///   number, the call stage computes these items of the outputs, as it would run on all.
    /// - A product that says that it is adaptable is the layer of that number: of its extents, and with the panels that
    ///   the staged value holds.
    /// - It returns 0, or another value after filling the fault. It doesn't unwind, and ids from outside are checked
    ///   before they index anything.
    pub unsafe fn new(stages: [StageFn; 3], sizes: SizesFn, owner: Box<dyn Any + Send + Sync>) -> Code {
        Code { stages, sizes, _owner: owner }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Code").finish_non_exhaustive()
    }
}

/// A compiled program: cheap to clone, shared by everything loaded into it.
#[derive(Clone, Debug)]
pub struct Program {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    spec: ProgramSpec,
    code: Code,
}

impl Program {
    /// Puts a description and its code together.
    ///
    /// # Errors
    /// When the description doesn't hold together.
    pub fn new(spec: ProgramSpec, code: Code) -> Result<Program, ProgramError> {
        spec.check()?;
        Ok(Program { inner: Arc::new(Inner { spec, code }) })
    }

    /// What the program takes and gives.
    pub fn spec(&self) -> &ProgramSpec {
        &self.inner.spec
    }

    pub(crate) fn code(&self) -> &Code {
        &self.inner.code
    }
}

impl ProgramSpec {
    /// The tensors that arrive at a stage, in the order in which they are handed around: the stage's parameters, and for
    /// a call the inputs before them, without those that a session carries.
    pub fn arriving(&self, stage: Stage) -> impl Iterator<Item = (Binder, &TensorSpec)> {
        let is_passed = move |index: usize| stage == Stage::Call && self.carried_input(index).is_none();
        let inputs = self.inputs.iter().enumerate().filter(move |(index, _)| is_passed(*index));
        let params = self.params.iter().enumerate().filter(move |(_, param)| param.stage == stage);
        inputs
            .map(|(index, tensor)| (Binder::Input(index), tensor))
            .chain(params.map(|(index, param)| (Binder::Param(index), &param.tensor)))
    }

    /// The outputs that a call hands out, with their indices, in the program's order: all but those that a session carries.
    pub fn returned(&self) -> impl Iterator<Item = (usize, &TensorSpec)> {
        let is_carried = |index: usize| self.carried.iter().any(|carried| carried.output == index);
        self.outputs.iter().enumerate().filter(move |(index, _)| !is_carried(*index))
    }

    /// Where in [`carried`](Self::carried) an input is.
    pub(crate) fn carried_input(&self, input: usize) -> Option<usize> {
        self.carried.iter().position(|carried| carried.input == input)
    }

    /// Whether a stage after `stage` reads a tensor that has arrived by then.
    pub(crate) fn is_read_after(&self, stage: Stage, tensor: Binder) -> bool {
        match tensor {
            Binder::Input(_) => false,
            Binder::Param(index) => self.params.get(index).is_some_and(|param| param.last_read > stage),
        }
    }

    /// The tensor that binds a symbol and when it is known.
    pub(crate) fn binder(&self, binder: Binder) -> Option<(&TensorSpec, Stage)> {
        match binder {
            Binder::Input(index) => self.inputs.get(index).map(|tensor| (tensor, Stage::Call)),
            Binder::Param(index) => self.params.get(index).map(|param| (&param.tensor, param.stage)),
        }
    }

    fn check(&self) -> Result<(), ProgramError> {
        let params = || self.params.iter().map(|param| &param.tensor);
        distinct("inputs or params", self.inputs.iter().chain(params()))?;
        distinct("outputs", &self.outputs)?;
        for tensor in self.inputs.iter().chain(params()).chain(&self.outputs) {
            self.check_sizes(&tensor.name, tensor.shape_at, tensor.rank)?;
        }
        for ParamSpec { tensor, stage, last_read, only_packed } in &self.params {
            if last_read < stage {
                let (name, stage, last_read) = (tensor.name.clone(), *stage, *last_read);
                return Err(ProgramError::ReadBeforeItArrives { name, stage, last_read });
            }
            if *only_packed && (last_read > stage || *stage == Stage::Call) {
                let (name, stage, last_read) = (tensor.name.clone(), *stage, *last_read);
                return Err(ProgramError::PackedWhenItArrives { name, stage, last_read });
            }
        }
        for staged in &self.staged {
            self.check_sizes(&staged.name, staged.bytes_at, 1)?;
            if staged.stage == Stage::Call {
                return Err(ProgramError::StagedAtCall { name: staged.name.clone() });
            }
        }
        for (name, at) in ["base arena", "adapter arena", "call arena"].into_iter().zip(self.arena_at) {
            self.check_sizes(name, at, 1)?;
        }
        self.check_items()?;
        for AdaptableSpec { module, extents_at, weight, .. } in &self.adaptable {
            self.check_sizes(module, *extents_at, 4)?;
            if self.staged.get(*weight).is_none_or(|staged| staged.stage != Stage::Base) {
                return Err(ProgramError::AdaptableWeight { module: module.clone(), weight: *weight });
            }
        }
        self.symbols.iter().try_for_each(|symbol| self.check_symbol(symbol))?;
        (0..self.carried.len()).try_for_each(|index| self.check_carried(index))
    }

    fn check_items(&self) -> Result<(), ProgramError> {
        let Some(ItemsSpec { symbol, inputs }) = &self.items else { return Ok(()) };
        let has_rank = |tensor: Option<&TensorSpec>| tensor.is_some_and(|tensor| tensor.rank > 0);
        let bound_by = self.symbols.get(*symbol).map(|symbol| (symbol.bound_by, symbol.axis));
        let is_bound = |&input: &usize| bound_by == Some((Binder::Input(input), 0));
        let reason = if !inputs.iter().any(is_bound) {
            "no first axis of its inputs binds the symbol"
        } else if !self.carried.is_empty() {
            "something is carried from call to call"
        } else if !inputs.iter().all(|&input| has_rank(self.inputs.get(input)))
            || !inputs.is_sorted_by(|a, b| a < b)
        {
            "an input isn't there, has no axes or is named twice"
        } else if !self.outputs.iter().all(|output| has_rank(Some(output))) {
            "an output has no axes"
        } else {
            return Ok(());
        };
        Err(ProgramError::Items { reason })
    }

    fn check_carried(&self, index: usize) -> Result<(), ProgramError> {
        let CarriedSpec { input, output, extents } = &self.carried[index];
        let is_again = |earlier: &CarriedSpec| earlier.input == *input || earlier.output == *output;
        let is_symbol = |extent: &Extent| match extent {
            Extent::Symbol(symbol) => *symbol < self.symbols.len(),
            Extent::Fixed(_) | Extent::Computed => true,
        };
        let reason = match (self.inputs.get(*input), self.outputs.get(*output)) {
            (None, _) | (_, None) => "there is no such input or output",
            _ if self.carried[..index].iter().any(is_again) => "one of the two is carried already",
            (Some(from), Some(to)) if from.dtype != to.dtype => "they differ in type",
            (Some(from), Some(to)) if from.rank != to.rank => "they differ in their number of dims",
            (Some(from), _) if extents.len() != from.rank => "its extents are not as many as its dims",
            _ if !matches!(extents.first(), Some(Extent::Symbol(_))) => "its first extent is not a symbol",
            _ if !extents.iter().all(is_symbol) => "an extent is a symbol that isn't there",
            _ => return Ok(()),
        };
        Err(ProgramError::Carried { input: *input, output: *output, reason })
    }

    fn check_sizes(&self, name: &str, first: usize, count: usize) -> Result<(), ProgramError> {
        let end = first.saturating_add(count);
        if end <= self.sizes_len {
            return Ok(());
        }
        Err(ProgramError::SizeOutOfRange { name: name.to_owned(), first, end, sizes_len: self.sizes_len })
    }

    fn check_symbol(&self, symbol: &SymbolSpec) -> Result<(), ProgramError> {
        match self.binder(symbol.bound_by) {
            Some((tensor, stage)) if symbol.axis < tensor.rank => {
                let carried =
                    matches!(symbol.bound_by, Binder::Input(input) if self.carried_input(input).is_some());
                if carried && symbol.axis > 0 {
                    let (symbol, axis, input) = (symbol.name.clone(), symbol.axis, tensor.name.clone());
                    return Err(ProgramError::CarriedSymbol { symbol, input, axis });
                }
                if stage == symbol.stage {
                    return Ok(());
                }
                Err(ProgramError::SymbolStage {
                    symbol: symbol.name.clone(),
                    expected: stage,
                    found: symbol.stage,
                })
            }
            _ => Err(ProgramError::NoSuchBinder {
                symbol: symbol.name.clone(),
                binder: symbol.bound_by,
                axis: symbol.axis,
            }),
        }
    }
}

fn distinct<'a>(
    role: &'static str,
    tensors: impl IntoIterator<Item = &'a TensorSpec>,
) -> Result<(), ProgramError> {
    let mut seen = BTreeSet::new();
    for tensor in tensors {
        if !seen.insert(&tensor.name) {
            return Err(ProgramError::DuplicateName { role, name: tensor.name.clone() });
        }
    }
    Ok(())
}
