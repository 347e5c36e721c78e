//! A program written by hand, as a compiler would emit it: a low-rank adapted layer divided by its row norms, and a
//! table lookup.
//!
//! ```text
//! inputs    x f32[batch, 5]    ids i64[batch]
//! params    weight f32[out, 5] (base)    a f32[rank, 5], b f32[out, rank] (adapter)    bias f32[out] (live)
//! staged    panels of weight (base)    rows of a, panels of b / 2, gain f32[out] = 1 / row_norm (adapter)
//! outputs   y f32[batch, out] = gain * (x (weight + b a / 2)^T) + bias    picked f32[batch] = bias[ids]
//! ```
#![allow(clippy::cast_ptr_alignment, reason = "the runtime aligns buffers to their elements")]
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::num::NonZeroUsize;

use engraft_runtime::abi::{
    AdaptedWeight, Dot, Fault, Frame, Linear, NOT_ADAPTABLE, Pack, Packing, RowNorm, Stage,
};
use engraft_runtime::{
    Binder, Code, Context, DType, Options, ParamSpec, Program, ProgramSpec, StagedSpec, SymbolSpec, Tensor,
    TensorSpec, Weights, engraft_dot, engraft_linear, engraft_pack, engraft_row_norm,
};

/// The width of x.
pub const K: usize = 5;
/// What the low-rank part is multiplied by.
pub const SCALE: f32 = 0.5;

// Symbols.
const BATCH: usize = 0;
const OUT: usize = 1;
const RANK: usize = 2;

// Buffers.
const X: usize = 0;
const IDS: usize = 1;
const WEIGHT: usize = 2;
const A: usize = 3;
const B: usize = 4;
const BIAS: usize = 5;
const WEIGHT_PANELS: usize = 6;
const A_ROWS: usize = 7;
const B_PANELS: usize = 8;
const GAIN: usize = 9;
const Y: usize = 10;
const PICKED: usize = 11;

/// The flat vector of sizes: shapes overlap where they can.
const SIZES: usize = 14;

unsafe extern "C" fn sizes(dims: *const u64, sizes: *mut u64) {
    // SAFETY: three symbols, and as many sizes as the description says.
    let (dims, sizes) =
        unsafe { (std::slice::from_raw_parts(dims, 3), std::slice::from_raw_parts_mut(sizes, SIZES)) };
    let (batch, out, rank, k) = (dims[BATCH], dims[OUT], dims[RANK], K as u64);
    let padded = |extent: u64| extent.next_multiple_of(16);
    let (x, y, weight, a, b) = ([batch, k], [batch, out], [out, k], [rank, k], [out, rank]);
    sizes[0..2].copy_from_slice(&x);
    sizes[2..4].copy_from_slice(&y);
    sizes[4..6].copy_from_slice(&weight);
    sizes[6..8].copy_from_slice(&a);
    sizes[8..10].copy_from_slice(&b);
    let bytes = |floats: u64| floats.saturating_mul(4);
    sizes[10] = bytes(padded(out).saturating_mul(k));
    sizes[11] = bytes(padded(k).saturating_mul(rank));
    sizes[12] = bytes(padded(out).saturating_mul(rank));
    sizes[13] = bytes(batch.saturating_mul(rank)).saturating_add(bytes(out));
}

/// A frame as compiled code sees it.
struct View<'a> {
    frame: &'a Frame,
}

impl View<'_> {
    /// # Safety
    /// `frame` is one of this program.
    unsafe fn new<'a>(frame: *const Frame) -> View<'a> {
        // SAFETY: the caller's promise.
        View { frame: unsafe { &*frame } }
    }

    fn dim(&self, symbol: usize) -> u64 {
        // SAFETY: three symbols.
        unsafe { *self.frame.dims.add(symbol) }
    }

    fn buffer(&self, index: usize) -> *mut f32 {
        // SAFETY: twelve buffers.
        unsafe { (*self.frame.buffers.add(index)).cast() }
    }

    /// Packs a contiguous `[out, k]` matrix.
    fn pack(&self, (w, packed): (usize, usize), packing: Packing, out: u64, k: u64, scale: f32) {
        let (w, packed) = (self.buffer(w).cast_const(), self.buffer(packed));
        assert!(packed.addr().is_multiple_of(64));
        let (out_stride, k_stride) = (k, 1);
        let pack =
            Pack { batch: 1, out, k, w, w_batch_stride: 0, out_stride, k_stride, scale, packing, packed };
        // SAFETY: the runtime has checked the shapes and allocated the panels.
        unsafe { engraft_pack(self.frame, &raw const pack) };
    }
}

unsafe extern "C" fn base(frame: *const Frame) -> u32 {
    // SAFETY: the runtime's frame.
    let view = unsafe { View::new(frame) };
    view.pack((WEIGHT, WEIGHT_PANELS), Packing::Panels, view.dim(OUT), K as u64, 1.0);
    0
}

unsafe extern "C" fn adapter(frame: *const Frame) -> u32 {
    // SAFETY: the runtime's frame.
    let view = unsafe { View::new(frame) };
    let (out, rank, k) = (view.dim(OUT), view.dim(RANK), K as u64);
    view.pack((A, A_ROWS), Packing::Rows, rank, k, 1.0);
    view.pack((B, B_PANELS), Packing::Panels, out, rank, SCALE);
    let (w, a, b) = (view.buffer(WEIGHT_PANELS), view.buffer(A_ROWS), view.buffer(B_PANELS));
    let n = view.buffer(GAIN);
    let norm = RowNorm { weight: AdaptedWeight { out, k, rank, w, a, b }, n };
    // SAFETY: the runtime has checked the shapes and allocated the norms.
    unsafe {
        engraft_row_norm(frame, &raw const norm);
        for n in std::slice::from_raw_parts_mut(n, out as usize) {
            *n = 1.0 / *n;
        }
    }
    0
}

unsafe extern "C" fn call(frame: *const Frame) -> u32 {
    // SAFETY: the runtime's frame.
    let view = unsafe { View::new(frame) };
    let (batch, out, rank, k) = (view.dim(BATCH), view.dim(OUT), view.dim(RANK), K as u64);
    let h = view.frame.arena.cast::<f32>();
    let hidden = Dot { rows: batch, k, out: rank, x: view.buffer(X), a: view.buffer(A_ROWS), h };
    let adapted = Linear {
        batch: 1,
        rows: batch,
        out,
        k,
        rank,
        x: view.buffer(X),
        x_batch_stride: batch * k,
        w: view.buffer(WEIGHT_PANELS),
        w_batch_stride: 0,
        h,
        b: view.buffer(B_PANELS),
        gain: view.buffer(GAIN),
        bias: view.buffer(BIAS),
        y: view.buffer(Y),
        adaptable: NOT_ADAPTABLE,
        residual: std::ptr::null(),
        epilogue_buffers: std::ptr::null(),
        epilogue: None,
    };
    // SAFETY: the runtime has checked the shapes and made room for the arena and the outputs.
    unsafe {
        engraft_dot(frame, &raw const hidden);
        engraft_linear(frame, &raw const adapted);
        for row in 0..batch as usize {
            let id = *view.buffer(IDS).cast::<i64>().add(row);
            if !(0..out as i64).contains(&id) {
                *view.frame.fault = Fault { step: 1, found: id, limit: out };
                return 1;
            }
            *view.buffer(PICKED).add(row) = *view.buffer(BIAS).add(id as usize);
        }
    }
    0
}

fn tensor(name: &str, dtype: DType, rank: usize, shape_at: usize, display: &str) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype, rank, shape_at, display: display.to_owned() }
}

/// A parameter that its own stage packs, and no later one reads.
fn param(name: &str, stage: Stage, rank: usize, shape_at: usize, display: &str) -> ParamSpec {
    ParamSpec {
        tensor: tensor(name, DType::F32, rank, shape_at, display),
        stage,
        last_read: stage,
        only_packed: false,
    }
}

fn symbol(name: &str, bound_by: Binder, stage: Stage) -> SymbolSpec {
    SymbolSpec { name: name.to_owned(), bound_by, axis: 0, stage }
}

fn staged(name: &str, stage: Stage, bytes_at: usize) -> StagedSpec {
    StagedSpec { name: name.to_owned(), stage, bytes_at }
}

/// What the program takes and gives.
pub fn spec() -> ProgramSpec {
    ProgramSpec {
        symbols: vec![
            symbol("batch", Binder::Input(0), Stage::Call),
            symbol("out", Binder::Param(0), Stage::Base),
            symbol("rank", Binder::Param(1), Stage::Adapter),
        ],
        inputs: vec![
            tensor("x", DType::F32, 2, 0, "f32[batch, 5]"),
            tensor("ids", DType::I64, 1, 0, "i64[batch]"),
        ],
        params: vec![
            param("weight", Stage::Base, 2, 4, "f32[out, 5]"),
            param("a", Stage::Adapter, 2, 6, "f32[rank, 5]"),
            param("b", Stage::Adapter, 2, 8, "f32[out, rank]"),
            param("bias", Stage::Call, 1, 4, "f32[out]"),
        ],
        staged: vec![
            staged("weight panels", Stage::Base, 10),
            staged("a panels", Stage::Adapter, 11),
            staged("b panels", Stage::Adapter, 12),
            staged("gain", Stage::Adapter, 13),
        ],
        outputs: vec![
            tensor("y", DType::F32, 2, 2, "f32[batch, out]"),
            tensor("picked", DType::F32, 1, 0, "f32[batch]"),
        ],
        carried: Vec::new(),
        adaptable: Vec::new(),
        items: None,
        sizes_len: SIZES,
        // Loading needs no arena of its own; any size will do.
        arena_at: [10, 10, 13],
        steps: vec!["adapted".to_owned(), "picked".to_owned()],
        profiled: false,
    }
}

/// Its code.
pub fn code() -> Code {
    // SAFETY: the functions above do what the description in `spec` says, and live as long as the test.
    unsafe { Code::new([base, adapter, call], sizes, Box::new(())) }
}

/// The program.
pub fn program() -> Program {
    Program::new(spec(), code()).unwrap()
}

/// A context with so many threads.
pub fn context(threads: usize) -> Context {
    Context::new(Options { threads: NonZeroUsize::new(threads), kernels: None }).unwrap()
}

/// Numbers in -1..1, the same for the same seed.
pub fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let number = |index: usize| (index as f32 * 0.7 + seed as f32 * 1.3).sin();
    (0..len).map(number).collect()
}

/// A tensor of [`numbers`].
pub fn floats(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::f32(shape, numbers(seed, shape.iter().product())).unwrap()
}

/// Base weights.
pub fn base_weights(out: usize) -> Weights {
    [("weight", floats(1, &[out, K]))].into_iter().collect()
}

/// An adapter's weights.
pub fn adapter_weights(seed: u64, out: usize, rank: usize) -> Weights {
    [("a", floats(seed, &[rank, K])), ("b", floats(seed + 1, &[out, rank]))].into_iter().collect()
}

/// A call's inputs by position: x, ids, bias.
pub fn inputs(seed: u64, batch: usize, out: usize) -> [Tensor; 3] {
    let ids = (0..batch).map(|row| (row % out) as i64).collect();
    [floats(seed, &[batch, K]), Tensor::i64(&[batch], ids).unwrap(), floats(seed + 1, &[out])]
}

/// The program's first output in 64-bit floats, as the formula is written.
pub fn reference(base: &Weights, adapter: &Weights, inputs: &[Tensor; 3]) -> Vec<f64> {
    let values =
        |tensor: &Tensor| -> Vec<f64> { tensor.as_f32().unwrap().iter().map(|&v| f64::from(v)).collect() };
    let weight = values(base.get("weight").unwrap());
    let (a, b) = (values(adapter.get("a").unwrap()), values(adapter.get("b").unwrap()));
    let (x, bias) = (values(&inputs[0]), values(&inputs[2]));
    let (out, rank) = (bias.len(), a.len() / K);
    let adapted = |j: usize, p: usize| {
        let delta: f64 = (0..rank).map(|r| b[j * rank + r] * a[r * K + p]).sum();
        weight[j * K + p] + f64::from(SCALE) * delta
    };
    let element = |row: usize, j: usize| {
        let norm = (0..K).map(|p| adapted(j, p).powi(2)).sum::<f64>().sqrt();
        (0..K).map(|p| x[row * K + p] * adapted(j, p)).sum::<f64>() / norm + bias[j]
    };
    let rows = 0..x.len() / K;
    rows.flat_map(|row| (0..out).map(move |j| (row, j))).map(|(row, j)| element(row, j)).collect()
}

/// Asserts that a product of this program's size agrees with its reference.
pub fn assert_close(found: &Tensor, expected: &[f64]) {
    let found = found.as_f32().unwrap();
    assert_eq!(found.len(), expected.len());
    for (&found, &expected) in found.iter().zip(expected) {
        assert!((f64::from(found) - expected).abs() <= 2e-5, "{found} instead of {expected}");
    }
}
