"""The light runtime of DVPD: waveform in, enhanced waveform out; NumPy and one engine.

The names below load on first use, so that training and export can read ``dvpd.runtime.spec`` and
``dvpd.runtime.schedule`` without the audio libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import BackendError, DvpdError, HubError, InputError, ManifestError, ParityError

if TYPE_CHECKING:
    from .enhancer import Enhanced, EnhancedFile, Enhancer
    from .live import Stream, StreamStats
    from .manifest import Manifest
    from .pool import StreamPool
    from .spec import TlbFactors

__all__ = [
    "BackendError",
    "DvpdError",
    "Enhanced",
    "EnhancedFile",
    "Enhancer",
    "HubError",
    "InputError",
    "Manifest",
    "ManifestError",
    "ParityError",
    "Stream",
    "StreamPool",
    "StreamStats",
    "TlbFactors",
]


def __getattr__(name: str) -> Any:
    """Import Enhancer and its companions on first use."""
    if name in ("Enhanced", "EnhancedFile", "Enhancer"):
        from . import enhancer

        return getattr(enhancer, name)
    if name in ("Stream", "StreamPool", "StreamStats"):
        from . import live, pool

        return getattr(pool if name == "StreamPool" else live, name)
    if name in ("Manifest", "TlbFactors"):
        from . import manifest, spec

        return getattr(manifest if name == "Manifest" else spec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
