//! A graph as JSON: what is accepted is valid, and is written and read back as it is.
#![no_main]

use engraft_ir::{json, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(graph) = json::from_slice(bytes) {
        verify(&graph).expect("what was read is valid");
        let written = json::to_string(&graph);
        let again = json::from_str(&written).expect("what was written is read");
        assert_eq!(json::to_string(&again), written);
    }
});
