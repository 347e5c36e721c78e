"""PyTorch and PEFT, driven over stdin and stdout in lines of JSON, one turn at a time.

Each call is timed here, so that neither the pipe nor the driver is counted. What each contender is given: the arrays of
a safetensors file, `torch.no_grad`, and as many threads as it is told.
"""

import json
import os
import sys
import time
import traceback
from importlib.metadata import version

# Compiling in this process leaves no other ones behind that would want a core.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import peft
import torch
import torch._inductor.config
from peft.helpers import DoraCaching
from safetensors.torch import load_file, save_file

import onnx_model

PACKAGES = ["torch", "peft", "transformers", "onnxruntime", "openvino", "onnx", "numpy"]


class Torch:
    """The merged weight and its bias: the least that PyTorch can do for an adapted layer."""

    def __init__(self, arrays):
        self.weight, self.bias = arrays["merged"], arrays["bias"]

    def __call__(self, x):
        return torch.nn.functional.linear(x, self.weight, self.bias)


def compiled(arrays, x):
    """The same through torch.compile, frozen: so the weight is a constant, which the compiler may lay out as it likes."""
    weight = arrays["merged"]
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0]).eval()
    layer.weight.copy_(weight)
    layer.bias.copy_(arrays["bias"])
    layer = torch.compile(layer, dynamic=False)
    with torch._inductor.config.patch(freezing=True):
        layer(x)
    return layer


def peft_layer(arrays, rank, alpha):
    """PEFT's own DoRA layer, without the wrappers of a whole model around it."""
    weight = arrays["weight"]
    model = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0]))
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, use_dora=True, target_modules=["0"])
    layer = peft.get_peft_model(model, config).eval().base_model.model[0]
    layer.base_layer.weight.copy_(weight)
    layer.base_layer.bias.copy_(arrays["bias"])
    layer.lora_A["default"].weight.copy_(arrays["lora_A"])
    layer.lora_B["default"].weight.copy_(arrays["lora_B"])
    layer.lora_magnitude_vector["default"].weight.copy_(arrays["magnitude"])
    return layer


class Worker:
    """One layer at a time, and who computes it."""

    def __init__(self):
        self.contenders, self.outputs, self.x = {}, {}, None

    def versions(self):
        return {name: version(name) for name in PACKAGES}

    def onnx(self, arrays, batches):
        return onnx_model.write(arrays, batches)

    def load(self, arrays, rank, alpha, batch, threads):
        torch.set_num_threads(threads)
        torch._dynamo.reset()
        arrays = load_file(arrays)
        self.x = arrays["x"][:batch].contiguous()
        layer = peft_layer(arrays, rank, int(alpha))
        self.contenders = {
            "torch": Torch(arrays),
            "torch_compiled": compiled(arrays, self.x),
            "peft": layer,
            "peft_compiled": torch.compile(layer, dynamic=False),
            "peft_cached": peft_layer(arrays, rank, int(alpha)),
        }
        self.outputs = {}

    def turn(self, who, untimed, timed):
        # PEFT keeps its norms between calls where this is switched on, which it is not unless somebody asks.
        with DoraCaching(who == "peft_cached"):
            times = self.calls(who, untimed, timed)
        rest()
        return times

    def calls(self, who, untimed, timed):
        call, x, times = self.contenders[who], self.x, []
        for _ in range(untimed):
            call(x)
        for _ in range(timed):
            start = time.perf_counter_ns()
            y = call(x)
            times.append(time.perf_counter_ns() - start)
        self.outputs[who] = y
        return times

    def output(self, who, path):
        save_file({"y": self.outputs[who].detach().clone()}, path)


def rest():
    """Waits until this process uses no processor: OpenMP's threads spin for a while after their last job."""
    patience = time.monotonic() + 0.05
    while time.monotonic() < patience:
        before = time.process_time()
        time.sleep(0.001)
        if time.process_time() - before < 100e-6:
            return


def main():
    # Whatever prints goes to stderr: stdout is for answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker()
    torch.set_grad_enabled(False)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"done": getattr(worker, request.pop("do"))(**request)}
        except Exception:
            answer = {"failed": traceback.format_exc()}
        print(json.dumps(answer), file=answers)


main()
