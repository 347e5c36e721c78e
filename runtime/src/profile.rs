//! How long each step of a stage takes. Code that is compiled for it tells when a step ends by calling [`engraft_mark`];
//! all other code calls nothing and pays nothing. Knows nothing about what the steps do.

use std::time::{Duration, Instant};

use crate::abi::Frame;
use crate::program::ProgramSpec;

/// What one step has taken so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepProfile {
    /// How often it ended.
    pub calls: u64,
    /// The time from the end of the step before it (or the stage's start) to its own end, summed over its calls. One
    /// reading of the clock is in each.
    pub total: Duration,
}

/// Calls and times of every step, of one session or of one load stage. Steps of other stages have no calls.
#[derive(Clone, Debug)]
pub struct Profile {
    steps: Vec<StepProfile>,
    /// When the latest step ended.
    latest: Instant,
}

impl Profile {
    /// Room for the steps of a program, if its code tells when they end.
    pub(crate) fn of(spec: &ProgramSpec) -> Option<Profile> {
        let steps = vec![StepProfile::default(); spec.steps.len()];
        spec.profiled.then(|| Profile { steps, latest: Instant::now() })
    }

    /// By the index of the step in the program's list of [steps](ProgramSpec::steps).
    pub fn steps(&self) -> &[StepProfile] {
        &self.steps
    }

    /// A stage begins.
    pub(crate) fn start(&mut self) {
        self.latest = Instant::now();
    }

    fn mark(&mut self, step: u64) {
        let now = Instant::now();
        if let Some(profile) = self.steps.get_mut(step as usize) {
            profile.calls += 1;
            profile.total += now - self.latest;
        }
        self.latest = now;
    }
}

/// Says that a step of the running stage has ended.
///
/// # Safety
/// `frame` is the frame of the running stage, and the call is made by its function itself: never by an epilogue, several
/// of which may run at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn engraft_mark(frame: *const Frame, step: u64) {
    // SAFETY: the frame's profile is null or the caller's of the stage, who touches it only before and after; the stage's
    // function runs on one thread.
    if let Some(profile) = unsafe { (*frame).profile.as_mut() } {
        profile.mark(step);
    }
}
