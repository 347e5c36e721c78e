//! Calls allocate nothing once a session has seen one as large. The only test in its file: it counts what the whole
//! process allocates.
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{adapter_weights, base_weights, context, inputs, program};
use engraft_runtime::{DType, Tensor};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: counts and leaves the rest to the system's allocator; `realloc` and `alloc_zeroed` come through `alloc`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: the caller's address and layout.
        unsafe { System.dealloc(address, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn calls_allocate_nothing_once_a_session_has_seen_one_as_large() {
    const OUT: usize = 300;
    // Three threads and enough work for all of them: dispatching is part of the promise.
    let base = program().load_base(&base_weights(OUT), context(3)).unwrap();
    let mut session = base.load_adapter(&adapter_weights(1, OUT, 16)).unwrap().session();
    let batches = [200, 1, 64, 0, 200].map(|batch| inputs(2, batch, OUT));
    let mut outputs = [Tensor::empty(DType::F32), Tensor::empty(DType::F32)];
    let mut run = |[x, ids, bias]: &[Tensor; 3]| session.run_into(&[x, ids, bias], &mut outputs).unwrap();
    run(&batches[0]);

    // Threads that are only starting, the test's own among them, allocate once for themselves. What every call did would
    // be seen in every round.
    let mut round = || {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..20).for_each(|_| batches.iter().for_each(&mut run));
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    let rounds: [usize; 5] = std::array::from_fn(|_| round());
    assert!(rounds.contains(&0), "allocations in rounds of {} calls: {rounds:?}", 20 * batches.len());
}
