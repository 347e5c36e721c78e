//! Files mapped into memory, and elements that lie in one. Knows nothing about tensors or formats of files.

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapOptions};

/// A multiple of every page's size.
#[cfg(unix)]
const PAGES: usize = 1 << 16;

/// A file mapped into memory, for reading. Its pages are read when they are first touched, and the system may drop them
/// and read them again, so they take no memory that others can't have.
///
/// The file must stay as it is while this lives. To put another in its place (write a new file, rename it) is fine: the
/// old one stays mapped. But where another process writes into it, whether the change is seen is up to the system, and
/// what is computed from it means nothing; and where it is cut off, reading beyond its new end kills the process
/// (SIGBUS). Nothing here can tell beforehand.
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps the whole of a file. Pipes and their like can't be mapped.
    ///
    /// # Errors
    /// When the file can't be opened or mapped.
    pub fn open(path: impl AsRef<Path>) -> io::Result<MappedFile> {
        let file = File::open(path)?;
        // SAFETY: the mapping is private and read-only, and as long as the file is now. That nobody cuts the file off or
        // writes into it meanwhile is what this type asks of its users: no mapping of a file can ensure it.
        let map = unsafe { MmapOptions::new().map_copy_read_only(&file)? };
        Ok(MappedFile { map })
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets go of the pages that hold nothing but these bytes: whoever reads them again gets them from the file. Up to
    /// 64 KiB at either end may stay, bytes beyond the end of the file are ignored, and so is the system's refusal.
    #[cfg_attr(
        not(unix),
        expect(unused_variables, clippy::unused_self, reason = "only Unix takes such advice")
    )]
    pub fn release(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        {
            let begin = self.map.as_ptr().addr();
            let whole = |offset: usize| begin.saturating_add(offset) / PAGES * PAGES;
            let end = whole(bytes.end.min(self.map.len()));
            let start = whole(bytes.start.saturating_add(PAGES - 1));
            if start >= end {
                return;
            }
            // SAFETY: the range lies in the mapping. Its pages are private, read-only and hence never changed, so dropping
            // them loses nothing: they are read from the file again, even by somebody who holds a reference.
            let _ = unsafe {
                let dropped = memmap2::UncheckedAdvice::DontNeed;
                self.map.unchecked_advise_range(dropped, start - begin, end - start)
            };
        }
    }
}

impl fmt::Debug for MappedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedFile").field("bytes", &self.map.len()).finish()
    }
}

/// Types of which any bits are a value.
///
/// # Safety
/// They are: `Copy`, without padding, and every pattern of bits is one of their values.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: a number of the hardware.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for i64 {}

/// Elements where they lie in a mapped file, little-endian as this machine reads them.
#[derive(Clone)]
pub(crate) struct MappedElements<T> {
    file: Arc<MappedFile>,
    bytes: Range<usize>,
    element: PhantomData<T>,
}

impl<T: Plain> MappedElements<T> {
    /// The elements at these bytes; `None` unless they lie within the file, whole, aligned and in this machine's order.
    pub(crate) fn new(file: &Arc<MappedFile>, bytes: Range<usize>) -> Option<MappedElements<T>> {
        let found = file.bytes().get(bytes.clone())?;
        let readable = cfg!(target_endian = "little")
            && found.as_ptr().cast::<T>().is_aligned()
            && found.len().is_multiple_of(size_of::<T>());
        readable.then(|| MappedElements { file: Arc::clone(file), bytes, element: PhantomData })
    }

    /// Lets go of the pages that hold the elements.
    pub(crate) fn release(&self) {
        self.file.release(self.bytes.clone());
    }
}

impl<T: Plain> Deref for MappedElements<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let bytes = &self.file.bytes()[self.bytes.clone()];
        // SAFETY: `new` has found them aligned and whole, and any bits are a `T`.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, MappedElements, MappedFile};

    fn map(bytes: &[u8]) -> Arc<MappedFile> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, bytes).unwrap();
        // The name may go: the file stays as long as it is mapped.
        Arc::new(MappedFile::open(&file).unwrap())
    }

    #[test]
    fn elements_are_read_where_they_lie_if_they_can_be() {
        let file = map(&[[0, 0, 192, 63].as_slice(), &[255; 8], &[7]].concat());
        let floats = MappedElements::<f32>::new(&file, 0..4).unwrap();
        assert_eq!(*floats, [1.5]);
        assert_eq!(floats.as_ptr().cast(), file.bytes().as_ptr());
        assert_eq!(*MappedElements::<i32>::new(&file, 4..12).unwrap(), [-1, -1]);
        assert!(MappedElements::<i32>::new(&file, 5..9).is_none(), "not aligned");
        assert!(MappedElements::<i64>::new(&file, 4..12).is_none(), "not aligned");
        assert!(MappedElements::<i64>::new(&file, 0..12).is_none(), "not whole");
        assert!(MappedElements::<i32>::new(&file, 12..16).is_none(), "beyond the end");
        assert!(map(&[]).bytes().is_empty());
    }

    #[test]
    fn released_pages_come_back() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        let file = map(&bytes);
        for range in [0..0, 4..9, 3000..170_000, 5000..300_000, 0..usize::MAX, usize::MAX..usize::MAX] {
            file.release(range);
            assert_eq!(file.bytes(), bytes);
        }
    }
}
