//! Fetches what the next head reads into the second-level cache while this one is computed. Its rows lie a stride apart, a
//! line or a few of each, and pages between some of them: no prefetcher of a CPU finds them. Knows nothing about arithmetic.

use super::super::Lanes;
use super::AttentionBlock;
use super::seen::Keys;
use crate::panels::LANE;
use std::ops::Range;

/// What one block fetches: the rows of its own vectors and of its share of the keys, each when it comes across the same row
/// of its own head, so that there is much to compute between any two.
pub(super) struct Ahead {
    keys: Range<usize>,
    next: [usize; 3],
    d: usize,
    e: usize,
}

impl Ahead {
    pub(super) fn of(block: &AttentionBlock) -> Ahead {
        let share = |vector: usize| vector * block.keys / (block.queries * block.group);
        // With one lane of vectors there is too little to compute meanwhile.
        let vectors = if block.count > LANE { block.count } else { 0 };
        Ahead {
            keys: share(block.first)..share(block.first + vectors),
            next: block.next,
            d: block.d,
            e: block.e,
        }
    }

    /// # Safety
    /// The CPU has the instructions of `L`.
    #[inline(always)]
    pub(super) unsafe fn fetch_queries<L: Lanes>(&self, q: &[*const f32]) {
        if !self.keys.is_empty() {
            for &q in q {
                // SAFETY: the caller's instructions.
                unsafe { fetch::<L>(q.wrapping_add(self.next[0]), self.d) };
            }
        }
    }

    /// # Safety
    /// The CPU has the instructions of `L`.
    #[inline(always)]
    pub(super) unsafe fn fetch_keys<L: Lanes>(
        &self,
        block: &AttentionBlock,
        keys: &Keys,
        places: Range<usize>,
    ) {
        for place in places {
            if self.keys.contains(&keys.number[place]) {
                // SAFETY: the caller's instructions.
                unsafe {
                    fetch::<L>(keys.k(block, place).wrapping_add(self.next[1]), self.d);
                    fetch::<L>(keys.v(block, place).wrapping_add(self.next[2]), self.e);
                }
            }
        }
    }
}

/// # Safety
/// The CPU has the instructions of `L`.
#[inline(always)]
unsafe fn fetch<L: Lanes>(row: *const f32, width: usize) {
    for column in (0..width).step_by(LANE) {
        // SAFETY: the caller's instructions; a prefetch may be of any address.
        unsafe { L::prefetch_far(row.wrapping_add(column)) };
    }
}
