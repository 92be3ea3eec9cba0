"""ONNX files as protobuf stores them, read and cut without the onnx package."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

# Field numbers of onnx.proto.
MODEL_GRAPH = 7
GRAPH_INPUT, GRAPH_OUTPUT = 11, 12
VALUE_NAME = 1


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: Of the field.
        value: int or memoryview; None of one of fixed size, which ONNX graphs need nothing of.
        raw: Its bytes with number and length.
    """

    number: int
    value: Any
    raw: memoryview


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of the wire format, and where the next one starts."""
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if not byte & 0x80:
            return value, at
    raise ValueError("number too long")


def fields(data: memoryview) -> Iterator[Field]:
    """Fields of one message, in their order.

    Args:
        data: The message.

    Raises:
        ValueError, IndexError: It is none.
    """
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        value: Any = None
        if kind == 0:
            value, at = _varint(data, at)
        elif kind == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(data):
            raise ValueError("message cut off")
        yield Field(number, value, data[start:at])


def values_at(message: memoryview, *path: int) -> Iterator[Any]:
    """Every value at a path of field numbers.

    Args:
        message: Where to begin.
        path: Numbers, the outermost first.

    Raises:
        ValueError, IndexError, TypeError: It is no such message.
    """
    for number, value, _ in fields(message):
        if number == path[0]:
            if len(path) == 1:
                yield value
            else:
                yield from values_at(value, *path[1:])


def _message(number: int, parts: list[memoryview]) -> bytes:
    """A field that holds a message."""
    content = b"".join(parts)
    head = bytearray()
    for value in (number << 3 | 2, len(content)):
        while value > 0x7F:
            head.append(value & 0x7F | 0x80)
            value >>= 7
        head.append(value)
    return bytes(head) + content


def keep_outputs(model: bytes, names: Collection[str]) -> bytes:
    """An ONNX model whose graph returns some of its outputs alone; its nodes stay as they are.

    Args:
        model: The file's bytes.
        names: Of the outputs that stay.

    Returns:
        The bytes of the other model.

    Raises:
        ValueError: It is no ONNX model, or lacks one of them.
    """
    kept, parts = set(), []
    try:
        for field in fields(memoryview(model)):
            if field.number != MODEL_GRAPH:
                parts.append(field.raw)
                continue
            inside = []
            for part in fields(field.value):
                if part.number == GRAPH_OUTPUT:
                    (name,) = values_at(part.value, VALUE_NAME)
                    if (text := str(name, "utf-8")) not in names:
                        continue
                    kept.add(text)
                inside.append(part.raw)
            parts.append(memoryview(_message(MODEL_GRAPH, inside)))
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"no ONNX model ({error})") from None
    if missing := sorted(set(names) - kept):
        raise ValueError(f"a graph without the outputs {missing}")
    return b"".join(parts)
