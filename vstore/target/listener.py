"""Listening UNIX sockets that appear whole, are never taken from a living process, and are removed only by their maker.

bind(2) makes a name before anybody listens on it, and leaves it behind when its process dies. So a socket is bound and
listens under a temporary name first, and link(2) then gives it the real one: link fails if the name is taken, so of two
processes one wins, and a name on which connect(2) is refused can only be a dead one's.
"""

import contextlib
import errno
import os
import secrets
import socket
import stat
from collections.abc import Iterator

from vstore.target.errors import ErrorCode, TargetError

LONGEST_PATH = 107  # bytes: sun_path of sockaddr_un without its final zero
_BACKLOG = 16


class Listener:
    """A listening socket at `path` with mode 0600. Raises TargetError."""

    def __init__(self, path: str, kind: socket.SocketKind) -> None:
        self.path = path
        _check_path(path)
        with _host_errors(path):
            self.socket = _listen(path, kind)
            self._made = _identity(path)

    def close(self) -> None:
        """Stop listening, and remove the name if it is still this socket's."""
        self.socket.close()
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._made:
                os.unlink(self.path)


def adopt(descriptor: int) -> socket.socket:
    """Takes over a UNIX stream socket that was handed in, and closes what is none. Raises TargetError."""
    try:
        adopted = socket.socket(fileno=descriptor)
    except OSError as error:
        os.close(descriptor)
        raise TargetError(ErrorCode.INVALID_REQUEST, f"the descriptor is not a socket: {error.strerror}") from None
    if (adopted.family, adopted.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        adopted.close()
        raise TargetError(ErrorCode.INVALID_REQUEST, "the descriptor is not a UNIX stream socket")
    return adopted


def _check_path(path: str) -> None:
    length = len(os.fsencode(path))
    if not 0 < length <= LONGEST_PATH:
        detail = f"the socket path has {length} bytes; a UNIX socket's path has 1 to {LONGEST_PATH}: {path}"
        raise TargetError(ErrorCode.INVALID_REQUEST, detail)
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise TargetError(ErrorCode.HOST_ERROR, f"{directory}: there is no such directory for the socket")


@contextlib.contextmanager
def _host_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TargetError(ErrorCode.HOST_ERROR, f"{path}: cannot listen there: {error.strerror}") from error


def _listen(path: str, kind: socket.SocketKind) -> socket.socket:
    directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = f"/proc/self/fd/{directory}/.{secrets.token_hex(8)}"  # as short as it is anywhere
    listening = socket.socket(socket.AF_UNIX, kind)
    try:
        listening.bind(temporary)
        os.chmod(temporary, 0o600)
        listening.listen(_BACKLOG)
        _link(temporary, path, kind)
    except BaseException:
        listening.close()
        raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        os.close(directory)
    return listening


def _link(temporary: str, path: str, kind: socket.SocketKind) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        _remove_dead(path, kind)
        os.link(temporary, path)


def _remove_dead(path: str, kind: socket.SocketKind) -> None:
    found = _identity(path)
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise TargetError(ErrorCode.SOCKET_IN_USE, f"{path} exists and is no socket; name another path or remove it")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        result = probe.connect_ex(path)
    if result != errno.ECONNREFUSED:
        why = os.strerror(result) if result else "it answers"
        raise TargetError(
            ErrorCode.SOCKET_IN_USE, f"{path} is in use by another process ({why}); name another path or end that one"
        )
    if _identity(path) == found:
        os.unlink(path)


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
