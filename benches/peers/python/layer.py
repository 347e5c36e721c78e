"""One linear layer by PyTorch and PEFT, from the arrays of a safetensors file."""

from functools import partial

import peft
import torch
import torch._inductor.config
from safetensors.torch import load_file


def compiled(arrays, x):
    """The merged layer through torch.compile, frozen: the weight is a constant, which it may lay out as it likes."""
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


def contenders(path, rank, alpha, batch):
    """Everybody here, by name: what to call for y."""
    torch._dynamo.reset()
    arrays = load_file(path)
    x = arrays["x"][:batch].contiguous()
    layer = peft_layer(arrays, rank, alpha)
    layers = {
        # The least that PyTorch can do for an adapted layer.
        "torch": partial(torch.nn.functional.linear, weight=arrays["merged"], bias=arrays["bias"]),
        "torch_compiled": compiled(arrays, x),
        "peft": layer,
        "peft_compiled": torch.compile(layer, dynamic=False),
        "peft_cached": peft_layer(arrays, rank, alpha),
    }
    return {who: partial(layer, x) for who, layer in layers.items()}


def mixed_contenders(path, rank, alpha, batch):
    """PEFT's own layer with as many LoRA adapters as the file has, which the rows of x have in turn."""
    torch._dynamo.reset()
    arrays = load_file(path)
    x = arrays["x"][:batch].contiguous()
    names = [name.removeprefix("lora_A.") for name in arrays if name.startswith("lora_A.")]
    names.sort(key=int)
    weight = arrays["weight"]
    model = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0]))
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"])
    model = peft.get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    layer = model.eval().base_model.model[0]
    layer.base_layer.weight.copy_(weight)
    layer.base_layer.bias.copy_(arrays["bias"])
    for name in names:
        layer.lora_A[name].weight.copy_(arrays[f"lora_A.{name}"])
        layer.lora_B[name].weight.copy_(arrays[f"lora_B.{name}"])
    rows = [names[row % len(names)] for row in range(batch)]
    layers = {"peft_mixed": layer, "peft_mixed_compiled": torch.compile(layer, dynamic=False)}
    return {who: partial(layer, x, adapter_names=rows) for who, layer in layers.items()}
