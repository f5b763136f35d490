"""`vstore file create, clone, resize, snapshot, rebase, commit`: what makes or changes images."""

from typing import Any

import click

from api.cli.file.options import (
    FORMAT,
    bar,
    beneath_option,
    format_option,
    merged,
    options_option,
    output_option,
    preallocation_option,
    quiet_option,
    refusals,
)
from api.cli.file.words import emit_info, emit_snapshots
from api.cli.parameters import Size, secret_option


def _emit(path: str, format: str, output: str, *, quiet: bool = False) -> None:
    """What the image is now."""
    from vstore.transfer import offline

    if output == "json" or not quiet:
        emit_info(offline.info(path, format), output)


@click.command("create")
@click.argument("path")
@click.argument("size", type=Size(), required=False)
@format_option
@options_option
@preallocation_option
@click.option("--backing", "-b", metavar="NAME", help="Backing file, as the image is to name it.")
@click.option("--backing-format", "-F", type=FORMAT, help="Format of the backing file.")
@beneath_option
@secret_option
@quiet_option
@output_option
def create_(path: str, size: int | None, *, format_: str, output: str, quiet: bool, **options: Any) -> None:
    """Make a new image PATH of SIZE (10G, 512MiB), or as long as its backing file."""
    from vstore.transfer import offline

    named = merged(options["options"], backing_file=options["backing"], backing_fmt=options["backing_format"])
    place = offline.Place(path, format_, options["beneath"], secrets=options["secrets"])
    with refusals("create"):
        offline.create(place, size, preallocation=options["preallocation"], options=named)
        _emit(path, format_, output, quiet=quiet)


@click.command("clone")
@click.argument("base")
@click.argument("path")
@format_option
@click.option("--to-format", "-O", "to", type=FORMAT, default="qcow2", show_default=True, help="Format of the overlay.")
@options_option
@beneath_option
@secret_option
@quiet_option
@output_option
def clone_(base: str, path: str, *, format_: str, to: str, output: str, quiet: bool, **options: Any) -> None:
    """Make PATH, an empty overlay over BASE, which it names relative to its own directory.

    From then on BASE must not change. Where it lies elsewhere, the overlay is opened with --beneath.
    """
    from vstore.transfer import offline

    secrets = options["secrets"]
    with refusals("clone"):
        below = offline.Place(base, format_, options["beneath"], secrets=secrets)
        offline.clone(below, offline.Place(path, to, secrets=secrets), merged(options["options"]))
        _emit(path, to, output, quiet=quiet)


@click.command("resize", context_settings={"ignore_unknown_options": True})
@click.argument("path")
@click.argument("size")
@format_option
@click.option("--shrink", is_flag=True, help="Allow what lies behind the new end to be lost.")
@beneath_option
@secret_option
@quiet_option
@output_option
def resize_(path: str, size: str, *, format_: str, shrink: bool, quiet: bool, output: str, **options: Any) -> None:
    """Make the disk PATH as long as SIZE says, or +SIZE longer, or -SIZE shorter. What is new reads as zeros."""
    from vstore.transfer import offline

    with refusals("resize"):
        place = offline.Place(path, format_, options["beneath"], secrets=options["secrets"])
        offline.resize(place, size, shrink=shrink)
        _emit(path, format_, output, quiet=quiet)


@click.group("snapshot")
def snapshot_() -> None:
    """Create, list, apply and delete internal snapshots."""


def _change(verb: str, path: str, name: str, format_: str, output: str) -> None:
    from vstore.transfer import offline

    with refusals(f"snapshot {verb}"):
        offline.change_snapshots(path, format_, verb, name)
        if output == "json":
            emit_snapshots(offline.snapshots(path, format_), output)


@snapshot_.command("list")
@click.argument("path")
@format_option
@output_option
def list_(path: str, *, format_: str, output: str) -> None:
    """List the snapshots of PATH."""
    from vstore.transfer import offline

    with refusals("snapshot list"):
        emit_snapshots(offline.snapshots(path, format_), output)


@snapshot_.command("create")
@click.argument("path")
@click.argument("name")
@format_option
@output_option
def create_snapshot(path: str, name: str, *, format_: str, output: str) -> None:
    """Keep the disk PATH as it is now under NAME."""
    _change("create", path, name, format_, output)


@snapshot_.command("apply")
@click.argument("path")
@click.argument("which")
@format_option
@output_option
def apply(path: str, which: str, *, format_: str, output: str) -> None:
    """Make the disk PATH what it was at the snapshot WHICH (ID or name), which stays."""
    _change("apply", path, which, format_, output)


@snapshot_.command("delete")
@click.argument("path")
@click.argument("which")
@format_option
@output_option
def delete(path: str, which: str, *, format_: str, output: str) -> None:
    """Forget the snapshot WHICH (ID or name)."""
    _change("delete", path, which, format_, output)


@click.command("rebase")
@click.argument("path")
@format_option
@click.option("--backing", "-b", metavar="NAME", help='New backing file, as the image is to name it; "" for none.')
@click.option("--backing-format", "-F", "backing_format", type=FORMAT, help="Format of the new backing file.")
@click.option(
    "--unsafe", "-u", is_flag=True, help="Only name it: its content is that of the old one, whoever moved it."
)
@beneath_option
@secret_option
@quiet_option
@output_option
def rebase_(path: str, *, format_: str, backing: str | None, output: str, quiet: bool, **options: Any) -> None:
    """Put the overlay PATH over another backing file, or none; its disk stays what it is.

    What the old chain shows and the new one does not is written into PATH first.
    """
    told = options["backing_format"]
    if backing is None:
        raise click.UsageError('name the new backing file with --backing NAME, or say that there is none: --backing ""')
    if bool(backing) != (told is not None):
        raise click.UsageError("--backing NAME and --backing-format go together; a format is never guessed")
    from vstore.transfer import offline

    place = offline.Place(path, format_, options["beneath"], secrets=options["secrets"])
    with refusals("rebase"):
        if options["unsafe"]:
            offline.rename_parent(place, backing, told)
        else:
            with bar("rebasing", quiet=quiet or output == "json") as progress:
                offline.rebase_file(place, backing, told, progress)
        _emit(path, format_, output, quiet=quiet)


@click.command("commit")
@click.argument("path")
@format_option
@click.option("--keep", "-d", is_flag=True, help="Leave in PATH what it has, instead of emptying it.")
@beneath_option
@secret_option
@quiet_option
@output_option
def commit_(path: str, *, format_: str, keep: bool, output: str, quiet: bool, **options: Any) -> None:
    """Write what the overlay PATH has into its backing file, and empty it then.

    Other overlays over the same backing file are worth nothing afterwards.
    """
    from vstore.transfer import offline

    place = offline.Place(path, format_, options["beneath"], secrets=options["secrets"])
    with refusals("commit"):
        with bar("committing", quiet=quiet or output == "json") as progress:
            offline.commit_file(place, keep=keep, progress=progress)
        _emit(path, format_, output, quiet=quiet)
