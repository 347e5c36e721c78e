//! Kernels for x86-64 with AVX2 and FMA: a lane is two registers of the sixteen, so a full tile is one lane wide.

use core::arch::x86_64::{
    __m256, _MM_HINT_T0, _mm_prefetch, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps,
    _mm256_set1_ps, _mm256_storeu_ps,
};

use super::{Block, KernelSet, Kernels, Lanes, NormBlock, norm, stream, tile};
use crate::panels::LANE;

pub(super) static KERNELS: Kernels = Kernels { set: KernelSet::Avx2, product, row_norm, stream };

#[target_feature(enable = "avx2,fma")]
unsafe fn product(block: &Block) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { tile::product::<Ymm>(block) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn row_norm(block: &NormBlock) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { norm::row_norm::<Ymm>(block) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn stream(from: *const f32, count: usize) -> f32 {
    // SAFETY: the floats are the caller's promise, the instructions this function's.
    unsafe { stream::stream::<Ymm>(from, count) }
}

#[derive(Clone, Copy)]
struct Ymm(__m256, __m256);

// Every block below has one reason: the CPU has AVX2 and FMA and the pointers are good for the floats that the method
// names, as its caller promises.
impl Lanes for Ymm {
    #[inline(always)]
    fn tile_lanes(rows: usize) -> usize {
        match rows {
            1 => 4,
            2 => 2,
            _ => 1,
        }
    }

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
        // SAFETY: as above; the part goes through a whole lane on the stack.
        unsafe {
            if count == LANE {
                return Ymm::load(from);
            }
            let mut lane = [0.0; LANE];
            lane.as_mut_ptr().copy_from_nonoverlapping(from, count);
            Ymm::load(lane.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: as above; the part goes through a whole lane on the stack.
        unsafe {
            if count == LANE {
                return self.store(to);
            }
            let mut lane = [0.0; LANE];
            self.store(lane.as_mut_ptr());
            to.copy_from_nonoverlapping(lane.as_ptr(), count);
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
    unsafe fn prefetch(from: *const f32) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
}
