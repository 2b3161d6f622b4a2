"""Frontends: anything that holds a model -> :class:`onnx_ir.Model`."""
