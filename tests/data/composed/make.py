"""Records what PEFT computes with several adapters active at once, on a tiny MLP: fc1 (6 to 8) -> relu -> fc2 (8 to 5).

Writes beside itself, with fixed seeds: `base.safetensors`, a directory for each adapter as `save_pretrained` writes it, and
`io.safetensors` with the input `x`, the base's output `y_base`, and for each pair of adapters the output `y.<first>.<second>`
with both active in that order. `y.cat` is PEFT's `add_weighted_adapter` of `l1` and `l2` with `combination_type="cat"` and
the weights 0.5 and -1.5.

    pip install peft==0.21.2 torch safetensors
    python make.py
"""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

PLACE = Path(__file__).parent
ADAPTERS = {
    "l1": dict(r=2, lora_alpha=4),
    "l2": dict(r=3, lora_alpha=3, use_rslora=True, target_modules=["fc1"]),
    "d1": dict(r=2, lora_alpha=3, use_dora=True),
    "d2": dict(r=3, lora_alpha=5, use_dora=True, use_rslora=True),
    "lb": dict(r=2, lora_alpha=5, lora_bias=True),
}
PAIRS = [("l1", "l2"), ("d1", "l1"), ("l1", "d1"), ("d1", "d2"), ("d2", "d1"), ("lb", "d1"), ("d1", "lb")]


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(6, 8)
        self.fc2 = torch.nn.Linear(8, 5)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


def base():
    torch.manual_seed(0)
    return Mlp().eval()


def make_adapter(name, seed):
    options = {"target_modules": ["fc1", "fc2"], **ADAPTERS[name]}
    model = get_peft_model(base(), LoraConfig(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            if "lora_magnitude_vector" in parameter:
                value.mul_(0.6 + 0.8 * torch.rand(value.shape, generator=generator))
            elif "lora_" in parameter:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.4)
    model.save_pretrained(PLACE / name)
    (PLACE / name / "README.md").unlink(missing_ok=True)


def loaded(names):
    model = PeftModel.from_pretrained(base(), PLACE / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(PLACE / name, adapter_name=name)
    return model.eval()


@torch.no_grad()
def main():
    save_file(base().state_dict(), PLACE / "base.safetensors", metadata={"format": "pt"})
    for seed, name in enumerate(ADAPTERS, start=1):
        shutil.rmtree(PLACE / name, ignore_errors=True)
        make_adapter(name, seed)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(100))
    recorded = {"x": x, "y_base": base()(x)}
    for pair in PAIRS:
        model = loaded(pair)
        model.base_model.set_adapter(list(pair))
        recorded["y." + ".".join(pair)] = model(x)
    model = loaded(["l1", "l2"])
    model.add_weighted_adapter(["l1", "l2"], [0.5, -1.5], "cat", combination_type="cat")
    model.set_adapter("cat")
    recorded["y.cat"] = model(x)
    save_file({name: y.contiguous() for name, y in recorded.items()}, PLACE / "io.safetensors")


main()
