"""What the classes share that a ``with`` statement closes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

Own = TypeVar("Own", bound="Closing")


class Closing(ABC):
    """Closed at the end of a ``with`` statement, whatever ended it."""

    @abstractmethod
    def close(self) -> None:
        """Give up what is held."""

    def __enter__(self: Own) -> Own:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()
