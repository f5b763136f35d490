"""`vstore export`: one target in the foreground, without daemon or catalog.

It follows QEMU's "Backend program conventions" (docs/interop/vhost-user.rst): --socket-path, --fd,
--print-capabilities, no daemonising, SIGTERM ends it.
"""

import json
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from api.cli.parameters import Size, discard_option, secret_option
from formats.registry import FORMATS
from vstore.target.beginning import prepare
from vstore.vhost_user.attach import VMMS, Vmm, command_line

if TYPE_CHECKING:
    from vstore.target.export import Export
    from vstore.target.verbs import Configure, MapLun

MOST_QUEUES = 64
GUEST_MEMORY = 4 << 30  # bytes, in the line that is printed
LARGEST_PHYSICAL_BLOCK = 65536


@click.command("export", short_help="Serve images in the foreground, without the daemon.")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@click.option(
    "--format", "format_", type=click.Choice(list(FORMATS)), help="Format of every IMAGE; it is never guessed."
)
@click.option(
    "--beneath",
    type=click.Path(exists=True, file_okay=False),
    multiple=True,
    metavar="DIR",
    help="Directory that parents and data files may lie in, besides IMAGE's own; may come again.",
)
@secret_option
@click.option("--socket", "--socket-path", "socket_path", metavar="PATH", help="vhost-user socket to make.")
@click.option("--fd", type=click.IntRange(min=0), help="Inherited vhost-user socket, instead of --socket.")
@click.option("--read-only", is_flag=True, help="Refuse every write.")
@click.option("--block-size", type=click.Choice(["512", "4096"]), default="512", help="Logical block length in bytes.")
@click.option("--physical-block-size", type=Size(), metavar="SIZE", help="Physical block length (4096).")
@click.option("--serial", help="Unit serial number; by default always the same for the same path.")
@click.option("--product", default="DISK", show_default=True, help="Product identification, up to 16 characters.")
@click.option("--size", type=Size(), metavar="SIZE", help="Length of a memory or null disk: 1G, 512MiB, 1048576.")
@click.option("--direct", is_flag=True, help="Bypass the host's page cache (O_DIRECT).")
@click.option(
    "--queues", type=click.IntRange(1, MOST_QUEUES), help="Request queues; by default all that are asked for."
)
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Data plane threads.")
@click.option("--poll-us", type=click.IntRange(0, 1_000_000), help="Longest polling before a thread sleeps; 0: none.")
@click.option("--thin/--thick", default=None, help="Let the guest give space back; by default if the image can.")
@discard_option
@click.option("--write-cache/--no-write-cache", default=True, help="Without: every write is durable before it is done.")
@click.option(
    "--vmm",
    type=click.Choice([row.name for row in VMMS]),
    default=VMMS[0].name,
    show_default=True,
    help="Who will attach.",
)
@click.option(
    "--config-space/--no-config-space", default=None, help="Offer the configuration space; by default by --vmm."
)
@click.option("--print-capabilities", is_flag=True, help="Print what this back-end is, as JSON, and end.")
def export(print_capabilities: bool, **options: Any) -> int:
    """Serve each IMAGE as a SCSI disk, LUN 0 on, to one virtual machine over vhost-user.

    \b
    vstore export disk.raw --format raw --socket /run/vm0.sock
    vstore export overlay.qcow2 --format qcow2 --beneath /srv/base --socket /run/vm0.sock
    vstore export --format memory --size 1G --socket /run/vm0.sock
    """
    if print_capabilities:
        click.echo(json.dumps({"type": "scsi"}))
        return 0
    _check_usage(options)
    prepare()
    from vstore.target.errors import ErrorCode, TargetError
    from vstore.target.export import export as serve

    try:
        request = _request(options)
        return serve(request, lambda: _announce(request.endpoint, options))
    except TargetError as error:
        if error.code is ErrorCode.INVALID_REQUEST:
            raise click.UsageError(error.detail) from None
        raise click.ClickException(error.detail) from None


def _check_usage(options: dict[str, Any]) -> None:
    if options["format_"] is None:
        raise click.UsageError(f"--format is missing: a format is never guessed from an image's bytes.{_told(options)}")
    if (options["socket_path"] is None) == (options["fd"] is None):
        raise click.UsageError("give either --socket PATH or --fd N")
    if FORMATS[options["format_"]].make:
        if options["images"] or not options["size"] or options["direct"]:
            raise click.UsageError(f"a {options['format_']} disk has no file: give --size, and no IMAGE or --direct")
    elif not options["images"] or options["size"] is not None:
        raise click.UsageError(f"a {options['format_']} disk lies in a file: give its path as IMAGE and no --size")
    if options["serial"] is not None and len(options["images"]) > 1:
        raise click.UsageError("--serial names one disk; with several IMAGEs leave it out")
    _physical_block_exponent(options)


def _told(options: dict[str, Any]) -> str:
    """What the images look like; a person decides whether that is what they are."""
    from vstore.target.errors import TargetError
    from vstore.target.export import looks_like

    sentences = []
    for image in options["images"]:
        try:
            sentences.append(f" {image} looks like {looks_like(image)}.")
        except TargetError as error:
            sentences.append(f" {error.detail}.")
    return "".join(sentences) + f" Formats: {', '.join(FORMATS)}."


def _physical_block_exponent(options: dict[str, Any]) -> int | None:
    size: int | None = options["physical_block_size"]
    block = int(options["block_size"])
    if size is None:
        return None
    exponent = (size // block).bit_length() - 1
    if exponent < 0 or block << exponent != size or size > LARGEST_PHYSICAL_BLOCK:
        choices = ", ".join(str(block << n) for n in range(8) if block << n <= LARGEST_PHYSICAL_BLOCK)
        raise click.UsageError(f"--physical-block-size: {size} is not one of {choices}")
    return exponent


def _request(options: dict[str, Any]) -> "Export":
    from vstore.target.export import Export

    paths: list[str | None] = list(options["images"]) or [None]
    luns = [(_lun(options, number, path), path) for number, path in enumerate(paths)]
    return Export(
        _endpoint(options), luns, secrets=options["secrets"], beneath=options["beneath"], handed_socket=options["fd"]
    )


def _endpoint(options: dict[str, Any]) -> "Configure":
    from vstore.target import verbs
    from vstore.target.declaration import parse

    config_space = _vmm(options).needs_config_space if options["config_space"] is None else options["config_space"]
    # What the configuration space says is what such a VMM's guest sets up; elsewhere a higher limit costs nothing.
    queues = options["queues"] or (1 if config_space else MOST_QUEUES)
    settings = {
        "name": "export",
        "socket": options["socket_path"] or _handed_path(options["fd"]),
        "request_queues": queues,
        "threads": options["threads"],
        "poll_us": options["poll_us"],
        "config_space": config_space,
    }
    return parse(verbs.Configure, settings)


def _vmm(options: dict[str, Any]) -> Vmm:
    return next(row for row in VMMS if row.name == options["vmm"])


def _lun(options: dict[str, Any], number: int, path: str | None) -> "MapLun":
    from vstore.target import verbs
    from vstore.target.declaration import parse
    from vstore.target.export import stable_serial

    name = path or f"{options['format_']}:{options['socket_path']}"
    settings = {
        "lun": number,
        "image": {
            "format": options["format_"],
            "length": options["size"],
            "direct": options["direct"],
            "name": name,
        },
        "read_only": options["read_only"],
        "logical_block_length": int(options["block_size"]),
        "physical_block_exponent": _physical_block_exponent(options),
        "thin": options["thin"],
        "write_cache": options["write_cache"],
        "discard": options["discard"] or "unref",
        "product": options["product"],
        "serial": options["serial"] if options["serial"] is not None else stable_serial(name),
    }
    return parse(verbs.MapLun, settings)


def _handed_path(descriptor: int) -> str:
    """The name that an inherited socket listens at, for the hint."""
    try:
        handed = socket.socket(fileno=descriptor)
    except OSError as error:
        raise click.UsageError(f"--fd: descriptor {descriptor} is not a socket: {error.strerror}") from None
    try:
        return str(handed.getsockname())
    finally:
        handed.detach()


def _announce(endpoint: "Configure", options: dict[str, Any]) -> None:
    """The one line on stdout: what attaches a machine to it."""
    if not endpoint.socket:
        return  # a connected socket that was handed in: its machine is there already
    shown = replace(endpoint, socket=os.path.abspath(endpoint.socket), request_queues=options["queues"] or 1)
    click.echo(command_line(_vmm(options), shown, GUEST_MEMORY))
