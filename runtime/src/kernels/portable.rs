//! Kernels in plain Rust, which the compiler turns into whatever vectors the target has.

use super::{
    AttentionBlock, Block, DotBlock, KernelSet, Kernels, Lanes, NormBlock, attention, dot, norm, stream, tile,
};
use crate::panels::LANE;

pub(super) static KERNELS: Kernels = Kernels {
    set: KernelSet::Portable,
    tile_rows: tile::rows(Floats::ACCUMULATORS),
    product,
    dot,
    row_norm,
    attention,
    stream,
};

unsafe fn product(block: &Block) {
    // SAFETY: the block is the caller's promise; plain Rust runs on any CPU.
    unsafe { tile::product::<Floats>(block) }
}

unsafe fn dot(block: &DotBlock) {
    // SAFETY: the block is the caller's promise; plain Rust runs on any CPU.
    unsafe { dot::dot::<Floats>(block) }
}

unsafe fn row_norm(block: &NormBlock) {
    // SAFETY: the block is the caller's promise; plain Rust runs on any CPU.
    unsafe { norm::row_norm::<Floats>(block) }
}

unsafe fn attention(block: &AttentionBlock) {
    // SAFETY: the block is the caller's promise; plain Rust runs on any CPU.
    unsafe { attention::attention::<Floats>(block) }
}

unsafe fn stream(from: *const f32, count: usize) -> f32 {
    // SAFETY: the floats are the caller's promise; plain Rust runs on any CPU.
    unsafe { stream::stream::<Floats>(from, count) }
}

#[derive(Clone, Copy)]
pub(super) struct Floats([f32; LANE]);

impl Floats {
    #[inline(always)]
    fn zip(self, other: Floats, operation: impl Fn(f32, f32) -> f32) -> Floats {
        let mut result = self;
        for (value, other) in result.0.iter_mut().zip(other.0) {
            *value = operation(*value, other);
        }
        result
    }
}

impl Lanes for Floats {
    type Wide = [f64; LANE];
    /// For sixteen registers of four floats, as SSE2 and NEON have at least.
    const ACCUMULATORS: usize = 3;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Floats {
        Floats([value; LANE])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Floats {
        // SAFETY: the caller's sixteen floats; an array of floats is aligned like one.
        Floats(unsafe { from.cast::<[f32; LANE]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as for `load`.
        unsafe { to.cast::<[f32; LANE]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Floats {
        let mut lane = Floats([0.0; LANE]);
        // SAFETY: the caller's `count <= LANE` floats.
        unsafe { lane.0.as_mut_ptr().copy_from_nonoverlapping(from, count) };
        lane
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: the caller's `count <= LANE` floats.
        unsafe { to.copy_from_nonoverlapping(self.0.as_ptr(), count) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Floats, to: Floats) -> Floats {
        // Where the target has no fused multiply-add, `f32::mul_add` is a slow call into a library.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            let mut result = to;
            for ((value, by), to) in result.0.iter_mut().zip(by.0).zip(self.0) {
                *value = to.mul_add(by, *value);
            }
            result
        } else {
            self.zip(by, |a, b| a * b).zip(to, |product, to| product + to)
        }
    }

    #[inline(always)]
    unsafe fn mul(self, by: Floats) -> Floats {
        self.zip(by, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn add(self, to: Floats) -> Floats {
        self.zip(to, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn min(self, other: Floats) -> Floats {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn max(self, other: Floats) -> Floats {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn to_exponent(self) -> Floats {
        Floats(self.0.map(|value| f32::from_bits(value.to_bits() << 23)))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut parts = self.0;
        let mut half = LANE / 2;
        while half > 0 {
            for i in 0..half {
                parts[i] += parts[i + half];
            }
            half /= 2;
        }
        parts[0]
    }

    #[inline(always)]
    unsafe fn add_squares(self, mut to: Self::Wide) -> Self::Wide {
        for (sum, value) in to.iter_mut().zip(self.0) {
            *sum += f64::from(value) * f64::from(value);
        }
        to
    }

    #[inline(always)]
    unsafe fn load_wide(from: &[f64; LANE]) -> Self::Wide {
        *from
    }

    #[inline(always)]
    unsafe fn store_wide(wide: Self::Wide, to: &mut [f64; LANE]) {
        *to = wide;
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}

    #[inline(always)]
    unsafe fn prefetch_far(_: *const f32) {}
}
