//! A graph as text: what is accepted is valid, and is written and read back as it is.
#![no_main]

use engraft_ir::{text, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    if let Ok(graph) = text::parse(input) {
        verify(&graph).expect("what was read is valid");
        let written = text::print(&graph);
        let again = text::parse(&written).expect("what was written is read");
        assert_eq!(text::print(&again), written);
    }
});
