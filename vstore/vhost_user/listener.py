"""A listening UNIX socket in the file system: made with its permissions, removed by its maker and by nobody else.

A process that dies leaves its socket file behind. Such a file is taken away when connecting to it is refused, which is
what only a dead process's socket does; a living one's, or anything that is no socket, is left alone with a clear error.
"""

import contextlib
import errno
import os
import socket
import stat

from vstore.record import Record

LONGEST_PATH = 107  # bytes: sockaddr_un.sun_path has 108, the last of them 0
BACKLOG = 16


class Permissions(Record):
    """Of the socket file. None: what the process has itself."""

    mode: int = 0o600
    owner: int | None = None
    group: int | None = None


class Listener:
    """Listens at `path` from its creation to close(). Raises ValueError for an impossible path, OSError."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        permissions: Permissions | None = None,
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> None:
        self.path = os.fspath(path)
        if not 0 < len(os.fsencode(self.path)) <= LONGEST_PATH:
            raise ValueError(f"{self.path}: a UNIX socket's path has 1 to {LONGEST_PATH} bytes")
        _remove_dead(self.path, kind)
        self.socket = socket.socket(socket.AF_UNIX, kind)
        try:
            self.socket.bind(self.path)
            self._file = _identity(self.path)
            self._open(permissions or Permissions())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops listening, and removes the file if it is still the one that was made."""
        self.socket.close()
        made = getattr(self, "_file", None)
        with contextlib.suppress(FileNotFoundError):
            if made and _identity(self.path) == made:
                os.unlink(self.path)

    def _open(self, permissions: Permissions) -> None:
        """Nobody can connect before listen(), so nobody gets in by the permissions that bind() gave."""
        os.chmod(self.path, permissions.mode)
        if (permissions.owner, permissions.group) != (None, None):
            owner, group = (-1 if who is None else who for who in (permissions.owner, permissions.group))
            os.chown(self.path, owner, group)
        self.socket.listen(BACKLOG)


def _remove_dead(path: str, kind: socket.SocketKind) -> None:
    try:
        found = _identity(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "exists and is no socket: name another path or remove it", path)
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(path)
    if result != errno.ECONNREFUSED:
        why = "somebody listens there" if result in (0, errno.EAGAIN) else os.strerror(result)
        raise OSError(errno.EADDRINUSE, f"in use ({why}): name another path or end who uses it", path)
    if _identity(path) == found:
        os.unlink(path)


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
