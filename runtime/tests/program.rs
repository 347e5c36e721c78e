//! The life of a program: loading, swapping adapters, calling from several threads, and every refusal on the way.
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod common;

use std::sync::Arc;

use common::{
    K, adapter_weights, assert_close, base_weights, code, context, floats, inputs, program, reference, spec,
};
use engraft_runtime::abi::{Frame, Stage};
use engraft_runtime::{
    Base, BindError, Binder, Bound, CallError, CarriedSpec, Code, DType, Extent, LoadError, Model, Program,
    ProgramError, ProgramSpec, Session, StageError, SymbolSpec, Tensor, TensorSpec, Weights,
};

const OUT: usize = 70;

fn base() -> Base {
    program().load_base(&base_weights(OUT), context(1)).unwrap()
}

fn model() -> Model {
    base().load_adapter(&adapter_weights(10, OUT, 3)).unwrap()
}

#[test]
fn everything_is_shared_between_threads_except_sessions_which_may_move() {
    fn shared<T: Send + Sync>() {}
    fn moved<T: Send>() {}
    shared::<(Program, Base, Model, Weights)>();
    moved::<Session>();
}

#[test]
fn a_session_runs_calls_of_any_size_one_after_another() {
    let model = model();
    let mut session = model.session();
    for batch in [2, 0, 9, 1, 200] {
        let inputs = inputs(20, batch, OUT);
        let [x, ids, bias] = &inputs;
        let outputs = session.run(&[("bias", bias), ("x", x), ("ids", ids)]).unwrap();
        let [(y_name, y), (picked_name, picked)] = outputs.as_slice() else { panic!("two outputs") };
        assert_eq!((y_name.as_str(), picked_name.as_str()), ("y", "picked"));
        assert_eq!((y.shape(), picked.shape()), ([batch, OUT].as_slice(), [batch].as_slice()));
        assert_close(y, &reference(&base_weights(OUT), &adapter_weights(10, OUT, 3), &inputs));
        let expected: Vec<f32> = (0..batch).map(|row| bias.as_f32().unwrap()[row % OUT]).collect();
        assert_eq!(picked.as_f32().unwrap(), expected);
        assert_eq!(outputs, model.run(&[("x", x), ("ids", ids), ("bias", bias)]).unwrap());
    }
}

#[test]
fn outputs_by_position_take_on_the_shape_and_type_they_need() {
    let inputs = inputs(20, 4, OUT);
    let [x, ids, bias] = &inputs;
    let mut outputs = [Tensor::zeros(DType::I64, &[3, 3]).unwrap(), floats(1, &[100])];
    model().session().run_into(&[x, ids, bias], &mut outputs).unwrap();
    assert_close(&outputs[0], &reference(&base_weights(OUT), &adapter_weights(10, OUT, 3), &inputs));
    assert_eq!((outputs[0].shape(), outputs[1].shape()), ([4, OUT].as_slice(), [4].as_slice()));
}

#[test]
fn adapters_of_any_rank_swap_on_one_base() {
    let base = base();
    let adapters = [0, 3, 17].map(|rank| adapter_weights(30 + rank as u64, OUT, rank));
    let models = adapters.clone().map(|adapter| base.load_adapter(&adapter).unwrap());
    let inputs = inputs(40, 3, OUT);
    let [x, ids, bias] = &inputs;
    for _ in 0..2 {
        for (model, adapter) in models.iter().zip(&adapters) {
            let outputs = model.run(&[("x", x), ("ids", ids), ("bias", bias)]).unwrap();
            assert_close(&outputs[0].1, &reference(&base_weights(OUT), adapter, &inputs));
        }
    }
}

#[test]
fn a_model_keeps_what_it_needs() {
    let model = {
        let context = Arc::new(context(2));
        let base = program().load_base(&base_weights(OUT), Arc::clone(&context)).unwrap();
        base.load_adapter(&adapter_weights(10, OUT, 3)).unwrap()
    };
    let inputs = inputs(20, 2, OUT);
    let [x, ids, bias] = &inputs;
    let outputs = model.run(&[("x", x), ("ids", ids), ("bias", bias)]).unwrap();
    assert_close(&outputs[0].1, &reference(&base_weights(OUT), &adapter_weights(10, OUT, 3), &inputs));
}

#[test]
fn a_model_lets_go_of_what_no_later_stage_reads() {
    let (base_weights, adapter_weights) = (base_weights(OUT), adapter_weights(10, OUT, 3));
    let mut given = vec![Arc::downgrade(base_weights.get("weight").unwrap())];
    given.extend(["a", "b"].map(|name| Arc::downgrade(adapter_weights.get(name).unwrap())));
    let base = program().load_base(&base_weights, context(1)).unwrap();
    let model = base.load_adapter(&adapter_weights).unwrap();
    let inputs = inputs(20, 2, OUT);
    let expected = reference(&base_weights, &adapter_weights, &inputs);
    drop((base_weights, adapter_weights));
    assert!(given.iter().all(|tensor| tensor.upgrade().is_none()));
    let [x, ids, bias] = &inputs;
    assert_close(&model.run(&[("x", x), ("ids", ids), ("bias", bias)]).unwrap()[0].1, &expected);
}

#[test]
fn sessions_on_several_threads_agree_with_one() {
    let base = program().load_base(&base_weights(OUT), context(3)).unwrap();
    let models = [1, 8].map(|rank| base.load_adapter(&adapter_weights(50, OUT, rank)).unwrap());
    let batches = [1, 300, 40, 250];
    let run = |session: &mut Session, batch: usize| {
        let [x, ids, bias] = inputs(batch as u64, batch, OUT);
        session.run(&[("x", &x), ("ids", &ids), ("bias", &bias)]).unwrap()
    };
    let alone = models.each_ref().map(|model| batches.map(|batch| run(&mut model.session(), batch)));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (models, alone, run) = (&models, &alone, &run);
            scope.spawn(move || {
                let mut sessions = models.each_ref().map(Model::session);
                for turn in 0..40 {
                    let (model, batch) = ((turn + thread) % 2, (turn / 2 + thread) % 4);
                    assert_eq!(run(&mut sessions[model], batches[batch]), alone[model][batch]);
                }
            });
        }
    });
}

#[test]
fn values_that_are_not_finite_are_taken_as_they_are() {
    let mut weights = base_weights(2);
    weights.insert("weight", Tensor::f32(&[2, K], vec![f32::NAN; 2 * K]).unwrap());
    weights.insert("unrelated", floats(0, &[1]));
    let model =
        program().load_base(&weights, context(1)).unwrap().load_adapter(&adapter_weights(1, 2, 1)).unwrap();
    let [x, ids, bias] = inputs(2, 1, 2);
    let outputs = model.run(&[("x", &x), ("ids", &ids), ("bias", &bias)]).unwrap();
    assert!(outputs[0].1.as_f32().unwrap().iter().all(|y| y.is_nan()));
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let load = |name: &str, tensor: Tensor| {
        let (mut base, mut adapter) = (base_weights(4), adapter_weights(1, 4, 2));
        if base.get(name).is_some() {
            base.insert(name, tensor)
        } else {
            adapter.insert(name, tensor)
        };
        let loaded = program().load_base(&base, context(1)).and_then(|base| base.load_adapter(&adapter));
        loaded.unwrap_err().to_string()
    };
    assert_eq!(
        load("weight", Tensor::zeros(DType::I32, &[4, 5]).unwrap()),
        "`weight` must be f32[out, 5], found elements of i32"
    );
    assert_eq!(load("weight", floats(1, &[20])), "`weight` must be f32[out, 5], found shape [20]");
    assert_eq!(
        load("weight", floats(1, &[4, 6])),
        "`weight` must be f32[out, 5], here [4, 5] with out = 4 (axis 0 of `weight`), found shape [4, 6]"
    );
    assert_eq!(
        load("b", floats(1, &[3, 2])),
        "`b` must be f32[out, rank], here [4, 2] with out = 4 (axis 0 of `weight`), rank = 2 (axis 0 of `a`), \
         found shape [3, 2]"
    );
}

#[test]
fn weights_that_are_missing_are_named() {
    let missing = program().load_base(&Weights::new(), context(1)).unwrap_err();
    assert_eq!(missing.to_string(), "the base weights lack `weight`, which must be f32[out, 5]");
    let missing = base().load_adapter(&base_weights(OUT)).unwrap_err();
    let (name, expected) = ("a".to_owned(), "f32[rank, 5]".to_owned());
    assert_eq!(missing, LoadError::MissingParam { name, expected, stage: Stage::Adapter });
}

#[test]
fn calls_by_name_need_each_input_once_and_no_other() {
    let model = model();
    let [x, ids, bias] = &inputs(1, 2, OUT);
    let refused = |inputs: &[(&str, &Tensor)]| model.run(inputs).unwrap_err();
    assert_eq!(
        refused(&[("x", x), ("ids", ids)]),
        CallError::MissingInput { name: "bias".to_owned(), expected: "f32[out]".to_owned() }
    );
    assert_eq!(
        refused(&[("x", x), ("ids", ids), ("bias", bias), ("weight", x)]).to_string(),
        "there is no input `weight`; the inputs are x, ids, bias"
    );
    assert_eq!(
        refused(&[("x", x), ("ids", ids), ("bias", bias), ("x", x)]),
        CallError::DuplicateInput { name: "x".to_owned() }
    );
}

#[test]
fn calls_by_position_need_as_many_tensors_as_there_are() {
    let [x, ids, bias] = &inputs(1, 2, OUT);
    let mut outputs = [Tensor::empty(DType::F32), Tensor::empty(DType::F32)];
    let mut session = model().session();
    assert_eq!(
        session.run_into(&[x, ids], &mut outputs),
        Err(CallError::InputCount { expected: 3, found: 2 })
    );
    assert_eq!(
        session.run_into(&[x, ids, bias], &mut outputs[..1]),
        Err(CallError::OutputCount { expected: 2, found: 1 })
    );
}

#[test]
fn inputs_that_do_not_fit_are_refused_and_the_session_goes_on() {
    let mut session = model().session();
    let good = inputs(1, 4, OUT);
    let mut refused = |name: &str, tensor: &Tensor| {
        let [x, ids, bias] = &good;
        let mut passed = [("x", x), ("ids", ids), ("bias", bias)];
        passed.iter_mut().find(|(known, _)| *known == name).unwrap().1 = tensor;
        let refused = session.run(&passed).unwrap_err();
        session.run(&[("x", x), ("ids", ids), ("bias", bias)]).unwrap();
        refused
    };
    let error = refused("ids", &Tensor::i32(&[4], vec![0; 4]).unwrap());
    let (name, expected) = ("ids".to_owned(), "i64[batch]".to_owned());
    assert_eq!(error, BindError::DType { name, expected, found: DType::I32 }.into());
    assert_eq!(refused("x", &floats(1, &[20])).to_string(), "`x` must be f32[batch, 5], found shape [20]");
    assert_eq!(
        refused("ids", &Tensor::i64(&[5], vec![0; 5]).unwrap()),
        CallError::Bind(BindError::Shape {
            name: "ids".to_owned(),
            expected: "i64[batch]".to_owned(),
            concrete: vec![4],
            found: vec![5],
            symbols: vec![Bound { symbol: "batch".to_owned(), extent: 4, tensor: "x".to_owned(), axis: 0 }],
        })
    );
    assert_eq!(
        refused("bias", &floats(1, &[71])).to_string(),
        "`bias` must be f32[out], here [70] with out = 70 (axis 0 of `weight`), found shape [71]"
    );
}

#[test]
fn ids_out_of_range_are_found_by_the_step_that_reads_them() {
    let model = model();
    let [x, _, bias] = &inputs(1, 2, OUT);
    for id in [-1, OUT as i64, i64::MIN, i64::MAX] {
        let ids = Tensor::i64(&[2], vec![0, id]).unwrap();
        let error = model.run(&[("x", x), ("ids", &ids), ("bias", bias)]).unwrap_err();
        let (step, limit) = ("picked".to_owned(), OUT as u64);
        assert_eq!(error, CallError::Stage(StageError::IdOutOfRange { step, found: id, limit }));
    }
    let error = StageError::IdOutOfRange { step: "picked".to_owned(), found: 70, limit: 70 };
    assert_eq!(error.to_string(), "picked: id 70 is out of range, expected 0..70");
}

/// A program that only has sizes: `z f32[n, 0]` gives `y f32[n, n * WIDE]`, with an arena of `n^3` bytes and another
/// value of `n^4`.
fn sizes_only(arena: u64, wide: u64) -> Model {
    unsafe extern "C" fn nothing(_: *const Frame) -> u32 {
        0
    }
    unsafe extern "C" fn sizes(dims: *const u64, sizes: *mut u64) {
        // SAFETY: one symbol, and five sizes.
        let (n, sizes) = unsafe { (*dims, std::slice::from_raw_parts_mut(sizes, 5)) };
        sizes.copy_from_slice(&[n, 0, n, n.saturating_mul(1 << 29), n.saturating_pow(3)]);
    }
    let tensor = |name: &str, shape_at: usize, display: &str| TensorSpec {
        name: name.to_owned(),
        dtype: DType::F32,
        rank: 2,
        shape_at,
        display: display.to_owned(),
    };
    let symbol = SymbolSpec { name: "n".to_owned(), bound_by: Binder::Input(0), axis: 0, stage: Stage::Call };
    let spec = ProgramSpec {
        symbols: vec![symbol],
        inputs: vec![tensor("z", 0, "f32[n, 0]")],
        outputs: vec![tensor("y", wide as usize, "f32[n, n * 2^29]")],
        sizes_len: 5,
        arena_at: [1, 1, arena as usize],
        ..ProgramSpec::default()
    };
    // SAFETY: the stages touch nothing, and the sizes are as many as described.
    let code = unsafe { Code::new([nothing; 3], sizes, Box::new(())) };
    let base = Program::new(spec, code).unwrap().load_base(&Weights::new(), context(1)).unwrap();
    base.load_adapter(&Weights::new()).unwrap()
}

#[test]
fn sizes_beyond_memory_are_refused() {
    let refused = |model: &Model, n: usize| {
        let z = Tensor::f32(&[n, 0], vec![]).unwrap();
        model.run(&[("z", &z)]).unwrap_err().to_string()
    };
    let (output, arena) = (sizes_only(1, 2), sizes_only(4, 0));
    assert_eq!(refused(&output, (1 << 31) + 1), "n = 2147483649 (axis 0 of `z`) may be 2147483648 at most");
    assert_eq!(
        refused(&output, 1 << 31),
        "a value of the program would be larger than any memory with n = 2147483648 (axis 0 of `z`)"
    );
    assert_eq!(
        refused(&output, 1 << 17),
        "output `y` would be larger than any memory with n = 131072 (axis 0 of `z`)"
    );
    assert_eq!(refused(&output, 1 << 15), "there is no memory for output `y` of 2305843009213693952 bytes");
    assert_eq!(
        refused(&arena, 1 << 21),
        "the call arena would be larger than any memory with n = 2097152 (axis 0 of `z`)"
    );
    assert_eq!(
        refused(&arena, 1 << 20),
        "there is no memory for the call arena of 1152921504606846976 bytes"
    );
}

#[test]
fn descriptions_that_do_not_hold_together_are_refused() {
    let refused = |change: fn(&mut ProgramSpec)| {
        let mut spec = spec();
        change(&mut spec);
        Program::new(spec, code()).unwrap_err()
    };
    let duplicate = |role, name: &str| ProgramError::DuplicateName { role, name: name.to_owned() };
    assert_eq!(
        refused(|spec| spec.inputs[0].name = "bias".to_owned()),
        duplicate("inputs or params", "bias")
    );
    assert_eq!(refused(|spec| spec.outputs[1].name = "y".to_owned()), duplicate("outputs", "y"));
    assert_eq!(
        refused(|spec| spec.inputs[0].shape_at = 13).to_string(),
        "`x` reads sizes 13..15, but there are only 14"
    );
    assert_eq!(
        refused(|spec| spec.staged[0].bytes_at = usize::MAX).to_string(),
        format!("`weight panels` reads sizes {0}..{0}, but there are only 14", usize::MAX)
    );
    assert_eq!(
        refused(|spec| spec.arena_at[2] = 14).to_string(),
        "`call arena` reads sizes 14..15, but there are only 14"
    );
    assert_eq!(
        refused(|spec| spec.symbols[0].axis = 2).to_string(),
        "symbol `batch` is bound by axis 2 of Input(0), which the program doesn't have"
    );
    assert_eq!(
        refused(|spec| spec.symbols[1].bound_by = Binder::Param(4)),
        ProgramError::NoSuchBinder { symbol: "out".to_owned(), binder: Binder::Param(4), axis: 0 }
    );
    assert_eq!(
        refused(|spec| spec.symbols[1].stage = Stage::Call).to_string(),
        "symbol `out` is of stage call, but the tensor that binds it is of stage base"
    );
    assert_eq!(
        refused(|spec| spec.params[1].last_read = Stage::Base).to_string(),
        "`a` arrives at stage adapter, but is last read at stage base"
    );
    assert_eq!(
        refused(|spec| {
            spec.params[0].only_packed = true;
            spec.params[0].last_read = Stage::Call;
        })
        .to_string(),
        "`weight` is only packed when it arrives at stage base, but is last read at stage call"
    );
    assert_eq!(
        refused(|spec| spec.staged[1].stage = Stage::Call).to_string(),
        "staged value `a panels` is of stage call; it must be of stage base or adapter"
    );
}

#[test]
fn inputs_that_cannot_be_carried_are_refused() {
    let refused = |carried: &[(usize, usize, &[Extent])]| {
        let carried = carried.iter().map(|&(input, output, extents)| {
            let extents = extents.to_vec();
            CarriedSpec { input, output, extents }
        });
        let spec = ProgramSpec { carried: carried.collect(), ..spec() };
        Program::new(spec, code()).unwrap_err().to_string()
    };
    let extents = [Extent::Symbol(0), Extent::Fixed(5)];
    assert_eq!(
        refused(&[(0, 2, &extents)]),
        "input 0 can't carry output 2: there is no such input or output"
    );
    assert_eq!(refused(&[(1, 1, &extents[..1])]), "input 1 can't carry output 1: they differ in type");
    assert_eq!(
        refused(&[(0, 1, &extents)]),
        "input 0 can't carry output 1: they differ in their number of dims"
    );
    assert_eq!(
        refused(&[(0, 0, &extents[..1])]),
        "input 0 can't carry output 0: its extents are not as many as its dims"
    );
    assert_eq!(
        refused(&[(0, 0, &[Extent::Fixed(1), Extent::Fixed(5)])]),
        "input 0 can't carry output 0: its first extent is not a symbol"
    );
    assert_eq!(
        refused(&[(0, 0, &[Extent::Symbol(0), Extent::Symbol(3)])]),
        "input 0 can't carry output 0: an extent is a symbol that isn't there"
    );
    assert_eq!(
        refused(&[(0, 0, &extents), (0, 0, &extents)]),
        "input 0 can't carry output 0: one of the two is carried already"
    );
    let mut binds_another = ProgramSpec {
        carried: vec![CarriedSpec { input: 0, output: 0, extents: extents.to_vec() }],
        ..spec()
    };
    binds_another.symbols[0].axis = 1;
    assert_eq!(
        Program::new(binds_another, code()).unwrap_err().to_string(),
        "symbol `batch` is bound by axis 1 of `x`, which is carried and may bind its first axis only"
    );
}
