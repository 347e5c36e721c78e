//! Writes GGUF files, good and bad: each part may be replaced before the whole is put together.

/// A value as the file holds it: the number of its type, and its bytes.
pub type Stored = (u32, Vec<u8>);

pub fn u32(value: u32) -> Stored {
    (4, value.to_le_bytes().to_vec())
}

pub fn f32(value: f32) -> Stored {
    (6, value.to_le_bytes().to_vec())
}

pub fn bool(value: bool) -> Stored {
    (7, vec![value.into()])
}

pub fn text(value: &str) -> Stored {
    (8, string(value.as_bytes()))
}

pub fn texts(values: &[&str]) -> Stored {
    array(8, values.len() as u64, values.iter().flat_map(|value| string(value.as_bytes())).collect())
}

pub fn i32s(values: &[i32]) -> Stored {
    array(5, values.len() as u64, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

pub fn array(kind: u32, count: u64, elements: Vec<u8>) -> Stored {
    (9, [kind.to_le_bytes().to_vec(), count.to_le_bytes().to_vec(), elements].concat())
}

pub fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// A tensor of zeros, or of what is put into `data`.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
    pub data: Vec<u8>,
}

#[derive(Clone)]
pub struct File {
    pub magic: [u8; 4],
    pub version: u32,
    pub metadata: Vec<(String, Stored)>,
    pub tensors: Vec<Entry>,
    pub alignment: usize,
}

impl File {
    /// A sound model of one block, hidden size 4, two heads that share one, six tokens.
    pub fn llama() -> File {
        let mut file = File { magic: *b"GGUF", version: 3, metadata: vec![], tensors: vec![], alignment: 32 };
        file.set("general.architecture", text("llama"));
        for (key, value) in [
            ("block_count", 1),
            ("context_length", 16),
            ("embedding_length", 4),
            ("feed_forward_length", 6),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            file.set(&format!("llama.{key}"), u32(value));
        }
        file.set("llama.attention.layer_norm_rms_epsilon", f32(1e-5));
        file.set("tokenizer.ggml.model", text("gpt2"));
        file.set("tokenizer.ggml.pre", text("smollm"));
        file.set("tokenizer.ggml.tokens", texts(&["<e>", "a", "b", "ab", "Ġ", "abab"]));
        file.set("tokenizer.ggml.token_type", i32s(&[3, 1, 1, 1, 1, 1]));
        file.set("tokenizer.ggml.merges", texts(&["a b", "ab ab"]));
        file.set("tokenizer.ggml.bos_token_id", u32(0));
        for (name, dims) in [
            ("token_embd.weight", [4, 6]),
            ("output_norm.weight", [4, 0]),
            ("blk.0.attn_norm.weight", [4, 0]),
            ("blk.0.attn_q.weight", [4, 4]),
            ("blk.0.attn_k.weight", [4, 2]),
            ("blk.0.attn_v.weight", [4, 2]),
            ("blk.0.attn_output.weight", [4, 4]),
            ("blk.0.ffn_norm.weight", [4, 0]),
            ("blk.0.ffn_gate.weight", [4, 6]),
            ("blk.0.ffn_up.weight", [4, 6]),
            ("blk.0.ffn_down.weight", [6, 4]),
        ] {
            let dims: Vec<u64> = dims.into_iter().filter(|&dim| dim > 0).collect();
            file.push(name, &dims);
        }
        file
    }

    /// Adds a tensor of F32 at the end.
    pub fn push(&mut self, name: &str, dims: &[u64]) {
        let offset = self
            .tensors
            .last()
            .map_or(0, |last| (last.offset + last.data.len() as u64).next_multiple_of(self.alignment as u64));
        let data = (0..dims.iter().product()).flat_map(|i: u64| (i as f32).to_le_bytes()).collect();
        self.tensors.push(Entry { name: name.to_owned(), dims: dims.to_vec(), kind: 0, offset, data });
    }

    /// Sets or replaces metadata.
    pub fn set(&mut self, key: &str, value: Stored) {
        self.remove(key);
        self.metadata.push((key.to_owned(), value));
    }

    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(other, _)| other != key);
    }

    /// Calls the architecture something else, in the keys, too.
    pub fn rename(&mut self, architecture: &str) {
        for (key, _) in &mut self.metadata {
            if let Some(rest) = key.strip_prefix("llama.") {
                *key = format!("{architecture}.{rest}");
            }
        }
        self.set("general.architecture", text(architecture));
    }

    /// Everything before the data.
    pub fn header(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, (kind, value)) in &self.metadata {
            bytes.extend(string(key.as_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        }
        for tensor in &self.tensors {
            bytes.extend(string(tensor.name.as_bytes()));
            bytes.extend((tensor.dims.len() as u32).to_le_bytes());
            bytes.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(tensor.offset.to_le_bytes());
        }
        bytes
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        for tensor in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
            bytes.extend(&tensor.data);
        }
        bytes
    }
}
