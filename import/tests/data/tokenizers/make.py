"""Records the ids that transformers makes of a text with a small `tokenizer.json` and a `tokenizer_config.json` beside it.

Run once with transformers 5.24.0 and once with 4.57.1, both with tokenizers; each adds its ids to `cases.json`:

    python make.py

A case's `refused` is the field that our reader has to name, or null. Nothing is downloaded.
"""

import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "critical"

import transformers

PLACE = Path(__file__).parent / "cases.json"


def added(tokens, first):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": first + i, "content": token} | flags for i, token in enumerate(tokens)]


def template(before, after, vocab):
    special = lambda token: {"SpecialToken": {"id": token, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [*map(special, before), text, *map(special, after)]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {token: {"id": token, "ids": [vocab[token]], "tokens": [token]} for token in [*before, *after]}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def tokenizer(special, model, normalizer, pre_tokenizer, post_processor, decoder):
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": decoder, "model": model,
    }


def bert(lowercase=True, strip_accents=None, chinese=True, processing=False):
    letters = list("abABéÉe中国")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    vocab = {token: i for i, token in enumerate(tokens)}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100, "vocab": vocab}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": chinese,
                  "strip_accents": strip_accents, "lowercase": lowercase}
    ends = template(["[CLS]"], ["[SEP]"], vocab)
    if processing:
        ends = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    return tokenizer(added(tokens[:5], 0), model, normalizer, {"type": "BertPreTokenizer"}, ends,
                     {"type": "WordPiece", "prefix": "##", "cleanup": True})


def bpe(tokens, merges, unk=None, fallback=False):
    vocab = {token: i for i, token in enumerate(tokens)}
    return {"type": "BPE", "dropout": None, "unk_token": unk, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": fallback, "byte_fallback": fallback, "vocab": vocab,
            "merges": merges}


def byte_level(prefix, special, split=None, ends=None):
    part = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": split is None}
    model = bpe([*special, "a", "b", "Ġ", "ab"], ["a b"])
    pre = part if split is None else {"type": "Sequence", "pretokenizers": [split, part]}
    normalizer = None if split is None else {"type": "NFC"}
    ends = ends and {"type": "RobertaProcessing", "sep": [ends[1], model["vocab"][ends[1]]],
                     "cls": [ends[0], model["vocab"][ends[0]]], "trim_offsets": True, "add_prefix_space": prefix}
    return tokenizer(added(special, 0), model, normalizer, pre, ends or part, part)


def gpt2(prefix=False):
    return byte_level(prefix, ["<|endoftext|>"])


def roberta(prefix=False):
    return byte_level(prefix, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], ends=["<s>", "</s>"])


def smollm2():
    tokenizer = gpt2()
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, tokenizer["pre_tokenizer"]]}
    return tokenizer


def llama3():
    return gpt2()


def qwen2(prefix=False):
    regex = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
             r"|\s+(?!\S)|\s+")
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return byte_level(prefix, ["<|endoftext|>"], split=split)


def llama(prefix=True, bos=True, eos=False, normalised=False, sequence=False):
    special = ["<unk>", "<s>", "</s>"]
    model = bpe([*special, "▁", "a", "b", "▁a"], [["▁", "a"]], "<unk>", True)
    pre = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first" if prefix else "never", "split": False}
    decoder = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    normalizer = None
    if normalised:  # as Llama 2's
        prepend = {"type": "Prepend", "prepend": "▁"}
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        normalizer, pre = {"type": "Sequence", "normalizers": [prepend] * prefix + [replace]}, None
    ends = template(["<s>"] * bos, ["</s>"] * eos, model["vocab"])
    if sequence:
        first = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
        ends = {"type": "Sequence", "processors": [first, ends]}
    return tokenizer(added(special, 0), model, normalizer, pre, ends, decoder)


NAMES = {"bert": "BertTokenizer", "roberta": "RobertaTokenizerFast", "gpt2": "GPT2Tokenizer",
         "qwen2": "Qwen2Tokenizer", "llama": "LlamaTokenizerFast", "smollm2": "GPT2Tokenizer", "llama3": "LlamaTokenizer"}
MODELS = {"smollm2": "llama", "llama3": "llama"}
TEXTS = {"bert": "Ab É 中国 x [MASK]"}


def cases():
    """Kind, arguments of its tokenizer, fields beside it, and the field that has to be refused."""
    yield "bert", {}, {}, None
    yield "bert", {}, {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}, None
    yield "bert", {}, {"strip_accents": True}, None
    yield "bert", {}, {"tokenizer_class": None}, None
    yield "bert", {}, {"cls_token": "[CLS]", "sep_token": {"__type": "AddedToken", "content": "[SEP]", "lstrip": False,
                       "rstrip": False, "normalized": False, "single_word": False}, "unk_token": "[UNK]"}, None
    yield "bert", {"lowercase": False}, {"do_lower_case": False}, None
    yield "bert", {"strip_accents": False}, {"strip_accents": False}, None
    yield "bert", {"lowercase": False}, {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}, None
    yield "bert", {}, {"model_max_length": int(1e30), "padding_side": "left", "never_split": ["A"]}, None
    yield "bert", {}, {"do_lower_case": False}, "do_lower_case"
    yield "bert", {}, {"do_lower_case": False, "tokenizer_class": None}, "do_lower_case"
    yield "bert", {"lowercase": False}, {"do_lower_case": True}, "do_lower_case"
    yield "bert", {"lowercase": False}, {}, "do_lower_case"
    yield "bert", {}, {"strip_accents": False}, "strip_accents"
    yield "bert", {"strip_accents": False}, {"strip_accents": None}, "strip_accents"
    yield "bert", {}, {"tokenize_chinese_chars": False}, "tokenize_chinese_chars"
    yield "bert", {"chinese": False}, {}, "tokenize_chinese_chars"
    yield "bert", {}, {"cls_token": "[MASK]"}, "cls_token"
    yield "bert", {}, {"sep_token": "[MASK]"}, "sep_token"
    yield "bert", {}, {"unk_token": "[MASK]"}, "unk_token"
    yield "bert", {"processing": True}, {"cls_token": "[CLS]", "sep_token": "[SEP]"}, None
    yield "bert", {"processing": True}, {"sep_token": "[MASK]"}, "sep_token"
    yield "bert", {}, {"additional_special_tokens": ["x"]}, "additional_special_tokens"
    yield "bert", {}, {"mask_token": "x", "tokenizer_class": "PreTrainedTokenizerFast"}, "mask_token"
    yield "bert", {}, {"split_special_tokens": True}, "split_special_tokens"
    for kind in ("gpt2", "roberta", "qwen2"):
        yield kind, {}, {}, None
        yield kind, {}, {"tokenizer_class": None}, None
        yield kind, {}, {"add_prefix_space": False}, None
        yield kind, {"prefix": True}, {"add_prefix_space": True}, None
        yield kind, {}, {"add_prefix_space": True}, "add_prefix_space"
        yield kind, {}, {"add_prefix_space": True, "tokenizer_class": None}, "add_prefix_space"
        yield kind, {"prefix": True}, {"add_prefix_space": False}, "add_prefix_space"
        yield kind, {"prefix": True}, {}, None if kind == "qwen2" else "add_prefix_space"
        yield kind, {}, {"add_prefix_space": True, "tokenizer_class": "PreTrainedTokenizerFast"}, "add_prefix_space"
    yield "roberta", {}, {"cls_token": "<mask>"}, "cls_token"
    yield "roberta", {}, {"sep_token": "<mask>"}, "sep_token"
    yield "smollm2", {}, {"add_prefix_space": False, "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}, None
    yield "llama", {}, {}, None
    yield "llama", {}, {"add_bos_token": True, "add_eos_token": False}, None
    yield "llama", {"eos": True}, {"add_bos_token": True, "add_eos_token": True}, None
    yield "llama", {"bos": False}, {}, None
    yield "llama", {"bos": False}, {"add_bos_token": False}, None
    yield "llama", {"prefix": False}, {}, None
    yield "llama", {}, {"add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"}, None
    yield "llama", {}, {"add_bos_token": False}, "add_bos_token"
    yield "llama", {"bos": False}, {"add_bos_token": True}, "add_bos_token"
    yield "llama", {}, {"add_eos_token": True}, "add_eos_token"
    yield "llama", {"eos": True}, {"add_eos_token": False}, "add_eos_token"
    yield "llama", {}, {"add_prefix_space": False}, "add_prefix_space"
    yield "llama", {"prefix": False}, {"add_prefix_space": True}, "add_prefix_space"
    yield "llama", {"normalised": True}, {}, None
    yield "llama", {"normalised": True}, {"add_prefix_space": True}, None
    yield "llama", {"normalised": True}, {"add_prefix_space": False}, "add_prefix_space"
    yield "llama", {"normalised": True, "prefix": False}, {"add_prefix_space": False}, None
    yield "llama", {"sequence": True}, {"add_bos_token": True}, None
    yield "llama", {"sequence": True}, {"add_eos_token": True}, "add_eos_token"
    ends = {token: "<|endoftext|>" for token in ("bos_token", "eos_token", "unk_token")}
    yield "llama3", {}, {"add_prefix_space": True, **ends}, None


def record(model_type, tokenizer, settings, text):
    """The ids, or null if this version does not read the directory."""
    with tempfile.TemporaryDirectory() as place:
        config = {"model_type": model_type}
        for name, fields in [("tokenizer", tokenizer), ("tokenizer_config", settings), ("config", config)]:
            Path(place, f"{name}.json").write_text(json.dumps(fields))
        try:
            return transformers.AutoTokenizer.from_pretrained(place)(text)["input_ids"]
        except ValueError:  # 4.57 wants SentencePiece's file where Llama's `add_prefix_space` is set
            return None


def main():
    tokenizers, recorded = {}, []
    earlier = json.loads(PLACE.read_text())["cases"] if PLACE.exists() else []
    for index, (kind, arguments, fields, refused) in enumerate(cases()):
        name = "_".join([kind, *(f"{key}={value}" for key, value in arguments.items())])
        tokenizers[name] = globals()[kind](**arguments)
        settings = {"tokenizer_class": NAMES[kind]} | fields
        if kind == "llama":
            settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        if settings["tokenizer_class"] is None:
            del settings["tokenizer_class"]
        text = TEXTS.get(kind, "ab a")
        model_type = MODELS.get(kind, kind)
        ids = record(model_type, tokenizers[name], settings, text)
        case = {"tokenizer": name, "model_type": model_type, "settings": settings, "text": text, "refused": refused}
        before = earlier[index]["ids"] if index < len(earlier) else {}
        recorded.append(case | {"ids": before | {transformers.__version__: ids}})
    file = json.dumps({"tokenizers": "TOKENIZERS", "cases": "CASES"}, indent=1)
    lines = lambda items: ",\n  ".join(items)
    one = lambda value: json.dumps(value, ensure_ascii=False)
    file = file.replace('"TOKENIZERS"', "{\n  " + lines(f"{one(k)}: {one(v)}" for k, v in tokenizers.items()) + "\n }")
    PLACE.write_text(file.replace('"CASES"', "[\n  " + lines(map(one, recorded)) + "\n ]") + "\n")


main()
