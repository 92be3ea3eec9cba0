"""Checks of numbers that a user gives; each error names the table and the key."""

from __future__ import annotations

import math
import numbers

from .errors import InputError


def number(table: str, name: str, value: object) -> float:
    """The value as a float; NumPy's numbers are numbers, booleans are none.

    Args:
        table: What it belongs to, such as "sampler"; "" for an option of its own.
        name: How the user calls it.
        value: What was given.

    Raises:
        InputError: It is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise InputError(f"{f'{table} {name}'.lstrip()} is {value!r}; expected a finite number")
    return float(value)


def check_whole(table: str, name: str, value: object, least: int) -> int:
    """The value as an int.

    Args:
        table: As for `number`.
        name: As for `number`.
        value: What was given.
        least: Smallest value that is allowed.

    Raises:
        InputError: It is no whole number >= ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise InputError(
            f"{f'{table} {name}'.lstrip()} is {value!r}; expected a whole number >= {least}"
        )
    return int(value)


def check_range(table: str, name: str, value: object) -> None:
    """Raise `InputError` unless the value is a (low, high) pair with low <= high."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise InputError(f"{table} {name} is {value!r}; expected [low, high]")
    low, high = (number(table, name, v) for v in value)
    if not low <= high:
        raise InputError(f"{table} {name} is {value}; expected low <= high")
