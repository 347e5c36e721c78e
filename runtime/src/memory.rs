//! Aligned memory for staged values and arenas. Knows nothing about what is in it.

mod slabs;

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

use crate::abi::ALIGNMENT;

/// A huge page. What is as large is read through fewer entries of the translation cache if it consists of them, and
/// prefetchers, which stop at a page's end, stop less often.
const HUGE_PAGE: usize = 2 << 20;

/// Owned bytes, aligned to [`ALIGNMENT`] and zero at first. An empty buffer is dangling but aligned.
#[derive(Debug)]
pub(crate) struct Buffer {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the bytes are owned, and a shared reference to a buffer gives out an address, not access.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// No bytes.
    pub(crate) const EMPTY: Buffer = {
        // An address that is the alignment itself is aligned and not null.
        let dangling = std::ptr::without_provenance_mut(ALIGNMENT);
        Buffer { address: NonNull::new(dangling).expect("the alignment isn't zero"), bytes: 0 }
    };

    /// Allocates `bytes`; `None` when there is no such memory.
    pub(crate) fn zeroed(bytes: usize) -> Option<Buffer> {
        if bytes == 0 {
            return Some(Buffer::EMPTY);
        }
        let address = if slabs::BLOCK.contains(&bytes) {
            slabs::take(bytes)?
        } else {
            // SAFETY: the layout isn't empty.
            NonNull::new(unsafe { alloc(layout(bytes)?) })?
        };
        if bytes >= HUGE_PAGE {
            // SAFETY: these bytes are ours.
            unsafe { advise_huge_pages(address, bytes) };
        }
        // SAFETY: these bytes are ours. They are written after the advice: it is about pages that aren't there yet.
        unsafe { address.write_bytes(0, bytes) };
        Some(Buffer { address, bytes })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// The address, for floats.
    #[allow(clippy::cast_ptr_alignment, reason = "a buffer is aligned beyond what floats need")]
    pub(crate) fn floats(&self) -> *mut f32 {
        self.address().cast()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if slabs::BLOCK.contains(&self.bytes) {
            // SAFETY: `zeroed` took it from there.
            unsafe { slabs::give_back(self.address, self.bytes) };
        } else if let (1.., Some(layout)) = (self.bytes, layout(self.bytes)) {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.address.as_ptr(), layout) };
        }
    }
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, if bytes >= HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT }).ok()
}

/// Asks for huge pages; a system that has none goes on with others.
///
/// # Safety
/// The bytes are allocated.
unsafe fn advise_huge_pages(address: NonNull<u8>, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        use rustix::mm::{Advice, madvise};
        // SAFETY: the caller's bytes; this advice changes nothing about what is in them.
        let _ = unsafe { madvise(address.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (address, bytes);
}

#[cfg(test)]
mod tests {
    use super::{ALIGNMENT, Buffer};

    #[test]
    fn buffers_are_aligned_even_when_empty_and_absurd_ones_are_refused() {
        for bytes in [0, 1, 64, 1000, super::HUGE_PAGE + 1] {
            let buffer = Buffer::zeroed(bytes).unwrap();
            assert_eq!((buffer.address() as usize % ALIGNMENT, buffer.bytes()), (0, bytes));
        }
        assert!(Buffer::zeroed(usize::MAX).is_none());
        assert!(Buffer::zeroed(isize::MAX as usize - 63).is_none());
    }
}
