"""Makes ``bulk_parts`` importable, here and in processes that are spawned."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
