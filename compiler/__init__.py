"""A model and a plan in, a compiled ONNX file out."""
