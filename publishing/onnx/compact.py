"""Store the weights of an ONNX graph in half the bytes, where none of them changes by it."""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

FEWEST_WEIGHTS = 256  # of a tensor that is worth it


def compact(model: ModelProto) -> None:
    """Store weights that bfloat16 holds exactly, as those of a release, as bfloat16.

    A cast makes float32 of each again, once, when onnxruntime loads the graph: what is computed stays the same.
    """
    casts: list[NodeProto] = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        words = np.ascontiguousarray(numpy_helper.to_array(tensor), "<f4").view("<u2").reshape(-1, 2)  # low, high
        if len(words) < FEWEST_WEIGHTS or words[:, 0].any():
            continue
        name = tensor.name
        kept = TensorProto(name=f"{name}.bfloat16", dims=tensor.dims, data_type=TensorProto.BFLOAT16)
        kept.raw_data = words[:, 1].tobytes()
        tensor.CopyFrom(kept)
        casts.append(helper.make_node("Cast", [kept.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
