//! Which keys each vector of a block sees, and the blocks of keys that are there. Knows nothing about scores.

use super::{AttentionBlock, KEYS, Mask, VECTORS};
use crate::panels::LANE;

/// What is known of each vector.
pub(super) struct Vectors {
    pub(super) q: [*const f32; VECTORS],
    pub(super) y: [*mut f32; VECTORS],
    /// The keys that any vector sees, but for the mask, and those that all see.
    seen: [usize; 2],
    common: [usize; 2],
    /// The largest score yet, the one that the last weights are relative to, and their sum.
    pub(super) max: [f32; VECTORS],
    pub(super) base: [f32; VECTORS],
    pub(super) sum: [f32; VECTORS],
    /// What a block multiplies that came before it by, and what the last one multiplies all by.
    pub(super) decay: [f32; VECTORS],
    pub(super) share: [f32; VECTORS],
}

/// The keys of one block, as far as they are there.
pub(super) struct Keys {
    pub(super) count: usize,
    pub(super) number: [usize; KEYS],
    /// Which of them each vector sees: `from[t]..to[t]`, as floats; the former negated.
    pub(super) from: [f32; VECTORS],
    pub(super) to: [f32; VECTORS],
    /// Those that any vector sees.
    pub(super) seen: [usize; 2],
    /// Those that all vectors see.
    pub(super) common: [usize; 2],
}

/// The keys that a query sees, but for the mask.
#[inline(always)]
fn sees(block: &AttentionBlock, row: usize) -> [usize; 2] {
    // The query stands at key `keys - queries + row`: after it come `queries - row - 1`, and it is one itself.
    let up_to = (block.keys + row + 1).saturating_sub(block.queries);
    let window = usize::try_from(block.window).unwrap_or(usize::MAX);
    let from = (block.keys + row + 1).saturating_sub(block.queries.saturating_add(window));
    [from, if block.causal { up_to.min(block.keys) } else { block.keys }]
}

impl Vectors {
    #[inline(always)]
    pub(super) fn of(block: &AttentionBlock) -> Vectors {
        let (row, mut head) = (block.first / block.group, block.first % block.group);
        // The further down a query, the further down the keys that it sees.
        let [first, last] = [row, (block.first + block.count - 1) / block.group].map(|row| sees(block, row));
        let mut vectors = Vectors {
            q: [block.q; VECTORS],
            y: [block.y; VECTORS],
            seen: [first[0], last[1]],
            common: [last[0], first[1]],
            max: [f32::NEG_INFINITY; VECTORS],
            base: [f32::NEG_INFINITY; VECTORS],
            sum: [0.0; VECTORS],
            decay: [1.0; VECTORS],
            share: [1.0; VECTORS],
        };
        let mut q = block.q.wrapping_add(row * block.q_row_stride + head * block.d);
        let mut y = block.y.wrapping_add(row * block.y_row_stride + head * block.e);
        // Beyond the last, the last again.
        for t in 0..block.count.next_multiple_of(LANE) {
            (vectors.q[t], vectors.y[t]) = (q, y);
            if t + 1 < block.count {
                (q, y, head) = (q.wrapping_add(block.d), y.wrapping_add(block.e), head + 1);
                if head == block.group {
                    head = 0;
                    q = q.wrapping_add(block.q_row_stride).wrapping_sub(block.group * block.d);
                    y = y.wrapping_add(block.y_row_stride).wrapping_sub(block.group * block.e);
                }
            }
        }
        vectors
    }

    /// The keys to look at: from the first of a block that a vector sees, without the mask, to after the last.
    #[inline(always)]
    pub(super) fn range(&self, block: &AttentionBlock) -> (usize, usize) {
        let first = match block.mask {
            Mask::None => self.seen[0] / KEYS * KEYS,
            // Blocks are counted in keys that are there, so from the beginning.
            Mask::I32(_) | Mask::I64(_) => 0,
        };
        (first, self.seen[1])
    }
}

impl Keys {
    #[inline(always)]
    pub(super) fn new() -> Keys {
        Keys {
            count: 0,
            number: [0; KEYS],
            from: [0.0; VECTORS],
            to: [0.0; VECTORS],
            seen: [0; 2],
            common: [0; 2],
        }
    }

    /// Takes the next keys that are there, from `next` on; whether there are any.
    ///
    /// # Safety
    /// The block's mask has `end` integers.
    #[inline(always)]
    pub(super) unsafe fn find(&mut self, block: &AttentionBlock, next: &mut usize, end: usize) -> bool {
        match block.mask {
            Mask::None => {
                self.count = end.saturating_sub(*next).min(KEYS);
                for place in 0..self.count {
                    self.number[place] = *next + place;
                }
                *next += self.count;
            }
            // SAFETY: keys stay below `end`.
            Mask::I32(mask) => self.take(next, end, |key| unsafe { *mask.add(key) != 0 }),
            // SAFETY: keys stay below `end`.
            Mask::I64(mask) => self.take(next, end, |key| unsafe { *mask.add(key) != 0 }),
        }
        self.count > 0
    }

    /// Whether no key is there from `next` on.
    ///
    /// # Safety
    /// The block's mask has `end` integers.
    #[inline(always)]
    pub(super) unsafe fn are_last(block: &AttentionBlock, next: usize, end: usize) -> bool {
        match block.mask {
            Mask::None => next >= end,
            // SAFETY: keys stay below `end`.
            Mask::I32(mask) => (next..end).all(|key| unsafe { *mask.add(key) == 0 }),
            // SAFETY: keys stay below `end`.
            Mask::I64(mask) => (next..end).all(|key| unsafe { *mask.add(key) == 0 }),
        }
    }

    #[inline(always)]
    fn take(&mut self, next: &mut usize, end: usize, is_there: impl Fn(usize) -> bool) {
        let mut count = 0;
        while *next < end && count < KEYS {
            self.number[count] = *next;
            count += usize::from(is_there(*next));
            *next += 1;
        }
        self.count = count;
    }

    /// Where a key's row of k is.
    #[inline(always)]
    pub(super) fn k(&self, block: &AttentionBlock, place: usize) -> *const f32 {
        block.k.wrapping_add(self.number[place] * block.k_row_stride)
    }

    /// Where its row of v is.
    #[inline(always)]
    pub(super) fn v(&self, block: &AttentionBlock, place: usize) -> *const f32 {
        block.v.wrapping_add(self.number[place] * block.v_row_stride)
    }

    /// Finds which of the keys each vector sees; whether any does.
    #[inline(always)]
    pub(super) fn narrow(&mut self, block: &AttentionBlock, vectors: &Vectors) -> bool {
        let numbers = &self.number[..self.count];
        let Some((&first, &last)) = numbers.first().zip(numbers.last()) else { return false };
        if vectors.common[0] <= first && last < vectors.common[1] {
            self.seen = [0, self.count];
            self.common = self.seen;
            return true;
        }
        let place = |key: usize| match key {
            _ if key <= first => 0,
            _ if key > last => numbers.len(),
            _ => numbers.partition_point(|&number| number < key),
        };
        (self.seen, self.common) = ([self.count, 0], [0, self.count]);
        let (mut row, mut head) = (block.first / block.group, block.first % block.group);
        let mut places = sees(block, row).map(place);
        for t in 0..block.count {
            let [from, to] = places;
            (self.from[t], self.to[t]) = (-(from as f32), to as f32);
            self.seen = [self.seen[0].min(from), self.seen[1].max(to)];
            self.common = [self.common[0].max(from), self.common[1].min(to)];
            head += 1;
            if head == block.group {
                (row, head) = (row + 1, 0);
                places = sees(block, row).map(place);
            }
        }
        self.seen[0] < self.seen[1]
    }

    /// Whether some vectors see keys that others don't.
    pub(super) fn is_ragged(&self) -> bool {
        self.seen != self.common
    }
}
