//! A session that has seen a call as large allocates nothing, even while it is profiled, and no more does one that
//! decodes row by row once it has made room, or one whose items have adapters of their own. The only test of its process,
//! because it counts.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use common::{bindings, weights};
use engraft_compiler::{Options, compile};
use engraft_ir::DType::F32;
use engraft_ir::ops::Attention;
use engraft_ir::{GraphBuilder, Stage, dims, sample};
use engraft_runtime::{AdapterWeights, Bank, Context, LayerWeights, Tensor, Update, Weights};
use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, counting the blocks it gives out, on whichever thread.
struct Counting;

static BLOCKS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BLOCKS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the system's, which gave out the block.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn steady_calls_allocate_nothing() {
    a_layer();
    a_decoder();
    a_bank();
}

/// Items of their own adapters, in another order in each call: more runs of neighbours, and larger ranks, than the last had.
fn a_bank() {
    let g = GraphBuilder::new("adapted");
    let x = g.input("x", F32, dims!["batch", 37]);
    let y = x.adaptable("fc", g.param("w", F32, dims![130, 37]), None).named("fc");
    g.output("y", y.gelu());
    let program = compile(&g.finish().unwrap(), &Options::default()).unwrap().program;
    let options = engraft_runtime::Options { threads: NonZeroUsize::new(2), kernels: None };
    let tensor = |shape: &[usize], value| {
        Arc::new(Tensor::f32(shape, vec![value; shape.iter().product::<usize>()]).unwrap())
    };
    let base = Weights::from_iter([("w", tensor(&[130, 37], 0.5))]);
    let base = program.load_base(&base, Context::new(options).unwrap()).unwrap();
    let mut session = base.load_adapter(&Weights::new()).unwrap().session();
    let bank = Bank::new(base);
    for (name, rank, is_dora, merge) in
        [("lora", 3, false, false), ("dora", 8, true, false), ("merged", 5, true, true)]
    {
        let (a, b) = (tensor(&[rank, 37], 0.25), tensor(&[130, rank], 0.125));
        let update =
            Update { a, b, scale: 2.0, magnitude: is_dora.then(|| tensor(&[130], 1.5)), bias_of_b: None };
        let layer = LayerWeights { updates: vec![update], bias: None, merge };
        bank.load(name, &AdapterWeights::from([("fc".to_owned(), layer)])).unwrap();
    }
    let turns = [None, Some("lora"), Some("dora"), Some("merged")];
    let each: Vec<_> = (0..64).map(|item| turns[item % 4]).collect();
    let sorted: Vec<_> = (0..64).map(|item| turns[item / 16]).collect();
    let calls = [&each, &sorted, &each[..5].to_vec(), &vec![None; 64]]
        .map(|names| (tensor(&[names.len(), 37], 0.25), bank.rows(names).unwrap()));
    let mut outputs = [Tensor::empty(engraft_runtime::DType::F32)];
    session.run_rows_into(&[&calls[0].0], &calls[0].1, &mut outputs).unwrap();
    let mut blocks_of_a_round = || {
        let before = BLOCKS.load(Ordering::Relaxed);
        for (x, rows) in &calls {
            session.run_rows_into(&[x], rows, &mut outputs).unwrap();
        }
        BLOCKS.load(Ordering::Relaxed) - before
    };
    assert_eq!((0..20).map(|_| blocks_of_a_round()).min(), Some(0));
}

/// Scratch grows with what is carried, too.
fn a_decoder() {
    let g = GraphBuilder::new("decoder");
    let x = g.input("x", F32, dims!["new", 8]);
    let keys = g.append(g.carried("keys", F32, dims!["past", 8]), x.scale(0.5));
    let values = g.append(g.carried("values", F32, dims!["past", 8]), x.cos());
    g.output("y", x.matmul(keys.t()).softmax(-1).matmul(values));
    let program = compile(&g.finish().unwrap(), &Options::default()).unwrap().program;
    let options = engraft_runtime::Options { threads: NonZeroUsize::new(2), kernels: None };
    let none = engraft_runtime::Weights::new();
    let base = program.load_base(&none, Context::new(options).unwrap()).unwrap();
    let mut session = base.load_adapter(&none).unwrap().session();
    let [prompt, row] = [5, 1].map(|rows| Tensor::f32(&[rows, 8], vec![0.25; rows * 8]).unwrap());
    let mut outputs = [Tensor::empty(engraft_runtime::DType::F32)];
    session.reserve(107);
    let mut blocks_of_a_round = || {
        session.reset();
        session.run_into(&[&prompt], &mut outputs).unwrap();
        session.run_into(&[&row], &mut outputs).unwrap();
        let before = BLOCKS.load(Ordering::Relaxed);
        for _ in 0..100 {
            session.run_into(&[&row], &mut outputs).unwrap();
        }
        assert_eq!(session.carried_len(), 106);
        BLOCKS.load(Ordering::Relaxed) - before
    };
    // As below, but the first round is one that counts, or its room would be the later ones'.
    let first = blocks_of_a_round();
    assert_eq!((0..20).map(|_| blocks_of_a_round()).chain([first]).min(), Some(0));
    assert!(first < 10, "{first} blocks in 100 calls that have room");
}

fn a_layer() {
    let g = GraphBuilder::new("layer");
    let x = g.input("x", F32, dims!["batch", 37]);
    let w = g.param("w", F32, dims![130, 37]);
    let a = g.param("a", F32, dims![4, 37]).adapter();
    let b = g.param("b", F32, dims![130, 4]).adapter();
    let m = g.param("m", F32, dims![130]).adapter();
    let y = x.dora(w, a, b, m / w.lora_norm(a, b, 0.5), None, 0.5).gelu();
    g.output("normed", y.layer_norm(None, None, 1e-5));
    g.output("probabilities", y.softmax(-1));
    let rows = y.reshape(dims![1, "batch", 130]);
    let op = Attention { heads: 2, kv_heads: 1, scale: 0.5, causal: true, window: None };
    g.output("mixed", rows.attention(rows.slice(2, 3, 65), rows.slice(2, 0, 7), None, op));
    let graph = g.finish().unwrap();
    let values = sample::values(&graph, &bindings(&[("batch", 1)]), 1).unwrap();
    let program = compile(&graph, &Options { profile: true, ..Options::default() }).unwrap().program;
    let options = engraft_runtime::Options { threads: NonZeroUsize::new(2), kernels: None };
    let context = Context::new(options).unwrap();
    let base = program.load_base(&weights(&graph, &values, Stage::Base), context).unwrap();
    let mut session = base.load_adapter(&weights(&graph, &values, Stage::Adapter)).unwrap().session();

    let [large, small] = [200, 3].map(|batch| Tensor::f32(&[batch, 37], vec![0.25; batch * 37]).unwrap());
    let mut outputs = [(); 3].map(|()| Tensor::empty(engraft_runtime::DType::F32));
    session.run_into(&[&large], &mut outputs).unwrap();
    let mut blocks_of_a_round = || {
        let before = BLOCKS.load(Ordering::Relaxed);
        for _ in 0..5 {
            session.run_into(&[&small], &mut outputs).unwrap();
            session.run_into(&[&large], &mut outputs).unwrap();
        }
        BLOCKS.load(Ordering::Relaxed) - before
    };
    // Threads that have yet to start, a worker's and the test harness's, allocate once. Calls that allocate would do so
    // in every round.
    let quietest = (0..20).map(|_| blocks_of_a_round()).min();
    assert_eq!(quietest, Some(0));
    assert_eq!(outputs[0].shape(), [200, 130]);
}
