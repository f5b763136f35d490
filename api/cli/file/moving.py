"""`vstore file convert, bench`: what moves many bytes."""

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
from api.cli.parameters import secret_option


@click.command("convert")
@click.argument("source")
@click.argument("target")
@format_option
@click.option("--to-format", "-O", "to", type=FORMAT, required=True, help="Format of TARGET.")
@options_option
@preallocation_option
@click.option("--compress", "-c", is_flag=True, help="Compress every block (qcow2; -o compression_type=zstd for zstd).")
@click.option("--level", type=int, help="Of the compression; by default its own.")
@click.option("--backing", "-B", metavar="NAME", help="Keep only what differs from this backing file of TARGET.")
@click.option("--backing-format", "-F", type=FORMAT, help="Format of the backing file.")
@click.option("--snapshot", "-l", help="Convert an internal snapshot of SOURCE, by ID or name.")
@click.option(
    "--sparse-size",
    "-S",
    "sparse",
    type=int,
    default=4096,
    show_default=True,
    help="Bytes of zeros in a row that take no room; 0: write them all.",
)
@click.option("--threads", "-m", type=click.IntRange(0, 64), default=0, help="How many; by default by the processors.")
@click.option("--force", is_flag=True, help="Replace an old TARGET, once the new one is complete.")
@click.option("--resume", is_flag=True, help="Go on where an earlier try with --resume ended (raw TARGETs).")
@click.option("--in-place", "-n", is_flag=True, help="Write into TARGET as it is: an image or device that is there.")
@beneath_option
@secret_option
@quiet_option
@output_option
def convert_(source: str, target: str, *, format_: str, to: str, quiet: bool, output: str, **options: Any) -> None:
    """Copy the disk SOURCE into a new image TARGET.

    TARGET appears under its name when it is complete and durable, and not at all if anything fails. With --resume an
    unfinished copy is kept beside it; the next try compares it with SOURCE and writes what is not right yet.
    """
    from vstore.transfer import offline

    place = offline.Place(source, format_, options["beneath"], options["snapshot"], options["secrets"])
    onto = offline.Place(target, to, options["beneath"], secrets=options["secrets"])
    named = merged(options["options"], backing_file=options["backing"], backing_fmt=options["backing_format"])
    with refusals("convert"):
        with bar("converting", quiet=quiet or output == "json") as progress:
            if options["in_place"]:
                _refuse_with_in_place(options, named)
                offline.convert_into(place, onto, progress)
            else:
                names = ("preallocation", "compress", "level", "sparse", "threads", "force", "resume")
                offline.convert_file(place, onto, named, {name: options[name] for name in names}, progress)
        if output == "json":
            from api.cli.file.words import emit_info

            emit_info(offline.info(target, to), output)


def _refuse_with_in_place(options: dict[str, Any], named: dict[str, object]) -> None:
    if named or options["preallocation"] != "off" or any(options[name] for name in ("compress", "force", "resume")):
        raise click.UsageError("--in-place writes into what is there, so nothing about its making can be said")


@click.command("bench")
@click.argument("path")
@format_option
@click.option("--count", "-c", type=int, default=75000, show_default=True, help="Requests.")
@click.option("--depth", "-d", type=click.IntRange(1, 256), default=64, show_default=True, help="Of them at once.")
@click.option("--size", "-s", "size", type=int, default=4096, show_default=True, help="Bytes of each.")
@click.option("--offset", "offset", type=int, default=0, show_default=True, help="Of the first.")
@click.option("--step", "-S", type=int, default=0, help="Bytes from one to the next; by default its size.")
@click.option("--write", "-w", is_flag=True, help="Write instead of reading. This overwrites the disk.")
@click.option("--pattern", type=int, default=0, help="Byte to write.")
@click.option("--flush-interval", type=int, default=0, help="Flush after so many writes; 0: never.")
@beneath_option
@secret_option
@quiet_option
@output_option
def bench_(path: str, *, format_: str, quiet: bool, output: str, **load: Any) -> None:
    """Measure how fast the image PATH answers, through vstore's data plane."""
    from api.cli.output import emit_json, emit_object
    from vstore.transfer import offline

    with refusals("bench"), bar("measuring", quiet=quiet or output == "json") as progress:
        place = offline.Place(path, format_, load.pop("beneath"), secrets=load.pop("secrets"))
        told = offline.bench_file(place, load, progress)
    if output == "json":
        emit_json(told)
    elif not quiet:
        emit_object(
            {
                "requests": told["count"],
                "seconds": f"{told['seconds']:.3f}",
                "requests per second": f"{told['iops']:.0f}",
                "per second_bytes": round(told["bytes-per-second"]),
            },
            as_json=False,
        )
