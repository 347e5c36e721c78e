//! Kernels for x86-64 with AVX-512F: a lane is one register, a full tile 24 of the 32.

use core::arch::x86_64::{
    __m512, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_storeu_ps,
};

use super::{Block, KernelSet, Kernels, Lanes, NormBlock, norm, stream, tile};

pub(super) static KERNELS: Kernels = Kernels { set: KernelSet::Avx512, product, row_norm, stream };

#[target_feature(enable = "avx512f")]
unsafe fn product(block: &Block) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { tile::product::<Zmm>(block) }
}

#[target_feature(enable = "avx512f")]
unsafe fn row_norm(block: &NormBlock) {
    // SAFETY: the block is the caller's promise, the instructions this function's.
    unsafe { norm::row_norm::<Zmm>(block) }
}

#[target_feature(enable = "avx512f")]
unsafe fn stream(from: *const f32, count: usize) -> f32 {
    // SAFETY: the floats are the caller's promise, the instructions this function's.
    unsafe { stream::stream::<Zmm>(from, count) }
}

#[derive(Clone, Copy)]
struct Zmm(__m512);

/// The mask of the first `count <= 16` floats.
#[inline(always)]
fn first(count: usize) -> u16 {
    ((1_u32 << count) - 1) as u16
}

// Every block below has one reason: the CPU has AVX-512F and the pointers are good for the floats that the method names,
// as its caller promises.
impl Lanes for Zmm {
    #[inline(always)]
    fn tile_lanes(_: usize) -> usize {
        4
    }

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
    unsafe fn prefetch(from: *const f32) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
}
