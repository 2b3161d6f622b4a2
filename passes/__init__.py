"""Passes on ``onnx_ir`` graphs, one a file: they execute a lowered plan and decide nothing."""
