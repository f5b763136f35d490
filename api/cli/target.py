"""`vstore target`: virtual SCSI targets, one process and one vhost-user socket each."""

from typing import Any

import click

from api.cli.client import Client
from api.cli.output import Column, emit_list, emit_object, text
from api.cli.parameters import (
    given,
    json_option,
    label_change_options,
    label_changes,
    label_option,
    pass_client,
    url_path,
)

_COLUMNS: tuple[Column, ...] = (
    ("NAME", text("name")),
    ("STATE", text("process", "state")),
    ("PID", text("process", "pid")),
    ("LUNS", text("luns")),
    ("SOCKET", text("socket")),
)


@click.group("target")
def target() -> None:
    """Create, list and delete targets."""


@target.command("create")
@click.argument("name")
@click.option("--queues", "request_queues", type=int, help="Request queues, best one per virtual CPU (4).")
@click.option("--threads", type=int, help="Threads that serve the queues (1).")
@click.option("--poll-us", type=int, help="Longest busy wait in microseconds; 0: never.")
@click.option("--config-space", is_flag=True, default=None, help="Needed by every VMM but QEMU.")
@click.option("--socket-mode", help="Who may connect: 0600, 0660 or 0666 (0600; 0660 with --socket-group).")
@click.option("--socket-owner", metavar="USER", help="User whose VMM connects, such as libvirt-qemu.")
@click.option("--socket-group", metavar="GROUP", help="Group whose members' VMM connects, such as kvm.")
@click.option("--beside", metavar="TARGET", help="Serve it in the process of TARGET, so that both can share disks.")
@label_option
@json_option
@pass_client
def create(client: Client, /, *, name: str, as_json: bool, labels: Any, **settings: Any) -> None:
    """Start a target NAME that listens for a VMM.

    Repeating it with the same values is no error.
    """
    body = given(**settings, labels=dict(labels))
    emit_object(client.call("PUT", url_path("targets", name), body), as_json=as_json)


@target.command("list")
@json_option
@pass_client
def list_(client: Client, /, *, as_json: bool) -> None:
    """List the targets."""
    emit_list(list(client.items(url_path("targets"))), _COLUMNS, as_json=as_json)


@target.command("show")
@click.argument("name")
@json_option
@pass_client
def show(client: Client, /, *, name: str, as_json: bool) -> None:
    """Show one target."""
    emit_object(client.call("GET", url_path("targets", name)), as_json=as_json)


@target.command("update")
@click.argument("name")
@label_change_options
@json_option
@pass_client
def update(client: Client, /, *, name: str, as_json: bool, labels: Any, removed: Any) -> None:
    """Change the labels of a target."""
    body = {"labels": label_changes(labels, removed)}
    emit_object(client.call("PATCH", url_path("targets", name), body), as_json=as_json)


@target.command("delete")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_option
@pass_client
def delete(client: Client, /, *, names: tuple[str, ...], as_json: bool) -> None:
    """End targets and their processes."""
    for name in names:
        client.call("DELETE", url_path("targets", name), headers={"If-Match": "*"})
        if not as_json:
            click.echo(f"target {name} deleted")
