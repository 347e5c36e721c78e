//! The lowering is the same for every module: what makes a JIT module makes an object file, which asks for nothing but
//! the runtime's entry points.
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod common;

use cranelift_codegen::settings::{self, Configurable};
use cranelift_object::object::{Object, ObjectSymbol};
use cranelift_object::{ObjectBuilder, ObjectModule, object};
use engraft_compiler::plan::{PlanOptions, plan};
use engraft_compiler::{SIZES_FUNCTION, STAGE_FUNCTIONS, emit};
use engraft_ir::DType::F32;
use engraft_ir::ops::Attention;
use engraft_ir::{GraphBuilder, Tensor, dims};
use engraft_runtime::{Binder, CarriedSpec, Extent};
use std::collections::BTreeSet;

/// The runtime's entry point that only profiled code calls.
const MARK: &str = "engraft_mark";

#[test]
fn an_object_file_exports_the_stages_and_imports_the_runtime_alone() {
    for profiled in [false, true] {
        exports_the_stages_and_imports_the_runtime_alone(profiled);
    }
}

/// Code compiled ahead of time is described like code of this process, with what it carries.
#[test]
fn an_object_file_says_what_it_carries() {
    let g = GraphBuilder::new("appends");
    let x = g.input("x", F32, dims!["new", 4]);
    let all = g.append(g.carried("kept", F32, dims!["past", 4]), x);
    g.output("y", all.scale(2.0));
    let plan = plan(&g.finish().unwrap(), PlanOptions::default()).unwrap();
    let isa = cranelift_native::builder().unwrap();
    let mut flags = settings::builder();
    flags.set("is_pic", "true").unwrap();
    let isa = isa.finish(settings::Flags::new(flags)).unwrap();
    let names = cranelift_module::default_libcall_names();
    let mut module = ObjectModule::new(ObjectBuilder::new(isa, "appends", names).unwrap());
    let spec = emit(&mut module, &plan).unwrap().spec;
    let past = spec.symbols.iter().position(|symbol| symbol.name == "past").unwrap();
    let extents = vec![Extent::Symbol(past), Extent::Fixed(4)];
    assert_eq!(spec.carried, [CarriedSpec { input: 1, output: 0, extents }]);
    assert_eq!(spec.symbols[past].bound_by, Binder::Input(1));
    module.finish().emit().unwrap();
}

fn exports_the_stages_and_imports_the_runtime_alone(profiled: bool) {
    let g = GraphBuilder::new("layer");
    let x = g.input("x", F32, dims!["batch", 24]);
    let w = g.param("w", F32, dims![40, 24]);
    let (a, b) = (g.param("a", F32, dims![4, 24]).adapter(), g.param("b", F32, dims![40, 4]).adapter());
    let gain = g.param("m", F32, dims![40]).adapter() / w.lora_norm(a, b, 2.0);
    let c = g.constant(&[0.5_f32; 40][..]);
    g.output("y", (x.dora(w, a, b, gain, None, 2.0) + c).gelu().softmax(-1));
    g.output("merged", x.dense(w + Tensor::lora_delta(a, b, 2.0), None));
    let rows = x.reshape(dims![1, "batch", 24]);
    let op = Attention { heads: 2, kv_heads: 2, scale: 0.5, causal: true, window: None };
    g.output("mixed", rows.attention(rows, rows, None, op));
    g.output("normed", x.layer_norm(None, None, 1e-5));
    let mut plan = plan(&g.finish().unwrap(), PlanOptions::default()).unwrap();
    plan.profiled = profiled;

    let mut flags = settings::builder();
    flags.set("is_pic", "true").unwrap();
    let isa = cranelift_native::builder().unwrap().finish(settings::Flags::new(flags)).unwrap();
    let names = cranelift_module::default_libcall_names();
    let mut module = ObjectModule::new(ObjectBuilder::new(isa, "layer", names).unwrap());
    assert_eq!(emit(&mut module, &plan).unwrap().spec.profiled, profiled);
    let bytes = module.finish().emit().unwrap();

    let file = object::File::parse(&*bytes).unwrap();
    let names = |undefined: bool| -> BTreeSet<String> {
        let wanted = file.symbols().filter(|s| s.is_global() && s.is_undefined() == undefined);
        wanted.map(|s| s.name().unwrap().to_owned()).collect()
    };
    let exported: BTreeSet<_> =
        STAGE_FUNCTIONS.iter().chain([&SIZES_FUNCTION]).map(ToString::to_string).collect();
    assert_eq!(names(false), exported);
    let entry_points: BTreeSet<_> =
        engraft_runtime::symbols().iter().map(|(name, _)| (*name).to_owned()).collect();
    let wanted = |name: &String| profiled || name != MARK;
    assert_eq!(names(true), entry_points.into_iter().filter(wanted).collect());
}
