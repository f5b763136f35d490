"""What a command prints: the REST body with --json; else a table, drawn on a terminal and plain in a pipe."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from vstore.sizes import format_size

Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def emit_json(body: object) -> None:
    click.echo(json.dumps(body, indent=2))


def emit_list(items: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, as_json: bool) -> None:
    if as_json:
        emit_json({"items": list(items), "next": None})
        return
    rows = [[show(item) for _, show in columns] for item in items]
    header = [name for name, _ in columns]
    if sys.stdout.isatty():
        _draw(header, rows)
    else:
        _write(header, rows)


def emit_object(body: Mapping[str, Any], *, as_json: bool) -> None:
    """One object, a field per line."""
    if as_json:
        emit_json(body)
        return
    width = max(map(len, body))
    for field, value in body.items():
        click.echo(f"{_label(field):<{width}}  {_shown(field, value)}")


def size(field: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda item: format_size(item[field])


def text(*path: str) -> Callable[[Mapping[str, Any]], str]:
    def show(item: Mapping[str, Any]) -> str:
        value: Any = item
        for field in path:
            value = value[field]
        return _plain(value)

    return show


def _draw(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # 45 ms that a pipe does not pay
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def _write(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _label(field: str) -> str:
    return field.removesuffix("_bytes").replace("_", " ")


def _shown(field: str, value: object) -> str:
    if field.endswith("_bytes") and isinstance(value, int):
        return f"{format_size(value)} ({value} bytes)"
    return _plain(value)


def _plain(value: object) -> str:
    """For a person: lists and maps in one line, nothing as a dash."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(each)}" for key, each in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else str(value)
