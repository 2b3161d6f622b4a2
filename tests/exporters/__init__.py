"""Models as people really have them: torch modules and transformers' models, written to ONNX by torch's exporters and ORT's fuser."""
