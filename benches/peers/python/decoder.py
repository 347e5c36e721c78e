"""A decoder's logits by transformers, in f64."""

import torch
from transformers import AutoModelForCausalLM


def logits(directory, ids):
    """Of the token after these."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1].tolist()
