"""Checkpoint -> ONNX graphs -> engines, and the checks between them."""
