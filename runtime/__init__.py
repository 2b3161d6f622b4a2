"""ONNX Runtime: does the compiled model compute the same, and what does it cost to run?"""
