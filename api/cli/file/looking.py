"""`vstore file info, map, check, measure, compare`: what changes nothing, but for a repair."""

from typing import Any

import click

from api.cli import exits
from api.cli.file.options import (
    FORMAT,
    bar,
    beneath_option,
    format_option,
    merged,
    options_option,
    output_option,
    quiet_option,
    refusals,
    share_option,
)
from api.cli.file.words import check_sentences, emit_chain, emit_info, emit_map
from api.cli.output import emit_json, emit_object
from api.cli.parameters import Size, secret_option

# qemu-img's own (its manual, "check" and "compare")
CORRUPT, LEAKS, UNSUPPORTED = 2, 3, 63
DIFFERENT, NOT_OPENED, NOT_READ = 1, 2, 4


@click.command("info")
@click.argument("path")
@click.option("--format", "-f", "format_", type=FORMAT, help="Its format; without, what its bytes look like.")
@click.option("--backing-chain", "chain", is_flag=True, help="Its backing files too; needs --format.")
@beneath_option
@share_option
@output_option
def info_(path: str, *, format_: str | None, chain: bool, beneath: Any, shared: bool, output: str) -> None:
    """Show what the image PATH is. No other file is opened for it, but with --backing-chain."""
    if chain and format_ is None:
        raise click.UsageError("--backing-chain opens what the image names, so its --format must be said")
    from vstore.transfer import offline

    with refusals("info"):
        if chain:
            assert format_ is not None
            emit_chain(offline.info_of_chain(offline.Place(path, format_, beneath)), output)
        else:
            emit_info(offline.info(path, format_, shared=shared), output)


@click.command("map")
@click.argument("path")
@format_option
@click.option("--start-offset", "-s", "start", type=Size(), default=0, help="Only from this byte on.")
@click.option("--max-length", "-l", "length", type=Size(), help="Only so many bytes.")
@beneath_option
@secret_option
@output_option
def map_(path: str, *, format_: str, start: int, length: int | None, output: str, **options: Any) -> None:
    """Show which bytes of the disk PATH lie where, over its whole backing chain."""
    from vstore.transfer import offline

    with refusals("map"):
        place = offline.Place(path, format_, options["beneath"], secrets=options["secrets"])
        emit_map(offline.map_(place, start, length), output)


@click.command("check")
@click.argument("path")
@format_option
@click.option(
    "--repair", "-r", type=click.Choice(["leaks", "all"]), help="Put right what is wrong: leaked clusters only, or all."
)
@quiet_option
@output_option
def check_(path: str, *, format_: str, repair: str | None, quiet: bool, output: str) -> int:
    """Examine the image PATH, which nobody may be using.

    Exit codes, as qemu-img's: 0 all is well, 1 not checked, 2 corruptions, 3 leaked clusters, 63 not for this format.
    """
    from vstore.transfer import offline

    try:
        found = offline.check(path, format_, repair or "none")
    except offline.Refused as error:
        click.echo(f"vstore: check: {error}", err=True)
        return UNSUPPORTED if error.unsupported else exits.FAILED
    if output == "json":
        emit_json(found.told)
    elif not quiet:
        click.echo("\n".join(check_sentences(found.told, found.findings)))
    return CORRUPT if found.corruptions else LEAKS if found.leaks else exits.OK


@click.command("measure")
@click.argument("path", required=False)
@click.option("--format", "-f", "format_", type=FORMAT, help="Format of PATH; it is never guessed.")
@click.option("--size", type=Size(), help="Of an empty disk this long, instead of PATH.")
@click.option("--to-format", "-O", "to", type=FORMAT, default="raw", show_default=True, help="Format of the new image.")
@options_option
@click.option("--snapshot", "-l", help="Of an internal snapshot of PATH, by ID or name.")
@beneath_option
@secret_option
@output_option
def measure_(path: str | None, *, output: str, **options: Any) -> None:
    """Tell how long a new image with the disk PATH would get: as far as it is used, and when it is written full."""
    if (path is None) == (options["size"] is None) or (path is not None and options["format_"] is None):
        raise click.UsageError("give either PATH with its --format, or --size")
    from vstore.transfer import offline

    with refusals("measure"):
        source = options["size"]
        if path is not None:
            source = offline.Place(
                path, options["format_"], options["beneath"], options["snapshot"], options["secrets"]
            )
        told = offline.measure(source, options["to"], merged(options["options"]))
    if output == "json":
        emit_json(told)
    else:
        emit_object({f"{name.replace('-', ' ')}_bytes": size for name, size in told.items()}, as_json=False)


@click.command("compare")
@click.argument("one")
@click.argument("two")
@format_option
@click.option("--second-format", "-F", "second", type=FORMAT, required=True, help="Format of TWO; it is never guessed.")
@click.option("--strict", "-s", is_flag=True, help="Lengths and allocation must be equal too.")
@beneath_option
@secret_option
@quiet_option
@output_option
def compare_(one: str, two: str, *, format_: str, second: str, output: str, **options: Any) -> int:
    """Compare the disks of two images. A longer one must be zeros where the other has ended.

    Exit codes, as qemu-img's: 0 identical, 1 different, 2 not opened, 4 not read.
    """
    from vstore.transfer import offline

    more = {"beneath": options["beneath"], "secrets": options["secrets"]}
    places = offline.Place(one, format_, **more), offline.Place(two, second, **more)
    quiet = options["quiet"] or output == "json"
    try:
        with bar("comparing", quiet=quiet) as progress:
            difference = offline.compare_files(*places, strict=options["strict"], progress=progress)
    except offline.Refused as error:
        click.echo(f"vstore: compare: {error}", err=True)
        return NOT_READ if error.moving else NOT_OPENED
    kind = None if difference is None else difference.kind.value
    if output == "json":
        emit_json({"identical": difference is None, "difference": kind, "offset": difference and difference.offset})
    elif not options["quiet"]:
        click.echo("identical" if difference is None else f"different in {kind} at offset {difference.offset}")
    return exits.OK if difference is None else DIFFERENT
