"""Tables of results as Markdown, or on a terminal (rich, where it is installed)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PLAIN_WIDTH = 150


def cell(value: Any) -> str:
    """A value as short text: three significant digits, "-" for what is not there."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def steps_text(n: int) -> str:
    """Calls of the score network in words."""
    return f"{n} step" if n == 1 else f"{n} steps"


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; a "|" in a cell is escaped."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        texts = (cell(value).replace("|", "\\|").replace("\n", " ") for value in row)
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table: with rich where it is installed, else as Markdown."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(f"{title}\n{markdown(header, rows)}\n")
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)  # a file or a pipe has no edge to keep to
    table = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for i, name in enumerate(header):
        numeric = i > 0 and any(isinstance(row[i], (int, float)) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    console.print(table)
