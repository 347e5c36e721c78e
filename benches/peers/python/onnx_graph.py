"""Writing ONNX models node by node, with large constants in a file that several models share."""

import onnx
from onnx import TensorProto, helper, numpy_helper

# Constants up to this many bytes stay in the model: shapes must, for whoever reads it to know what they lead to.
SMALL = 1024
# The operators of ONNX Runtime's own.
MICROSOFT = "com.microsoft"


class Constants:
    """Arrays in a file, each once under its name."""

    def __init__(self, path):
        path.write_bytes(b"")
        self.path, self.places = path, {}

    def tensor(self, name, array):
        if array.nbytes <= SMALL:
            return numpy_helper.from_array(array, name)
        if name not in self.places:
            with self.path.open("ab") as file:
                self.places[name] = file.tell()
                file.write(array.tobytes())
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = [("location", self.path.name), ("offset", self.places[name]), ("length", array.nbytes)]
        for key, value in place:
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class Graph:
    """A model in the making. Values are referred to by their names."""

    def __init__(self, constants):
        self.constants, self.nodes, self.tensors, self.inputs = constants, [], {}, []

    def input(self, name, kind, shape):
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, name, array):
        if name not in self.tensors:
            self.tensors[name] = self.constants.tensor(name, array)
        return name

    def op(self, operator, *operands, outputs=1, **attributes):
        """The value that an operator gives, or a list of so many."""
        names = [f"{operator}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(operator, operands, names, **attributes))
        return names[0] if outputs == 1 else names

    def save(self, path, output, kind, shape, opset):
        """Writes the model, which gives `output`, the value of its last node, as `y`."""
        last = self.nodes[-1]
        assert last.output[0] == output
        last.output[0] = "y"
        y = helper.make_tensor_value_info("y", kind, shape)
        graph = helper.make_graph(self.nodes, "graph", self.inputs, [y], self.tensors.values())
        domains = {node.domain for node in self.nodes} - {""}
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
