//! From plan to code: one function per distinct kernel and epilogue, one per stage that calls them in order, and one
//! that computes sizes. Emits through Cranelift's `Module` trait, so the same lowering makes a JIT module and an object
//! file. Knows no graphs.

mod calls;
mod cast;
mod emit;
mod gather;
mod loops;
mod math;
mod rows;
mod sizes;
mod spec;
mod stage;
mod staged;

use crate::plan::kernel::{Kernel, Loop, RowOp};
use crate::plan::{Plan, STAGES, stage_index};
use cranelift_codegen::Context;
use cranelift_codegen::ir::types::{I32, I64};
use cranelift_codegen::ir::{AbiParam, FuncRef, Function, Signature, Type, UserFuncName, Value};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{DataDescription, DataId, FuncId, Linkage, Module, ModuleError};
use emit::Emit;
use engraft_ir::Symbol;
use engraft_ir::ops::Elements;
use engraft_runtime::ProgramSpec;
use engraft_runtime::abi::ALIGNMENT;
use sizes::SizesLayout;
use std::collections::BTreeMap;
use thiserror::Error;

/// The names under which a program's functions are exported, by stage.
pub const STAGE_FUNCTIONS: [&str; 3] = ["engraft_stage_base", "engraft_stage_adapter", "engraft_stage_call"];
/// The name under which a program's size function is exported.
pub const SIZES_FUNCTION: &str = "engraft_sizes";

/// Why code could not be emitted: Cranelift refused a function.
#[derive(Debug, Error)]
#[error("cannot emit `{function}`: {source}")]
pub struct CodegenError {
    /// The function.
    pub function: String,
    /// Cranelift's reason.
    pub source: Box<ModuleError>,
}

/// A function as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The function's name.
    pub name: String,
    /// Its code in Cranelift's text form.
    pub clif: String,
    /// Its machine code, one instruction a line, `blockN:` before each block. It depends on the CPU.
    pub assembly: String,
}

/// What was emitted.
#[derive(Debug)]
pub struct Emitted {
    /// The functions of the stages, in order.
    pub stages: [FuncId; 3],
    /// The size function.
    pub sizes: FuncId,
    /// What the runtime needs to know.
    pub spec: ProgramSpec,
}

/// Emits a plan into a module.
///
/// # Errors
/// [`CodegenError`].
pub fn emit<M: Module>(module: &mut M, plan: &Plan) -> Result<Emitted, CodegenError> {
    Codegen::new(module, plan, None).run().map(|(emitted, _)| emitted)
}

/// Emits a plan into a module, to look at: every function as text.
///
/// # Errors
/// [`CodegenError`].
pub fn listings<M: Module>(module: &mut M, plan: &Plan) -> Result<Vec<Listing>, CodegenError> {
    Codegen::new(module, plan, Some(Vec::new())).run().map(|(_, listings)| listings)
}

struct Codegen<'a, M: Module> {
    module: &'a mut M,
    plan: &'a Plan,
    symbols: Vec<Symbol>,
    /// Kernels that have code already.
    kernels: Vec<(&'a Kernel, FuncId)>,
    constants: Vec<DataId>,
    entries: BTreeMap<&'static str, FuncId>,
    /// Epilogues that have code already.
    epilogues: Vec<(&'a Loop, FuncId)>,
    /// The functions as text, if they are asked for: making it takes longer than the code does.
    listings: Option<Vec<Listing>>,
}

fn failure(function: &str) -> impl FnOnce(ModuleError) -> CodegenError {
    move |source| CodegenError { function: function.to_owned(), source: Box::new(source) }
}

impl<'a, M: Module> Codegen<'a, M> {
    fn new(module: &'a mut M, plan: &'a Plan, listings: Option<Vec<Listing>>) -> Self {
        let symbols = plan.symbols.iter().map(|bound| bound.symbol.clone()).collect();
        let (constants, entries) = (Vec::new(), BTreeMap::new());
        let (kernels, epilogues) = (Vec::new(), Vec::new());
        Self { module, plan, symbols, kernels, constants, entries, epilogues, listings }
    }

    fn run(mut self) -> Result<(Emitted, Vec<Listing>), CodegenError> {
        self.constants()?;
        let mut layout = SizesLayout::new();
        let spec = spec::program_spec(self.plan, &mut layout);
        let sizes = self.sizes(&layout)?;
        let mut stages = [sizes; 3];
        for stage in STAGES {
            stages[stage_index(stage)] = self.stage(stage)?;
        }
        Ok((Emitted { stages, sizes, spec }, self.listings.unwrap_or_default()))
    }

    fn signature(&self, params: &[Type], result: Option<Type>) -> Signature {
        let mut signature = self.module.make_signature();
        signature.params.extend(params.iter().copied().map(AbiParam::new));
        signature.returns.extend(result.map(AbiParam::new));
        signature
    }

    /// Declares and defines a function. `body` gets its parameters and must leave it.
    fn define(
        &mut self,
        name: &str,
        linkage: Linkage,
        (params, result): (&[Type], Option<Type>),
        body: impl FnOnce(&mut Self, &mut FunctionBuilder<'_>, &[Value]) -> Result<(), CodegenError>,
    ) -> Result<FuncId, CodegenError> {
        let signature = self.signature(params, result);
        let id = self.module.declare_function(name, linkage, &signature).map_err(failure(name))?;
        let mut context =
            Context::for_function(Function::with_name_signature(UserFuncName::testcase(name), signature));
        let mut builder_context = FunctionBuilderContext::new();
        let mut builder = FunctionBuilder::new(&mut context.func, &mut builder_context);
        let entry = builder.create_block();
        builder.append_block_params_for_function_params(entry);
        builder.switch_to_block(entry);
        builder.seal_block(entry);
        let arguments = builder.block_params(entry).to_vec();
        body(self, &mut builder, &arguments)?;
        builder.finalize(self.module.target_config());
        let clif = self.listings.is_some().then(|| context.func.display().to_string());
        context.set_disasm(clif.is_some());
        self.module.define_function(id, &mut context).map_err(failure(name))?;
        if let (Some(listings), Some(clif)) = (&mut self.listings, clif) {
            let assembly = context.compiled_code().and_then(|code| code.vcode.clone()).unwrap_or_default();
            listings.push(Listing { name: name.to_owned(), clif, assembly });
        }
        Ok(id)
    }

    fn constants(&mut self) -> Result<(), CodegenError> {
        for (index, elements) in self.plan.constants.iter().enumerate() {
            let name = format!("constant_{index}");
            let mut data = DataDescription::new();
            data.set_align(ALIGNMENT as u64);
            data.define(bytes(elements).into_boxed_slice());
            let id = self.module.declare_data(&name, Linkage::Local, false, false).map_err(failure(&name))?;
            self.module.define_data(id, &data).map_err(failure(&name))?;
            self.constants.push(id);
        }
        Ok(())
    }

    /// The runtime's function of this name.
    fn entry(&mut self, name: &'static str) -> Result<FuncId, CodegenError> {
        if let Some(&id) = self.entries.get(name) {
            return Ok(id);
        }
        let signature = self.signature(&[I64, I64], None);
        let id = self.module.declare_function(name, Linkage::Import, &signature).map_err(failure(name))?;
        self.entries.insert(name, id);
        Ok(id)
    }

    fn sizes(&mut self, layout: &SizesLayout) -> Result<FuncId, CodegenError> {
        self.define(SIZES_FUNCTION, Linkage::Export, (&[I64, I64], None), |this, b, arguments| {
            let mut e = Emit::new(b, arguments[0], &this.symbols);
            e.load_symbols(layout.dims());
            e.write_sizes(layout, arguments[1]);
            e.return_nothing();
            Ok(())
        })
    }

    /// What a function needs to call the runtime's elementwise functions with.
    fn unary(
        &mut self,
        b: &mut FunctionBuilder<'_>,
        frame: Value,
    ) -> Result<Option<(FuncRef, Value)>, CodegenError> {
        let id = self.entry(calls::UNARY)?;
        Ok(Some((self.module.declare_func_in_func(id, b.func), frame)))
    }

    /// The function of an emitted kernel, shared with all equal ones. It takes the frame, the written buffer, the buffers
    /// read, and for a gather the step's number.
    fn kernel(&mut self, kernel: &'a Kernel) -> Result<FuncId, CodegenError> {
        if let Some((_, id)) = self.kernels.iter().find(|(known, _)| *known == kernel) {
            return Ok(*id);
        }
        let name = format!("kernel_{}_{}", self.kernels.len(), kernel.name());
        let id = match kernel {
            Kernel::Loop(body) => {
                let params = vec![I64; 2 + body.reads.len()];
                self.define(&name, Linkage::Local, (&params, None), |this, b, arguments| {
                    let unary = if staged::has_calls(body) { this.unary(b, arguments[0])? } else { None };
                    let mut e = Emit::in_frame(b, arguments[0], &this.symbols);
                    e.unary = unary;
                    e.load_symbols(body.dims());
                    e.run_loop(body, &arguments[2..], arguments[1], &loops::Extents::Whole);
                    e.return_nothing();
                    Ok(())
                })
            }
            Kernel::Row(row) => {
                let params = vec![I64; 3 + usize::from(row.weight)];
                self.define(&name, Linkage::Local, (&params, None), |this, b, arguments| {
                    let unary = if row.op == RowOp::Softmax { this.unary(b, arguments[0])? } else { None };
                    let mut e = Emit::in_frame(b, arguments[0], &this.symbols);
                    e.unary = unary;
                    e.load_symbols(row.dims());
                    e.run_row(row, &arguments[2..], arguments[1]);
                    e.return_nothing();
                    Ok(())
                })
            }
            Kernel::Gather(gather) => {
                self.define(&name, Linkage::Local, (&[I64; 5], Some(I32)), |this, b, arguments| {
                    let &[frame, write, table, ids, step] = arguments else { return Ok(()) };
                    let mut e = Emit::in_frame(b, frame, &this.symbols);
                    e.load_symbols(gather.dims());
                    e.run_gather(gather, [table, ids], write, [frame, step]);
                    e.return_status(0);
                    Ok(())
                })
            }
            Kernel::Cast(cast) => {
                self.define(&name, Linkage::Local, (&[I64; 3], None), |this, b, arguments| {
                    let &[frame, write, read] = arguments else { return Ok(()) };
                    let mut e = Emit::in_frame(b, frame, &this.symbols);
                    e.load_symbols([&cast.count]);
                    e.run_cast(cast, read, write);
                    e.return_nothing();
                    Ok(())
                })
            }
            Kernel::Pack(_)
            | Kernel::Linear(_)
            | Kernel::Dot(_)
            | Kernel::RowNorm(_)
            | Kernel::Merge(_)
            | Kernel::Attention(_) => {
                unreachable!("the runtime's kernels are called, not emitted")
            }
        }?;
        self.kernels.push((kernel, id));
        Ok(id)
    }

    /// The function of an epilogue, shared with all equal ones: the runtime calls it with the frame, the addresses of the
    /// buffers, and a tile.
    fn epilogue(&mut self, body: &'a Loop) -> Result<FuncId, CodegenError> {
        if let Some((_, id)) = self.epilogues.iter().find(|(known, _)| *known == body) {
            return Ok(*id);
        }
        let name = format!("epilogue_{}", self.epilogues.len());
        let id = self.define(&name, Linkage::Local, (&[I64; 6], None), |this, b, arguments| {
            let &[frame, buffers, row_from, row_to, column_from, column_to] = arguments else {
                return Ok(());
            };
            let unary = if staged::has_calls(body) { this.unary(b, frame)? } else { None };
            let mut e = Emit::in_frame(b, frame, &this.symbols);
            e.unary = unary;
            e.load_symbols(body.dims());
            let reads: Vec<_> = (0..body.reads.len()).map(|read| e.table_entry(buffers, read)).collect();
            // Access 0 is the product's own value, where the result goes.
            let tile = [(row_from, row_to), (column_from, column_to)];
            e.run_loop(body, &reads, reads[0], &loops::Extents::Tile(tile));
            e.return_nothing();
            Ok(())
        })?;
        self.epilogues.push((body, id));
        Ok(id)
    }
}

fn bytes(elements: &Elements) -> Vec<u8> {
    match elements {
        Elements::F32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Elements::F64(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Elements::I32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Elements::I64(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}
