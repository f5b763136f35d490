"""`vstore serve`: the daemon in the foreground, for a service manager or a terminal."""

from pathlib import Path

import click

from api.paths import Paths, default_paths


@click.command("serve")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Catalog and pools.")
@click.option("--runtime-dir", type=click.Path(path_type=Path), help="Sockets.")
@click.option("--listen", metavar="ADDRESS", help="Loopback address for HTTP beside the UNIX socket: 127.0.0.1:8080.")
@click.option("--keep-targets", is_flag=True, help="At the end leave targets running, for the next daemon to adopt.")
def serve(state_dir: Path | None, runtime_dir: Path | None, listen: str | None, keep_targets: bool) -> None:
    """Run the daemon until SIGTERM or Ctrl-C, which flush and stop the targets.

    State is in /var/lib/vstore and sockets in /run/vstore for root, in the XDG directories for others.
    """
    from api.serve import Address, ServeError  # half a second of imports that no other command needs
    from api.serve import serve as run
    from vstore.store.errors import StoreError
    from vstore.target import log

    try:
        address = Address.parse(listen) if listen else None
    except ServeError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from error
    defaults = default_paths()
    paths = Paths((state_dir or defaults.state).absolute(), (runtime_dir or defaults.runtime).absolute())
    log.set_up()
    try:
        run(paths, address, keep_targets=keep_targets)
    except (ServeError, StoreError) as error:
        raise click.ClickException(str(error)) from error
