//! Kernels for x86-64 with AVX-512F: a lane is one register, a full tile 24 of the 32.

use core::arch::x86_64::{
    __m256, __m512, __m512d, _MM_HINT_T0, _MM_HINT_T1, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32,
    _mm_movehdup_ps, _mm_movehl_ps, _mm_prefetch, _mm_storeu_ps, _mm256_castpd_ps, _mm256_castps_pd,
    _mm256_castps256_ps128, _mm256_extractf128_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512,
    _mm512_castpd_ps, _mm512_castpd256_pd512, _mm512_castps_pd, _mm512_castps_si512, _mm512_castps512_ps128,
    _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cmplt_epi32_mask, _mm512_cvtpd_ps, _mm512_cvtps_pd,
    _mm512_div_ps, _mm512_extractf64x4_pd, _mm512_fmadd_pd, _mm512_fmadd_ps, _mm512_insertf64x4,
    _mm512_loadu_pd, _mm512_loadu_ps, _mm512_mask_blend_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_max_ps, _mm512_min_ps, _mm512_movehdup_ps, _mm512_mul_ps, _mm512_permute_ps,
    _mm512_permutex2var_ps, _mm512_permutexvar_ps, _mm512_set1_epi32, _mm512_set1_pd, _mm512_set1_ps,
    _mm512_setr_epi32, _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_sllv_epi32, _mm512_storeu_pd,
    _mm512_storeu_ps, _mm512_sub_ps, _mm512_xor_si512,
};

use super::{
    AttentionBlock, Block, DotBlock, KernelSet, Kernels, Lanes, MergeBlock, NormBlock, attention, dot,
    layer_norm, merge, norm, peak, stream, tile, unary,
};
use crate::abi::{LayerNorm, Unary};
use crate::panels::LANE;

pub(super) static KERNELS: Kernels = Kernels {
    set: KernelSet::Avx512,
    tile_rows: tile::rows(Zmm::ACCUMULATORS),
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

#[target_feature(enable = "avx512f")]
unsafe fn product(block: &Block<'_>) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { tile::product::<Zmm>(block) }
}

#[target_feature(enable = "avx512f")]
unsafe fn dot(block: &DotBlock) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { dot::dot::<Zmm>(block) }
}

#[target_feature(enable = "avx512f")]
unsafe fn row_norm(block: &NormBlock) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { norm::row_norm::<Zmm>(block) }
}

#[target_feature(enable = "avx512f")]
unsafe fn merge(block: &MergeBlock) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { merge::merge::<Zmm>(block) }
}

#[target_feature(enable = "avx512f")]
unsafe fn attention(block: &AttentionBlock) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { attention::attention::<Zmm>(block) }
}

#[target_feature(enable = "avx512f")]
unsafe fn layer_norm(norm: &LayerNorm) {
    // SAFETY: the rows are the caller's promise, the instructions this function's.
    unsafe { layer_norm::layer_norm::<Zmm>(norm) }
}

#[target_feature(enable = "avx512f")]
unsafe fn unary(call: &Unary) {
    // SAFETY: the floats are the caller's promise, the instructions this function's.
    unsafe { unary::unary::<Zmm>(call) }
}

#[target_feature(enable = "avx512f")]
unsafe fn stream(from: *const f32, count: usize) -> f32 {
    // SAFETY: the floats are the caller's promise, the instructions this function's.
    unsafe { stream::stream::<Zmm>(from, count) }
}

#[target_feature(enable = "avx512f")]
unsafe fn peak(count: usize) -> f32 {
    // SAFETY: the instructions are this function's.
    unsafe { peak::peak::<Zmm>(count) }
}

#[derive(Clone, Copy)]
pub(super) struct Zmm(__m512);

/// # Safety
/// The CPU has AVX-512F.
#[inline(always)]
unsafe fn halves(lane: Zmm) -> (__m256, __m256) {
    // SAFETY: the CPU has the instructions.
    unsafe {
        let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(lane.0));
        (_mm512_castps512_ps256(lane.0), _mm256_castpd_ps(high))
    }
}

/// The mask of the first `count <= 16` floats.
#[inline(always)]
fn first(count: usize) -> u16 {
    ((1_u32 << count) - 1) as u16
}

// Every block below has one reason: the CPU has AVX-512F and the pointers are good for the floats that the method names,
// as its caller promises.
impl Lanes for Zmm {
    type Wide = [__m512d; 2];
    const ACCUMULATORS: usize = 24;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Zmm {
        // SAFETY: as above.
        Zmm(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Zmm {
        // SAFETY: as above.
        Zmm(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Zmm {
        // SAFETY: as above; a masked load touches nothing else.
        Zmm(unsafe { _mm512_maskz_loadu_ps(first(count), from) })
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: as above; a masked store touches nothing else.
        unsafe { _mm512_mask_storeu_ps(to, first(count), self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, by: Zmm, to: Zmm) -> Zmm {
        // SAFETY: as above.
        Zmm(unsafe { _mm512_fmadd_ps(self.0, by.0, to.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, by: Zmm) -> Zmm {
        // SAFETY: as above.
        Zmm(unsafe { _mm512_mul_ps(self.0, by.0) })
    }

    #[inline(always)]
    unsafe fn add(self, to: Zmm) -> Zmm {
        // SAFETY: as above.
        Zmm(unsafe { _mm512_add_ps(self.0, to.0) })
    }

    #[inline(always)]
    unsafe fn min(self, other: Zmm) -> Zmm {
        // SAFETY: as above.
        Zmm(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Zmm) -> Zmm {
        // SAFETY: as above.
        Zmm(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn sub(self, what: Zmm) -> Zmm {
        // SAFETY: as above.
        Zmm(unsafe { _mm512_sub_ps(self.0, what.0) })
    }

    #[inline(always)]
    unsafe fn square_add(self, to: Zmm) -> Zmm {
        // SAFETY: as above.
        unsafe { self.mul_add(self, to) }
    }

    #[inline(always)]
    unsafe fn div(self, by: Zmm) -> Zmm {
        // SAFETY: as above.
        Zmm(unsafe { _mm512_div_ps(self.0, by.0) })
    }

    #[inline(always)]
    unsafe fn shift_left(self, places: u32) -> Zmm {
        // SAFETY: as above.
        unsafe {
            let places = _mm512_set1_epi32(places.cast_signed());
            Zmm(_mm512_castsi512_ps(_mm512_sllv_epi32(_mm512_castps_si512(self.0), places)))
        }
    }

    #[inline(always)]
    unsafe fn add_bits(self, other: Zmm) -> Zmm {
        // SAFETY: as above.
        unsafe {
            let sum = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_castps_si512(other.0));
            Zmm(_mm512_castsi512_ps(sum))
        }
    }

    #[inline(always)]
    unsafe fn flip_sign(self, by: Zmm) -> Zmm {
        // SAFETY: as above.
        unsafe {
            let sign = _mm512_and_si512(_mm512_castps_si512(by.0), _mm512_set1_epi32(i32::MIN));
            Zmm(_mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(self.0), sign)))
        }
    }

    #[inline(always)]
    unsafe fn by_sign(self, negative: Zmm, other: Zmm) -> Zmm {
        // SAFETY: as above.
        unsafe {
            let is_negative = _mm512_cmplt_epi32_mask(_mm512_castps_si512(self.0), _mm512_setzero_si512());
            Zmm(_mm512_mask_blend_ps(is_negative, other.0, negative.0))
        }
    }

    #[inline(always)]
    unsafe fn interleave(self, other: Zmm) -> [Zmm; 2] {
        // SAFETY: as above.
        unsafe {
            // Floats of the other one count from 16 on.
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            [low, high].map(|places| Zmm(_mm512_permutex2var_ps(self.0, places, other.0)))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as above. The first addition is of whole registers: narrower ones reach only half of the registers, and a
        // caller that sums many lanes up in the end would have to keep them all there.
        unsafe {
            let swapped = _mm512_shuffle_f32x4::<0b01_00_11_10>(self.0, self.0);
            let eight = _mm512_castps512_ps256(_mm512_add_ps(self.0, swapped));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn sums(lanes: [Zmm; 4]) -> [f32; 4] {
        // The registers are transposed by halves as they are added: eight floats of two lanes side by side, then four of
        // four, then pairs in place. Only what all 32 registers can do comes before the last step, as for `sum`.
        // SAFETY: as above.
        unsafe {
            let [a, b, c, d] = lanes.map(|lane| lane.0);
            // a's upper half comes to its lower one, and b's the other way round.
            let eights = |a, b| {
                let outer = _mm512_mask_blend_ps(0xff00, a, b);
                _mm512_add_ps(outer, _mm512_shuffle_f32x4::<0b01_00_11_10>(a, b))
            };
            let (ab, cd) = (eights(a, b), eights(c, d));
            let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
            let fours = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd));
            let twos = _mm512_add_ps(fours, _mm512_permute_ps::<0b11_10_11_10>(fours));
            let ones = _mm512_add_ps(twos, _mm512_movehdup_ps(twos));
            let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, ones)));
            sums
        }
    }

    #[inline(always)]
    unsafe fn widen(self) -> Self::Wide {
        // SAFETY: as above.
        unsafe {
            let (low, high) = halves(self);
            [_mm512_cvtps_pd(low), _mm512_cvtps_pd(high)]
        }
    }

    #[inline(always)]
    unsafe fn narrow(wide: Self::Wide) -> Zmm {
        // SAFETY: as above.
        unsafe {
            let [low, high] = wide.map(|half| _mm256_castps_pd(_mm512_cvtpd_ps(half)));
            Zmm(_mm512_castpd_ps(_mm512_insertf64x4::<1>(_mm512_castpd256_pd512(low), high)))
        }
    }

    #[inline(always)]
    unsafe fn wide(value: f64) -> Self::Wide {
        // SAFETY: as above.
        [unsafe { _mm512_set1_pd(value) }; 2]
    }

    #[inline(always)]
    unsafe fn wide_mul_add(wide: Self::Wide, by: Self::Wide, to: Self::Wide) -> Self::Wide {
        // SAFETY: as above.
        std::array::from_fn(|half| unsafe { _mm512_fmadd_pd(wide[half], by[half], to[half]) })
    }

    #[inline(always)]
    unsafe fn load_wide(from: &[f64; LANE]) -> Self::Wide {
        // SAFETY: as above; the halves lie in the array.
        unsafe { [_mm512_loadu_pd(from.as_ptr()), _mm512_loadu_pd(from.as_ptr().add(LANE / 2))] }
    }

    #[inline(always)]
    unsafe fn store_wide([low, high]: Self::Wide, to: &mut [f64; LANE]) {
        // SAFETY: as above; the halves lie in the array.
        unsafe {
            _mm512_storeu_pd(to.as_mut_ptr(), low);
            _mm512_storeu_pd(to.as_mut_ptr().add(LANE / 2), high);
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
