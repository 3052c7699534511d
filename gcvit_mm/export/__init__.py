"""Export of models to files that run without this package: ONNX and PyTorch's ``.pt2``."""
