"""PyTorch and PEFT, driven over stdin and stdout in lines of JSON, one turn at a time.

Each call is timed here, so that neither the pipe nor the driver is counted. All have `torch.no_grad`, and as many threads
as they are told.
"""

import json
import os
import sys
import time
import traceback
from importlib.metadata import version

# Compiling in this process leaves no other ones behind that would want a core.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# Models come from directories, never from elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft.helpers import DoraCaching
from safetensors.torch import save_file

import bert
import decoder
import layer
import onnx_layer

PACKAGES = ["torch", "peft", "transformers", "onnxruntime", "openvino", "onnx", "numpy"]


class Worker:
    """One workload at a time, and who computes it."""

    def __init__(self):
        self.contenders, self.outputs, self.encoder = {}, {}, None

    def versions(self):
        return {name: version(name) for name in PACKAGES}

    def onnx_layers(self, arrays, batches):
        return onnx_layer.write(arrays, batches)

    def layer(self, arrays, rank, alpha, batch, threads):
        torch.set_num_threads(threads)
        self.contenders, self.outputs = layer.contenders(arrays, rank, int(alpha), batch), {}

    def mixed_layer(self, arrays, rank, alpha, batch, threads):
        torch.set_num_threads(threads)
        self.contenders, self.outputs = layer.mixed_contenders(arrays, rank, int(alpha), batch), {}

    def adapter(self, model, adapter):
        bert.write_adapter(model, adapter)

    def open_encoder(self, model, adapter):
        self.encoder = bert.Encoder(model, adapter)

    def onnx_encoders(self, sizes, directory):
        return self.encoder.onnx(sizes, directory)

    def encode(self, ids, truth, threads):
        torch.set_num_threads(threads)
        self.contenders, self.outputs = self.encoder.contenders(ids, truth), {}

    def logits(self, model, ids):
        return decoder.logits(model, ids)

    def turn(self, who, untimed, timed):
        # PEFT keeps its norms between calls where this is switched on, which it is not unless somebody asks.
        with DoraCaching(who == "peft_cached"):
            times = self.calls(who, untimed, timed)
        rest()
        return times

    def calls(self, who, untimed, timed):
        call, times = self.contenders[who], []
        for _ in range(untimed):
            call()
        for _ in range(timed):
            start = time.perf_counter_ns()
            y = call()
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
