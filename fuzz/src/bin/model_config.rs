//! A model's `config.json`: the architecture that it describes, its graphs, and its inputs.
#![no_main]

use engraft_import::models::{Architecture, GraphOptions, Logits, TensorsError};
use engraft_runtime::{Tensor, Weights};
use libfuzzer_sys::fuzz_target;

/// Whether a number of layers may have more than two digits: a deep model is no other than a shallow one, but its graph takes
/// seconds, unoptimised and while others use the machine.
fn may_be_deep(text: &str) -> bool {
    text.split("layer").skip(1).any(|after| {
        let number = after.bytes().skip_while(|byte| !byte.is_ascii_digit());
        number.take_while(u8::is_ascii_digit).count() > 2
    })
}

fuzz_target!(|text: &str| {
    if may_be_deep(text) {
        return;
    }
    let Ok(architecture) = Architecture::parse(text) else { return };
    // The graph of a wide model is no other than that of a small one, but takes constants as long.
    if architecture.vocab().max(architecture.hidden()) >= 1 << 16 {
        return;
    }
    for logits in [Logits::All, Logits::Last] {
        let _ = architecture.graph(GraphOptions { logits });
    }
    // No tensors are not enough: each model has parameters.
    match architecture.normalise(&Weights::new()) {
        Err(TensorsError::Missing { tensors }) => assert!(!tensors.is_empty()),
        Err(TensorsError::Build(_)) => {}
        other => panic!("{other:?}"),
    }
    let ids = Tensor::i64(&[1, 2], vec![0, architecture.vocab() as i64 - 1]).expect("two ids");
    let given = Weights::from_iter([("input_ids", ids)]);
    let Ok(filled) = architecture.fill_inputs(&given, 0, GraphOptions::default()) else { return };
    for (name, tensor) in filled {
        assert!(tensor.as_i64().is_ok_and(|ids| ids.iter().all(|&id| id >= 0)), "`{name}`");
    }
});
