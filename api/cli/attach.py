"""`vstore attach`: the line that gives a virtual machine the disks of a target."""

from typing import Any

import click

from api.cli.client import Client
from api.cli.output import emit_json
from api.cli.parameters import Size, json_option, pass_client, url_path

_DEFAULT_MEMORY = 4 << 30


@click.command("attach")
@click.argument("target")
@click.option("--vmm", help="Print this VMM's line alone, such as qemu-7.2, to paste.")
@click.option("--memory", type=Size(), default=_DEFAULT_MEMORY, metavar="SIZE", help="Memory of the guest (4G).")
@json_option
@pass_client
def attach(client: Client, /, *, target: str, vmm: str | None, memory: int, as_json: bool) -> None:
    """Print the exact command line of each VMM for TARGET."""
    body = client.call("GET", f"{url_path('targets', target, 'attach')}?memory_bytes={memory}")
    lines = [line for line in body["lines"] if vmm in (None, line["vmm"])]
    if not lines:
        known = ", ".join(line["vmm"] for line in body["lines"])
        raise click.BadParameter(f"{vmm!r} is not known here; choose {known}", param_hint="--vmm")
    if as_json:
        emit_json({**body, "lines": lines})
    elif vmm:
        _print_one(lines[0])
    else:
        _print_all(lines)


def _print_one(line: dict[str, Any]) -> None:
    click.echo(line["command_line"])
    for note in line["notes"]:
        click.echo(f"note: {note}", err=True)


def _print_all(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        click.echo(f"# {line['vmm']}: {line['versions']}{'' if line['ready'] else ' (not ready)'}")
        for note in line["notes"]:
            click.echo(f"#   {note}")
        click.echo(line["command_line"] + "\n")
