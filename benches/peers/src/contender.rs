//! Whoever is timed: turns of calls, each call timed by itself. Knows nothing about who they are.

use crate::error::Error;
use std::time::Instant;

/// How many calls a turn has.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Calls before the clock counts: they wake threads and bring weights back into caches.
    pub untimed: u32,
    /// Calls that count.
    pub timed: u32,
}

/// Somebody who computes the workload, or who does something else that times are compared with.
pub trait Contender {
    /// Takes a turn, and says how many nanoseconds each timed call took.
    ///
    /// # Errors
    /// A call fails.
    fn turn(&mut self, turn: Turn) -> Result<Vec<u64>, Error>;

    /// What the latest call gave, row by row.
    ///
    /// # Errors
    /// There is none.
    fn output(&mut self) -> Result<Vec<f32>, Error>;
}

/// A contender within this process.
pub trait Call {
    /// Does it once, from and into buffers that it was given before.
    ///
    /// # Errors
    /// It can't.
    fn call(&mut self) -> Result<(), Error>;

    /// What the latest call gave, row by row.
    ///
    /// # Errors
    /// There is none.
    fn output(&self) -> Result<Vec<f32>, Error>;
}

impl<C: Call> Contender for C {
    fn turn(&mut self, turn: Turn) -> Result<Vec<u64>, Error> {
        let mut times = Vec::with_capacity(turn.timed as usize);
        for _ in 0..turn.untimed {
            self.call()?;
        }
        for _ in 0..turn.timed {
            let start = Instant::now();
            self.call()?;
            times.push(start.elapsed().as_nanos() as u64);
        }
        Ok(times)
    }

    fn output(&mut self) -> Result<Vec<f32>, Error> {
        Call::output(self)
    }
}

/// A contender with its name.
pub struct Entry<'a> {
    /// Who it is.
    pub who: Who,
    /// How many threads it has.
    pub threads: usize,
    /// It.
    pub contender: Box<dyn Contender + 'a>,
}

/// Who contends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// Ours: the base without an adapter.
    Dense,
    /// Ours: DoRA, frozen and unmerged.
    Dora,
    /// Ours: DoRA, merged at load.
    Merged,
    /// Ours: DoRA whose A, B and m come with each call.
    Live,
    /// Ours: a bank of adapters, none of which any row has.
    BankBare,
    /// Ours: a bank, each row with one of few DoRA adapters.
    BankDora,
    /// The same with LoRA adapters.
    BankLora,
    /// Ours: a bank, each row with a DoRA adapter of its own.
    BankOwn,
    /// ONNX Runtime on the merged weights.
    OnnxRuntime,
    /// The same on a model in its own fused operators.
    OnnxRuntimeFused,
    /// OpenVINO on the merged weights.
    OpenVino,
    /// PyTorch, eager, on the merged weights.
    Torch,
    /// The same through `torch.compile`.
    TorchCompiled,
    /// PEFT, unmerged.
    Peft,
    /// The same through `torch.compile`.
    PeftCompiled,
    /// PEFT, unmerged, with its cache of norms, which is off unless it is asked for.
    PeftCached,
    /// PEFT, each row with one of few LoRA adapters.
    PeftMixed,
    /// The same through `torch.compile`.
    PeftMixedCompiled,
    /// The tile of our product, out of the first-level cache: what a core can compute at most.
    Tile,
    /// A plain read of memory: what it can deliver at most.
    Read,
    /// Arithmetic of registers alone: what a core can compute at most, whatever it reads.
    Peak,
    /// A plain read of as many bytes as the weights have, each thread its part, over and over.
    Weights,
}

/// Which weights a contender multiplies by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The base alone.
    Base,
    /// With the adapter.
    Adapted,
    /// Each row with one of few DoRA adapters.
    FewDora,
    /// Each row with one of few LoRA adapters.
    FewLora,
    /// Each row with a DoRA adapter of its own.
    OwnDora,
}

impl Who {
    /// Everybody, in the order of tables.
    pub const ALL: [Who; 22] = [
        Who::Dense,
        Who::Dora,
        Who::Merged,
        Who::Live,
        Who::BankBare,
        Who::BankDora,
        Who::BankLora,
        Who::BankOwn,
        Who::OnnxRuntime,
        Who::OnnxRuntimeFused,
        Who::OpenVino,
        Who::Torch,
        Who::TorchCompiled,
        Who::Peft,
        Who::PeftCompiled,
        Who::PeftCached,
        Who::PeftMixed,
        Who::PeftMixedCompiled,
        Who::Tile,
        Who::Read,
        Who::Peak,
        Who::Weights,
    ];

    /// As people call it.
    pub fn title(self) -> &'static str {
        match self {
            Who::Dense => "Engraft, bare",
            Who::Dora => "Engraft, DoRA",
            Who::Merged => "Engraft, merged",
            Who::Live => "Engraft, live norms",
            Who::BankBare => "Engraft, a bank, no row adapted",
            Who::BankDora => "Engraft, 8 DoRA adapters in turn",
            Who::BankLora => "Engraft, 8 LoRA adapters in turn",
            Who::BankOwn => "Engraft, each row its own DoRA",
            Who::OnnxRuntime => "ONNX Runtime, merged",
            Who::OnnxRuntimeFused => "ONNX Runtime, merged, its own operators",
            Who::OpenVino => "OpenVINO, merged",
            Who::Torch => "PyTorch, merged",
            Who::TorchCompiled => "torch.compile, merged",
            Who::Peft => "PEFT",
            Who::PeftCompiled => "PEFT, torch.compile",
            Who::PeftCached => "PEFT, cached norms",
            Who::PeftMixed => "PEFT, 8 LoRA adapters in turn",
            Who::PeftMixedCompiled => "PEFT, torch.compile, 8 LoRA adapters in turn",
            Who::Tile => "the tile, out of L1",
            Who::Read => "a plain read of the weights",
            Who::Peak => "registers alone",
            Who::Weights => "a plain read of as many bytes as the weights have",
        }
    }

    /// What it computes, if it computes the workload.
    pub fn meaning(self) -> Option<Meaning> {
        match self {
            Who::Dense | Who::BankBare => Some(Meaning::Base),
            Who::BankDora => Some(Meaning::FewDora),
            Who::BankLora | Who::PeftMixed | Who::PeftMixedCompiled => Some(Meaning::FewLora),
            Who::BankOwn => Some(Meaning::OwnDora),
            Who::Tile | Who::Read | Who::Peak | Who::Weights => None,
            _ => Some(Meaning::Adapted),
        }
    }
}
