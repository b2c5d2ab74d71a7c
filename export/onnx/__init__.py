"""PyTorch networks to ONNX graphs."""
