"""What a target's process tells so that another one can go on without it (vstore/vhost_user/keeping.py), held here.

A thread reads as fast as it is told. The process's end closes the socket, behind all that it has said; so `ended` waits
for exactly that, and what is held then is how things stood.
"""

import array
import logging
import socket
import threading
from typing import Self

from vstore.vhost_user.keeping import LONGEST_PACKET, MOST_DESCRIPTORS, Kept

_log = logging.getLogger(__name__)

_ROOM = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
_BUFFER = 4 << 20  # bytes that may wait to be read


class Held:
    """Of one process. `theirs` goes to it, and is closed here then."""

    def __init__(self) -> None:
        self.kept = Kept()
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._thread = threading.Thread(target=self._read, name="held", daemon=True)
        self._thread.start()

    def handed(self) -> Self:
        """The process has its end now."""
        self.theirs.close()
        return self

    def ended(self, timeout: float) -> bool:
        """Whether all was read that the process has told, and it has closed its end."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def close(self) -> None:
        self.theirs.close()
        self._ours.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._ours.close()
        self.kept.close()

    def _read(self) -> None:
        while True:
            try:
                data, ancillary, _, _ = self._ours.recvmsg(LONGEST_PACKET, _ROOM, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                return
            if not data:
                return
            descriptors = array.array("i")
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
            try:
                self.kept.obey(data, list(descriptors))
            except (ValueError, KeyError, TypeError):
                _log.exception("held_packet_failed")
