"""`vstore secret`: what opens encrypted images. A value comes from a file, a pipe or the terminal, not by argument."""

import base64
import sys
from typing import BinaryIO

import click

from api.cli.client import Client
from api.cli.output import Column, emit_list, emit_object, text
from api.cli.parameters import json_option, pass_client, url_path

_COLUMNS: tuple[Column, ...] = (("NAME", text("name")), ("IMAGES", text("images")), ("SET", text("set_at")))


@click.group("secret")
def secret() -> None:
    """Keep, list and remove the passphrases of encrypted images."""


@secret.command("set")
@click.argument("name")
@click.option(
    "--file", "file", type=click.File("rb"), help="File whose bytes, all of them, are the secret; - for stdin."
)
@json_option
@pass_client
def set_(client: Client, /, *, name: str, file: BinaryIO | None, as_json: bool) -> None:
    """Keep a secret NAME: the bytes of --file, else a line of standard input, which a terminal is asked for twice.

    One that images name is not replaced: set another one, and tell the images of it (vstore image update --secret).
    """
    value = base64.b64encode(file.read() if file is not None else _line()).decode()
    emit_object(client.call("PUT", url_path("secrets", name), {"value_base64": value}), as_json=as_json)


def _line() -> bytes:
    """Without its end."""
    if sys.stdin.isatty():
        return str(click.prompt("Secret", hide_input=True, confirmation_prompt=True, err=True)).encode()
    return sys.stdin.buffer.readline().removesuffix(b"\n")


@secret.command("list")
@json_option
@pass_client
def list_(client: Client, /, *, as_json: bool) -> None:
    """List the secrets, and the images that each one opens; no values."""
    emit_list(list(client.items(url_path("secrets"))), _COLUMNS, as_json=as_json)


@secret.command("show")
@click.argument("name")
@json_option
@pass_client
def show(client: Client, /, *, name: str, as_json: bool) -> None:
    """Show which images a secret opens; not its value."""
    emit_object(client.call("GET", url_path("secrets", name)), as_json=as_json)


@secret.command("rm")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_option
@pass_client
def rm(client: Client, /, *, names: tuple[str, ...], as_json: bool) -> None:
    """Forget secrets that no image names."""
    for name in names:
        client.call("DELETE", url_path("secrets", name), headers={"If-Match": "*"})
        if not as_json:
            click.echo(f"secret {name} removed")
