//! Safetensors files, good and bad.
#![allow(clippy::unwrap_used, reason = "what the tests share unwraps, too")]

mod common;

use common::{MANY, case, numbers, unmade};
use engraft_import::safetensors::{SafetensorsError, parse_weights, read_weights, write};
use engraft_runtime::{Tensor, Weights};
use proptest::prelude::*;
use std::fs;

/// What reading these bytes gives.
fn read(bytes: &[u8]) -> Result<Weights, SafetensorsError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("some.safetensors");
    fs::write(&path, bytes).unwrap();
    read_weights(path)
}

/// A file of this header and this many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(std::iter::repeat_n(0, data));
    bytes
}

#[track_caller]
fn assert_refused(bytes: &[u8], parts: &[&str]) {
    let message = read(bytes).unwrap_err().to_string();
    for part in parts.iter().chain(&["some.safetensors"]) {
        assert!(message.contains(part), "{message:?} should contain {part:?}");
    }
}

#[test]
fn what_is_written_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("some.safetensors");
    let tensors = [
        ("b", numbers("b", &[3, 2])),
        ("ids", Tensor::i64(&[2], vec![i64::MIN, 7]).unwrap()),
        ("a", Tensor::i32(&[1, 1], vec![-1]).unwrap()),
        ("nothing", Tensor::f32(&[0, 5], vec![]).unwrap()),
        ("scalar", Tensor::f32(&[], vec![0.5]).unwrap()),
    ];
    write(&path, &tensors).unwrap();
    let weights = read_weights(&path).unwrap();
    assert_eq!(weights.len(), tensors.len());
    for (name, tensor) in &tensors {
        assert_eq!(&**weights.get(name).unwrap(), tensor, "{name}");
    }
    let twice = [tensors[0].clone(), tensors[0].clone()];
    assert!(write(&path, &twice).unwrap_err().to_string().contains("two tensors `b`"));
    assert!(write(directory.path().join("no/such"), &tensors).unwrap_err().to_string().contains("no/such"));
}

/// Elements that aren't aligned are copied; the others are read where they lie, also when the file's name is gone.
#[test]
fn tensors_that_are_not_aligned_are_read_as_well() {
    let header = r#"{"h": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [2, 10]},
        "i": {"dtype": "I64", "shape": [1], "data_offsets": [10, 18]},
        "n": {"dtype": "I32", "shape": [1], "data_offsets": [18, 22]}}"#;
    for padding in 0..8 {
        let header = header.to_owned() + &" ".repeat(padding);
        let mut bytes = file(&header, 0);
        bytes.extend([0x00, 0x3e]);
        bytes.extend([1.5_f32, -2.0].map(f32::to_le_bytes).concat());
        bytes.extend((-7_i64).to_le_bytes());
        bytes.extend(9_i32.to_le_bytes());
        for weights in [read(&bytes).unwrap(), parse_weights("some", &bytes).unwrap()] {
            let tensor = |name| weights.get(name).unwrap();
            assert_eq!(tensor("h").as_f32().unwrap(), [1.5]);
            assert_eq!(tensor("w").as_f32().unwrap(), [1.5, -2.0]);
            assert_eq!(tensor("i").as_i64().unwrap(), [-7]);
            assert_eq!(tensor("n").as_i32().unwrap(), [9]);
        }
    }
}

#[test]
fn half_precision_floats_are_widened_exactly() {
    for (dtype, one_and_a_half) in [("F16", [0x00, 0x3e]), ("BF16", [0xc0, 0x3f])] {
        let header = format!(r#"{{"w": {{"dtype": "{dtype}", "shape": [1], "data_offsets": [0, 2]}}}}"#);
        let mut bytes = file(&header, 0);
        bytes.extend(one_and_a_half);
        assert_eq!(read(&bytes).unwrap().get("w").unwrap().as_f32().unwrap(), [1.5]);
    }
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let whole = fs::read(case("dora").join("adapter_model.safetensors")).unwrap();
    assert!(read(&whole).is_ok());
    for length in (0..whole.len()).step_by(7).chain(whole.len() - 9..whole.len()) {
        assert_refused(&whole[..length], &[]);
    }
    // The last tensor is named when only it is cut off.
    assert_refused(&whole[..whole.len() - 1], &["fc2.lora_magnitude_vector`", "ends at byte"]);
    assert_refused(&whole[..5], &["the header takes 8 bytes, but the file has 5"]);
    let longer = [whole.as_slice(), &[0]].concat();
    assert_refused(&longer, &["the tensors take", "but the file has"]);
}

#[test]
fn a_bad_header_is_refused_by_name() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"w": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}"#)
    };
    let cases: &[(String, usize, &[&str])] = &[
        (one("F64", "[1]", "[0, 8]"), 8, &["`w` is F64", "expected F32"]),
        (one("F99", "[1]", "[0, 8]"), 8, &["`w`", "F99"]),
        (one("F32", "[1000000000000000000]", "[0, 8]"), 8, &["`w`", "1000000000000000000", "found 8"]),
        (one("F32", "[8000000000000000000, 4]", "[0, 8]"), 8, &["`w`", "more than 2^64", "found 8"]),
        (one("F32", "[1000000000000000000]", "[0, 4000000000000000000]"), 8, &["`w`", "the file has 8"]),
        (one("F32", "[99999999999999999999]", "[0, 8]"), 8, &["`w`", "1e+20"]),
        (one("F32", "[-1]", "[0, 8]"), 8, &["`w`", "-1"]),
        (one("F32", "[3]", "[0, 8]"), 8, &["`w` of F32 [3] needs 12 bytes, found 8"]),
        (one("F32", "[2]", "[4, 12]"), 12, &["`w` spans bytes 4 to 12, expected it to start at 0"]),
        (one("F32", "[2]", "[8, 0]"), 8, &["`w` spans bytes 8 to 0"]),
        (
            r#"{"v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}"#
                .to_owned(),
            12,
            &["`w` spans bytes 4 to 12, expected it to start at 8"],
        ),
        (
            r#"{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#
                .to_owned(),
            8,
            &["two tensors `w`"],
        ),
        ("{".to_owned(), 0, &["malformed"]),
        ("[]".to_owned(), 0, &["malformed", "tensors by name"]),
        (r#"{"w": {"dtype": "F32"}}"#.to_owned(), 0, &["`w`", "shape"]),
        ("[".repeat(100_000), 0, &["malformed"]),
    ];
    for (header, data, parts) in cases {
        assert_refused(&file(header, *data), parts);
    }
    assert_refused(&u64::MAX.to_le_bytes(), &["18446744073709551615 bytes long"]);
    assert_refused(&50_000_000_u64.to_le_bytes(), &["the header takes 50000008 bytes, but the file has 8"]);
    assert!(read_weights("no/such.safetensors").unwrap_err().to_string().contains("no/such.safetensors"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn hostile_bytes_are_read_or_refused(at in 0_usize..600, byte: u8, more in proptest::collection::vec(any::<u8>(), 0..9)) {
        let mut bytes = fs::read(case("lora").join("adapter_model.safetensors")).unwrap();
        bytes[at] = byte;
        bytes.splice(at..at, more);
        drop(read(&bytes));
    }
}

/// A file in memory reads as one on disk, and its errors name what the caller calls it.
#[test]
fn bytes_in_memory_are_read() {
    let path = case("dora").join("base.safetensors");
    let (bytes, on_disk) = (fs::read(&path).unwrap(), read_weights(&path).unwrap());
    let in_memory = parse_weights("embedded", &bytes).unwrap();
    assert!(in_memory.iter().eq(on_disk.iter()));
    let error = parse_weights("embedded", &bytes[..5]).unwrap_err().to_string();
    assert_eq!(error, "embedded: the header takes 8 bytes, but the file has 5");
}

#[test]
fn what_there_is_no_memory_for_is_named_and_not_written() {
    let path = tempfile::tempdir().unwrap().path().join("y.safetensors");
    let error = write(&path, &[("small", unmade(&[2])), ("large", unmade(&[MANY]))]).unwrap_err().to_string();
    assert!(error.contains("y.safetensors: tensor `large`: there is no memory for the"), "{error}");
    assert!(!path.exists());
}

#[test]
fn what_cannot_be_replaced_stays_and_nothing_is_left_behind() {
    let directory = tempfile::tempdir().unwrap();
    // A directory with something in it cannot be replaced by a file.
    let path = directory.path().join("taken");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("inside"), "what was there").unwrap();
    let error = write(&path, &[("a", numbers("a", &[2]))]).unwrap_err().to_string();
    assert!(error.contains("taken: "), "{error}");
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["taken"]);
    assert!(path.join("inside").exists());
}
