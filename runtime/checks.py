"""Checks of configuration values; each error names the table and the key."""

from __future__ import annotations

import math

from .errors import InputError


def number(table: str, name: str, value: object) -> float:
    """The value as a float.

    Raises:
        InputError: It is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{table} {name} is {value!r}; expected a finite number")
    return float(value)


def check_whole(table: str, name: str, value: object, least: int) -> None:
    """Raise `InputError` unless the value is a whole number >= ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{table} {name} is {value!r}; expected a whole number >= {least}")


def check_range(table: str, name: str, value: object) -> None:
    """Raise `InputError` unless the value is a (low, high) pair with low <= high."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise InputError(f"{table} {name} is {value!r}; expected [low, high]")
    low, high = (number(table, name, v) for v in value)
    if not low <= high:
        raise InputError(f"{table} {name} is {value}; expected low <= high")
