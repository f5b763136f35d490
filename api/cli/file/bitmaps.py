"""`vstore file bitmap`: persistent dirty bitmaps, which say what of a disk has changed since they began."""

from typing import Any

import click

from api.cli.file.options import FORMAT, beneath_option, format_option, output_option, refusals
from api.cli.file.words import emit_bitmaps
from api.cli.parameters import Size


@click.group("bitmap")
def bitmap_() -> None:
    """Add, list, change and remove dirty bitmaps.

    An enabled bitmap records what is written to the disk from then on, whoever writes; a disabled one stays as it is.
    """


def _change(verb: str, path: str, name: str, format_: str, beneath: Any, **how: Any) -> None:
    from vstore.transfer import offline

    with refusals(f"bitmap {verb}"):
        offline.change_bitmap(offline.Place(path, format_, beneath), verb, name, **how)


@bitmap_.command("list")
@click.argument("path")
@format_option
@output_option
def list_(path: str, *, format_: str, output: str) -> None:
    """List the bitmaps of PATH. One that is in use and not open was lost in a crash."""
    from vstore.transfer import offline

    with refusals("bitmap list"):
        emit_bitmaps(offline.bitmaps(path, format_), output)


@bitmap_.command("add")
@click.argument("path")
@click.argument("name")
@format_option
@click.option("--granularity", "-g", type=Size(), help="Bytes of the disk per bit.  [default: a cluster, 4K to 64K]")
@click.option("--disabled", is_flag=True, help="Do not record anything yet.")
@beneath_option
def add(path: str, name: str, *, format_: str, granularity: int | None, disabled: bool, beneath: Any) -> None:
    """Give PATH a new bitmap NAME, in which nothing is dirty."""
    _change("add", path, name, format_, beneath, granularity=granularity, enabled=not disabled)


@bitmap_.command("remove")
@click.argument("path")
@click.argument("name")
@format_option
@beneath_option
def remove(path: str, name: str, *, format_: str, beneath: Any) -> None:
    """Remove the bitmap NAME, also one that was lost."""
    _change("remove", path, name, format_, beneath)


@bitmap_.command("clear")
@click.argument("path")
@click.argument("name")
@format_option
@beneath_option
def clear(path: str, name: str, *, format_: str, beneath: Any) -> None:
    """Make nothing dirty in the bitmap NAME."""
    _change("clear", path, name, format_, beneath)


@bitmap_.command("enable")
@click.argument("path")
@click.argument("name")
@format_option
@beneath_option
def enable(path: str, name: str, *, format_: str, beneath: Any) -> None:
    """Let the bitmap NAME record what is written from now on."""
    _change("enable", path, name, format_, beneath)


@bitmap_.command("disable")
@click.argument("path")
@click.argument("name")
@format_option
@beneath_option
def disable(path: str, name: str, *, format_: str, beneath: Any) -> None:
    """Let the bitmap NAME stay as it is."""
    _change("disable", path, name, format_, beneath)


@bitmap_.command("merge")
@click.argument("path")
@click.argument("name")
@click.argument("sources", nargs=-1, required=True)
@format_option
@click.option("--source-file", "-b", metavar="PATH", help="Image that has the sources, if it is another.")
@click.option("--source-format", "-F", type=FORMAT, help="Its format.")
@beneath_option
def merge(path: str, name: str, sources: tuple[str, ...], *, format_: str, beneath: Any, **options: Any) -> None:
    """Make dirty in the bitmap NAME what is dirty in any of SOURCES."""
    file, told = options["source_file"], options["source_format"]
    if (file is None) != (told is None):
        raise click.UsageError("--source-file PATH and --source-format go together; a format is never guessed")
    from vstore.transfer import offline

    with refusals("bitmap merge"):
        where = None if file is None else offline.Place(file, told, beneath)
        offline.merge_bitmaps(offline.Place(path, format_, beneath), name, sources, where)
