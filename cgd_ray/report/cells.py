"""Cells of reports: numbers as text, tables for a terminal and as Markdown."""

from rich.console import RenderableType
from rich.table import Table

from cgd_ray.evaluation.statistics import Interval

Cells = list[list[str]]


def percent(value: float | None, *, signed: bool = False) -> str:
    """Format a share in per cent; a dash for None."""
    if value is None:
        return "-"
    return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"


def interval(ends: Interval | None, *, signed: bool = False) -> str:
    """Format both ends of an interval of shares in per cent; a dash for None."""
    if ends is None:
        return "-"
    low, high = (percent(value, signed=signed).removesuffix(" %") for value in (ends.low, ends.high))
    return f"{low} to {high}"


def markdown(title: str, rows: Cells) -> str:
    """Format a titled Markdown table whose first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"## {title}", "", lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def rich_table(title: str, rows: Cells) -> RenderableType:
    """Make a titled table for a terminal, whose first row is the header."""
    table = Table(*rows[0], title=title, title_justify="left", title_style="bold")
    for row in rows[1:]:
        table.add_row(*row)
    return table
