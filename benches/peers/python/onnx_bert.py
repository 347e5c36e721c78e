"""A BERT encoder as ONNX, as an export with all the known optimisations would have it, in three forms.

`Plain` is in standard operators, with LayerNormalization and Gelu whole. `Joint` is the same with q, k and v from one
product; OpenVINO, which finds the attention in either, is a little faster with it, and ONNX Runtime a little slower.
`Fused` is in ONNX Runtime's own operators, those that its optimiser of transformers puts in place of the standard ones. All
take `input_ids`, `attention_mask` and `token_type_ids` and give the last hidden state as `y`.
"""

from pathlib import Path

import numpy as np
from onnx import TensorProto

from onnx_graph import MICROSOFT, Constants, Graph

EMBEDDINGS = "embeddings."
QKV = ["query", "key", "value"]


class Bert:
    """What the forms have in common, for a batch of so many rows of so many tokens."""

    def __init__(self, constants, weights, config, batch, tokens):
        self.graph, self.weights, self.config = Graph(constants), weights, config
        self.batch, self.tokens = batch, tokens
        names = ["input_ids", "attention_mask", "token_type_ids"]
        self.inputs = [self.graph.input(name, TensorProto.INT64, [batch, tokens]) for name in names]

    def weight(self, name):
        return self.graph.constant(name, self.weights[name])

    def norm_weights(self, name):
        return self.weight(name + ".weight"), self.weight(name + ".bias")

    def side_by_side(self, *names):
        """The weights of these layers as one matrix, [in, out]."""
        weight = np.concatenate([self.weights[name + ".weight"].T for name in names], axis=1)
        return self.graph.constant("+".join(names) + ".weight^T", weight)

    def product(self, x, *names):
        return self.graph.op("MatMul", x, self.side_by_side(*names))

    def bias(self, *names):
        bias = np.concatenate([self.weights[name + ".bias"] for name in names])
        return self.graph.constant("+".join(names) + ".bias", bias)

    def state(self):
        x = self.embed()
        for index in range(self.config.num_hidden_layers):
            layer = f"encoder.layer.{index}."
            attended = self.attention(x, layer + "attention.self.")
            x = self.add_norm(attended, x, layer + "attention.output.")
            x = self.add_norm(self.gelu(x, layer + "intermediate.dense"), x, layer + "output.")
        return x

    def save(self, path):
        shape = [self.batch, self.tokens, self.config.hidden_size]
        self.graph.save(path, self.state(), TensorProto.FLOAT, shape, opset=20)


class Plain(Bert):
    """In standard operators."""

    def linear(self, x, *names):
        return self.graph.op("Add", self.product(x, *names), self.bias(*names))

    def norm(self, x, name):
        epsilon = self.config.layer_norm_eps
        return self.graph.op("LayerNormalization", x, *self.norm_weights(name), axis=-1, epsilon=epsilon)

    def embed(self):
        op, (ids, mask, types) = self.graph.op, self.inputs
        words = op("Gather", self.weight(EMBEDDINGS + "word_embeddings.weight"), ids)
        kinds = op("Gather", self.weight(EMBEDDINGS + "token_type_embeddings.weight"), types)
        positions = self.weights[EMBEDDINGS + "position_embeddings.weight"][None, : self.tokens]
        positions = self.graph.constant(f"positions_{self.tokens}", positions)
        axes = self.graph.constant("mask_axes", np.array([1, 2], np.int64))
        hidden = op("Sub", self.graph.constant("one", np.float32(1)), op("Cast", mask, to=TensorProto.FLOAT))
        lowest = self.graph.constant("lowest", np.finfo(np.float32).min)
        self.mask = op("Mul", op("Unsqueeze", hidden, axes), lowest)
        return self.norm(op("Add", op("Add", words, kinds), positions), EMBEDDINGS + "LayerNorm")

    def projections(self, x, layer):
        return [self.linear(x, layer + name) for name in QKV]

    def heads(self, x):
        """[batch, tokens, hidden] to [batch, heads, tokens, width]"""
        heads = self.config.num_attention_heads
        apart = np.array([0, 0, heads, self.config.hidden_size // heads], np.int64)
        apart = self.graph.op("Reshape", x, self.graph.constant("apart", apart))
        return self.graph.op("Transpose", apart, perm=[0, 2, 1, 3])

    def attention(self, x, layer):
        op, config = self.graph.op, self.config
        q, k, v = [self.heads(projection) for projection in self.projections(x, layer)]
        scores = op("MatMul", q, op("Transpose", k, perm=[0, 1, 3, 2]))
        root = np.float32(np.sqrt(config.hidden_size / config.num_attention_heads))
        scores = op("Div", scores, self.graph.constant("root", root))
        seen = op("MatMul", op("Softmax", op("Add", scores, self.mask), axis=-1), v)
        together = self.graph.constant("together", np.array([0, 0, config.hidden_size], np.int64))
        return op("Reshape", op("Transpose", seen, perm=[0, 2, 1, 3]), together)

    def gelu(self, x, name):
        return self.graph.op("Gelu", self.linear(x, name))

    def add_norm(self, x, skip, layer):
        sum_ = self.graph.op("Add", self.linear(x, layer + "dense"), skip)
        return self.norm(sum_, layer + "LayerNorm")


class Joint(Plain):
    """The same with q, k and v from one product."""

    def projections(self, x, layer):
        joint = self.linear(x, *[layer + name for name in QKV])
        return self.graph.op("Split", joint, outputs=3, axis=-1, num_outputs=3)


class Fused(Bert):
    """In ONNX Runtime's own operators."""

    def op(self, operator, *operands, **attributes):
        return self.graph.op(operator, *operands, domain=MICROSOFT, **attributes)

    def embed(self):
        ids, self.mask, types = [self.graph.op("Cast", name, to=TensorProto.INT32) for name in self.inputs]
        names = ["word_embeddings", "position_embeddings", "token_type_embeddings"]
        tables = [self.weight(f"{EMBEDDINGS}{name}.weight") for name in names]
        norm, epsilon = self.norm_weights(EMBEDDINGS + "LayerNorm"), self.config.layer_norm_eps
        return self.op("EmbedLayerNormalization", ids, types, *tables, *norm, outputs=2, epsilon=epsilon)[0]

    def attention(self, x, layer):
        names, heads = [layer + name for name in QKV], self.config.num_attention_heads
        return self.op("Attention", x, self.side_by_side(*names), self.bias(*names), self.mask, num_heads=heads)

    def gelu(self, x, name):
        return self.op("BiasGelu", self.product(x, name), self.bias(name))

    def add_norm(self, x, skip, layer):
        product, bias = self.product(x, layer + "dense"), self.bias(layer + "dense")
        norm, epsilon = self.norm_weights(layer + "LayerNorm"), self.config.layer_norm_eps
        return self.op("SkipLayerNormalization", product, skip, *norm, bias, epsilon=epsilon)


def write(weights, config, sizes, directory):
    """Writes all forms for each size into a directory, and returns where: for each size, a path by the form's name."""
    directory, paths = Path(directory), []
    weights = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    constants = Constants(directory / "bert.bin")
    for batch, tokens in sizes:
        forms = {}
        for form in [Plain, Joint, Fused]:
            name = form.__name__.lower()
            forms[name] = str(directory / f"bert-{name}-{batch}x{tokens}.onnx")
            form(constants, weights, config, batch, tokens).save(forms[name])
        paths.append(forms)
    return paths
