"""`vstore file`: image files by their paths, offline and without the daemon, in the verbs of qemu-img.

Each verb parses, calls one function of vstore.transfer.offline, and prints what it told. What is on its way is
interrupted by SIGINT, SIGTERM and SIGHUP alike, and leaves nothing half done.
"""

import importlib
import signal
from functools import partial

import click

from vstore.descriptor_limit import raise_descriptor_limit

COMMANDS = {  # name: the module that has it; and one line of help
    "create": ("changing", "Make a new image."),
    "info": ("looking", "Show what an image is."),
    "map": ("looking", "Show which bytes of the disk lie where."),
    "check": ("looking", "Examine an image, and repair it."),
    "measure": ("looking", "Tell how long a new image would get."),
    "compare": ("looking", "Compare the disks of two images."),
    "resize": ("changing", "Make a disk longer or shorter."),
    "snapshot": ("changing", "Create, list, apply and delete internal snapshots."),
    "bitmap": ("bitmaps", "Add, list, change and remove dirty bitmaps."),
    "clone": ("changing", "Make an overlay over an image."),
    "rebase": ("changing", "Put an overlay over another backing file, or none."),
    "commit": ("changing", "Write what an overlay has into its backing file."),
    "convert": ("moving", "Copy a disk into a new image of any format."),
    "bench": ("moving", "Measure how fast an image answers."),
}


class LazyVerbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"api.cli.file.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


@click.group("file", cls=LazyVerbs)
@click.pass_context
def file(ctx: click.Context) -> None:
    """Work on image files offline, by their paths, as qemu-img does.

    The format of an image is always said (--format), never guessed. What an image names (its backing file, its data
    file) is opened only in the image's own directory, below it, and in directories given with --beneath.
    """
    raise_descriptor_limit()
    for number in (signal.SIGTERM, signal.SIGHUP):
        ctx.call_on_close(partial(signal.signal, number, signal.signal(number, signal.default_int_handler)))
