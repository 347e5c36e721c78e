//! Memory as the checker sees it: which buffer each byte was last written as. Knows no plans.

use crate::plan::BufferId;
use std::collections::BTreeMap;
use std::ops::Range;

/// One block of memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Disjoint intervals by where they begin: where they end, and the buffer they were written as. Neighbours of one
    /// buffer are one interval.
    written: BTreeMap<u64, (u64, BufferId)>,
}

/// The first byte of a range that does not hold what a reader expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    /// Where it is.
    pub(super) at: u64,
    /// What it was written as, if at all.
    pub(super) owner: Option<BufferId>,
}

impl Memory {
    /// Memory that was given whole.
    pub(super) fn given(buffer: BufferId, bytes: u64) -> Self {
        let mut memory = Self::default();
        memory.write(0..bytes, buffer);
        memory
    }

    /// Makes a range the buffer's.
    pub(super) fn write(&mut self, range: Range<u64>, buffer: BufferId) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        let near = self.written.range(..=end).rev().take_while(|(_, (until, _))| *until >= start);
        let near: Vec<_> = near.map(|(&at, &(until, owner))| (at, until, owner)).collect();
        for (at, until, owner) in near {
            self.written.remove(&at);
            if owner == buffer {
                (start, end) = (start.min(at), end.max(until));
                continue;
            }
            if at < range.start {
                self.written.insert(at, (until.min(range.start), owner));
            }
            if until > range.end {
                self.written.insert(at.max(range.end), (until, owner));
            }
        }
        self.written.insert(start, (end, buffer));
    }

    /// The first byte of the range that was not last written as this buffer.
    pub(super) fn foreign(&self, range: Range<u64>, buffer: BufferId) -> Option<Foreign> {
        let mut at = range.start;
        while at < range.end {
            let interval = self.written.range(..=at).next_back().map(|(_, interval)| *interval);
            match interval.filter(|&(until, _)| until > at) {
                Some((until, owner)) if owner == buffer => at = until,
                other => return Some(Foreign { at, owner: other.map(|(_, owner)| owner) }),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{Foreign, Memory};
    use crate::plan::BufferId;

    /// Against one owner per byte.
    #[test]
    fn intervals_are_bytes() {
        let mut state = 1_u64;
        let mut below = |limit: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % limit
        };
        for _ in 0..200 {
            let (mut memory, mut bytes) = (Memory::default(), [None; 24]);
            for _ in 0..12 {
                let (start, buffer) = (below(24), BufferId(below(3) as usize));
                let end = start + below(25 - start);
                memory.write(start..end, buffer);
                bytes[start as usize..end as usize].fill(Some(buffer));
                let (start, buffer) = (below(24), BufferId(below(3) as usize));
                let end = start + below(25 - start);
                let expected = (start..end)
                    .find(|&at| bytes[at as usize] != Some(buffer))
                    .map(|at| Foreign { at, owner: bytes[at as usize] });
                assert_eq!(memory.foreign(start..end, buffer), expected, "{start}..{end} of {bytes:?}");
            }
        }
    }
}
