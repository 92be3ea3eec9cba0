"""DVPD: dual-view predictive diffusion speech enhancement, from training to engines.

This module never imports torch, so that ``dvpd.runtime`` runs without it.
"""

from pathlib import Path as _Path

__version__ = "0.1.0"

# In a checkout the sibling folders (runtime/, export/, benchmarks/) are found as subpackages.
if (_Path(__file__).parent.parent / "pyproject.toml").is_file():
    __path__.append(str(_Path(__file__).parent.parent))
