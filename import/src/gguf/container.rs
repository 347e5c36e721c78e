//! The GGUF container: header, metadata and the list of tensors. Knows nothing about what they mean.
//!
//! The layout is that of `gguf.md` in ggml's documentation. Everything is checked against the length of the file before
//! it is used, so reading takes a small multiple of that length in memory, whatever the file says: at most eight times,
//! for arrays of bytes, whose elements are widened.

use super::blocks::{self, Format};
use super::error::ContainerError as Error;
use super::value::{Array, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// How deep arrays may be nested. The tools that write files nest none.
const MAX_DEPTH: usize = 8;

/// Where no `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The bytes of the shortest metadata: an empty key, its type and a byte.
const MIN_METADATA: u64 = 8 + 4 + 1;

/// The bytes of the shortest entry in the list of tensors: an empty name, one dim, type and offset.
const MIN_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;

/// What a file lists.
pub(super) struct Container {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: Vec<TensorInfo>,
}

/// A tensor: where it is, and how its elements are stored.
pub(super) struct TensorInfo {
    pub name: String,
    /// The dims, the contiguous one last, as everywhere else; files list them the other way.
    pub shape: Vec<usize>,
    pub format: &'static Format,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// A tensor as the file lists it.
struct Listed {
    name: String,
    dims: Vec<u64>,
    format: &'static Format,
    offset: u64,
    bytes: u64,
}

/// Reads what a file of these bytes lists, and requires that the tensors fill it.
pub(super) fn parse(bytes: &[u8]) -> Result<Container, Error> {
    let mut cursor = Cursor { bytes, position: 0 };
    check_version(&mut cursor)?;
    let tensor_count = cursor.u64("the number of tensors")?;
    let metadata_count = cursor.u64("the number of metadata")?;
    let metadata = read_metadata(&mut cursor, metadata_count)?;
    let alignment = alignment(&metadata)?;
    let listed = read_tensors(&mut cursor, tensor_count)?;
    let tensors = check_layout(listed, cursor.position as u64, bytes.len() as u64, alignment)?;
    Ok(Container { metadata, tensors })
}

/// Requires a version that is read. What 3 added to 2 is big-endian files.
fn check_version(cursor: &mut Cursor<'_>) -> Result<(), Error> {
    let magic = cursor.take::<4>("the magic number")?;
    if &magic != b"GGUF" {
        return Err(Error::Magic { found: magic });
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => Ok(()),
        // Versions are small numbers: whatever has its low half empty has its bytes the other way.
        _ if version != 0 && version.trailing_zeros() >= 16 => {
            Err(Error::BigEndian { version: version.swap_bytes() })
        }
        _ => Err(Error::Version { found: version }),
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<BTreeMap<String, Value>, Error> {
    cursor.check_count("the list of metadata", count, MIN_METADATA)?;
    let mut metadata = BTreeMap::new();
    for index in 0..count {
        let key = cursor.string(&format!("the key of metadata {index}"))?;
        let reading = format!("metadata `{key}`");
        let kind = cursor.u32(&reading)?;
        let value = cursor.value(&reading, kind)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(Error::DuplicateKey { key });
        }
    }
    Ok(metadata)
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, Error> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::Unsigned(bytes)) if bytes.is_power_of_two() && (8..=1 << 20).contains(&bytes) => {
            Ok(bytes)
        }
        Some(other) => Err(Error::Alignment { found: other.to_string() }),
    }
}

fn read_tensors(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<Listed>, Error> {
    cursor.check_count("the list of tensors", count, MIN_TENSOR)?;
    let mut names = BTreeSet::new();
    let mut tensors = Vec::new();
    for index in 0..count {
        let tensor = read_tensor(cursor, index)?;
        if !names.insert(tensor.name.clone()) {
            return Err(Error::DuplicateTensor { tensor: tensor.name });
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_tensor(cursor: &mut Cursor<'_>, index: u64) -> Result<Listed, Error> {
    let name = cursor.string(&format!("the name of tensor {index}"))?;
    let reading = format!("the entry of tensor `{name}`");
    let rank = cursor.u32(&reading)?;
    if !(1..=4).contains(&rank) {
        return Err(Error::Rank { tensor: name, found: rank });
    }
    let dims = (0..rank).map(|_| cursor.u64(&reading)).collect::<Result<Vec<_>, _>>()?;
    let format = match blocks::by_id(cursor.u32(&reading)?) {
        Ok(format) => format,
        Err(found) => return Err(Error::Format { tensor: name, found, expected: blocks::names() }),
    };
    let offset = cursor.u64(&reading)?;
    let (row, block) = (dims[0], format.elements as u64);
    if !row.is_multiple_of(block) {
        return Err(Error::Row { tensor: name, format: format.name, found: row, expected: block });
    }
    let Some(bytes) = byte_count(&dims, format) else {
        return Err(Error::TooLarge { tensor: name, format: format.name, shape: dims });
    };
    Ok(Listed { name, dims, format, offset, bytes })
}

/// The bytes of a tensor in the file, if it can be addressed there and as `f32`.
fn byte_count(dims: &[u64], format: &Format) -> Option<u64> {
    // A zero makes every shape empty, but each dim must still be one that can be written down.
    let elements =
        if dims.contains(&0) { 0 } else { dims.iter().try_fold(1_u64, |n, &d| n.checked_mul(d))? };
    dims.iter().try_for_each(|&dim| usize::try_from(dim).ok().map(drop))?;
    isize::try_from(elements.checked_mul(4)?).ok()?;
    (elements / format.elements as u64).checked_mul(format.bytes as u64)
}

/// Requires that the tensors, in the order of their offsets, fill the rest of the file: each starts at the aligned end
/// of the one before.
fn check_layout(
    mut listed: Vec<Listed>,
    header: u64,
    length: u64,
    alignment: u64,
) -> Result<Vec<TensorInfo>, Error> {
    listed.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    // A file without tensors needs no padding after the header.
    let begin = header.next_multiple_of(alignment).min(if listed.is_empty() { length } else { u64::MAX });
    let data = length.saturating_sub(begin);
    let mut end = 0_u64;
    let mut tensors = Vec::new();
    for Listed { name: tensor, mut dims, format, offset, bytes } in listed {
        let expected = end.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        if offset != expected {
            return Err(Error::Offset { tensor, found: offset, expected });
        }
        end = offset.saturating_add(bytes);
        if end > data || begin > length {
            return Err(Error::OutOfRange { tensor, end, found: data });
        }
        dims.reverse();
        let first = (begin + offset) as usize;
        let shape = dims.into_iter().map(|dim| dim as usize).collect();
        tensors.push(TensorInfo { name: tensor, shape, format, bytes: first..first + bytes as usize });
    }
    // The last tensor may be padded, or not.
    let expected = end.next_multiple_of(alignment);
    if data > expected {
        return Err(Error::Trailing { expected, found: data });
    }
    Ok(tensors)
}

/// Where reading is.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    fn slice(&mut self, reading: &str, length: u64) -> Result<&'a [u8], Error> {
        let (offset, found) = (self.position as u64, self.rest());
        if length > found {
            return Err(Error::Truncated { reading: reading.to_owned(), offset, needed: length, found });
        }
        let slice = &self.bytes[self.position..][..length as usize];
        self.position += slice.len();
        Ok(slice)
    }

    fn take<const N: usize>(&mut self, reading: &str) -> Result<[u8; N], Error> {
        let mut taken = [0; N];
        taken.copy_from_slice(self.slice(reading, N as u64)?);
        Ok(taken)
    }

    fn u32(&mut self, reading: &str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.take(reading)?))
    }

    fn u64(&mut self, reading: &str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.take(reading)?))
    }

    fn bool(&mut self, reading: &str) -> Result<bool, Error> {
        match self.take(reading)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(Error::Bool { reading: reading.to_owned(), found }),
        }
    }

    fn string(&mut self, reading: &str) -> Result<String, Error> {
        let length = self.u64(reading)?;
        let offset = self.position as u64;
        let bytes = self.slice(reading, length)?;
        let text = std::str::from_utf8(bytes).map_err(|error| Error::Utf8 {
            reading: reading.to_owned(),
            offset,
            valid: error.valid_up_to(),
        })?;
        Ok(text.to_owned())
    }

    /// Requires that so many elements of at least `bytes` each can follow.
    fn check_count(&self, reading: &str, found: u64, bytes: u64) -> Result<(), Error> {
        let most = self.rest() / bytes;
        if found > most {
            return Err(Error::Count { reading: reading.to_owned(), found, most });
        }
        Ok(())
    }

    /// A value of the type with this number (`gguf_metadata_value_type`).
    fn value(&mut self, reading: &str, kind: u32) -> Result<Value, Error> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.take(reading)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.take(reading)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.take(reading)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.take(reading)?).into()),
            4 => Value::Unsigned(self.u32(reading)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.take(reading)?).into()),
            6 => Value::F32(f32::from_le_bytes(self.take(reading)?)),
            7 => Value::Bool(self.bool(reading)?),
            8 => Value::String(self.string(reading)?),
            9 => Value::Array(self.array(reading, 1)?),
            10 => Value::Unsigned(self.u64(reading)?),
            11 => Value::Signed(i64::from_le_bytes(self.take(reading)?)),
            12 => Value::F64(f64::from_le_bytes(self.take(reading)?)),
            found => return Err(Error::ValueType { reading: reading.to_owned(), found }),
        })
    }

    fn array(&mut self, reading: &str, depth: usize) -> Result<Array, Error> {
        if depth > MAX_DEPTH {
            return Err(Error::Depth { reading: reading.to_owned(), limit: MAX_DEPTH });
        }
        let kind = self.u32(reading)?;
        let count = self.u64(reading)?;
        Ok(match kind {
            0 => Array::Unsigned(self.numbers(reading, count, |b| u8::from_le_bytes(b).into())?),
            1 => Array::Signed(self.numbers(reading, count, |b| i8::from_le_bytes(b).into())?),
            2 => Array::Unsigned(self.numbers(reading, count, |b| u16::from_le_bytes(b).into())?),
            3 => Array::Signed(self.numbers(reading, count, |b| i16::from_le_bytes(b).into())?),
            4 => Array::Unsigned(self.numbers(reading, count, |b| u32::from_le_bytes(b).into())?),
            5 => Array::Signed(self.numbers(reading, count, |b| i32::from_le_bytes(b).into())?),
            6 => Array::F32(self.numbers(reading, count, f32::from_le_bytes)?),
            7 => Array::Bool(self.elements(reading, count, 1, |cursor| cursor.bool(reading))?),
            8 => Array::String(self.elements(reading, count, 8, |cursor| cursor.string(reading))?),
            9 => Array::Array(self.elements(reading, count, 12, |cursor| cursor.array(reading, depth + 1))?),
            10 => Array::Unsigned(self.numbers(reading, count, u64::from_le_bytes)?),
            11 => Array::Signed(self.numbers(reading, count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(reading, count, f64::from_le_bytes)?),
            found => return Err(Error::ValueType { reading: reading.to_owned(), found }),
        })
    }

    fn numbers<const N: usize, T>(
        &mut self,
        reading: &str,
        count: u64,
        number: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Error> {
        self.elements(reading, count, N as u64, |cursor| Ok(number(cursor.take(reading)?)))
    }

    /// So many elements, each of at least `bytes`.
    fn elements<T>(
        &mut self,
        reading: &str,
        count: u64,
        bytes: u64,
        mut element: impl FnMut(&mut Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        self.check_count(reading, count, bytes)?;
        (0..count).map(|_| element(self)).collect()
    }
}
