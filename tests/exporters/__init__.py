"""Models as people have them: modules of torch and transformers, written to ONNX by torch's exporters and fused by ORT's."""
