"""``python -m dvpd.runtime``: the same command line as ``dvpd``."""

from .cli import process

process(prog="python -m dvpd.runtime")
