"""PyTorch models to ONNX graphs and bundles."""
