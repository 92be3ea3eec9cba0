"""Datasets and degradations for training."""
