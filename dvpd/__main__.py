"""``python -m dvpd``: the same command line as ``dvpd``."""

from .runtime.cli import process

process(prog="python -m dvpd")
