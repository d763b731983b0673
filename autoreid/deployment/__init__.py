"""Exported networks: ONNX files, what they contain besides the network, and how they are run in ONNX Runtime."""
