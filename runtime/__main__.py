"""``python -m dvpd.runtime``: the same command line as ``dvpd``."""

from .cli import main

raise SystemExit(main(prog="python -m dvpd.runtime"))
