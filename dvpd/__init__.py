"""DVPD: dual-view predictive diffusion speech enhancement, from training to engines.

This module never imports torch, so that ``dvpd.runtime`` runs without it.
"""

import os as _os
import sys as _sys
from pathlib import Path as _Path

__version__ = "0.2.0"

# In a checkout the sibling folders (runtime/, export/, benchmarks/) are found as subpackages.
if (_Path(__file__).parent.parent / "pyproject.toml").is_file():
    __path__.append(str(_Path(__file__).parent.parent))

# Opt-out telemetry of what is imported later: ONNX Runtime (1.32) looks up a host and keeps an id in
# the home folder, OpenVINO's Python package likewise. Without its module OpenVINO uses a stub.
_os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
if _os.environ["ORT_DISABLE_TELEMETRY"] != "0":
    _sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: no module
