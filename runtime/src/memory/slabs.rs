//! Blocks that are smaller than a huge page, side by side in slabs that consist of huge pages. Adapters of a bank are such
//! blocks, and a call reads those of many: in small pages they would be more pages than the translation cache has entries
//! for, and each would be looked up again in every call. Knows nothing about what is in them.
//!
//! A block lies in the first slab with room for it, at the lowest address there. A slab without blocks is freed.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{HUGE_PAGE, advise_huge_pages};
use crate::abi::ALIGNMENT;

/// The bytes of a block. Smaller ones would gain little, and of larger ones too few fit into a slab to fill it.
pub(super) const BLOCK: std::ops::RangeInclusive<usize> = 16 << 10..=1 << 20;
/// The bytes of a slab.
const SLAB: usize = 4 * HUGE_PAGE;
const LAYOUT: Layout = match Layout::from_size_align(SLAB, HUGE_PAGE) {
    Ok(layout) => layout,
    Err(_) => panic!("a huge page is a power of two"),
};

static SLABS: Mutex<Slabs> = Mutex::new(Slabs(BTreeMap::new()));

/// Slabs by their addresses.
struct Slabs(BTreeMap<usize, Slab>);

struct Slab {
    memory: NonNull<u8>,
    free: Gaps,
}

// SAFETY: the address is only given out, to one owner for each block.
unsafe impl Send for Slab {}

/// What is free of a slab: for each gap, where it begins and ends. No two of them touch.
struct Gaps(BTreeMap<usize, usize>);

/// A block of so many bytes, aligned to [`ALIGNMENT`]; `None` when there is no memory.
pub(super) fn take(bytes: usize) -> Option<NonNull<u8>> {
    let bytes = bytes.next_multiple_of(ALIGNMENT);
    let mut slabs = slabs();
    for slab in slabs.0.values_mut() {
        if let Some(at) = slab.free.take(bytes) {
            // SAFETY: the block lies inside the slab.
            return Some(unsafe { slab.memory.add(at) });
        }
    }
    let mut slab = Slab::new()?;
    let at = slab.free.take(bytes)?;
    // SAFETY: as above.
    let block = unsafe { slab.memory.add(at) };
    slabs.0.insert(slab.memory.addr().get(), slab);
    Some(block)
}

/// Gives a block back.
///
/// # Safety
/// [`take`] has given it out for as many bytes, and nobody uses it any longer.
pub(super) unsafe fn give_back(block: NonNull<u8>, bytes: usize) {
    let (address, mut slabs) = (block.addr().get(), slabs());
    let Some((&first, slab)) = slabs.0.range_mut(..=address).next_back() else { return };
    slab.free.put(address - first, bytes.next_multiple_of(ALIGNMENT));
    if slab.free.are_all() {
        slabs.0.remove(&first);
    }
}

/// Nobody panics while holding it, and it is whole at any moment.
fn slabs() -> MutexGuard<'static, Slabs> {
    SLABS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slab {
    fn new() -> Option<Slab> {
        // SAFETY: the layout isn't empty.
        let memory = NonNull::new(unsafe { alloc(LAYOUT) })?;
        // SAFETY: these bytes are ours.
        unsafe { advise_huge_pages(memory, SLAB) };
        Some(Slab { memory, free: Gaps::new() })
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and no block of it is left.
        unsafe { dealloc(self.memory.as_ptr(), LAYOUT) };
    }
}

impl Gaps {
    /// All is free.
    fn new() -> Gaps {
        Gaps(BTreeMap::from([(0, SLAB)]))
    }

    fn are_all(&self) -> bool {
        self.0.get(&0) == Some(&SLAB)
    }

    /// The beginning of the first gap of so many bytes, which are then taken.
    fn take(&mut self, bytes: usize) -> Option<usize> {
        let (begin, end) =
            self.0.iter().map(|(&begin, &end)| (begin, end)).find(|(begin, end)| end - begin >= bytes)?;
        self.0.remove(&begin);
        if begin + bytes < end {
            self.0.insert(begin + bytes, end);
        }
        Some(begin)
    }

    /// Frees what was taken, as one gap with those that it touches.
    fn put(&mut self, begin: usize, bytes: usize) {
        let end = begin + bytes;
        let before =
            self.0.range(..begin).next_back().filter(|(_, end)| **end == begin).map(|(&begin, _)| begin);
        let end = self.0.remove(&end).unwrap_or(end);
        self.0.insert(before.unwrap_or(begin), end);
    }
}

#[cfg(test)]
mod tests {
    use super::{ALIGNMENT, Gaps, SLAB, give_back, take};

    #[test]
    fn gaps_are_taken_from_the_first_on_and_grow_together_again() {
        let mut gaps = Gaps::new();
        assert_eq!([gaps.take(64), gaps.take(192), gaps.take(128)], [Some(0), Some(64), Some(256)]);
        gaps.put(64, 192);
        assert_eq!([gaps.take(256), gaps.take(128)], [Some(384), Some(64)]);
        assert_eq!(gaps.take(SLAB - 640), Some(640));
        assert_eq!([gaps.take(128), gaps.take(64)], [None, Some(192)]);
        for (begin, bytes) in [(0, 64), (192, 64), (384, 256), (64, 128), (640, SLAB - 640)] {
            gaps.put(begin, bytes);
            assert!(!gaps.are_all());
        }
        gaps.put(256, 128);
        assert!(gaps.are_all());
        assert_eq!(gaps.take(SLAB), Some(0));
    }

    #[test]
    fn blocks_of_several_threads_are_apart_and_keep_what_is_in_them() {
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                scope.spawn(move || {
                    let mut blocks = Vec::new();
                    for round in 0..400_usize {
                        let bytes = 1000 * (1 + (round * 7 + usize::from(thread)) % 50);
                        let block = take(bytes).unwrap();
                        assert!(block.addr().get().is_multiple_of(ALIGNMENT));
                        let mark = thread ^ round as u8;
                        // SAFETY: the block is this thread's.
                        unsafe { block.write_bytes(mark, bytes) };
                        blocks.push((block, bytes, mark));
                        if round % 3 > 0 {
                            let (block, bytes, mark) = blocks.swap_remove(round % blocks.len());
                            // SAFETY: as above, and it was written.
                            unsafe {
                                assert!(
                                    [0, bytes / 2, bytes - 1].iter().all(|&at| block.add(at).read() == mark)
                                );
                                give_back(block, bytes);
                            }
                        }
                    }
                    for (block, bytes, _) in blocks {
                        // SAFETY: as above.
                        unsafe { give_back(block, bytes) };
                    }
                });
            }
        });
    }
}
