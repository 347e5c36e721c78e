//! Safetensors files: reading weights from one and writing them to one. Knows nothing about adapters or graphs.
//!
//! The header is checked in full before anything is allocated for a tensor, so a file takes no more memory than its own
//! length justifies (twice it, for half-precision floats, which are widened to `f32`). A file is mapped into memory:
//! tensors stay where they lie in it, unless they aren't aligned to their elements; half-precision floats are widened
//! when they are needed.

mod floats;
mod half;
mod stored;

pub use floats::{FloatType, Floats};
pub(crate) use stored::{Entry, Writer};
pub use stored::{SafetensorsFile, StoredTensor};

use engraft_runtime::{DType, MappedFile, Tensor, TensorError, Weights};
use half::Halves;
use safetensors::tensor::{Dtype, TensorInfo, View};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value as Json;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use thiserror::Error;

/// The longest header, in bytes, that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// The bytes that hold the header's length.
const LENGTH_BYTES: u64 = 8;

/// Why a safetensors file could not be read or written.
#[derive(Debug, Error)]
pub enum SafetensorsError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file ends before its header does.
    #[error("{}: the header takes {needed} bytes, but the file has {found}", path.display())]
    HeaderTruncated {
        /// The file.
        path: PathBuf,
        /// Where the header ends.
        needed: u64,
        /// The file's length.
        found: u64,
    },
    /// The header is longer than any real one.
    #[error("{}: the header is {found} bytes long, at most {MAX_HEADER} are allowed", path.display())]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// The length it states.
        found: u64,
    },
    /// The header is not JSON of the right form; the reason names the tensor.
    #[error("{}: the header is malformed: {source}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The elements are of a type that is not read.
    #[error("{}: tensor `{tensor}` is {found}, expected F32, F16, BF16, I32 or I64", path.display())]
    DType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: Dtype,
    },
    /// Shape and bytes do not fit together.
    #[error(
        "{}: tensor `{tensor}` of {dtype} {shape:?} needs {} bytes, found {found}",
        path.display(),
        expected.map_or_else(|| "more than 2^64".to_owned(), |bytes| bytes.to_string())
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// The bytes of such a tensor, if their number can be written down.
        expected: Option<u64>,
        /// The bytes that its offsets span.
        found: u64,
    },
    /// Tensors overlap or leave a gap.
    #[error("{}: tensor `{tensor}` spans bytes {begin} to {end}, expected it to start at {expected}", path.display())]
    Offsets {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where it starts.
        begin: u64,
        /// Where it ends.
        end: u64,
        /// Where the tensor before it ends.
        expected: u64,
    },
    /// The file ends before a tensor does.
    #[error("{}: tensor `{tensor}` ends at byte {end} of the data, but the file has {found}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The first tensor that is cut off.
        tensor: String,
        /// Where it ends.
        end: u64,
        /// The bytes of data there are.
        found: u64,
    },
    /// The file goes on after the last tensor.
    #[error("{}: the tensors take {expected} bytes, but the file has {found}", path.display())]
    Trailing {
        /// The file.
        path: PathBuf,
        /// Where the last tensor ends.
        expected: u64,
        /// The bytes of data there are.
        found: u64,
    },
    /// There is no memory for a tensor.
    #[error("{}: there is no memory for the {bytes} bytes of tensor `{tensor}`", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its bytes.
        bytes: u64,
    },
    /// A tensor's elements do not make its shape, or cannot be made.
    #[error("{}: tensor `{tensor}`: {source}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why.
        source: TensorError,
    },
    /// Two tensors to be written have the same name.
    #[error("{}: there are two tensors `{tensor}`", path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The name.
        tensor: String,
    },
    /// The tensors could not be put into the format.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: safetensors::SafeTensorError,
    },
}

/// Reads every tensor of a safetensors file. `F16` and `BF16` become `f32`, exactly, when they are needed (see
/// [`Tensor::stored`]); `F32`, `I32` and `I64` stay.
///
/// The file is mapped into memory and must not be written into or cut off while a tensor of it lives, see [`MappedFile`];
/// [`write()`] puts another file in its place, which is fine.
///
/// # Errors
/// What is wrong with the file, naming it and the tensor; then nothing is read.
pub fn read_weights(path: impl AsRef<Path>) -> Result<Weights, SafetensorsError> {
    let path = path.as_ref();
    let file =
        MappedFile::open(path).map_err(|source| SafetensorsError::Io { path: path.to_owned(), source })?;
    let file = Arc::new(file);
    read(path, file.bytes(), Some(&file))
}

/// Reads every tensor of a safetensors file that is in memory, as [`read_weights`] does; `path` is what errors call it.
///
/// # Errors
/// As [`read_weights`].
pub fn parse_weights(path: impl AsRef<Path>, bytes: &[u8]) -> Result<Weights, SafetensorsError> {
    read(path.as_ref(), bytes, None)
}

/// Reads a file of these bytes, which are mapped or elsewhere in memory.
fn read(path: &Path, bytes: &[u8], file: Option<&Arc<MappedFile>>) -> Result<Weights, SafetensorsError> {
    let (header, data) = read_header(path, &mut &*bytes, bytes.len() as u64)?;
    let tensors = check_layout(path, header, data)?;
    let begin = bytes.len() - data as usize;
    let tensor = |(name, info): (String, TensorInfo)| {
        let span = begin + info.data_offsets.0..begin + info.data_offsets.1;
        let mapped = file.and_then(|file| map_tensor(file, &info, span.clone()));
        let tensor = mapped.map_or_else(|| read_tensor(path, &bytes[span], &name, &info), Ok)?;
        Ok((name, tensor))
    };
    tensors.into_iter().map(tensor).collect()
}

/// A tensor that stays in the file; `None` where its elements aren't aligned.
fn map_tensor(file: &Arc<MappedFile>, info: &TensorInfo, bytes: Range<usize>) -> Option<Tensor> {
    match half::widen(info.dtype) {
        Some(widen) => Tensor::stored(&info.shape, Halves { file: Arc::clone(file), bytes, widen }).ok(),
        None => Tensor::mapped(element_type(info.dtype)?, &info.shape, file, bytes),
    }
}

/// The tensors that the header lists, and the number of bytes that follow it.
fn read_header(path: &Path, file: &mut impl Read, length: u64) -> Result<(Header, u64), SafetensorsError> {
    let truncated =
        |needed| SafetensorsError::HeaderTruncated { path: path.to_owned(), needed, found: length };
    let io = |source| SafetensorsError::Io { path: path.to_owned(), source };
    if length < LENGTH_BYTES {
        return Err(truncated(LENGTH_BYTES));
    }
    let mut prefix = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut prefix).map_err(io)?;
    let stated = u64::from_le_bytes(prefix);
    if stated > MAX_HEADER {
        return Err(SafetensorsError::HeaderTooLarge { path: path.to_owned(), found: stated });
    }
    let end = LENGTH_BYTES + stated;
    let data = length.checked_sub(end).ok_or_else(|| truncated(end))?;
    let mut json = vec![0; stated as usize];
    file.read_exact(&mut json).map_err(io)?;
    let header = serde_json::from_slice(&json)
        .map_err(|source| SafetensorsError::Header { path: path.to_owned(), source })?;
    Ok((header, data))
}

/// Requires that the tensors, in the order of their offsets, fill the `data` bytes without gap or overlap, and that
/// each has as many bytes as its type and shape say.
fn check_layout(
    path: &Path,
    Header { mut tensors, .. }: Header,
    data: u64,
) -> Result<Vec<(String, TensorInfo)>, SafetensorsError> {
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut position = 0;
    for (name, info) in &tensors {
        let (path, tensor) = (path.to_owned(), name.clone());
        if element_type(info.dtype).is_none() {
            return Err(SafetensorsError::DType { path, tensor, found: info.dtype });
        }
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        if begin != position || end < begin {
            return Err(SafetensorsError::Offsets { path, tensor, begin, end, expected: position });
        }
        let (dtype, shape, found) = (info.dtype, info.shape.clone(), end - begin);
        let expected = byte_count(info);
        if expected != Some(found) {
            return Err(SafetensorsError::Size { path, tensor, dtype, shape, expected, found });
        }
        if end > data {
            return Err(SafetensorsError::Truncated { path, tensor, end, found: data });
        }
        position = end;
    }
    if position != data {
        return Err(SafetensorsError::Trailing { path: path.to_owned(), expected: position, found: data });
    }
    Ok(tensors)
}

fn byte_count(info: &TensorInfo) -> Option<u64> {
    let width = info.dtype.bitsize() as u64 / 8;
    info.shape.iter().try_fold(width, |bytes, &dim| bytes.checked_mul(dim as u64))
}

/// What a tensor of this type is read as; `None` if it is refused.
fn element_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => Some(DType::F32),
        Dtype::I32 => Some(DType::I32),
        Dtype::I64 => Some(DType::I64),
        _ => None,
    }
}

/// A copy of a tensor that these bytes hold.
fn read_tensor(path: &Path, bytes: &[u8], name: &str, info: &TensorInfo) -> Result<Tensor, SafetensorsError> {
    let memory = |bytes: usize| SafetensorsError::Memory {
        path: path.to_owned(),
        tensor: name.to_owned(),
        bytes: bytes as u64,
    };
    let shape = info.shape.as_slice();
    let tensor = match info.dtype {
        Dtype::I32 => Tensor::i32(shape, decode(bytes, i32::from_le_bytes).map_err(memory)?),
        Dtype::I64 => Tensor::i64(shape, decode(bytes, i64::from_le_bytes).map_err(memory)?),
        // The layout check let nothing else through than halves and F32.
        dtype => match half::widen(dtype) {
            Some(widen) => {
                let mut floats = decode(bytes, |_: [u8; 2]| 0.0).map_err(memory)?;
                widen(bytes.as_chunks().0, &mut floats);
                Tensor::f32(shape, floats)
            }
            None => Tensor::f32(shape, decode(bytes, f32::from_le_bytes).map_err(memory)?),
        },
    };
    tensor.map_err(|source| SafetensorsError::Tensor {
        path: path.to_owned(),
        tensor: name.to_owned(),
        source,
    })
}

/// The elements in `bytes`, each of `N`; the error is how many bytes of memory there were not.
fn decode<const N: usize, T>(bytes: &[u8], element: impl Fn([u8; N]) -> T) -> Result<Vec<T>, usize> {
    let (chunks, _) = bytes.as_chunks();
    let mut elements = Vec::new();
    elements.try_reserve_exact(chunks.len()).map_err(|_| chunks.len() * size_of::<T>())?;
    elements.extend(chunks.iter().map(|&chunk| element(chunk)));
    Ok(elements)
}

/// Writes tensors to a safetensors file. It takes the place of what was there when it is whole; until then, and when
/// writing fails, that stays.
///
/// # Errors
/// Two tensors have the same name, there is no memory for the floats of one, or the file cannot be written.
pub fn write(path: impl AsRef<Path>, tensors: &[(&str, Tensor)]) -> Result<(), SafetensorsError> {
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    write_with_metadata(path, &tensors, &BTreeMap::new())
}

/// Writes tensors and texts, the file's `__metadata__`, as [`write()`] does.
///
/// # Errors
/// As [`write()`].
pub fn write_with_metadata(
    path: impl AsRef<Path>,
    tensors: &[(&str, &Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<(), SafetensorsError> {
    let path = path.as_ref();
    let mut names = BTreeSet::new();
    if let Some((name, _)) = tensors.iter().find(|(name, _)| !names.insert(*name)) {
        return Err(SafetensorsError::Duplicate { path: path.to_owned(), tensor: (*name).to_owned() });
    }
    // Floats that are still to be made are made here: the format's crate asks for bytes, and takes no refusal.
    for (name, tensor) in tensors.iter().filter(|(_, tensor)| tensor.dtype() == DType::F32) {
        let (path, tensor_name) = (path.to_owned(), (*name).to_owned());
        let read = |source| SafetensorsError::Tensor { path, tensor: tensor_name, source };
        tensor.as_f32().map_err(read)?;
    }
    let views = tensors.iter().map(|(name, tensor)| (*name, Written(tensor)));
    let texts = metadata.iter().map(|(name, text)| (name.clone(), text.clone())).collect();
    let bytes = safetensors::serialize(views, Some(texts).filter(|_| !metadata.is_empty()))
        .map_err(|source| SafetensorsError::Write { path: path.to_owned(), source })?;
    replace(path, &bytes).map_err(|source| SafetensorsError::Io { path: path.to_owned(), source })
}

/// Puts a file in the place of another, whole or not at all. (The format's own crate does so too, but leaves a file that
/// nobody else may read.)
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", process::id()));
    let partial = path.with_file_name(name);
    let replaced = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    if replaced.is_err() {
        // It may never have been made; then there is nothing to remove.
        let _ = fs::remove_file(&partial);
    }
    replaced
}

/// A tensor as the format's crate wants to see it.
struct Written<'a>(&'a Tensor);

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        match self.0.dtype() {
            DType::F32 => Dtype::F32,
            DType::I32 => Dtype::I32,
            DType::I64 => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let floats = self.0.as_f32().map(|data| data.iter().flat_map(|x| x.to_le_bytes()).collect());
        let bytes: Result<Vec<u8>, _> = floats
            .or_else(|_| self.0.as_i32().map(|data| data.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .or_else(|_| self.0.as_i64().map(|data| data.iter().flat_map(|x| x.to_le_bytes()).collect()));
        bytes.expect("a tensor is one of the three types").into()
    }

    fn data_len(&self) -> usize {
        self.0.len() * self.0.dtype().bytes()
    }
}

/// The header: tensors by name in the order of the file, and the free-form `__metadata__`, as far as it is text.
struct Header {
    tensors: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                let (mut tensors, mut names) = (Vec::new(), BTreeSet::new());
                let mut metadata = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(M::Error::custom(format!("there are two tensors `{name}`")));
                    }
                    if name == "__metadata__" {
                        let Texts(texts) = map.next_value()?;
                        metadata = texts;
                        continue;
                    }
                    let info =
                        map.next_value().map_err(|e| M::Error::custom(format!("tensor `{name}`: {e}")))?;
                    tensors.push((name, info));
                }
                Ok(Header { tensors, metadata })
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// The texts of an object; of anything else that a file has in its place, none.
struct Texts(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Json::Object(object) = Json::deserialize(deserializer)? else { return Ok(Self(BTreeMap::new())) };
        let text = |(name, value): (String, Json)| Some((name, value.as_str()?.to_owned()));
        Ok(Self(object.into_iter().filter_map(text).collect()))
    }
}
