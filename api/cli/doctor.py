"""`vstore doctor`: what of this host is in vstore's way, and what mends it."""

import click

from api.cli import exits
from api.cli.client import Client
from api.cli.errors import Unreachable
from api.cli.output import emit_json, emit_list, text
from api.cli.parameters import json_option, pass_client
from vstore import __version__

_COLUMNS = [
    ("VERDICT", text("verdict")),
    ("CHECK", text("check")),
    ("FOUND", text("found")),
    ("REMEDY", text("remedy")),
]


@click.command("doctor")
@json_option
@pass_client
def doctor(client: Client, /, *, as_json: bool) -> int:
    """Check this host, as this user: its kernel, limits, directories, virtual machine monitor, and the daemon.

    Ends with 1 where something is in vstore's way.
    """
    from api.host_checks import Verdict, examine  # what no other command needs
    from api.paths import default_paths

    findings = [finding.as_dict() for finding in examine(default_paths())] + [_daemon(client)]
    if as_json:
        emit_json({"findings": findings})
    else:
        emit_list(findings, _COLUMNS, as_json=False)
    return exits.FAILED if any(each["verdict"] == Verdict.FAULT for each in findings) else exits.OK


def _daemon(client: Client) -> dict[str, str | None]:
    try:
        running = client.call("GET", "/")["version"]
    except Unreachable as error:
        return _finding("look", str(error).partition(";")[0], "start one with `vstore serve`, or name it with --url")
    if running != __version__:
        return _finding("look", f"{running} runs, this command is {__version__}", "restart the daemon")
    return _finding("good", f"{running} answers at {client.url}", None)


def _finding(verdict: str, found: str, remedy: str | None) -> dict[str, str | None]:
    return {"check": "daemon", "verdict": verdict, "found": found, "remedy": remedy}
