"""Loads an adapter's directory with PEFT on the recorded base, and writes what PEFT computes for the recorded input.

    python load.py ADAPTER_DIRECTORY OUTPUT.safetensors

Fails if PEFT finds a key in the directory that it does not know, or misses one.
"""

import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

PLACE = Path(__file__).parent


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(6, 8)
        self.fc2 = torch.nn.Linear(8, 5)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


warnings.simplefilter("error")
base = Mlp().eval()
base.load_state_dict(load_file(PLACE / "base.safetensors"))
model = PeftModel.from_pretrained(base, sys.argv[1]).eval()
with torch.no_grad():
    save_file({"y": model(load_file(PLACE / "io.safetensors")["x"])}, sys.argv[2])
