//! The room that hands finished code to the runtime: a JIT module for this machine, its functions as a program, and the
//! memory they live in, freed once, when the last holder of the program is gone. The compiler's only `unsafe`.
#![allow(unsafe_code)]

use crate::codegen::{self, CodegenError, Listing};
use crate::plan::Plan;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, ModuleError, default_libcall_names};
use engraft_runtime::abi::{SizesFn, StageFn};
use engraft_runtime::{Code, Program, ProgramError, ProgramSpec};
use std::mem::transmute;
use std::sync::Mutex;
use thiserror::Error;

/// Why no program could be made.
#[derive(Debug, Error)]
pub enum JitError {
    /// Cranelift does not know this machine.
    #[error("cannot compile for this machine: {reason}")]
    Machine {
        /// Why.
        reason: &'static str,
    },
    /// A setting or the instruction set was refused.
    #[error("cannot set up code generation: {source}")]
    Settings {
        /// Cranelift's reason.
        #[from]
        source: settings::SetError,
    },
    /// The instruction set was refused.
    #[error("cannot set up code generation: {source}")]
    Isa {
        /// Cranelift's reason.
        #[from]
        source: cranelift_codegen::CodegenError,
    },
    /// Code could not be emitted.
    #[error(transparent)]
    Codegen(#[from] CodegenError),
    /// Code could not be made executable.
    #[error("cannot finish the code: {source}")]
    Finalize {
        /// Cranelift's reason.
        source: Box<ModuleError>,
    },
    /// The runtime refused the program's description.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// The memory of compiled code.
struct CodeMemory {
    /// In a mutex only to be `Sync`; taken when dropped.
    module: Mutex<Option<JITModule>>,
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        let module = self.module.get_mut().map_or_else(|poisoned| poisoned.into_inner().take(), Option::take);
        if let Some(module) = module {
            // SAFETY: the runtime drops the owner of code after its last call, and nothing else holds pointers into it.
            unsafe { module.free_memory() };
        }
    }
}

/// Compiles a plan for this machine.
///
/// # Errors
/// [`JitError`].
pub fn compile(plan: &Plan) -> Result<Program, JitError> {
    let mut module = new_module()?;
    let emitted = codegen::emit(&mut module, plan)?;
    module.finalize_definitions().map_err(|source| JitError::Finalize { source: Box::new(source) })?;
    let code = code(module, emitted.stages, emitted.sizes);
    let spec: ProgramSpec = emitted.spec;
    Ok(Program::new(spec, code)?)
}

/// The code that a plan becomes on this machine, as text; nothing is run.
///
/// # Errors
/// [`JitError`].
pub fn listings(plan: &Plan) -> Result<Vec<Listing>, JitError> {
    let mut module = new_module()?;
    let listings = codegen::listings(&mut module, plan);
    drop(CodeMemory { module: Mutex::new(Some(module)) });
    Ok(listings?)
}

/// A JIT module for this machine, with the runtime's kernels linked in.
fn new_module() -> Result<JITModule, JitError> {
    let mut flags = settings::builder();
    // The code is emitted as it should run. Cranelift's optimiser would move what does not change out of the loops, more of
    // it than there are registers, and back in as spills.
    flags.set("opt_level", "none")?;
    flags.set("is_pic", "false")?;
    // Both prove the compiler right at a price in time: in debug builds, so in tests.
    let check = if cfg!(debug_assertions) { "true" } else { "false" };
    flags.set("enable_verifier", check)?;
    flags.set("regalloc_checker", check)?;
    let machine = cranelift_native::builder().map_err(|reason| JitError::Machine { reason })?;
    let isa = machine.finish(settings::Flags::new(flags))?;
    let mut builder = JITBuilder::with_isa(isa, default_libcall_names());
    builder.symbols(engraft_runtime::symbols());
    Ok(JITModule::new(builder))
}

fn code(module: JITModule, stages: [FuncId; 3], sizes: FuncId) -> Code {
    let stages = stages.map(|id| {
        let address = module.get_finalized_function(id);
        // SAFETY: `emit` defines stage functions with the signature of `StageFn` in the C calling convention.
        unsafe { transmute::<*const u8, StageFn>(address) }
    });
    let address = module.get_finalized_function(sizes);
    // SAFETY: `emit` defines the size function with the signature of `SizesFn` in the C calling convention.
    let sizes = unsafe { transmute::<*const u8, SizesFn>(address) };
    let owner = Box::new(CodeMemory { module: Mutex::new(Some(module)) });
    // SAFETY: the functions live as long as their module, which the owner keeps; they touch only what the frame gives
    // them, within the sizes that the size function computes, as the plan's verifier and checker have established.
    unsafe { Code::new(stages, sizes, owner) }
}
