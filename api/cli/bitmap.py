"""`vstore image bitmap`: persistent dirty bitmaps, which say what of a disk has changed since they began."""

from typing import Any

import click

from api.cli.client import Client
from api.cli.output import Column, emit_list, emit_object, size, text
from api.cli.parameters import Size, given, json_option, pass_client, pool_option, url_path

_COLUMNS: tuple[Column, ...] = (
    ("NAME", text("name")),
    ("GRANULARITY", size("granularity_bytes")),
    ("ENABLED", text("enabled")),
    ("CONSISTENT", text("consistent")),
)


def _path(pool: str, image: str, *bitmap: str) -> str:
    return url_path("pools", pool, "images", image, "bitmaps", *bitmap)


@click.group("bitmap")
def bitmap() -> None:
    """Add, list, change and remove dirty bitmaps of an image, also under a running guest."""


@bitmap.command("list")
@click.argument("image")
@pool_option
@json_option
@pass_client
def list_(client: Client, /, *, image: str, pool: str, as_json: bool) -> None:
    """List the bitmaps of IMAGE. One that is not consistent was lost in a crash."""
    emit_list(list(client.items(_path(pool, image))), _COLUMNS, as_json=as_json)


@bitmap.command("show")
@click.argument("image")
@click.argument("name")
@pool_option
@json_option
@pass_client
def show(client: Client, /, *, image: str, name: str, pool: str, as_json: bool) -> None:
    """Show one bitmap."""
    emit_object(client.call("GET", _path(pool, image, name)), as_json=as_json)


@bitmap.command("add")
@click.argument("image")
@click.argument("name")
@click.option("--granularity", "-g", type=Size(), help="Bytes of the disk per bit.  [default: a cluster, 4K to 64K]")
@click.option("--disabled", is_flag=True, help="Do not record anything yet.")
@pool_option
@json_option
@pass_client
def add(
    client: Client, /, *, image: str, name: str, pool: str, granularity: int | None, disabled: bool, as_json: bool
) -> None:
    """Give IMAGE a new bitmap NAME, in which nothing is dirty."""
    body = given(granularity_bytes=granularity, enabled=not disabled)
    emit_object(client.call("PUT", _path(pool, image, name), body), as_json=as_json)


@bitmap.command("remove")
@click.argument("image")
@click.argument("name")
@pool_option
@json_option
@pass_client
def remove(client: Client, /, *, image: str, name: str, pool: str, as_json: bool) -> None:
    """Remove the bitmap NAME, also one that was lost."""
    client.call("DELETE", _path(pool, image, name), headers={"If-Match": "*"})
    if not as_json:
        click.echo(f"bitmap {name} of image {image} removed")


def _change(verb: str, told: str) -> None:
    @bitmap.command(verb, help=told)
    @click.argument("image")
    @click.argument("name")
    @pool_option
    @json_option
    @pass_client
    def change(client: Client, /, *, image: str, name: str, pool: str, as_json: bool) -> None:
        answer: dict[str, Any] = client.call("POST", _path(pool, image, name, verb))
        emit_object(answer, as_json=as_json)


_change("enable", "Let the bitmap NAME record what is written from now on.")
_change("disable", "Let the bitmap NAME stay as it is.")
_change("clear", "Make nothing dirty in the bitmap NAME.")


@bitmap.command("merge")
@click.argument("image")
@click.argument("name")
@click.argument("sources", nargs=-1, required=True)
@pool_option
@json_option
@pass_client
def merge(client: Client, /, *, image: str, name: str, sources: tuple[str, ...], pool: str, as_json: bool) -> None:
    """Make dirty in the bitmap NAME what is dirty in any of SOURCES."""
    emit_object(client.call("POST", _path(pool, image, name, "merge"), {"sources": list(sources)}), as_json=as_json)
