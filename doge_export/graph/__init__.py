"""The ONNX graph: operators, passes, targets, and the canonical graph lowered to a file. Never torch."""
