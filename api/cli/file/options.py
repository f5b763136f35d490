"""Options that several verbs of `vstore file` share, and how they end: in words, in a bar, or in a failure."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

from formats.registry import FORMATS

Function = TypeVar("Function", bound=Callable[..., Any])
Progress = Callable[[int, int], None]

IN_FILES = [name for name, row in FORMATS.items() if row.open]
FORMAT = click.Choice(IN_FILES)

format_option = click.option(
    "--format", "-f", "format_", type=FORMAT, required=True, help="Format of the image; it is never guessed."
)
output_option = click.option(
    "--output", type=click.Choice(["human", "json"]), default="human", show_default=True, help="How to print."
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors, and draw no bar.")
beneath_option = click.option(
    "--beneath",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False),
    help="Another directory in which backing files and data files may lie; may come again.",
)
share_option = click.option("--force-share", "-U", "shared", is_flag=True, help="Also while somebody writes to it.")
preallocation_option = click.option(
    "--preallocation", type=click.Choice(["off", "metadata", "falloc", "full"]), default="off", show_default=True
)


class _FormatOptions(click.ParamType[dict[str, str]]):
    """`name=value,name=value` as qemu-img takes it; a comma in a value is written twice."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        found: dict[str, str] = {}
        for piece in str(value).replace(",,", "\0").split(","):
            name, equals, content = piece.replace("\0", ",").partition("=")
            if not name or not equals:
                self.fail(f"{piece!r} is no option; write NAME=VALUE", param, ctx)
            found[name] = content
        return found


options_option = click.option(
    "-o", "options", type=_FormatOptions(), multiple=True, help="Options of the format, as qemu-img names them."
)


def merged(options: tuple[Mapping[str, str], ...], **more: str | None) -> dict[str, object]:
    """All of them, the later ones winning."""
    found: dict[str, object] = {}
    for some in options:
        found.update(some)
    return found | {name: value for name, value in more.items() if value is not None}


@contextlib.contextmanager
def refusals(verb: str) -> Iterator[None]:
    """What a verb refuses, as the one line that `vstore` prints of a failure."""
    from vstore.transfer.offline import Refused

    try:
        yield
    except Refused as error:
        raise click.ClickException(f"{verb}: {error}") from None


@contextlib.contextmanager
def bar(doing: str, *, quiet: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(doing, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or 1)
