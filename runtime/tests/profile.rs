//! What a session and the load stages keep of the marks that code makes: how often each step ended, and nothing where
//! code makes none. Times are only looked at for being there.
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod common;

use common::{adapter_weights, base_weights, code, context, inputs, program, spec};
use engraft_runtime::abi::Frame;
use engraft_runtime::{Code, Profile, Program, ProgramSpec, StepProfile, Weights, engraft_mark};

/// Three steps: 0 in the base stage, none in the adapter's; in a call step 2, then 1, then 2 again, and one that the
/// description does not know.
fn marking() -> Program {
    unsafe extern "C" fn base(frame: *const Frame) -> u32 {
        // SAFETY: the runtime's frame.
        unsafe { engraft_mark(frame, 0) };
        0
    }
    unsafe extern "C" fn adapter(_: *const Frame) -> u32 {
        0
    }
    unsafe extern "C" fn call(frame: *const Frame) -> u32 {
        for step in [2, 1, 2, 3, u64::MAX] {
            // SAFETY: the runtime's frame.
            unsafe { engraft_mark(frame, step) };
        }
        0
    }
    unsafe extern "C" fn sizes(_: *const u64, sizes: *mut u64) {
        // SAFETY: one size.
        unsafe { *sizes = 0 };
    }
    let steps = ["a", "b", "c"].map(str::to_owned).to_vec();
    let spec = ProgramSpec { sizes_len: 1, steps, profiled: true, ..ProgramSpec::default() };
    // SAFETY: the stages touch nothing but the profile, and there is one size.
    let code = unsafe { Code::new([base, adapter, call], sizes, Box::new(())) };
    Program::new(spec, code).unwrap()
}

fn calls(profile: Option<&Profile>) -> Vec<u64> {
    profile.unwrap().steps().iter().map(|step| step.calls).collect()
}

#[test]
fn every_session_and_load_counts_its_own_steps() {
    let base = marking().load_base(&Weights::new(), context(1)).unwrap();
    let model = base.load_adapter(&Weights::new()).unwrap();
    assert_eq!(calls(base.profile()), [1, 0, 0]);
    assert_eq!(calls(model.profile()), [0, 0, 0]);
    let (mut first, mut second) = (model.session(), model.session());
    for _ in 0..3 {
        first.run_into(&[], &mut []).unwrap();
    }
    second.run_into(&[], &mut []).unwrap();
    assert_eq!(calls(first.profile()), [0, 3, 6]);
    assert_eq!(calls(second.profile()), [0, 1, 2]);
    assert_eq!(first.profile().unwrap().steps()[0], StepProfile::default());
}

#[test]
fn code_that_makes_no_marks_has_no_profile() {
    let base = program().load_base(&base_weights(7), context(1)).unwrap();
    let model = base.load_adapter(&adapter_weights(3, 7, 2)).unwrap();
    assert!(base.profile().is_none() && model.profile().is_none() && model.session().profile().is_none());
}

/// The mark finds no profile to write to: that is no fault of the code.
#[test]
fn marks_of_a_program_that_is_not_profiled_are_nothing() {
    unsafe extern "C" fn marks(frame: *const Frame) -> u32 {
        // SAFETY: the runtime's frame.
        unsafe { engraft_mark(frame, 0) };
        0
    }
    unsafe extern "C" fn sizes(_: *const u64, sizes: *mut u64) {
        // SAFETY: one size.
        unsafe { *sizes = 0 };
    }
    let spec = ProgramSpec { sizes_len: 1, steps: vec!["a".to_owned()], ..ProgramSpec::default() };
    // SAFETY: the stages touch nothing but the profile, and there is one size.
    let code = unsafe { Code::new([marks; 3], sizes, Box::new(())) };
    let base = Program::new(spec, code).unwrap().load_base(&Weights::new(), context(1)).unwrap();
    base.load_adapter(&Weights::new()).unwrap().session().run_into(&[], &mut []).unwrap();
}

/// A profiled program whose code makes no marks: every step is there, with no calls.
#[test]
fn a_session_that_was_never_called_has_counted_nothing() {
    let program = Program::new(ProgramSpec { profiled: true, ..spec() }, code()).unwrap();
    let base = program.load_base(&base_weights(7), context(2)).unwrap();
    let mut session = base.load_adapter(&adapter_weights(3, 7, 2)).unwrap().session();
    assert_eq!(calls(session.profile()), [0, 0]);
    let [x, ids, bias] = inputs(5, 4, 7);
    session.run(&[("x", &x), ("ids", &ids), ("bias", &bias)]).unwrap();
    assert_eq!(calls(session.profile()), [0, 0]);
}
