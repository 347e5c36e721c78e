"""A BERT encoder with a DoRA adapter on all its linear layers, by PEFT and, merged by PEFT, by transformers."""

import copy
import warnings
from functools import partial

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

import onnx_bert

# The pooler's layer, whose name ends in `dense` too, is no part of the last hidden state.
LINEAR = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
RANK, ALPHA = 8, 16

# That the pooler's weights are left over is meant.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
# What PEFT asks of transformers, which is on its way out there.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def base(directory):
    return transformers.BertModel.from_pretrained(directory, add_pooling_layer=False, dtype=torch.float32).eval()


def write_adapter(directory, path):
    """A random adapter as PEFT writes it, the same in every run: no B is zero and no magnitude is a norm of W."""
    torch.manual_seed(7)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=True, target_modules=LINEAR)
    model = peft.get_peft_model(base(directory), config)
    adapted = 0
    for name, values in model.named_parameters():
        if "lora_B" in name:
            values.normal_(std=0.02)
            adapted += 1
        elif "lora_magnitude_vector" in name:
            values.mul_(torch.empty_like(values).uniform_(0.9, 1.1))
    assert adapted == len(LINEAR) * model.config.num_hidden_layers
    model.save_pretrained(path)


class Encoder:
    """The model with its adapter, unmerged and merged."""

    def __init__(self, directory, adapter):
        self.peft = peft.PeftModel.from_pretrained(base(directory), adapter).eval()
        self.exact = copy.deepcopy(self.peft).double()
        self.merged = copy.deepcopy(self.peft).merge_and_unload()

    def onnx(self, sizes, directory):
        weights = {name: values.numpy() for name, values in self.merged.state_dict().items()}
        return onnx_bert.write(weights, self.merged.config, sizes, directory)

    def contenders(self, ids, truth):
        """Everybody here, by name: what to call for the last hidden state. What it should be, as PEFT in f64 has it with
        and without the adapter, is written to `truth`."""
        ids = load_file(ids)["input_ids"]
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
        }
        adapted = state(self.exact, inputs)
        with self.exact.disable_adapter():
            bare = state(self.exact, inputs)
        save_file({"adapted": adapted.float(), "base": bare.float()}, truth)
        return {"torch": partial(state, self.merged, inputs), "peft": partial(state, self.peft, inputs)}


def state(model, inputs):
    return model(**inputs).last_hidden_state
