"""Weights in half the bytes."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from publishing.onnx.compact import FEWEST_WEIGHTS, compact

ROWS, COLUMNS = 19, 17


def model_of(*weights: np.ndarray) -> ModelProto:
    """Make a graph that multiplies `x` with one matrix after the other."""
    nodes = [helper.make_node("MatMul", [f"x{at}", f"w{at}"], [f"x{at + 1}"]) for at in range(len(weights))]
    ends = [
        helper.make_tensor_value_info(f"x{at}", TensorProto.FLOAT, [None, size])
        for at, size in ((0, weights[0].shape[0]), (len(weights), weights[-1].shape[1]))
    ]
    kept = [numpy_helper.from_array(weight, f"w{at}") for at, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("is_exact", [True, False])
def test_only_weights_that_stay_the_same_take_half_the_bytes(is_exact):
    generator = np.random.default_rng(0)
    large, small = (generator.standard_normal(shape, dtype=np.float32) for shape in ((ROWS, COLUMNS), (COLUMNS, 2)))
    assert large.size > FEWEST_WEIGHTS > small.size
    exact = (large.view(np.uint32) & 0xFFFF0000).view(np.float32)
    exact[0, :2] = 0.0, -0.0
    model = model_of(exact if is_exact else large, small)
    before, feeds = model.ByteSize(), {"x0": generator.standard_normal((3, ROWS), dtype=np.float32)}
    (expected,) = InferenceSession(model.SerializeToString()).run(None, feeds)
    compact(model)
    assert (before - model.ByteSize() > large.size) == is_exact
    (found,) = InferenceSession(model.SerializeToString()).run(None, feeds)
    assert np.array_equal(found, expected)
