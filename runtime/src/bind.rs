//! Fitting tensors to a program: checks what arrives at a stage against its description and reads the symbolic dims from
//! it, before any compiled code runs on it. Knows nothing about where the tensors come from.

use std::fmt;

use crate::abi::Stage;
use crate::program::{Binder, Program, ProgramSpec, TensorSpec};
use crate::state::State;
use crate::tensor::{DType, Tensor};

/// The largest extent a symbolic dim may have.
pub const SYMBOL_LIMIT: u64 = 1 << 31;

/// A symbolic dim that has got its extent, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The symbol.
    pub symbol: String,
    /// Its extent.
    pub extent: u64,
    /// The tensor it was read from.
    pub tensor: String,
    /// The axis of that tensor.
    pub axis: usize,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} (axis {} of `{}`)", self.symbol, self.extent, self.axis, self.tensor)
    }
}

/// A tensor that doesn't fit the program, or fits it but not the machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Elements of another type.
    #[error("`{name}` must be {expected}, found elements of {found}")]
    DType {
        /// The tensor.
        name: String,
        /// Type and shape as the program describes them.
        expected: String,
        /// The type found.
        found: DType,
    },
    /// Another number of dims.
    #[error("`{name}` must be {expected}, found shape {found:?}")]
    Rank {
        /// The tensor.
        name: String,
        /// Type and shape as the program describes them.
        expected: String,
        /// The shape found.
        found: Vec<usize>,
    },
    /// Another shape, be it because of a fixed dim or because a symbol has another extent elsewhere.
    #[error("`{name}` must be {expected}{}, found shape {found:?}", here(.concrete, .symbols))]
    Shape {
        /// The tensor.
        name: String,
        /// Type and shape as the program describes them.
        expected: String,
        /// What that shape is with the symbols' extents.
        concrete: Vec<u64>,
        /// The shape found.
        found: Vec<usize>,
        /// The symbols in the expected shape and where their extents come from.
        symbols: Vec<Bound>,
    },
    /// What a session carries doesn't fit what is passed: another batch, for instance.
    #[error("`{name}` is carried with shape {found:?}, but this call needs {expected}{}", with(.symbols))]
    Carried {
        /// The carried tensor.
        name: String,
        /// Type and shape as the program describes them.
        expected: String,
        /// The shape that is carried.
        found: Vec<usize>,
        /// The symbols in the expected shape and where their extents come from.
        symbols: Vec<Bound>,
    },
    /// An extent beyond [`SYMBOL_LIMIT`].
    #[error("{symbol} may be {SYMBOL_LIMIT} at most")]
    SymbolTooLarge {
        /// The symbol and the extent found.
        symbol: Bound,
    },
    /// Something that no memory could hold.
    #[error("{what} would be larger than any memory{}", with(.symbols))]
    TooLarge {
        /// The value or arena.
        what: String,
        /// All symbols known.
        symbols: Vec<Bound>,
    },
    /// Something that this machine's memory doesn't hold.
    #[error("there is no memory for {what} of {bytes} bytes")]
    OutOfMemory {
        /// The value or arena.
        what: String,
        /// Its size.
        bytes: u64,
    },
}

fn with(symbols: &[Bound]) -> String {
    if symbols.is_empty() {
        return String::new();
    }
    let symbols: Vec<String> = symbols.iter().map(Bound::to_string).collect();
    format!(" with {}", symbols.join(", "))
}

fn here(concrete: &[u64], symbols: &[Bound]) -> String {
    if symbols.is_empty() {
        return String::new();
    }
    format!(", here {concrete:?}{}", with(symbols))
}

/// The extents of a program's symbols, as far as they are known, and the sizes that follow from them.
#[derive(Clone, Debug)]
pub(crate) struct Bindings {
    pub(crate) dims: Vec<u64>,
    pub(crate) sizes: Vec<u64>,
    /// The latest stage whose symbols are known.
    stage: Stage,
}

impl Bindings {
    /// Nothing known yet.
    pub(crate) fn new(spec: &ProgramSpec) -> Bindings {
        Bindings { dims: vec![0; spec.symbols.len()], sizes: vec![0; spec.sizes_len], stage: Stage::Base }
    }

    /// Checks `tensors`, which are those that [arrive](ProgramSpec::arriving) at `stage` in their order, and learns the
    /// symbols of that stage from them, and from what is carried if it is a call. Allocates nothing unless it fails.
    pub(crate) fn bind(
        &mut self,
        program: &Program,
        stage: Stage,
        tensors: &[&Tensor],
        state: Option<&State>,
    ) -> Result<(), BindError> {
        let spec = program.spec();
        self.stage = stage;
        for ((_, expected), tensor) in spec.arriving(stage).zip(tensors) {
            check_kind(expected, tensor)?;
        }
        for (index, symbol) in spec.symbols.iter().enumerate().filter(|(_, symbol)| symbol.stage == stage) {
            let position = spec.arriving(stage).position(|(binder, _)| binder == symbol.bound_by);
            let tensor = position.and_then(|position| tensors.get(position));
            let carried = match symbol.bound_by {
                Binder::Input(input) => spec.carried_input(input).zip(state),
                Binder::Param(_) => None,
            };
            // `ProgramSpec::check` has found the tensor and its axis; what is carried binds its first axis only.
            self.dims[index] = match (carried, tensor) {
                (Some((carried, state)), _) => state.rows(carried) as u64,
                (None, Some(tensor)) => tensor.shape().get(symbol.axis).map_or(0, |&dim| dim as u64),
                (None, None) => 0,
            };
            if self.dims[index] > SYMBOL_LIMIT {
                return Err(BindError::SymbolTooLarge { symbol: self.bound(spec, index) });
            }
        }
        // SAFETY: `Code::new` says that the function reads one dim per symbol and writes `sizes_len` sizes.
        unsafe { (program.code().sizes)(self.dims.as_ptr(), self.sizes.as_mut_ptr()) };
        for ((_, expected), tensor) in spec.arriving(stage).zip(tensors) {
            self.check_shape(spec, expected, tensor)?;
        }
        self.check_carried(spec, state)?;
        if self.sizes.contains(&u64::MAX) {
            return Err(self.too_large(spec, "a value of the program".to_owned()));
        }
        Ok(())
    }

    /// The bytes at `sizes[at]` if every carried tensor were to have so many rows after the call: more, if not fewer.
    /// `None` where no memory could have them.
    pub(crate) fn bytes_with_rows(
        &self,
        program: &Program,
        at: usize,
        rows: impl Fn(usize, u64) -> u64,
    ) -> Option<usize> {
        let spec = program.spec();
        let mut roomy = self.clone();
        for (index, symbol) in spec.symbols.iter().enumerate() {
            let Binder::Input(input) = symbol.bound_by else { continue };
            let Some(carried) = spec.carried_input(input) else { continue };
            let after = self.shape(&spec.outputs[spec.carried[carried].output])[0];
            let appended = after.saturating_sub(self.dims[index]);
            roomy.dims[index] =
                rows(carried, after).saturating_sub(appended).clamp(self.dims[index], SYMBOL_LIMIT);
        }
        // SAFETY: `Code::new` says that the function reads one dim per symbol and writes `sizes_len` sizes.
        unsafe { (program.code().sizes)(roomy.dims.as_ptr(), roomy.sizes.as_mut_ptr()) };
        isize::try_from(roomy.sizes[at]).ok().map(|bytes| bytes as usize)
    }

    /// Becomes the bindings of the same call with fewer items: `extent` of them. Allocates nothing.
    pub(crate) fn slice_of(&mut self, whole: &Bindings, program: &Program, symbol: usize, extent: u64) {
        self.dims.copy_from_slice(&whole.dims);
        self.dims[symbol] = extent;
        self.stage = whole.stage;
        // SAFETY: `Code::new` says that the function reads one dim per symbol and writes `sizes_len` sizes.
        unsafe { (program.code().sizes)(self.dims.as_ptr(), self.sizes.as_mut_ptr()) };
    }

    /// The dims of a tensor.
    pub(crate) fn shape(&self, tensor: &TensorSpec) -> &[u64] {
        &self.sizes[tensor.shape_at..tensor.shape_at + tensor.rank]
    }

    /// The size in bytes at `sizes[at]`, if memory could have it.
    pub(crate) fn bytes(
        &self,
        spec: &ProgramSpec,
        at: usize,
        what: impl Fn() -> String,
    ) -> Result<usize, BindError> {
        match isize::try_from(self.sizes[at]) {
            Ok(bytes) => Ok(bytes as usize),
            Err(_) => Err(self.too_large(spec, what())),
        }
    }

    pub(crate) fn too_large(&self, spec: &ProgramSpec, what: String) -> BindError {
        let known = (0..spec.symbols.len()).filter(|&index| spec.symbols[index].stage <= self.stage);
        BindError::TooLarge { what, symbols: known.map(|index| self.bound(spec, index)).collect() }
    }

    fn check_shape(
        &self,
        spec: &ProgramSpec,
        expected: &TensorSpec,
        tensor: &Tensor,
    ) -> Result<(), BindError> {
        let concrete = self.shape(expected);
        if concrete.iter().copied().eq(tensor.shape().iter().map(|&dim| dim as u64)) {
            return Ok(());
        }
        Err(BindError::Shape {
            name: expected.name.clone(),
            expected: expected.display.clone(),
            concrete: concrete.to_vec(),
            found: tensor.shape().to_vec(),
            symbols: self.symbols_of(spec, expected),
        })
    }

    /// Checks the other extents of what is carried; while it has no rows, it has no others.
    fn check_carried(&self, spec: &ProgramSpec, state: Option<&State>) -> Result<(), BindError> {
        for (index, carried) in spec.carried.iter().enumerate() {
            let expected = &spec.inputs[carried.input];
            let Some(found) = state.map(|state| state.shape(index)) else { continue };
            let concrete = self.shape(expected);
            let fits = |(&dim, &found): (&u64, &usize)| dim == found as u64;
            let mut extents = concrete.iter().zip(found).map(fits);
            if extents.next() == Some(true) && (found[0] == 0 || extents.all(|fits| fits)) {
                continue;
            }
            let symbols = self.symbols_of(spec, expected);
            let (name, expected) = (expected.name.clone(), expected.display.clone());
            return Err(BindError::Carried { name, expected, found: found.to_vec(), symbols });
        }
        Ok(())
    }

    /// The symbols in a tensor's shape.
    fn symbols_of(&self, spec: &ProgramSpec, tensor: &TensorSpec) -> Vec<Bound> {
        let is_in = |index: &usize| mentions(&tensor.display, &spec.symbols[*index].name);
        (0..spec.symbols.len()).filter(is_in).map(|index| self.bound(spec, index)).collect()
    }

    fn bound(&self, spec: &ProgramSpec, index: usize) -> Bound {
        let symbol = &spec.symbols[index];
        Bound {
            symbol: symbol.name.clone(),
            extent: self.dims[index],
            tensor: spec.binder(symbol.bound_by).map_or_else(String::new, |(tensor, _)| tensor.name.clone()),
            axis: symbol.axis,
        }
    }
}

/// Checks the type of a tensor's elements and the number of its dims.
pub(crate) fn check_kind(expected: &TensorSpec, tensor: &Tensor) -> Result<(), BindError> {
    let (name, display) = (|| expected.name.clone(), || expected.display.clone());
    if tensor.dtype() != expected.dtype {
        return Err(BindError::DType { name: name(), expected: display(), found: tensor.dtype() });
    }
    if tensor.shape().len() != expected.rank {
        return Err(BindError::Rank { name: name(), expected: display(), found: tensor.shape().to_vec() });
    }
    Ok(())
}

/// The error when there is no memory for the floats of a tensor that is stored in another form.
pub(crate) fn no_floats(name: &str, tensor: &Tensor) -> BindError {
    let bytes = tensor.len() as u64 * tensor.dtype().bytes() as u64;
    BindError::OutOfMemory { what: format!("the floats of `{name}`"), bytes }
}

/// Whether a shape as people read it has this symbol in it.
fn mentions(display: &str, symbol: &str) -> bool {
    display.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == symbol)
}
