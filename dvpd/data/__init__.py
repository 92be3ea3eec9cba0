"""Datasets and degradations for training."""

from .sources import open_source

__all__ = ["open_source"]
