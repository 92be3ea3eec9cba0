"""Compiled TensorRT plans: what they are for, how they are checked, and where they lie."""
