//! A safetensors file.
#![no_main]

use engraft_import::safetensors::parse_weights;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(weights) = parse_weights("fuzzed", bytes) {
        // What is accepted can be read in full, and takes no more than twice its bytes.
        let elements: usize = weights.iter().map(|(_, tensor)| tensor.len()).sum();
        assert!(elements * 2 <= bytes.len(), "{elements} elements of {} bytes", bytes.len());
    }
});
