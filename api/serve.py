"""`vstore serve`: one Store behind a UNIX socket and a loopback address, until SIGTERM or SIGINT.

Order of the start: sockets are bound first (so a second daemon fails at once), then the Store comes up, then the token
is read or made, then requests are served. Order of the end: requests are finished, targets flushed and stopped (or left
to the next daemon), sockets removed.
"""

import grp
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import uvicorn
from fastapi import FastAPI

from api.addresses import Address
from api.app import create_app
from api.paths import Paths
from api.token import kept_digest
from vstore.descriptor_limit import raise_descriptor_limit
from vstore.store import Store
from vstore.store.directories import PASSABLE, make
from vstore.target.spare import Spare
from vstore.vhost_user.listener import Listener, Permissions

_log = logging.getLogger(__name__)

GROUP = "vstore"  # whose members may use root's daemon
_GRACE = 5  # seconds for requests that run when the signal comes
_BACKLOG = 128


class ServeError(Exception):
    """The daemon cannot start; the message says what to change."""


def serve(paths: Paths, listen: Address | None, *, keep_targets: bool) -> None:
    """Blocks until a signal ends it; `listen` None: no TCP. Raises ServeError, StoreError, TokenError."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    raise_descriptor_limit()  # a chain of images is handed over whole
    with ExitStack() as cleanup:
        sockets = [cleanup.enter_context(_unix_socket(paths))]
        if listen is not None:
            sockets.append(cleanup.enter_context(_tcp_socket(listen)))
        spare = cleanup.enter_context(Spare(paths.runtime))
        store = Store(paths.state, paths.runtime, spawn=spare.spawn)
        cleanup.callback(store.close, stop_targets=not keep_targets)
        app = create_app(store, kept_digest(paths.token))
        for each in sockets:
            _log.info("listening", extra=_told(each, paths))
        _Server(_config(app)).run(sockets=sockets)
        _log.info("stopping", extra={"targets": "kept" if keep_targets else "stopped"})


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        loop="uvloop",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )


class _Server(uvicorn.Server):
    """Uvicorn raises the signal again when it is done, which would end the process before the targets are flushed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield


@contextmanager
def _unix_socket(paths: Paths) -> Iterator[socket.socket]:
    """Mode 0600; root's daemon lets the group in, if there is one."""
    try:
        make(paths.runtime, PASSABLE)
        listener = Listener(paths.api_socket, _permissions())
    except (OSError, ValueError) as error:
        raise ServeError(f"cannot serve at {paths.api_socket}: {error}") from error
    try:
        yield listener.socket
    finally:
        listener.close()


def _permissions() -> Permissions:
    if os.geteuid() == 0:
        with suppress(KeyError):  # there is no such group
            return Permissions(0o660, group=grp.getgrnam(GROUP).gr_gid)
    return Permissions(0o600)


@contextmanager
def _tcp_socket(address: Address) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address.host, address.port))
            listening.listen(_BACKLOG)
        except OSError as error:
            raise ServeError(
                f"cannot listen at {address}: {error.strerror}; "
                "choose another port with --listen PORT, or serve only the UNIX socket with --no-listen"
            ) from error
        yield listening


def _told(listening: socket.socket, paths: Paths) -> dict[str, str]:
    if listening.family == socket.AF_UNIX:
        return {"address": f"unix://{paths.api_socket}"}
    return {"address": f"http://{Address(*listening.getsockname()[:2])}", "token_file": str(paths.token)}
