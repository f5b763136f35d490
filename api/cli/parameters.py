"""Arguments and options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from api.cli.client import Client
from vstore.sizes import parse_size

Function = TypeVar("Function", bound=Callable[..., Any])

pass_client = click.make_pass_decorator(Client)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the REST body.")
pool_option = click.option("--pool", default="default", show_default=True, help="Pool of the image.")


class Size(click.ParamType[int]):
    """Bytes, as `vstore.sizes` reads them."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Label(click.ParamType[tuple[str, str]]):
    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, equals, content = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is no label; write KEY=VALUE", param, ctx)
        return key, content


class FormatOption(click.ParamType[tuple[str, object]]):
    """An option of an image format as qemu-img writes it, as REST has it."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, object]:
        key, equals, content = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is no option; write NAME=VALUE, such as cluster_size=128k", param, ctx)
        if key in _SIZES:
            return f"{key}_bytes", Size().convert(content, param, ctx)
        return key, _SWITCH.get(content, int(content) if content.isdecimal() and key != "compat" else content)


DISCARDS = {  # what becomes of the place of a discarded cluster: formats.image.Discard
    "unref": "free for other clusters",
    "punch": "kept, but the host gets its space back",
    "keep": "kept, and as full as it was",
}

_SIZES = {"cluster_size"}
_SWITCH: dict[str, object] = {"on": True, "off": False, "true": True, "false": False}

label_option = click.option("--label", "labels", type=_Label(), multiple=True, help="KEY=VALUE; may come again.")


def label_change_options(function: Function) -> Function:
    removal = click.option("--remove-label", "removed", metavar="KEY", multiple=True, help="Take a label away.")
    return label_option(removal(function))


def url_path(*parts: str) -> str:
    """A path below /v1, each part quoted."""
    from urllib.parse import quote  # which a command that needs no daemon has no use for

    return "/v1/" + "/".join(quote(part, safe=":") for part in parts)


def given(**fields: object) -> dict[str, object]:
    """The fields of a request that the user gave: neither None nor empty."""
    return {name: value for name, value in fields.items() if value is not None and value != {}}


def label_changes(labels: tuple[tuple[str, str], ...], removed: tuple[str, ...]) -> dict[str, str | None]:
    """A JSON Merge Patch of labels."""
    return {**dict.fromkeys(removed), **dict(labels)}


discard_option = click.option(
    "--discard",
    type=click.Choice(list(DISCARDS)),
    help="What becomes of the place of a qcow2 cluster that the guest discards: "
    f"{', '.join(f'{name} ({told})' for name, told in DISCARDS.items())}; by default unref.",
)

secret_option = click.option(
    "--secret-file",
    "secrets",
    multiple=True,
    type=click.File("rb"),
    callback=lambda _ctx, _param, files: tuple(file.read() for file in files),
    help="File whose bytes, all of them, open an encrypted image; may come again, for its parents.",
)
