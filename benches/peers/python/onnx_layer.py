"""The merged layer as ONNX: y = x W'^T + b, one node, the weight a constant.

There is a model for each batch, because a runtime that knows all shapes can do no worse than one that does not. The
models share one file of weights.
"""

from pathlib import Path

from onnx import TensorProto
from safetensors.numpy import load_file

from onnx_graph import Constants, Graph


def write(arrays, batches):
    """Writes a model for each batch beside the arrays, and returns where."""
    directory = Path(arrays).parent
    loaded = load_file(arrays)
    weight, bias = loaded["merged"], loaded["bias"]
    outputs, inputs = weight.shape
    constants, paths = Constants(directory / "merged.bin"), []
    for batch in batches:
        graph = Graph(constants)
        x = graph.input("x", TensorProto.FLOAT, [batch, inputs])
        y = graph.op("Gemm", x, graph.constant("weight", weight), graph.constant("bias", bias), transB=1)
        path = directory / f"batch-{batch}.onnx"
        graph.save(path, y, TensorProto.FLOAT, [batch, outputs], opset=17)
        paths.append(str(path))
    return paths
