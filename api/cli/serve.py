"""`vstore serve`: the daemon in the foreground, for a service manager or a terminal."""

from pathlib import Path

import click

from api.addresses import Address
from api.paths import Paths, default_paths


@click.command("serve")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Catalog and pools.")
@click.option("--runtime-dir", type=click.Path(path_type=Path), help="Sockets.")
@click.option("--listen", metavar="ADDRESS", help=f"Loopback address, or port, for HTTP over TCP ({Address()}).")
@click.option("--no-listen", is_flag=True, help="Serve the UNIX socket only, no TCP.")
@click.option("--keep-targets", is_flag=True, help="At the end leave targets running, for the next daemon to adopt.")
def serve(
    state_dir: Path | None, runtime_dir: Path | None, listen: str | None, no_listen: bool, keep_targets: bool
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C, which flush and stop the targets.

    State is in /var/lib/vstore and sockets in /run/vstore for root, in the XDG directories for others. Over TCP every
    request has to show the token that the first start leaves in the file `token` of the state directory.
    """
    address = _address(listen, no_listen)
    from api.serve import ServeError  # half a second of imports that no other command needs
    from api.serve import serve as run
    from api.token import TokenError
    from vstore.store.errors import StoreError
    from vstore.target import log

    defaults = default_paths()
    paths = Paths((state_dir or defaults.state).absolute(), (runtime_dir or defaults.runtime).absolute())
    log.set_up()
    try:
        run(paths, address, keep_targets=keep_targets)
    except (ServeError, StoreError, TokenError) as error:
        raise click.ClickException(str(error)) from error


def _address(listen: str | None, no_listen: bool) -> Address | None:
    if listen is None:
        return None if no_listen else Address()
    if no_listen:
        raise click.UsageError("--listen and --no-listen say the opposite; give one of them")
    try:
        return Address.parse(listen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from error
