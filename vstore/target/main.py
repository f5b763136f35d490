"""`python -m vstore.target`: a target process under a daemon, from its first line to its orderly end.

It lives as long as its guest needs it: a daemon that goes away leaves it serving, and the next one connects to the
same control socket. It ends on the verb `stop`, or on SIGTERM or SIGINT, after flushing; a second signal does not wait.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vstore.descriptor_limit import raise_descriptor_limit
from vstore.target import log
from vstore.target.beginning import begun
from vstore.target.errors import TargetError
from vstore.target.hosts import Hosts
from vstore.target.process import TargetProcess
from vstore.target.sockets import listen
from vstore.vhost_user.listener import Listener

if TYPE_CHECKING:
    import argparse

_log = logging.getLogger(__name__)

DONE, FAILED = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.spare_fd is None:
        return _run(options.control, options.ready_fd)
    from vstore.target.spare import orders  # `vstore export` gets none

    ordered = orders(options.spare_fd)
    return _run(*ordered) if ordered else DONE


def _run(control: str, ready: int | None) -> int:
    log.set_up()
    raise_descriptor_limit()
    try:
        listener = listen(control, socket.SOCK_SEQPACKET)
    except TargetError as error:
        _log.error("control_socket_refused", extra={"detail": error.detail})
        return FAILED
    try:
        return asyncio.run(_serve(listener, ready))
    finally:
        listener.close()


def _options(arguments: Sequence[str] | None) -> "argparse.Namespace":
    import argparse  # `vstore export` has options of its own

    parser = argparse.ArgumentParser(prog="python -m vstore.target", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--control", metavar="PATH", help="control socket to make")
    which.add_argument("--spare-fd", metavar="N", type=int, help="descriptor that will tell which; until then it waits")
    parser.add_argument("--of", metavar="DIR", help="whose spare it is; for people who look at processes")
    parser.add_argument("--ready-fd", metavar="N", type=int, help="descriptor that gets a line once the socket listens")
    return parser.parse_args(arguments)


async def _serve(listener: Listener, ready: int | None) -> int:
    hosts = Hosts()
    hosts.serve(listener)
    end_on_signals(hosts, listener.close)
    begun()
    if ready is not None:
        os.write(ready, b"ready\n")
        os.close(ready)
    _log.info("target_started", extra={"control": listener.path})
    await hosts.ended()
    _log.info("target_ended")
    return FAILED if hosts.unflushed else DONE


def end_on_signals(process: TargetProcess | Hosts, at_once: Callable[[], None] = lambda: None) -> Callable[[], None]:
    """The first SIGTERM or SIGINT ends `process` in order; the next calls `at_once` and ends it without waiting.

    Returns what does the same as the first signal.
    """
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        try:
            await process.end()
        except TargetError as error:
            _log.error("stop_incomplete", extra={"detail": error.detail})

    def begin() -> None:
        ending.append(asyncio.create_task(end()))

    def received() -> None:
        if ending:
            _log.error("ended_without_flushing")
            process.abandon()
            at_once()
            os._exit(FAILED)
        begin()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, received)
    return begin
