"""Store weight matrices the way MatMul reads them, so that no session has to transpose at load."""

import onnx_ir as ir

__all__ = ["pretranspose"]


def pretranspose(model: ir.Model) -> None:
    """Replace Transpose(weight) by a stored `weight.T` where nothing else reads the weight.

    The transposed copy is made when the file is written, one tensor at a time. A weight that is also
    read as it stands (a tied embedding) stays, and is stored once.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "Transpose" or node.domain != "" or "perm" not in node.attributes:
            continue
        (source,) = node.inputs
        if source is None or not source.is_initializer() or len(source.uses()) != 1:
            continue
        tensor = source.const_value
        assert tensor is not None and source.name is not None
        permutation = tuple(node.attributes["perm"].as_ints())
        name = f"{source.name}.T"
        shape = ir.Shape([int(tensor.shape.numpy()[axis]) for axis in permutation])
        stored = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape)
        stored.const_value = _lazily(tensor, permutation, name, shape)
        graph.register_initializer(stored)
        ir.convenience.replace_all_uses_with(node.outputs[0], stored)
        graph.remove(node, safe=True)
        del graph.initializers[source.name]


def _lazily(
    tensor: ir.TensorProtocol, permutation: tuple[int, ...], name: str, shape: ir.Shape
) -> ir.LazyTensor:
    def make() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().transpose(permutation).copy(order="C"), dtype=tensor.dtype, name=name)

    return ir.LazyTensor(make, dtype=tensor.dtype, shape=shape, name=name)
