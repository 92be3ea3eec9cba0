"""Datasets and degradations for training."""

from .sources import limit_to_built, open_source

__all__ = ["limit_to_built", "open_source"]
