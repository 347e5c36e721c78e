//! A safetensors file as it is: its tensors' bytes, in their own types, and its metadata; and a file written tensor by
//! tensor. Nothing is converted and no more than one tensor is in memory.

use super::{FloatType, Floats, SafetensorsError, check_layout, read, read_header};
use engraft_runtime::{MappedFile, Weights};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A safetensors file, checked and mapped, see [`MappedFile`] for what that asks for.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: Arc<MappedFile>,
    metadata: BTreeMap<String, String>,
    begin: usize,
    tensors: Vec<(String, TensorInfo)>,
}

/// A tensor of a [`SafetensorsFile`].
#[derive(Clone, Copy, Debug)]
pub struct StoredTensor<'f> {
    /// The name.
    pub name: &'f str,
    /// The type of its elements.
    pub dtype: Dtype,
    /// The dims.
    pub shape: &'f [usize],
    /// The elements, little-endian.
    pub bytes: &'f [u8],
}

impl<'f> StoredTensor<'f> {
    /// Its elements, if they are floats, and their type.
    pub fn floats(&self) -> Option<(FloatType, Floats<'f>)> {
        let float = FloatType::from_stored(self.dtype)?;
        Some((float, Floats::Bytes(float, self.bytes)))
    }
}

impl SafetensorsFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// What is wrong with the file, naming it and the tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SafetensorsError> {
        let path = path.as_ref();
        let file = MappedFile::open(path)
            .map_err(|source| SafetensorsError::Io { path: path.to_owned(), source })?;
        let bytes = file.bytes();
        let (header, data) = read_header(path, &mut &*bytes, bytes.len() as u64)?;
        let begin = bytes.len() - data as usize;
        let metadata = header.metadata.clone();
        let tensors = check_layout(path, header, data)?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), metadata, begin, tensors })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The free-form `__metadata__`: texts by name.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensors, in the order of their bytes.
    pub fn tensors(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.tensors.iter().map(|(name, info)| StoredTensor {
            name,
            dtype: info.dtype,
            shape: &info.shape,
            bytes: &self.file.bytes()[self.span(info)],
        })
    }

    /// Every tensor, as [`read_weights`](super::read_weights) reads it.
    ///
    /// # Errors
    /// There is no memory for a tensor.
    pub fn weights(&self) -> Result<Weights, SafetensorsError> {
        read(&self.path, self.file.bytes(), Some(&self.file))
    }

    /// Lets go of the memory that holds a tensor's bytes; the file still has them.
    pub(crate) fn release(&self, tensor: &str) {
        if let Some((_, info)) = self.tensors.iter().find(|(name, _)| name == tensor) {
            self.file.release(self.span(info));
        }
    }

    fn span(&self, info: &TensorInfo) -> Range<usize> {
        self.begin + info.data_offsets.0..self.begin + info.data_offsets.1
    }
}

/// What a file is to hold: a tensor's name, type and dims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

/// A safetensors file being written: the header at once, then the tensors one after the other, in the order of
/// [`entries`](Self::entries).
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    entries: Vec<Entry>,
}

impl Writer {
    /// Makes the file and writes its header. The tensors lie as the format's own crate lays them: wide types first, so
    /// that each is aligned, then by name.
    pub(crate) fn create(
        path: &Path,
        mut entries: Vec<Entry>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, SafetensorsError> {
        let mut names = BTreeSet::new();
        if let Some(twice) = entries.iter().find(|entry| !names.insert(entry.name.clone())) {
            return Err(SafetensorsError::Duplicate { path: path.to_owned(), tensor: twice.name.clone() });
        }
        entries.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
        let mut position = 0;
        let infos = entries.iter().map(|entry| {
            let elements: usize = entry.shape.iter().product();
            let begin = position;
            position += elements * entry.dtype.bitsize() / 8;
            let (dtype, shape) = (entry.dtype, entry.shape.clone());
            (entry.name.clone(), TensorInfo { dtype, shape, data_offsets: (begin, position) })
        });
        let infos = infos.collect();
        let texts: HashMap<String, String> = metadata.clone().into_iter().collect();
        let write = |source| SafetensorsError::Write { path: path.to_owned(), source };
        let header = Metadata::new(Some(texts).filter(|texts| !texts.is_empty()), infos).map_err(write)?;
        let mut header = serde_json::to_vec(&header).map_err(|e| write(e.into()))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let io = |source| SafetensorsError::Io { path: path.to_owned(), source };
        let mut file = BufWriter::new(File::create(path).map_err(io)?);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
        file.write_all(&header).map_err(io)?;
        Ok(Self { path: path.to_owned(), file, entries })
    }

    /// What is to be written, in order.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.entries.clone()
    }

    /// Writes the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), SafetensorsError> {
        let written = self.file.write_all(bytes);
        written.map_err(|source| self.io(source))
    }

    /// Ends the file.
    pub(crate) fn finish(mut self) -> Result<(), SafetensorsError> {
        let flushed = self.file.flush();
        flushed.map_err(|source| self.io(source))
    }

    fn io(&self, source: io::Error) -> SafetensorsError {
        SafetensorsError::Io { path: self.path.clone(), source }
    }
}
