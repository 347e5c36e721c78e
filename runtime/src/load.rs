//! Loading: base weights make a [`Base`] of a program, an adapter's weights make a [`Model`] of a base. Each computes
//! what can be computed by then and keeps it, and of the weights no more than later stages read. Knows nothing about
//! calls.

use std::sync::Arc;

use crate::abi::{ALIGNMENT, Stage};
use crate::arriving::Arriving;
use crate::bind::{BindError, Bindings, no_floats};
use crate::context::Context;
use crate::memory::Buffer;
use crate::profile::Profile;
use crate::program::{Binder, Program, ProgramSpec, TensorSpec};
use crate::session::{CallError, Session};
use crate::stage::{self, StageError, Table};
use crate::tensor::Tensor;
use crate::weights::Weights;

/// Why weights can't be loaded into a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The weights lack a tensor.
    #[error("the {stage} weights lack `{name}`, which must be {expected}")]
    MissingParam {
        /// The parameter.
        name: String,
        /// Type and shape as the program describes them.
        expected: String,
        /// The stage that needs it.
        stage: Stage,
    },
    /// A tensor doesn't fit the program.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The stage failed.
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// A program with its base weights. Cheap to clone; models of any number of adapters share it.
#[derive(Clone, Debug)]
pub struct Base {
    inner: Arc<BaseInner>,
}

#[derive(Debug)]
struct BaseInner {
    program: Program,
    context: Arc<Context>,
    loaded: Loaded,
}

/// A base with an adapter (or without, where the program has none). Cheap to clone, shared by sessions.
#[derive(Clone, Debug)]
pub struct Model {
    inner: Arc<ModelInner>,
}

#[derive(Debug)]
struct ModelInner {
    base: Base,
    loaded: Loaded,
}

/// What a load stage leaves behind.
#[derive(Debug)]
pub(crate) struct Loaded {
    stage: Stage,
    /// The stage's parameters that a later stage reads; while the stage runs, all of them.
    tensors: Vec<(Binder, Arc<Tensor>)>,
    staged: StagedValues,
    pub(crate) bindings: Bindings,
    profile: Option<Profile>,
}

/// A stage's staged values in the program's order, in one piece: calls read them in about this order, and one after the
/// other, even small ones lie in huge pages.
#[derive(Debug)]
struct StagedValues {
    memory: Buffer,
    /// Where each begins.
    offsets: Vec<usize>,
}

impl StagedValues {
    fn addresses(&self) -> impl Iterator<Item = *mut u8> {
        self.offsets.iter().map(|&offset| self.memory.address().wrapping_add(offset))
    }
}

impl Program {
    /// Loads the base weights and runs the base stage on them. Tensors that the program doesn't know are ignored, and
    /// values that aren't finite are taken as they are. Tensors that no later stage reads aren't kept: once `weights` is
    /// dropped, their memory is free.
    ///
    /// # Errors
    /// When a tensor is missing or doesn't fit, when memory doesn't suffice, or when the stage finds an id out of range.
    pub fn load_base(&self, weights: &Weights, context: impl Into<Arc<Context>>) -> Result<Base, LoadError> {
        let context = context.into();
        let loaded = load(self, Stage::Base, weights, &context, None)?;
        Ok(Base { inner: Arc::new(BaseInner { program: self.clone(), context, loaded }) })
    }
}

impl Base {
    /// Loads an adapter's weights and runs the adapter stage on them; nothing is compiled and the base stays as it is.
    /// A program without adapter parameters takes empty weights.
    ///
    /// # Errors
    /// As for [`Program::load_base`].
    pub fn load_adapter(&self, weights: &Weights) -> Result<Model, LoadError> {
        let BaseInner { program, context, loaded } = &*self.inner;
        let loaded = load(program, Stage::Adapter, weights, context, Some(loaded))?;
        Ok(Model { inner: Arc::new(ModelInner { base: self.clone(), loaded }) })
    }

    /// The program this is a base of.
    pub fn program(&self) -> &Program {
        &self.inner.program
    }

    /// What it runs on.
    pub fn context(&self) -> &Arc<Context> {
        &self.inner.context
    }

    /// The extents of an adaptable layer, as far as they are known: items, rows of an item, columns and rows of W.
    pub(crate) fn extents(&self, layer: usize) -> [u64; 4] {
        let at = self.program().spec().adaptable[layer].extents_at;
        std::array::from_fn(|index| self.inner.loaded.bindings.sizes[at + index])
    }

    /// Where a staged value of the base is.
    pub(crate) fn staged(&self, index: usize) -> *mut u8 {
        let earlier = &self.program().spec().staged[..index];
        let position = earlier.iter().filter(|staged| staged.stage == Stage::Base).count();
        let StagedValues { memory, offsets } = &self.inner.loaded.staged;
        memory.address().wrapping_add(offsets[position])
    }

    /// Whether the two are one.
    pub(crate) fn is(&self, other: &Base) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// What the steps of the base stage took, if the program was compiled to tell.
    pub fn profile(&self) -> Option<&Profile> {
        self.inner.loaded.profile.as_ref()
    }
}

impl Model {
    /// The base this is a model of.
    pub fn base(&self) -> &Base {
        &self.inner.base
    }

    /// The program this is a model of.
    pub fn program(&self) -> &Program {
        self.base().program()
    }

    /// What the steps of the adapter stage took, if the program was compiled to tell.
    pub fn profile(&self) -> Option<&Profile> {
        self.inner.loaded.profile.as_ref()
    }

    /// A session: what one thread needs to run calls.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// Runs one call in a session of its own, see [`Session::run`]: nothing is carried into it.
    ///
    /// # Errors
    /// As for [`Session::run`].
    pub fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, CallError> {
        self.session().run(inputs)
    }

    /// The symbols known once the adapter is loaded.
    pub(crate) fn bindings(&self) -> &Bindings {
        &self.inner.loaded.bindings
    }

    /// A table of everything that is loaded.
    pub(crate) fn table(&self) -> Table {
        let spec = self.program().spec();
        let mut table = Table::new(spec);
        self.base().inner.loaded.enter(spec, &mut table);
        self.inner.loaded.enter(spec, &mut table);
        table
    }
}

impl Loaded {
    /// Enters what this stage has loaded into a table.
    fn enter(&self, spec: &ProgramSpec, table: &mut Table) {
        for (binder, tensor) in &self.tensors {
            table.set_arriving(*binder, tensor.handle());
        }
        let staged = spec.staged.iter().enumerate().filter(|(_, staged)| staged.stage == self.stage);
        for ((index, _), address) in staged.zip(self.staged.addresses()) {
            table.set_staged(index, address);
        }
    }
}

/// Loads one stage on top of an earlier one.
fn load(
    program: &Program,
    stage: Stage,
    weights: &Weights,
    context: &Arc<Context>,
    earlier: Option<&Loaded>,
) -> Result<Loaded, LoadError> {
    let spec = program.spec();
    let mut tensors = find(spec, stage, weights)?;
    let mut bindings = earlier.map_or_else(|| Bindings::new(spec), |earlier| earlier.bindings.clone());
    bindings.bind(program, stage, &tensors.iter().map(|(_, tensor)| &**tensor).collect::<Vec<_>>(), None)?;
    make_floats(spec, &mut tensors)?;
    let staged = allocate(spec, stage, &bindings)?;
    let mut loaded = Loaded { stage, tensors, staged, bindings, profile: Profile::of(spec) };

    let mut table = Table::new(spec);
    earlier.into_iter().chain([&loaded]).for_each(|loaded| loaded.enter(spec, &mut table));
    let arriving = Arriving::new(loaded.tensors.iter().map(|(_, tensor)| Arc::clone(tensor)).collect());
    table.pack_as_they_arrive(
        arriving
            .map_err(|bytes| BindError::OutOfMemory { what: "packing".to_owned(), bytes: bytes as u64 })?,
    );
    let mut arena = Buffer::EMPTY;
    stage::grow_arena(&mut arena, spec, stage, &loaded.bindings, || 0)?;
    let profile = loaded.profile.as_mut();
    // SAFETY: the bindings are bound up to this stage, and the table has what was loaded now and what of earlier stages
    // is still read, as floats unless it is only packed. The staged values written are this function's own until it returns.
    unsafe { stage::run(program, stage, &loaded.bindings, &table, &mut arena, (context, None), profile)? };
    for (_, tensor) in loaded.tensors.extract_if(.., |(binder, _)| !spec.is_read_after(stage, *binder)) {
        tensor.release();
    }
    Ok(loaded)
}

/// The parameters of a stage in the program's order.
fn find(
    spec: &ProgramSpec,
    stage: Stage,
    weights: &Weights,
) -> Result<Vec<(Binder, Arc<Tensor>)>, LoadError> {
    let tensor = |(binder, param): (Binder, &TensorSpec)| {
        let missing =
            || LoadError::MissingParam { name: param.name.clone(), expected: param.display.clone(), stage };
        Ok((binder, weights.get(&param.name).cloned().ok_or_else(missing)?))
    };
    spec.arriving(stage).map(tensor).collect()
}

/// Makes the floats of the tensors that are stored in another form, but for those that are only packed: these are made
/// then, piece by piece. The floats are this load's own, and go when it doesn't keep them.
fn make_floats(spec: &ProgramSpec, tensors: &mut [(Binder, Arc<Tensor>)]) -> Result<(), BindError> {
    for (binder, tensor) in tensors {
        let Binder::Param(index) = *binder else { continue };
        let param = &spec.params[index];
        if !param.only_packed && tensor.as_stored().is_some() {
            let floats = tensor.to_floats().map_err(|_| no_floats(&param.tensor.name, tensor))?;
            *tensor = Arc::new(floats.into_owned());
        }
    }
    Ok(())
}

/// Memory for the staged values of a stage.
fn allocate(spec: &ProgramSpec, stage: Stage, bindings: &Bindings) -> Result<StagedValues, BindError> {
    let (mut offsets, mut end) = (Vec::new(), 0_usize);
    for staged in spec.staged.iter().filter(|staged| staged.stage == stage) {
        let what = || format!("staged value `{}`", staged.name);
        let bytes = bindings.bytes(spec, staged.bytes_at, what)?;
        offsets.push(end);
        let next = end.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        end = next.ok_or_else(|| BindError::OutOfMemory { what: what(), bytes: bytes as u64 })?;
    }
    let what = || format!("the staged values of the {stage} stage");
    let memory =
        Buffer::zeroed(end).ok_or_else(|| BindError::OutOfMemory { what: what(), bytes: end as u64 })?;
    Ok(StagedValues { memory, offsets })
}
