"""`vstore image`: disk images of a pool; looking into them and most long work on them is in image_work.py."""

from typing import Any

import click

from api.cli.bitmap import bitmap
from api.cli.client import Client
from api.cli.image_work import COMMANDS
from api.cli.output import Column, emit_list, emit_object, size, text
from api.cli.parameters import (
    FormatOption,
    Function,
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
from api.cli.snapshot import snapshot
from api.cli.waiting import ASYNC, detach_option, result_of
from vstore.sizes import parse_size_change

_COLUMNS: tuple[Column, ...] = (
    ("NAME", text("name")),
    ("FORMAT", text("format")),
    ("SIZE", size("virtual_size_bytes")),
    ("ON DISK", size("actual_size_bytes")),
    ("PARENT", text("parent")),
    ("STATE", text("state")),
    ("LUNS", text("luns")),
)


def _path(pool: str, *name: str) -> str:
    return url_path("pools", pool, "images", *name)


@click.group("image")
def image() -> None:
    """Create, clone, convert, check, resize and delete disk images."""


for each in (*COMMANDS, snapshot, bitmap):
    image.add_command(each)


def _birth_options(function: Function) -> Function:
    """Of every command that makes an image."""
    for option in (
        label_option,
        click.option("--encrypt", "secret", metavar="SECRET", help="Encrypt it (qcow2, luks): what shall open it."),
        click.option("-o", "options", type=FormatOption(), multiple=True, help="NAME=VALUE of the format; may repeat."),
        click.option(
            "--preallocation",
            type=click.Choice(["off", "metadata", "falloc", "full"]),
            help="Make the tables, reserve or write all space now.",
        ),
    ):
        function = option(function)
    return function


@image.command("create")
@click.argument("name")
@click.argument("size", type=Size(), required=False)
@click.option("--format", "format_", help="Image format (raw; qcow2 with --parent).")
@click.option("--parent", help="Image whose content shows through until it is written to.")
@_birth_options
@pool_option
@json_option
@pass_client
def create(client: Client, /, *, name: str, pool: str, as_json: bool, parent: str | None, **spec: Any) -> None:
    """Make an image NAME: empty, of SIZE (10G, 512MiB, 1048576), or an overlay on --parent.

    Repeating it with the same values is no error. Options are those of qemu-img: -o cluster_size=128k -o extended_l2=on
    """
    if spec["size"] is None and parent is None:
        raise click.UsageError("SIZE is missing; only an overlay (--parent) has one without")
    body = _birth(spec) | given(parent=parent, format=spec["format_"] or (parent and "qcow2"))
    emit_object(client.call("PUT", _path(pool, name), body), as_json=as_json)


@image.command("clone")
@click.argument("base")
@click.argument("name")
@click.option("--size", type=Size(), help="Size of the clone, if it is not to be that of BASE.")
@_birth_options
@pool_option
@json_option
@pass_client
def clone(client: Client, /, *, base: str, name: str, pool: str, as_json: bool, **spec: Any) -> None:
    """Make an overlay NAME on BASE, which from then on cannot change.

    Repeating it with the same values is no error.
    """
    emit_object(client.call("POST", _path(pool, base, "clone"), {"name": name, **_birth(spec)}), as_json=as_json)


def _birth(spec: dict[str, Any]) -> dict[str, object]:
    """What the commands that make an image have in common."""
    return given(
        virtual_size_bytes=spec["size"],
        preallocation=spec["preallocation"],
        options=dict(spec["options"]),
        secret=spec["secret"],
        labels=dict(spec["labels"]),
    )


@image.command("register")
@click.argument("name")
@click.argument("file")
@click.option("--format", "format_", required=True, help="Image format of FILE, which is not guessed.")
@click.option("--parent", help="The image that it is an overlay on.")
@click.option("--secret", help="What opens it, if it is encrypted.")
@label_option
@pool_option
@json_option
@pass_client
def register(client: Client, /, *, name: str, pool: str, as_json: bool, format_: str, **spec: Any) -> None:
    """Take FILE, which lies in the pool's directory and belongs to no image, for the image NAME."""
    body = given(**{**spec, "labels": dict(spec["labels"])}, format=format_)
    emit_object(client.call("POST", _path(pool, name, "register"), body), as_json=as_json)


@image.command("convert")
@click.argument("name")
@click.argument("into", required=False)
@click.option("--in-place", is_flag=True, help="Give NAME itself the format, while nobody uses it.")
@click.option("--format", "format_", help="Format of the new image (qcow2).")
@click.option("--compress", is_flag=True, help="Compress its clusters (qcow2).")
@click.option("--snapshot", help="Take the content of this snapshot, also while a guest goes on.")
@_birth_options
@detach_option
@pool_option
@json_option
@pass_client
def convert(client: Client, /, *, name: str, pool: str, detach: bool, as_json: bool, **spec: Any) -> None:
    """Make a new image INTO with the content of NAME, in any format and without a parent; or make NAME itself such.

    Options are those of qemu-img: --compress -o compression_type=zstd
    """
    if (spec["into"] is None) != spec["in_place"]:
        raise click.UsageError("give either INTO or --in-place")
    how = {"in_place": True} if spec["in_place"] else given(into=spec["into"])
    body = _birth({**spec, "size": None}) | given(format=spec["format_"], snapshot=spec["snapshot"]) | how
    job = client.call("POST", _path(pool, name, "convert"), body | {"compress": spec["compress"]})
    emit_object(job if detach else result_of(client, job), as_json=as_json)


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
@click.option("--secret", help="Another secret that opens it.")
@pool_option
@json_option
@pass_client
def update(
    client: Client, /, *, name: str, pool: str, as_json: bool, labels: Any, removed: Any, secret: str | None
) -> None:
    """Change the labels of an image, or what opens it."""
    body = {"labels": label_changes(labels, removed)} | given(secret=secret)
    emit_object(client.call("PATCH", _path(pool, name), body), as_json=as_json)


@image.command("resize", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("size")
@click.option("--shrink", is_flag=True, help="Cutting off the end of the disk is meant.")
@detach_option
@pool_option
@json_option
@pass_client
def resize(client: Client, /, *, name: str, size: str, shrink: bool, pool: str, detach: bool, as_json: bool) -> None:
    """Give an image a new SIZE (20G), or change it by +SIZE or -SIZE (+10G). A running guest is told."""
    current = client.call("GET", _path(pool, name))
    try:
        wanted = parse_size_change(size, current["virtual_size_bytes"])
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="SIZE") from error
    path = _path(pool, name) + ("?shrink=true" if shrink else "")
    seen = {"If-Match": f'"{current["revision"]}"'}  # +10G means ten more than what was just read
    seen |= ASYNC if detach else {}
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
