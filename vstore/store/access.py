"""Who may connect to a target's socket: its mode, owner and group, so that root's daemon can serve another user's VMM.

Owner and group are kept as they were named, and looked up when a socket is made: a name that is gone by then is told.
"""

import grp
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass

from vstore.store.errors import InvalidArgument
from vstore.vhost_user.listener import Permissions

MODES = ("0600", "0660", "0666")  # to connect takes write permission; read alone or execute means nothing to a socket
_LARGEST_ID = 2**32 - 2  # the next number means nobody in chown(2)


@dataclass(frozen=True)
class SocketAccess:
    """The fields of a target that say so; the names are those of REST. None: the daemon's own user or group."""

    socket_mode: str
    socket_owner: str | None
    socket_group: str | None

    @classmethod
    def checked(cls, mode: str | None, owner: str | None, group: str | None) -> "SocketAccess":
        """Without a mode, a group that was named gets in. Raises InvalidArgument, also for what only root could do."""
        if mode is None:
            mode = "0600" if group is None else "0660"
        if mode not in MODES:
            raise InvalidArgument("socket_mode", f"{mode[:20]!r} is no mode for it", f"choose {', '.join(MODES)}")
        access = cls(mode, owner, group)
        wanted = access.permissions()
        if os.geteuid() != 0:
            _check_own("socket_owner", wanted.owner, {os.geteuid()})
            _check_own("socket_group", wanted.group, {os.getegid(), *os.getgroups()})
        return access

    def permissions(self) -> Permissions:
        """Raises InvalidArgument: this machine knows no such owner or group."""
        owner = _number("socket_owner", self.socket_owner, lambda name: pwd.getpwnam(name).pw_uid)
        group = _number("socket_group", self.socket_group, lambda name: grp.getgrnam(name).gr_gid)
        return Permissions(int(self.socket_mode, 8), owner, group)


def _number(field: str, name: str | None, look_up: Callable[[str], int]) -> int | None:
    if name is None:
        return None
    try:
        return look_up(name)
    except (KeyError, ValueError):  # no such name, or what can be none: NUL, surrogates
        if name.isascii() and name.isdigit() and len(name) <= 10 and int(name) <= _LARGEST_ID:
            return int(name)
    raise InvalidArgument(field, f"this machine knows no {name[:80]!r}", "write a name that it knows, or a number")


def _check_own(field: str, wanted: int | None, own: set[int]) -> None:
    if wanted is not None and wanted not in own:
        raise InvalidArgument(field, "only root's daemon may give a socket away", "leave it out, or name your own")
