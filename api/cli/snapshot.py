"""`vstore image snapshot`: states of a disk that its image keeps."""

from typing import Any

import click

from api.cli.client import Client
from api.cli.output import Column, emit_list, emit_object, size, text
from api.cli.parameters import json_option, pass_client, pool_option, url_path
from api.cli.waiting import ASYNC, detach_option, result_of

_COLUMNS: tuple[Column, ...] = (
    ("ID", text("id")),
    ("NAME", text("name")),
    ("SIZE", size("virtual_size_bytes")),
    ("CREATED", text("created_at")),
)


def _path(pool: str, image: str, *snapshot: str) -> str:
    return url_path("pools", pool, "images", image, "snapshots", *snapshot)


@click.group("snapshot")
def snapshot() -> None:
    """Create, list, show, apply and delete snapshots inside an image."""


@snapshot.command("create")
@click.argument("image")
@click.argument("name")
@detach_option
@pool_option
@json_option
@pass_client
def create(client: Client, /, *, image: str, name: str, pool: str, detach: bool, as_json: bool) -> None:
    """Keep the disk of IMAGE as it is now, as NAME. A running guest goes on.

    Repeating it is no error, and takes no second one.
    """
    headers = ASYNC if detach else {}
    emit_object(client.call("PUT", _path(pool, image, name), headers=headers), as_json=as_json)


@snapshot.command("list")
@click.argument("image")
@pool_option
@json_option
@pass_client
def list_(client: Client, /, *, image: str, pool: str, as_json: bool) -> None:
    """List the snapshots of IMAGE."""
    emit_list(list(client.items(_path(pool, image))), _COLUMNS, as_json=as_json)


@snapshot.command("show")
@click.argument("image")
@click.argument("name")
@pool_option
@json_option
@pass_client
def show(client: Client, /, *, image: str, name: str, pool: str, as_json: bool) -> None:
    """Show one snapshot."""
    emit_object(client.call("GET", _path(pool, image, name)), as_json=as_json)


@snapshot.command("apply")
@click.argument("image")
@click.argument("name")
@detach_option
@pool_option
@json_option
@pass_client
def apply(client: Client, /, *, image: str, name: str, pool: str, detach: bool, as_json: bool) -> None:
    """Make the disk of IMAGE what it was; what it is now is lost. No guest may have it."""
    job: dict[str, Any] = client.call("POST", _path(pool, image, name, "apply"))
    emit_object(job if detach else result_of(client, job), as_json=as_json)


@snapshot.command("delete")
@click.argument("image")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pool_option
@json_option
@pass_client
def delete(client: Client, /, *, image: str, names: tuple[str, ...], pool: str, as_json: bool) -> None:
    """Forget snapshots and free what they alone hold, one after the other. A running guest goes on."""
    for name in names:
        job = client.call("DELETE", _path(pool, image, name), headers={"If-Match": "*", **ASYNC})
        if job:
            result_of(client, job)
        if not as_json:
            click.echo(f"snapshot {name} of image {image} deleted")
