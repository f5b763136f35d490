"""`vstore image`: disk images of a pool."""

from typing import Any

import click

from api.cli.client import Client
from api.cli.output import Column, emit_list, emit_object, size, text
from api.cli.parameters import (
    Size,
    given,
    json_option,
    label_change_options,
    label_changes,
    label_option,
    pass_client,
    pool_option,
    url_path,
)
from vstore.sizes import parse_size_change

_COLUMNS: tuple[Column, ...] = (
    ("NAME", text("name")),
    ("FORMAT", text("format")),
    ("SIZE", size("virtual_size_bytes")),
    ("ON DISK", size("actual_size_bytes")),
    ("STATE", text("state")),
    ("LUNS", text("luns")),
)


def _path(pool: str, *name: str) -> str:
    return url_path("pools", pool, "images", *name)


@click.group("image")
def image() -> None:
    """Create, list, resize and delete disk images."""


@image.command("create")
@click.argument("name")
@click.argument("size", type=Size())
@click.option("--format", "format_", help="Image format (raw).")
@click.option("--preallocation", type=click.Choice(["off", "falloc", "full"]), help="Reserve or write all space now.")
@label_option
@pool_option
@json_option
@pass_client
def create(client: Client, /, *, name: str, size: int, pool: str, as_json: bool, labels: Any, **options: Any) -> None:
    """Make an empty image NAME of SIZE (10G, 512MiB, 1048576).

    Repeating it with the same values is no error.
    """
    body = given(
        virtual_size_bytes=size,
        format=options["format_"],
        preallocation=options["preallocation"],
        labels=dict(labels),
    )
    emit_object(client.call("PUT", _path(pool, name), body), as_json=as_json)


@image.command("list")
@pool_option
@json_option
@pass_client
def list_(client: Client, /, *, pool: str, as_json: bool) -> None:
    """List the images of a pool."""
    emit_list(list(client.items(_path(pool))), _COLUMNS, as_json=as_json)


@image.command("show")
@click.argument("name")
@pool_option
@json_option
@pass_client
def show(client: Client, /, *, name: str, pool: str, as_json: bool) -> None:
    """Show one image."""
    emit_object(client.call("GET", _path(pool, name)), as_json=as_json)


@image.command("update")
@click.argument("name")
@label_change_options
@pool_option
@json_option
@pass_client
def update(client: Client, /, *, name: str, pool: str, as_json: bool, labels: Any, removed: Any) -> None:
    """Change the labels of an image."""
    body = {"labels": label_changes(labels, removed)}
    emit_object(client.call("PATCH", _path(pool, name), body), as_json=as_json)


@image.command("resize", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("size")
@click.option("--shrink", is_flag=True, help="Cutting off the end of the disk is meant.")
@pool_option
@json_option
@pass_client
def resize(client: Client, /, *, name: str, size: str, shrink: bool, pool: str, as_json: bool) -> None:
    """Give an image a new SIZE (20G), or change it by +SIZE or -SIZE (+10G). A running guest is told."""
    current = client.call("GET", _path(pool, name))
    try:
        wanted = parse_size_change(size, current["virtual_size_bytes"])
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="SIZE") from error
    path = _path(pool, name) + ("?shrink=true" if shrink else "")
    seen = {"If-Match": f'"{current["revision"]}"'}  # +10G means ten more than what was just read
    emit_object(client.call("PATCH", path, {"virtual_size_bytes": wanted}, seen), as_json=as_json)


@image.command("delete")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pool_option
@json_option
@pass_client
def delete(client: Client, /, *, names: tuple[str, ...], pool: str, as_json: bool) -> None:
    """Delete images and their files."""
    for name in names:
        client.call("DELETE", _path(pool, name), headers={"If-Match": "*"})
        if not as_json:
            click.echo(f"image {name} deleted")
