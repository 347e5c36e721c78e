//! The container: what is refused, and that nothing panics.

use crate::writer::{File, Stored, array, bool, f32, string, text, u32};
use crate::{assert_names, open};
use engraft_import::gguf::{Array, Gguf, Value};
use proptest::prelude::*;

#[track_caller]
fn assert_refused(bytes: &[u8], parts: &[&str]) {
    assert_names(&open(bytes).unwrap_err(), parts);
}

/// Everything that a file can be asked for.
fn read_all(file: &Gguf) -> Result<(), String> {
    file.config().map_err(|error| error.to_string())?;
    file.weights().map_err(|error| error.to_string())?;
    let tokenizer = file.tokenizer().map_err(|error| error.to_string())?;
    let ids = tokenizer.encode("abab <e> 12 é", true).map_err(|error| error.to_string())?;
    tokenizer.decode(ids.get_ids(), false).map_err(|error| error.to_string())?;
    Ok(())
}

#[test]
fn a_sound_file_is_read_in_both_versions() {
    for version in [2, 3] {
        let file = open(&File { version, ..File::llama() }.bytes()).unwrap();
        read_all(&file).unwrap();
        assert_eq!(file.weights().unwrap().len(), 11);
        assert_eq!(file.metadata("llama.block_count"), Some(&Value::Unsigned(1)));
    }
    let mut other = File { alignment: 64, ..File::llama() };
    let mut offset = 0;
    for tensor in &mut other.tensors {
        tensor.offset = offset;
        offset += (tensor.data.len() as u64).next_multiple_of(64);
    }
    other.set("general.alignment", u32(64));
    read_all(&open(&other.bytes()).unwrap()).unwrap();
    other.set("general.alignment", u32(32));
    assert!(open(&other.bytes()).is_err(), "another alignment is another layout");
}

#[test]
fn values_of_every_type_are_read() {
    let mut file = File::llama();
    let nested = [array(3, 1, vec![254, 255]), array(7, 2, vec![1, 0])].map(|(_, bytes)| bytes).concat();
    let cases: [(Stored, Value); 12] = [
        ((0, vec![255]), Value::Unsigned(255)),
        ((1, vec![255]), Value::Signed(-1)),
        ((2, vec![0, 1]), Value::Unsigned(256)),
        ((3, vec![254, 255]), Value::Signed(-2)),
        ((5, vec![255; 4]), Value::Signed(-1)),
        (f32(0.5), Value::F32(0.5)),
        (bool(true), Value::Bool(true)),
        ((10, vec![255; 8]), Value::Unsigned(u64::MAX)),
        ((11, vec![255; 8]), Value::Signed(-1)),
        ((12, 0.1_f64.to_le_bytes().to_vec()), Value::F64(0.1)),
        (text("é"), Value::String("é".to_owned())),
        (
            array(9, 2, nested),
            Value::Array(Array::Array(vec![Array::Signed(vec![-2]), Array::Bool(vec![true, false])])),
        ),
    ];
    for (index, (stored, _)) in cases.iter().enumerate() {
        file.set(&format!("some.{index}"), stored.clone());
    }
    let read = open(&file.bytes()).unwrap();
    for (index, (_, value)) in cases.iter().enumerate() {
        assert_eq!(read.metadata(&format!("some.{index}")), Some(value));
    }
}

#[test]
fn a_file_that_begins_otherwise_is_refused() {
    let file = File::llama();
    assert_refused(
        &File { magic: *b"GGML", ..file.clone() }.bytes(),
        &["47, 47, 4d, 4c", "expected \"GGUF\""],
    );
    assert_refused(&File { version: 1, ..file.clone() }.bytes(), &["version 1, expected 2 or 3"]);
    assert_refused(&File { version: 4, ..file.clone() }.bytes(), &["version 4"]);
    let swapped = 3_u32.swap_bytes();
    assert_refused(&File { version: swapped, ..file }.bytes(), &["version 3 in big-endian order"]);
    assert_refused(b"", &["the magic number needs 4 bytes at offset 0", "ends 0 bytes after"]);
}

/// Wherever a file is cut, it is refused.
#[test]
fn a_file_that_is_cut_off_is_refused() {
    let file = File::llama();
    let (bytes, header) = (file.bytes(), file.header().len());
    for length in 0..bytes.len() {
        let message = open(&bytes[..length]).unwrap_err();
        let expected: &[&str] =
            if length < header { &["needs", "announces"] } else { &["tensor `", "of the data"] };
        assert!(expected.iter().any(|part| message.contains(part)), "{length}: {message}");
    }
    assert_refused(&[bytes, vec![0; 64]].concat(), &["the tensors take", "but the file has"]);
}

#[test]
fn absurd_counts_and_lengths_are_refused() {
    let good = File::llama().bytes();
    let at = |offset: usize, value: u64| {
        let mut bytes = good.clone();
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    for huge in [u64::MAX, 1 << 62, 1 << 40] {
        assert_refused(&at(8, huge), &["the list of tensors announces"]);
        assert_refused(&at(16, huge), &["the list of metadata announces"]);
        assert_refused(&at(24, huge), &["the key of metadata 0 needs"]);
        for kind in 0..13 {
            let mut file = File::llama();
            file.set("some.array", array(kind, huge, vec![0; 64]));
            assert_refused(&file.bytes(), &["metadata `some.array` announces"]);
        }
        let mut file = File::llama();
        file.set("some.text", (8, huge.to_le_bytes().to_vec()));
        assert_refused(&file.bytes(), &["metadata `some.text` needs"]);
        let mut file = File::llama();
        file.tensors[0].dims = vec![4, huge];
        assert!(open(&file.bytes()).unwrap_err().contains("tensor `"));
        file.tensors[0].dims = vec![huge, huge, huge, huge];
        assert_refused(&file.bytes(), &["`token_embd.weight` of F32", "more elements than fit"]);
    }
}

#[test]
fn values_that_are_none_are_refused() {
    let with = |value: Stored| {
        let mut file = File::llama();
        file.set("some.key", value);
        file.bytes()
    };
    assert_refused(&with((13, vec![0; 8])), &["metadata `some.key` is of type 13"]);
    assert_refused(&with(array(99, 0, vec![])), &["metadata `some.key` is of type 99"]);
    assert_refused(&with((7, vec![2])), &["metadata `some.key` holds the byte 2"]);
    assert_refused(&with((8, string(&[b'a', 0xff]))), &["metadata `some.key`", "not UTF-8 after 1 bytes"]);
    let deep = (0..9).fold(array(0, 0, vec![]), |inner, _| array(9, 1, inner.1));
    assert_refused(&with(deep), &["metadata `some.key` nests arrays deeper than 8"]);
    let mut file = File::llama();
    file.metadata.push(("llama.block_count".to_owned(), u32(1)));
    assert_refused(&file.bytes(), &["two metadata `llama.block_count`"]);
    for alignment in [u32(0), u32(48), u32(4), u32(1 << 21), text("32")] {
        let mut file = File::llama();
        file.set("general.alignment", alignment);
        assert_refused(&file.bytes(), &["`general.alignment` is", "expected a power of two"]);
    }
}

/// What is done to a file, and what the error must say.
type Case<'a> = (&'a dyn Fn(&mut File), &'a [&'a str]);

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let with = |change: &dyn Fn(&mut File)| {
        let mut file = File::llama();
        change(&mut file);
        file.bytes()
    };
    let cases: [Case<'_>; 9] = [
        (&|file| file.tensors[1].name = file.tensors[0].name.clone(), &["two tensors `token_embd.weight`"]),
        (
            &|file| file.tensors[1].offset = 0,
            &["`token_embd.weight` starts at byte 0 of the data, expected 32"],
        ),
        (
            &|file| file.tensors[1].offset += 1,
            &["`output_norm.weight` starts at byte 97 of the data, expected 96"],
        ),
        (&|file| file.tensors[0].offset = u64::MAX, &["expected 0"]),
        (
            &|file| file.tensors[10].dims = vec![400, 4],
            &["`blk.0.ffn_down.weight` ends at byte", "but the file has"],
        ),
        (&|file| file.tensors[2].dims.clear(), &["`blk.0.attn_norm.weight` has 0 dims, expected 1 to 4"]),
        (&|file| file.tensors[2].dims = vec![1; 5], &["has 5 dims"]),
        (
            &|file| file.tensors[3].kind = 2,
            &["`blk.0.attn_q.weight` has rows of 4 elements", "32, the block of Q4_0"],
        ),
        (
            &|file| file.tensors[0].dims = vec![4, 12],
            &["`output_norm.weight` starts at byte 96 of the data, expected 192"],
        ),
    ];
    for (change, parts) in cases {
        assert_refused(&with(change), parts);
    }
    for (kind, name) in [(10, "Q2_K"), (20, "IQ4_NL"), (28, "F64"), (4, "the unknown type 4"), (1000, "1000")]
    {
        let bytes = with(&|file| file.tensors[3].kind = kind);
        assert_refused(&bytes, &["`blk.0.attn_q.weight` is", name, "expected one of F32, F16, Q4_0"]);
    }
}

proptest! {
    /// Whatever is changed in a file, it is refused or read, and nothing panics.
    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = File::llama().bytes();
        let header = File::llama().header().len();
        for (index, byte) in changes {
            bytes[index.index(header)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(file) = open(&bytes) {
            let _ = read_all(&file);
        }
    }

    /// So it does where a bit only is turned, which most counts and lengths survive.
    #[test]
    fn a_turned_bit_never_panics(index in any::<prop::sample::Index>(), bit in 0..8) {
        let mut bytes = File::llama().bytes();
        let header = File::llama().header().len();
        bytes[index.index(header)] ^= 1_u8 << bit;
        if let Ok(file) = open(&bytes) {
            let _ = read_all(&file);
        }
    }
}
