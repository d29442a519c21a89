"""A model as ONNX graphs, and the loop that runs them."""
