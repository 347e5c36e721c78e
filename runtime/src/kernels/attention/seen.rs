//! Which keys each vector of a block sees, and the blocks of keys that are there. Knows nothing about scores.

use super::{AttentionBlock, KEYS, Mask, VECTORS};

/// What is known of each vector.
pub(super) struct Vectors {
    pub(super) q: [*const f32; VECTORS],
    pub(super) y: [*mut f32; VECTORS],
    /// The keys that it sees, but for the mask: `from[t]..to[t]`.
    pub(super) from: [usize; VECTORS],
    pub(super) to: [usize; VECTORS],
    /// The largest score yet, and the sum of the weights relative to it.
    pub(super) max: [f32; VECTORS],
    pub(super) sum: [f32; VECTORS],
    /// What a block multiplies that came before it by.
    pub(super) decay: [f32; VECTORS],
}

/// The keys of one block, as far as they are there.
pub(super) struct Keys {
    pub(super) count: usize,
    pub(super) number: [usize; KEYS],
    pub(super) k: [*const f32; KEYS],
    pub(super) v: [*const f32; KEYS],
    /// Which of them each vector sees: `from[t]..to[t]`, as floats; the former negated.
    pub(super) from: [f32; VECTORS],
    pub(super) to: [f32; VECTORS],
    /// Those that any vector sees.
    pub(super) seen: [usize; 2],
    /// Those that all vectors see.
    pub(super) common: [usize; 2],
}

impl Vectors {
    pub(super) fn of(block: &AttentionBlock) -> Vectors {
        let mut vectors = Vectors {
            q: [block.q; VECTORS],
            y: [block.y; VECTORS],
            from: [0; VECTORS],
            to: [0; VECTORS],
            max: [f32::NEG_INFINITY; VECTORS],
            sum: [0.0; VECTORS],
            decay: [1.0; VECTORS],
        };
        for t in 0..VECTORS {
            // Beyond the last, the last again, so that all that is said of the block holds.
            let vector = block.first + t.min(block.count - 1);
            let (row, head) = (vector / block.group, vector % block.group);
            vectors.q[t] = block.q.wrapping_add(row * block.q_row_stride + head * block.d);
            vectors.y[t] = block.y.wrapping_add(row * block.y_row_stride + head * block.e);
            // The query stands at key `keys - queries + row`: after it come `queries - row - 1`, and it is one itself.
            let up_to = (block.keys + row + 1).saturating_sub(block.queries);
            let window = usize::try_from(block.window).unwrap_or(usize::MAX);
            vectors.from[t] = (block.keys + row + 1).saturating_sub(block.queries.saturating_add(window));
            vectors.to[t] = if block.causal { up_to.min(block.keys) } else { block.keys };
        }
        vectors
    }

    /// The keys to look at: from the first of a block that a vector sees, without the mask, to after the last.
    pub(super) fn range(&self, block: &AttentionBlock) -> (usize, usize) {
        let first = match block.mask {
            Mask::None => self.from.iter().copied().min().unwrap_or(0) / KEYS * KEYS,
            // Blocks are counted in keys that are there, so from the beginning.
            Mask::I32(_) | Mask::I64(_) => 0,
        };
        (first, self.to.iter().copied().max().unwrap_or(0))
    }
}

impl Keys {
    pub(super) fn new() -> Keys {
        Keys {
            count: 0,
            number: [0; KEYS],
            k: [std::ptr::null(); KEYS],
            v: [std::ptr::null(); KEYS],
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
            Mask::None => self.take(next, end, |_| true),
            // SAFETY: keys stay below `end`.
            Mask::I32(mask) => self.take(next, end, |key| unsafe { *mask.add(key) != 0 }),
            // SAFETY: keys stay below `end`.
            Mask::I64(mask) => self.take(next, end, |key| unsafe { *mask.add(key) != 0 }),
        }
        for (place, &key) in self.number[..self.count].iter().enumerate() {
            self.k[place] = block.k.wrapping_add(key * block.k_row_stride);
            self.v[place] = block.v.wrapping_add(key * block.v_row_stride);
        }
        self.count > 0
    }

    #[inline(always)]
    fn take(&mut self, next: &mut usize, end: usize, is_there: impl Fn(usize) -> bool) {
        self.count = 0;
        while *next < end && self.count < KEYS {
            self.number[self.count] = *next;
            self.count += usize::from(is_there(*next));
            *next += 1;
        }
    }

    /// Finds which of the keys each vector sees; whether any does.
    #[inline(always)]
    pub(super) fn narrow(&mut self, vectors: usize, all: &Vectors) -> bool {
        let numbers = &self.number[..self.count];
        let Some((&first, &last)) = numbers.first().zip(numbers.last()) else { return false };
        let place = |key: usize| match key {
            _ if key <= first => 0,
            _ if key > last => numbers.len(),
            _ => numbers.partition_point(|&number| number < key),
        };
        (self.seen, self.common) = ([self.count, 0], [0, self.count]);
        for t in 0..vectors {
            let (from, to) = (place(all.from[t]), place(all.to[t]));
            (self.from[t], self.to[t]) = (-(from as f32), to as f32);
            self.seen = [self.seen[0].min(from), self.seen[1].max(to)];
            self.common = [self.common[0].max(from), self.common[1].min(to)];
        }
        self.seen[0] < self.seen[1]
    }

    /// Whether some vectors see keys that others don't.
    pub(super) fn is_ragged(&self) -> bool {
        self.seen != self.common
    }
}
