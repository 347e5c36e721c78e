//! Adapters and weights from disk onto graphs: PEFT directories, safetensors
