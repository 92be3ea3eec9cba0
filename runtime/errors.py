"""The errors that DVPD raises on purpose; each message is one line that names the cure."""

from __future__ import annotations


class DvpdError(Exception):
    """Base of every error that DVPD raises on purpose."""


class InputError(DvpdError, ValueError):
    """The caller's data, file or option cannot be used as given."""


class ManifestError(DvpdError):
    """An engine folder is incomplete, damaged, or does not fit this version of the runtime."""


class BackendError(DvpdError, RuntimeError):
    """An inference engine is missing, refuses the model, or returned something unusable."""


class ParityError(DvpdError):
    """Two forms of the same model disagree by more than the stated tolerance."""
