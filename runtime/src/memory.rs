//! Aligned memory for staged values and arenas. Knows nothing about what is in it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::abi::ALIGNMENT;

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
        let layout = Layout::from_size_align(bytes, ALIGNMENT).ok()?;
        // SAFETY: the layout isn't empty.
        let address = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Buffer { address, bytes })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: allocated in `zeroed` with this layout, which was valid then.
            unsafe {
                dealloc(self.address.as_ptr(), Layout::from_size_align_unchecked(self.bytes, ALIGNMENT));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ALIGNMENT, Buffer};

    #[test]
    fn buffers_are_aligned_even_when_empty_and_absurd_ones_are_refused() {
        for bytes in [0, 1, 64, 1000] {
            let buffer = Buffer::zeroed(bytes).unwrap();
            assert_eq!((buffer.address() as usize % ALIGNMENT, buffer.bytes()), (0, bytes));
        }
        assert!(Buffer::zeroed(usize::MAX).is_none());
        assert!(Buffer::zeroed(isize::MAX as usize - 63).is_none());
    }
}
