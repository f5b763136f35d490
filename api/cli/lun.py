"""`vstore lun`: images behind a target, mapped and unmapped also under a running guest."""

from typing import Any

import click

from api.cli.client import Client
from api.cli.output import Column, emit_list, emit_object, size, text
from api.cli.parameters import discard_option, given, json_option, label_option, pass_client, pool_option, url_path

_COLUMNS: tuple[Column, ...] = (
    ("LUN", text("name")),
    ("IMAGE", text("image")),
    ("POOL", text("pool")),
    ("SIZE", size("virtual_size_bytes")),
    ("READ-ONLY", text("read_only")),
    ("SERIAL", text("serial")),
)


def _path(target: str, *lun: str) -> str:
    return url_path("targets", target, "luns", *lun)


@click.group("lun")
def lun() -> None:
    """Map and unmap images."""


@lun.command("map")
@click.argument("target")
@click.argument("lun")
@click.argument("image")
@click.option("--read-only", is_flag=True, default=None, help="Refuse every write.")
@click.option("--direct", is_flag=True, default=None, help="Bypass the host's page cache (O_DIRECT).")
@click.option("--block-size", type=click.Choice(["512", "4096"]), help="Logical block length in bytes (512).")
@discard_option
@click.option("--shared", is_flag=True, default=None, help="Other targets of the process may write to it too.")
@click.option("--serial", help="Unit serial number; by default made from the image's id.")
@label_option
@pool_option
@json_option
@pass_client
def map_(
    client: Client, /, *, target: str, lun: str, image: str, pool: str, as_json: bool, labels: Any, **options: Any
) -> None:
    """Put IMAGE behind LUN (or TARGET:LUN, as 1:5) of TARGET. A running guest sees it appear.

    Repeating it with the same values is no error.
    """
    block_size = options.pop("block_size")
    body = given(
        image=image,
        pool=pool,
        logical_block_length_bytes=int(block_size) if block_size else None,
        labels=dict(labels),
        **options,
    )
    emit_object(client.call("PUT", _path(target, lun), body), as_json=as_json)


@lun.command("list")
@click.argument("target")
@json_option
@pass_client
def list_(client: Client, /, *, target: str, as_json: bool) -> None:
    """List the LUNs of a target."""
    emit_list(list(client.items(_path(target))), _COLUMNS, as_json=as_json)


@lun.command("show")
@click.argument("target")
@click.argument("lun")
@json_option
@pass_client
def show(client: Client, /, *, target: str, lun: str, as_json: bool) -> None:
    """Show one LUN."""
    emit_object(client.call("GET", _path(target, lun)), as_json=as_json)


@lun.command("unmap")
@click.argument("target")
@click.argument("lun")
@json_option
@pass_client
def unmap(client: Client, /, *, target: str, lun: str, as_json: bool) -> None:
    """Take a LUN away, once its commands are done. A running guest sees it go."""
    client.call("DELETE", _path(target, lun), headers={"If-Match": "*"})
    if not as_json:
        click.echo(f"LUN {lun} of target {target} unmapped")
