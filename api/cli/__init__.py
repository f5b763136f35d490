"""The `vstore` command: each verb is one REST call (but `serve` and `export`, which run things, and `file`
and `doctor`, which work without the daemon), each error one line.

Commands are imported when they are called, so `vstore image list` starts as fast as Python does.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import click

from api.cli import exits
from api.cli.client import Client
from api.cli.errors import ApiProblem, ClientError, NotAllowed, Unreachable
from vstore import __version__

COMMANDS = {  # name: its module, where it is an attribute of that name; and one line of help
    "serve": ("api.cli.serve", "Run the daemon."),
    "export": ("api.cli.export", "Serve images in the foreground, without the daemon."),
    "image": ("api.cli.image", "Create, clone, convert, check, resize and delete disk images."),
    "secret": ("api.cli.secret", "Keep, list and remove what opens encrypted images."),
    "job": ("api.cli.job", "List, show, cancel and wait for jobs."),
    "file": ("api.cli.file", "Work on image files offline, as qemu-img does."),
    "target": ("api.cli.target", "Create, list and delete targets."),
    "lun": ("api.cli.lun", "Map and unmap images."),
    "fuzz": ("api.cli.fuzz", "Fuzz the SCSI device model with commands."),
    "doctor": ("api.cli.doctor", "Check this host: what is in the way, and what mends it."),
    "attach": ("api.cli.attach", "Print the exact command line of each VMM."),
}


class LazyCommands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"vstore {__version__}")
        ctx.exit()


@click.group("vstore", cls=LazyCommands)
@click.option("--url", envvar="VSTORE_URL", help="Daemon: unix:///path or http://127.0.0.1:PORT (VSTORE_URL).")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Version.")
@click.pass_context
def vstore(ctx: click.Context, url: str | None) -> None:
    """Virtual SCSI targets from disk images.

    Over TCP the daemon asks for its token: VSTORE_TOKEN, or the file `token` in its state directory.
    """
    ctx.obj = Client(url)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command, and answers its exit code; a failure is one line on stderr."""
    try:
        outcome: Any = vstore.main(args=arguments, prog_name="vstore", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return exits.USAGE
    except (click.ClickException, click.Abort, KeyboardInterrupt, ClientError) as error:
        click.echo(f"vstore: {_sentence(error)}", err=True)
        return _code(error)
    return outcome if isinstance(outcome, int) else exits.OK


def _sentence(error: BaseException) -> str:
    if isinstance(error, click.UsageError):
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return error.format_message().rstrip(".") + hint
    return error.format_message() if isinstance(error, click.ClickException) else str(error) or "interrupted"


def _code(error: BaseException) -> int:
    if isinstance(error, ApiProblem):
        return exits.BY_STATUS.get(error.status, exits.FAILED)
    return next(code for kind, code in _CODES if isinstance(error, kind))


_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (click.UsageError, exits.USAGE),
    (click.ClickException, exits.FAILED),
    (NotAllowed, exits.NOT_ALLOWED),
    (Unreachable, exits.UNAVAILABLE),
    (BaseException, exits.INTERRUPTED),
)
