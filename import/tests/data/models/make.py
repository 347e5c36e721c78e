"""Records tiny random models with transformers, each as a directory beside this file: what `save_pretrained` writes, and in
`io.safetensors` inputs and outputs. Needs torch, transformers and safetensors; versions are noted in `versions.json`."""

import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers import Qwen2Config, Qwen2ForCausalLM, RobertaConfig, RobertaModel, XLMRobertaConfig, XLMRobertaModel

HERE = pathlib.Path(__file__).parent
SIZES = dict(vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24)
EAGER = dict(attn_implementation="eager")


def randomise(model):
    """Gives every parameter, norms and biases too, numbers that matter."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if parameter.dim() == 1 and parameter.mean() > 0.5 else 0.0
            parameter.copy_(centre + 0.3 * noise)
    return model.eval()


def rows(vocab, pad, length=9):
    """Rows without padding, and with it behind, in front, and on both sides."""
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(3, vocab, (4, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    mask[2, :4] = 0
    mask[3, :2] = 0
    mask[3, 7:] = 0
    ids[mask == 0] = pad
    return ids, mask


def edit(directory, change):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config, indent=2) + "\n")


def record(name, model, dtype=torch.float32, shard="1GB", pad=0):
    directory = HERE / name
    directory.mkdir(exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    stored = randomise(model).to(dtype)
    stored.save_pretrained(directory, max_shard_size=shard)
    (directory / "generation_config.json").unlink(missing_ok=True)
    # From the files, since `to` rounds the frequencies of positions, too.
    model = type(model).from_pretrained(directory, dtype=torch.float32, **EAGER).eval()
    ids, mask = rows(model.config.vocab_size, pad)
    given = dict(input_ids=ids, attention_mask=mask)
    if not isinstance(model, (RobertaModel, XLMRobertaModel)):
        # As `generate` numbers tokens behind padding.
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(**given)
    y = out.last_hidden_state if isinstance(model, (RobertaModel, XLMRobertaModel)) else out.logits
    save_file(dict(input_ids=ids, attention_mask=mask, y=y.contiguous()), directory / "io.safetensors")
    return directory


def main():
    record("roberta", RobertaModel(RobertaConfig(**SIZES, **EAGER, max_position_embeddings=12, type_vocab_size=1,
                                                 hidden_act="gelu_new", layer_norm_eps=1e-5)), pad=1)
    record("xlm_roberta", XLMRobertaModel(XLMRobertaConfig(**SIZES, **EAGER, max_position_embeddings=12,
                                                           type_vocab_size=1, layer_norm_eps=1e-5)), pad=1)
    record("qwen2_window", Qwen2ForCausalLM(Qwen2Config(**SIZES, **EAGER, num_key_value_heads=2, use_sliding_window=True,
                                                        sliding_window=3, max_window_layers=1, tie_word_embeddings=True,
                                                        max_position_embeddings=32)))
    record("mistral", MistralForCausalLM(MistralConfig(**SIZES, **EAGER, num_key_value_heads=2, sliding_window=3,
                                                       max_position_embeddings=32)))
    llama3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=64)
    record("llama3_sharded_bf16", LlamaForCausalLM(LlamaConfig(**SIZES, **EAGER, num_key_value_heads=1, head_dim=16,
                                                               rope_parameters=llama3, max_position_embeddings=256)),
           dtype=torch.bfloat16, shard="4KB")
    linear = dict(rope_type="linear", rope_theta=500.0, factor=4.0)
    directory = record("llama_linear_f16", LlamaForCausalLM(LlamaConfig(
        **SIZES, **EAGER, head_dim=6, attention_bias=True, mlp_bias=True, rope_parameters=linear,
        max_position_embeddings=32)), dtype=torch.float16)

    def as_before(config):
        """The fields as transformers 4 wrote them."""
        del config["rope_parameters"]
        config.update(rope_theta=500.0, rope_scaling={"type": "linear", "factor": 4.0})

    edit(directory, as_before)
    record("gpt2_by_layer", GPT2LMHeadModel(GPT2Config(
        vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_inner=24, n_positions=12, **EAGER,
        scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False, activation_function="relu")))

    # The frequencies of real models.
    frequencies = {}
    for name, parameters in {
        "default": dict(rope_type="default", rope_theta=10000.0),
        "linear": dict(rope_type="linear", rope_theta=10000.0, factor=2.5),
        "llama3": dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                       original_max_position_embeddings=8192),
    }.items():
        config = LlamaConfig(rope_parameters=parameters, head_dim=128, max_position_embeddings=131072)
        embedding = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        frequencies[name] = embedding.inv_freq.contiguous()
    save_file(frequencies, HERE / "rope.safetensors")
    # The activations by their names in configs.
    x = torch.linspace(-6, 6, 49)
    names = ["gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate", "relu",
             "silu", "swish", "tanh", "sigmoid"]
    values = {name: transformers.activations.ACT2FN[name](x).contiguous() for name in names}
    save_file(dict(x=x, **values), HERE / "activations.safetensors")
    versions = dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__)
    (HERE / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
