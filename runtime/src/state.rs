//! What a session carries from call to call: tensors that calls append to along axis 0, such as a decoder's keys and
//! values. Each has memory of its own that grows by doubling, so that appending is cheap. Knows nothing about calls.

use crate::abi::Stage;
use crate::bind::{BindError, Bindings};
use crate::memory::Buffer;
use crate::program::{CarriedSpec, Extent, ProgramSpec, TensorSpec};
use crate::tensor::{DType, Tensor, elements};

/// Why what a session carries can't be looked at, set or rolled back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Nothing of this name is carried.
    #[error("nothing called `{name}` is carried; carried are: {}", .carried.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// What is carried.
        carried: Vec<String>,
    },
    /// A carried tensor wasn't given; they are set together.
    #[error("`{name}` is missing, which is carried too and must be {expected}")]
    Missing {
        /// The tensor.
        name: String,
        /// Type and shape as the program describes them.
        expected: String,
    },
    /// A tensor was given twice.
    #[error("`{name}` is given twice")]
    Duplicate {
        /// The tensor.
        name: String,
    },
    /// An extent is another than the program's, than another carried tensor's, or than one that was loaded.
    #[error("`{name}` must be {expected} with {extent} for axis {axis}, found shape {found:?}")]
    Extent {
        /// The tensor.
        name: String,
        /// Type and shape as the program describes them.
        expected: String,
        /// The axis.
        axis: usize,
        /// What it must be.
        extent: u64,
        /// The shape found.
        found: Vec<usize>,
    },
    /// There are fewer rows than are to be kept.
    #[error("`{name}` has {found} rows, fewer than the {asked} to be kept")]
    TooFewRows {
        /// The tensor.
        name: String,
        /// The rows that it has.
        found: usize,
        /// The rows asked for.
        asked: usize,
    },
    /// A tensor has another type or number of dims, or memory doesn't suffice.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// The tensors that a session carries, in the order of [`ProgramSpec::carried`].
#[derive(Debug)]
pub(crate) struct State {
    tensors: Vec<Kept>,
    /// The rows that there is to be room for.
    reserved: usize,
}

/// One tensor: its memory may have room for more rows than it has.
#[derive(Debug)]
struct Kept {
    /// While there are no rows, the other extents mean nothing.
    shape: Vec<usize>,
    memory: Buffer,
}

impl State {
    /// Nothing yet, and no memory.
    pub(crate) fn new(spec: &ProgramSpec) -> State {
        let kept =
            |carried: &CarriedSpec| Kept { shape: vec![0; carried.extents.len()], memory: Buffer::EMPTY };
        State { tensors: spec.carried.iter().map(kept).collect(), reserved: 0 }
    }

    /// The shape of a tensor; while it has no rows, its other extents mean nothing.
    pub(crate) fn shape(&self, index: usize) -> &[usize] {
        self.tensors.get(index).map_or(&[], |kept| &kept.shape)
    }

    /// The rows of a tensor.
    pub(crate) fn rows(&self, index: usize) -> usize {
        self.shape(index).first().copied().unwrap_or(0)
    }

    /// The rows of the longest tensor.
    pub(crate) fn len(&self) -> usize {
        (0..self.tensors.len()).map(|index| self.rows(index)).max().unwrap_or(0)
    }

    pub(crate) fn reserve(&mut self, rows: usize) {
        self.reserved = rows;
    }

    /// How many rows to make room for where a call needs more memory, and `needed` rows of it: more than these, so that
    /// a row at a time costs little.
    pub(crate) fn rows_to_come(&self, index: usize, needed: u64) -> u64 {
        let doubled = if self.rows(index) == 0 { needed } else { needed.saturating_mul(2) };
        doubled.max(self.reserved as u64)
    }

    /// Makes room for the shape that a tensor will have after a call, and returns where it is. What is there stays.
    pub(crate) fn room(
        &mut self,
        index: usize,
        tensor: &TensorSpec,
        shape: &[u64],
    ) -> Result<*mut u8, BindError> {
        let row =
            shape[1..].iter().fold(tensor.dtype.bytes() as u64, |bytes, &dim| bytes.saturating_mul(dim));
        let bytes = |rows: u64| row.saturating_mul(rows);
        let (needed, reserved) = (bytes(shape[0]), bytes(self.reserved as u64));
        let least = needed.max(reserved);
        let roomy = bytes(self.rows_to_come(index, shape[0]));
        let kept = &mut self.tensors[index];
        if least > kept.memory.bytes() as u64 {
            let allocate =
                |bytes: u64| isize::try_from(bytes).ok().and_then(|bytes| Buffer::zeroed(bytes as usize));
            let memory = allocate(roomy).or_else(|| allocate(least)).ok_or_else(|| {
                BindError::OutOfMemory { what: format!("what `{}` carries", tensor.name), bytes: least }
            })?;
            let used = elements(&kept.shape, tensor.dtype).unwrap_or(0) * tensor.dtype.bytes();
            // SAFETY: `used` bytes are what the shape takes, which the old memory has, and the new memory more; the two
            // are distinct.
            unsafe { memory.address().copy_from_nonoverlapping(kept.memory.address(), used) };
            kept.memory = memory;
        }
        Ok(kept.memory.address())
    }

    /// Makes this the shape of a tensor, whose elements are in the room that was made for it.
    pub(crate) fn commit(&mut self, index: usize, shape: &[u64]) {
        let kept = &mut self.tensors[index].shape;
        kept.clear();
        kept.extend(shape.iter().map(|&dim| dim as usize));
    }

    /// Forgets everything but the memory.
    pub(crate) fn reset(&mut self) {
        self.tensors.iter_mut().for_each(|kept| kept.shape.fill(0));
    }

    /// Keeps the first rows of every tensor.
    pub(crate) fn truncate(&mut self, spec: &ProgramSpec, asked: usize) -> Result<(), StateError> {
        for (index, carried) in spec.carried.iter().enumerate() {
            let found = self.rows(index);
            if found < asked {
                let name = spec.inputs[carried.input].name.clone();
                return Err(StateError::TooFewRows { name, found, asked });
            }
        }
        self.tensors.iter_mut().for_each(|kept| kept.shape[0] = asked);
        Ok(())
    }

    /// A copy of a tensor; before there are rows, its other extents are 0 as far as they aren't fixed.
    pub(crate) fn copy(&self, spec: &ProgramSpec, name: &str) -> Result<Tensor, StateError> {
        let index = index_of(spec, name)?;
        let (carried, kept) = (&spec.carried[index], &self.tensors[index]);
        let dtype = spec.inputs[carried.input].dtype;
        let extent = |(extent, &dim): (&Extent, &usize)| match *extent {
            Extent::Fixed(fixed) => fixed as usize,
            Extent::Symbol(_) | Extent::Computed => dim,
        };
        let shape = carried.extents.iter().zip(&kept.shape).map(extent);
        let mut tensor = Tensor::empty(dtype);
        if !tensor.resize(dtype, shape) {
            let bytes = kept.memory.bytes() as u64;
            return Err(BindError::OutOfMemory { what: format!("a copy of `{name}`"), bytes }.into());
        }
        let bytes = tensor.len() * dtype.bytes();
        // SAFETY: the tensor has the kept shape, or no elements; the kept memory has as many, and is another.
        unsafe { tensor.address_mut().copy_from_nonoverlapping(kept.memory.address(), bytes) };
        Ok(tensor)
    }

    /// Makes these tensors what is carried: all of them, or none if one doesn't fit.
    pub(crate) fn set(
        &mut self,
        spec: &ProgramSpec,
        loaded: &Bindings,
        tensors: &[(&str, &Tensor)],
    ) -> Result<(), StateError> {
        let tensors = in_order(spec, tensors)?;
        let known = |symbol: usize| (spec.symbols[symbol].stage < Stage::Call).then(|| loaded.dims[symbol]);
        let mut symbols: Vec<_> = (0..spec.symbols.len()).map(known).collect();
        for (carried, tensor) in spec.carried.iter().zip(&tensors) {
            check(&spec.inputs[carried.input], carried, tensor, &mut symbols)?;
        }
        let kept = |tensor: &&Tensor| {
            let bytes = tensor.len() * DType::bytes(tensor.dtype());
            let no_memory =
                || BindError::OutOfMemory { what: "what is to be carried".to_owned(), bytes: bytes as u64 };
            let memory = Buffer::zeroed(bytes).ok_or_else(no_memory)?;
            let elements = tensor.address().ok_or_else(no_memory)?;
            // SAFETY: the tensor has as many bytes, and so has the memory, which is new.
            unsafe { memory.address().copy_from_nonoverlapping(elements, bytes) };
            Ok(Kept { shape: tensor.shape().to_vec(), memory })
        };
        self.tensors = tensors.iter().map(kept).collect::<Result<_, BindError>>()?;
        Ok(())
    }
}

/// The number of the carried tensor of this name.
fn index_of(spec: &ProgramSpec, name: &str) -> Result<usize, StateError> {
    let names = || spec.carried.iter().map(|carried| &spec.inputs[carried.input].name);
    let unknown = || StateError::Unknown { name: name.to_owned(), carried: names().cloned().collect() };
    names().position(|known| known == name).ok_or_else(unknown)
}

/// The tensors given by name, in the program's order.
fn in_order<'t>(spec: &ProgramSpec, tensors: &[(&str, &'t Tensor)]) -> Result<Vec<&'t Tensor>, StateError> {
    for (position, (name, _)) in tensors.iter().enumerate() {
        index_of(spec, name)?;
        if tensors[..position].iter().any(|(earlier, _)| earlier == name) {
            return Err(StateError::Duplicate { name: (*name).to_owned() });
        }
    }
    let find = |carried: &CarriedSpec| {
        let TensorSpec { name, display, .. } = &spec.inputs[carried.input];
        let given = tensors.iter().find(|(given, _)| given == name).map(|(_, tensor)| *tensor);
        given.ok_or_else(|| StateError::Missing { name: name.clone(), expected: display.clone() })
    };
    spec.carried.iter().map(find).collect()
}

/// Checks a tensor against what the program and the tensors before it say, and learns symbols from it.
fn check(
    expected: &TensorSpec,
    carried: &CarriedSpec,
    tensor: &Tensor,
    symbols: &mut [Option<u64>],
) -> Result<(), StateError> {
    crate::bind::check_kind(expected, tensor)?;
    for (axis, (extent, &found)) in carried.extents.iter().zip(tensor.shape()).enumerate() {
        let extent = match *extent {
            Extent::Fixed(extent) => extent,
            Extent::Symbol(symbol) => *symbols[symbol].get_or_insert(found as u64),
            // The call checks it.
            Extent::Computed => continue,
        };
        if extent != found as u64 {
            return Err(StateError::Extent {
                name: expected.name.clone(),
                expected: expected.display.clone(),
                axis,
                extent,
                found: tensor.shape().to_vec(),
            });
        }
    }
    Ok(())
}
