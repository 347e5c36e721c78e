//! What tests of the kernels share: matrices as kernels read them, in memory whose ends are watched, and what is close to a
//! sum. Knows no kernel but the packing.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test says so by failing")]

use std::num::NonZeroUsize;
use std::ptr::{null, null_mut};

use engraft_runtime::abi::{Frame, Pack, Packing};
use engraft_runtime::{Context, KernelSet, Options, engraft_pack};
use proptest::prelude::*;
use proptest::sample::select;

/// Floats between guards of NaN, aligned as panels are: a guard that is read spoils the sum, one that is written is
/// missed.
pub struct Guarded {
    floats: Vec<f32>,
    first: usize,
    len: usize,
}

impl Guarded {
    pub const GUARD: usize = 64;

    pub fn of(values: &[f32]) -> Guarded {
        let mut floats = vec![f32::NAN; values.len() + 3 * Guarded::GUARD];
        let first = floats.as_ptr().align_offset(64) + Guarded::GUARD;
        floats[first..first + values.len()].copy_from_slice(values);
        Guarded { floats, first, len: values.len() }
    }

    pub fn nan(len: usize) -> Guarded {
        Guarded::of(&vec![f32::NAN; len])
    }

    pub fn values(&self) -> &[f32] {
        let (before, rest) = self.floats.split_at(self.first);
        let (values, after) = rest.split_at(self.len);
        assert!(before.iter().chain(after).all(|guard| guard.is_nan()), "written outside its bounds");
        values
    }

    pub fn address(&self) -> *const f32 {
        self.floats[self.first..].as_ptr()
    }

    pub fn address_mut(&mut self) -> *mut f32 {
        self.floats[self.first..].as_mut_ptr()
    }
}

/// Floats in -1..1, the same for the same seed.
pub struct Floats(pub u64);

impl Floats {
    pub fn take(&mut self, len: usize) -> Vec<f32> {
        let mut next = || {
            // Knuth's MMIX generator.
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }
}

pub fn context(set: KernelSet, threads: usize) -> Context {
    Context::new(Options { threads: NonZeroUsize::new(threads), kernels: Some(set) }).unwrap()
}

/// The sets this CPU can run.
pub fn runnable() -> impl Iterator<Item = KernelSet> {
    KernelSet::ALL.into_iter().filter(|set| set.kernels().is_some())
}

pub fn frame(context: &Context, buffers: &[*mut u8]) -> Frame {
    Frame {
        dims: null(),
        buffers: buffers.as_ptr(),
        arena: null_mut(),
        context,
        fault: null_mut(),
        profile: null_mut(),
        adapters: null(),
        arriving: null(),
    }
}

/// W as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    OutIn,
    InOut,
}

impl Layout {
    pub fn strides(self, out: usize, k: usize) -> (usize, usize) {
        match self {
            Layout::OutIn => (k, 1),
            Layout::InOut => (1, out),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Packed {
    pub packing: Packing,
    pub batch: usize,
    pub out: usize,
    pub k: usize,
    pub layout: Layout,
    pub scale: f32,
}

pub fn pack(context: &Context, packed: Packed, w: &[f32]) -> Guarded {
    let Packed { packing, batch, out, k, layout, scale } = packed;
    let (out_stride, k_stride) = layout.strides(out, k);
    let w = Guarded::of(w);
    let mut packed = Guarded::nan(batch * packing.len(out, k).unwrap());
    let request = Pack {
        batch: batch as u64,
        out: out as u64,
        k: k as u64,
        w: w.address(),
        w_batch_stride: (out * k) as u64,
        out_stride: out_stride as u64,
        k_stride: k_stride as u64,
        scale,
        packing,
        packed: packed.address_mut(),
    };
    let frame = frame(context, &[]);
    // SAFETY: the buffers have the lengths that the extents give.
    unsafe { engraft_pack(&raw const frame, &raw const request) };
    packed
}

/// Agreement within the bound of a sum of that many rounded terms (Higham, Accuracy and Stability, section 3.1).
pub fn assert_close(found: &[f32], reference: &[(f64, f64)], terms: usize) {
    assert_eq!(found.len(), reference.len());
    for (index, (&found, &(expected, magnitude))) in found.iter().zip(reference).enumerate() {
        let bound = (terms + 4) as f64 * f64::from(f32::EPSILON) * magnitude + f64::from(f32::MIN_POSITIVE);
        assert!(
            (f64::from(found) - expected).abs() <= bound,
            "element {index}: {found} instead of {expected}"
        );
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Extents around the ends of tiles (4, 6, 8), lanes (16), panels (48) and blocks of rows (128).
pub fn extent() -> impl Strategy<Value = usize> {
    select(vec![
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 31, 33, 47, 48, 49, 63, 65, 95, 97, 127, 128, 129,
        137,
    ])
}
