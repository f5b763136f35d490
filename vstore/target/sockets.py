"""The sockets of a target process: made by path, or handed in; whatever is wrong with one is a TargetError."""

import errno
import os
import socket

from vstore.target.errors import ErrorCode, TargetError
from vstore.vhost_user.listener import Listener


def listen(path: str, kind: socket.SocketKind) -> Listener:
    """A socket that listens at `path` with mode 0600, and removes that when it is closed. Raises TargetError."""
    try:
        return Listener(path, kind=kind)
    except ValueError as error:
        raise TargetError(ErrorCode.INVALID_REQUEST, str(error)) from error
    except FileNotFoundError as error:
        detail = f"{os.path.dirname(path)}: there is no such directory for the socket"
        raise TargetError(ErrorCode.HOST_ERROR, detail) from error
    except OSError as error:
        code = ErrorCode.SOCKET_IN_USE if error.errno in (errno.EADDRINUSE, errno.EEXIST) else ErrorCode.HOST_ERROR
        raise TargetError(code, f"{path}: {error.strerror}") from error


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
