//! Kernels for x86-64 with AVX2 and FMA: a lane is two registers of the sixteen, so a tile of six rows is one lane wide.

use core::arch::x86_64::{
    __m256, __m256d, __m256i, _MM_HINT_T0, _MM_HINT_T1, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32,
    _mm_movehdup_ps, _mm_movehl_ps, _mm_prefetch, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps,
    _mm256_blendv_ps, _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps, _mm256_cmpgt_epi32,
    _mm256_cvtpd_ps, _mm256_cvtps_pd, _mm256_div_ps, _mm256_extractf128_ps, _mm256_fmadd_pd, _mm256_fmadd_ps,
    _mm256_loadu_pd, _mm256_loadu_ps, _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_max_ps, _mm256_min_ps,
    _mm256_mul_ps, _mm256_permute2f128_ps, _mm256_set_m128, _mm256_set1_epi32, _mm256_set1_pd,
    _mm256_set1_ps, _mm256_setr_epi32, _mm256_sllv_epi32, _mm256_storeu_pd, _mm256_storeu_ps, _mm256_sub_ps,
    _mm256_unpackhi_ps, _mm256_unpacklo_ps, _mm256_xor_ps,
};

use super::{
    AttentionBlock, Block, DotBlock, KernelSet, Kernels, Lanes, MergeBlock, NormBlock, attention, dot,
    layer_norm, merge, norm, peak, stream, tile, unary,
};
use crate::abi::{LayerNorm, Unary};
use crate::panels::LANE;

pub(super) static KERNELS: Kernels = Kernels {
    set: KernelSet::Avx2,
    tile_rows: tile::rows(Ymm::ACCUMULATORS),
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

#[target_feature(enable = "avx2,fma")]
unsafe fn product(block: &Block<'_>) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { tile::product::<Ymm>(block) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn dot(block: &DotBlock) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { dot::dot::<Ymm>(block) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn row_norm(block: &NormBlock) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { norm::row_norm::<Ymm>(block) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn merge(block: &MergeBlock) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { merge::merge::<Ymm>(block) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn attention(block: &AttentionBlock) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { attention::attention::<Ymm>(block) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn layer_norm(norm: &LayerNorm) {
    // SAFETY: the rows are the caller's promise, the instructions this function's.
    unsafe { layer_norm::layer_norm::<Ymm>(norm) }
}

/// Row by row, as there are too few registers to keep a function's constants in over all rows.
unsafe fn unary(call: &Unary) {
    // SAFETY: the rows' floats and the instructions are the caller's promise.
    unary::rows(call).for_each(|row| unsafe { unary_row(&row) });
}

#[target_feature(enable = "avx2,fma")]
unsafe fn unary_row(call: &Unary) {
    // SAFETY: the floats are the caller's promise, the instructions this function's.
    unsafe { unary::unary::<Ymm>(&Unary { rows: 1, ..*call }) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn stream(from: *const f32, count: usize) -> f32 {
    // SAFETY: the floats are the caller's promise, the instructions this function's.
    unsafe { stream::stream::<Ymm>(from, count) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn peak(count: usize) -> f32 {
    // SAFETY: the instructions are this function's.
    unsafe { peak::peak::<Ymm>(count) }
}

#[derive(Clone, Copy)]
pub(super) struct Ymm(__m256, __m256);

/// The masks of the first `count <= 16` floats.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn first(count: usize) -> [__m256i; 2] {
    // SAFETY: the CPU has the instructions.
    unsafe {
        let count = _mm256_set1_epi32(count as i32);
        let low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
        [_mm256_cmpgt_epi32(count, low), _mm256_cmpgt_epi32(count, high)]
    }
}

// Every block below has one reason: the CPU has AVX2 and FMA and the pointers are good for the floats that the method
// names, as its caller promises.
impl Lanes for Ymm {
    type Wide = [__m256d; 4];
    const ACCUMULATORS: usize = 6;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Ymm {
        // SAFETY: as above.
        let half = unsafe { _mm256_set1_ps(value) };
        Ymm(half, half)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Ymm {
        // SAFETY: as above.
        unsafe { Ymm(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(LANE / 2))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(LANE / 2), self.1);
        }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Ymm {
        // SAFETY: as above; a masked load touches nothing else.
        unsafe {
            if count == LANE {
                return Ymm::load(from);
            }
            let [low, high] = first(count);
            Ymm(_mm256_maskload_ps(from, low), _mm256_maskload_ps(from.wrapping_add(LANE / 2), high))
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: as above; a masked store touches nothing else.
        unsafe {
            if count == LANE {
                return self.store(to);
            }
            let [low, high] = first(count);
            _mm256_maskstore_ps(to, low, self.0);
            _mm256_maskstore_ps(to.wrapping_add(LANE / 2), high, self.1);
        }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Ymm, to: Ymm) -> Ymm {
        // SAFETY: as above.
        unsafe { Ymm(_mm256_fmadd_ps(self.0, by.0, to.0), _mm256_fmadd_ps(self.1, by.1, to.1)) }
    }

    #[inline(always)]
    unsafe fn mul(self, by: Ymm) -> Ymm {
        // SAFETY: as above.
        unsafe { Ymm(_mm256_mul_ps(self.0, by.0), _mm256_mul_ps(self.1, by.1)) }
    }

    #[inline(always)]
    unsafe fn add(self, to: Ymm) -> Ymm {
        // SAFETY: as above.
        unsafe { Ymm(_mm256_add_ps(self.0, to.0), _mm256_add_ps(self.1, to.1)) }
    }

    #[inline(always)]
    unsafe fn min(self, other: Ymm) -> Ymm {
        // SAFETY: as above.
        unsafe { Ymm(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Ymm) -> Ymm {
        // SAFETY: as above.
        unsafe { Ymm(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn sub(self, what: Ymm) -> Ymm {
        // SAFETY: as above.
        unsafe { Ymm(_mm256_sub_ps(self.0, what.0), _mm256_sub_ps(self.1, what.1)) }
    }

    #[inline(always)]
    unsafe fn square_add(self, to: Ymm) -> Ymm {
        // SAFETY: as above.
        unsafe { self.mul_add(self, to) }
    }

    #[inline(always)]
    unsafe fn div(self, by: Ymm) -> Ymm {
        // SAFETY: as above.
        unsafe { Ymm(_mm256_div_ps(self.0, by.0), _mm256_div_ps(self.1, by.1)) }
    }

    #[inline(always)]
    unsafe fn shift_left(self, places: u32) -> Ymm {
        // SAFETY: as above.
        let shift = |half| unsafe {
            let places = _mm256_set1_epi32(places.cast_signed());
            _mm256_castsi256_ps(_mm256_sllv_epi32(_mm256_castps_si256(half), places))
        };
        Ymm(shift(self.0), shift(self.1))
    }

    #[inline(always)]
    unsafe fn add_bits(self, other: Ymm) -> Ymm {
        // SAFETY: as above.
        let add = |half, other| unsafe {
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(half), _mm256_castps_si256(other)))
        };
        Ymm(add(self.0, other.0), add(self.1, other.1))
    }

    #[inline(always)]
    unsafe fn flip_sign(self, by: Ymm) -> Ymm {
        // SAFETY: as above.
        let flip = |half, by| unsafe { _mm256_xor_ps(half, _mm256_and_ps(by, _mm256_set1_ps(-0.0))) };
        Ymm(flip(self.0, by.0), flip(self.1, by.1))
    }

    #[inline(always)]
    unsafe fn by_sign(self, negative: Ymm, other: Ymm) -> Ymm {
        // SAFETY: as above.
        unsafe {
            let low = _mm256_blendv_ps(other.0, negative.0, self.0);
            Ymm(low, _mm256_blendv_ps(other.1, negative.1, self.1))
        }
    }

    #[inline(always)]
    unsafe fn interleave(self, other: Ymm) -> [Ymm; 2] {
        // The instructions interleave quarters of a lane.
        // SAFETY: as above.
        let interleave = |half, other| unsafe {
            let (even, odd) = (_mm256_unpacklo_ps(half, other), _mm256_unpackhi_ps(half, other));
            Ymm(_mm256_permute2f128_ps::<0x20>(even, odd), _mm256_permute2f128_ps::<0x31>(even, odd))
        };
        [interleave(self.0, other.0), interleave(self.1, other.1)]
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as above.
        unsafe {
            let eight = _mm256_add_ps(self.0, self.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn widen(self) -> Self::Wide {
        // SAFETY: as above.
        unsafe {
            let halves = [self.0, self.1];
            let [a, c] = halves.map(|half| _mm256_cvtps_pd(_mm256_castps256_ps128(half)));
            let [b, d] = halves.map(|half| _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(half)));
            [a, b, c, d]
        }
    }

    #[inline(always)]
    unsafe fn narrow(wide: Self::Wide) -> Ymm {
        // SAFETY: as above.
        unsafe {
            let [a, b, c, d] = wide.map(|quarter| _mm256_cvtpd_ps(quarter));
            Ymm(_mm256_set_m128(b, a), _mm256_set_m128(d, c))
        }
    }

    #[inline(always)]
    unsafe fn wide(value: f64) -> Self::Wide {
        // SAFETY: as above.
        [unsafe { _mm256_set1_pd(value) }; 4]
    }

    #[inline(always)]
    unsafe fn wide_mul_add(wide: Self::Wide, by: Self::Wide, to: Self::Wide) -> Self::Wide {
        // SAFETY: as above.
        std::array::from_fn(|quarter| unsafe { _mm256_fmadd_pd(wide[quarter], by[quarter], to[quarter]) })
    }

    #[inline(always)]
    unsafe fn load_wide(from: &[f64; LANE]) -> Self::Wide {
        // SAFETY: as above; the quarters lie in the array.
        std::array::from_fn(|quarter| unsafe { _mm256_loadu_pd(from.as_ptr().add(quarter * LANE / 4)) })
    }

    #[inline(always)]
    unsafe fn store_wide(wide: Self::Wide, to: &mut [f64; LANE]) {
        for (quarter, wide) in wide.into_iter().enumerate() {
            // SAFETY: as above; the quarters lie in the array.
            unsafe { _mm256_storeu_pd(to.as_mut_ptr().add(quarter * LANE / 4), wide) };
        }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn prefetch_far(from: *const f32) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
}
