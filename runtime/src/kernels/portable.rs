//! Kernels in plain Rust, which the compiler turns into whatever vectors the target has.

use super::{
    AttentionBlock, Block, DotBlock, KernelSet, Kernels, Lanes, MergeBlock, NormBlock, attention, dot,
    layer_norm, merge, norm, peak, stream, tile, unary,
};
use crate::abi::{LayerNorm, Unary};
use crate::panels::LANE;

pub(super) static KERNELS: Kernels = Kernels {
    set: KernelSet::Portable,
    tile_rows: tile::rows(Floats::ACCUMULATORS),
    product,
    dot,
    row_norm,
    merge,
    attention,
    layer_norm,
    unary,
    stream,
    peak,
};

unsafe fn product(block: &Block<'_>) {
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

unsafe fn merge(block: &MergeBlock) {
    // SAFETY: the block is the caller's promise; plain Rust runs on any CPU.
    unsafe { merge::merge::<Floats>(block) }
}

unsafe fn attention(block: &AttentionBlock) {
    // SAFETY: the block is the caller's promise; plain Rust runs on any CPU.
    unsafe { attention::attention::<Floats>(block) }
}

unsafe fn layer_norm(norm: &LayerNorm) {
    // SAFETY: the rows are the caller's promise; plain Rust runs on any CPU.
    unsafe { layer_norm::layer_norm::<Floats>(norm) }
}

unsafe fn unary(call: &Unary) {
    // SAFETY: the floats are the caller's promise; plain Rust runs on any CPU.
    unsafe { unary::unary::<Floats>(call) }
}

unsafe fn stream(from: *const f32, count: usize) -> f32 {
    // SAFETY: the floats are the caller's promise; plain Rust runs on any CPU.
    unsafe { stream::stream::<Floats>(from, count) }
}

unsafe fn peak(count: usize) -> f32 {
    // SAFETY: the instructions are this function's.
    unsafe { peak::peak::<Floats>(count) }
}

/// Whether the target has a fused multiply-add: where it has none, `f32::mul_add` is a slow call into a library.
const FUSES: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

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
        if FUSES {
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
    unsafe fn sub(self, what: Floats) -> Floats {
        self.zip(what, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn square_add(self, mut to: Floats) -> Floats {
        for (to, value) in to.0.iter_mut().zip(self.0) {
            *to = (f64::from(value) * f64::from(value) + f64::from(*to)) as f32;
        }
        to
    }

    #[inline(always)]
    unsafe fn div(self, by: Floats) -> Floats {
        self.zip(by, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn shift_left(self, places: u32) -> Floats {
        Floats(self.0.map(|value| f32::from_bits(value.to_bits() << places)))
    }

    #[inline(always)]
    unsafe fn add_bits(self, other: Floats) -> Floats {
        self.zip(other, |a, b| f32::from_bits(a.to_bits().wrapping_add(b.to_bits())))
    }

    #[inline(always)]
    unsafe fn flip_sign(self, by: Floats) -> Floats {
        self.zip(by, |a, b| f32::from_bits(a.to_bits() ^ (b.to_bits() & (-0.0_f32).to_bits())))
    }

    #[inline(always)]
    unsafe fn by_sign(self, negative: Floats, other: Floats) -> Floats {
        let mut result = self;
        for (value, (negative, other)) in result.0.iter_mut().zip(negative.0.into_iter().zip(other.0)) {
            *value = if value.is_sign_negative() { negative } else { other };
        }
        result
    }

    #[inline(always)]
    unsafe fn interleave(self, other: Floats) -> [Floats; 2] {
        let half = |first: usize| {
            Floats(std::array::from_fn(|i| [self.0[first + i / 2], other.0[first + i / 2]][i % 2]))
        };
        [half(0), half(LANE / 2)]
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
    unsafe fn widen(self) -> Self::Wide {
        self.0.map(f64::from)
    }

    #[inline(always)]
    unsafe fn narrow(wide: Self::Wide) -> Floats {
        Floats(wide.map(|value| value as f32))
    }

    #[inline(always)]
    unsafe fn wide(value: f64) -> Self::Wide {
        [value; LANE]
    }

    #[inline(always)]
    unsafe fn wide_mul_add(wide: Self::Wide, by: Self::Wide, mut to: Self::Wide) -> Self::Wide {
        for (to, (value, by)) in to.iter_mut().zip(wide.into_iter().zip(by)) {
            // As for `mul_add`.
            *to = if FUSES { value.mul_add(by, *to) } else { value * by + *to };
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
