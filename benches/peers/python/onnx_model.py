"""The merged layer as ONNX: y = x W'^T + b, one node, the weight a constant.

There is a model for each batch, because a runtime that knows all shapes can do no worse than one that does not. The
models share one file of weights.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper
from safetensors.numpy import load_file

WEIGHTS = "merged.bin"


def external(name, array, offset):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in [("location", WEIGHTS), ("offset", offset), ("length", array.nbytes)]:
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def write(arrays, batches):
    """Writes a model for each batch beside the arrays, and returns where."""
    directory = Path(arrays).parent
    loaded = load_file(arrays)
    weight, bias = loaded["merged"], loaded["bias"]
    (directory / WEIGHTS).write_bytes(weight.tobytes())
    outputs, inputs = weight.shape
    paths = []
    for batch in batches:
        graph = helper.make_graph(
            [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)],
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, inputs])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, outputs])],
            [external("weight", weight, 0), helper.make_tensor("bias", TensorProto.FLOAT, bias.shape, bias)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = directory / f"batch-{batch}.onnx"
        onnx.save(model, str(path))
        paths.append(str(path))
    return paths
