"""Where the daemon keeps its things, and where its clients find it. Root has /var/lib and /run, a user the XDG places.

systemd's STATE_DIRECTORY and RUNTIME_DIRECTORY come first, options of the command line before all.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SOCKET_NAME = "api.sock"
TOKEN_NAME = "token"
_ROOT_STATE = Path("/var/lib/vstore")
_ROOT_RUNTIME = Path("/run/vstore")


@dataclass(frozen=True)
class Paths:
    """`state` outlives a reboot (catalog, pools, token), `runtime` need not (sockets)."""

    state: Path
    runtime: Path

    @property
    def api_socket(self) -> Path:
        return self.runtime / SOCKET_NAME

    @property
    def token(self) -> Path:
        return self.state / TOKEN_NAME


def default_paths(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> Paths:
    """For the user `uid`, by default whoever runs this."""
    root = (os.geteuid() if uid is None else uid) == 0
    state = _given(environ, "STATE_DIRECTORY") or (_ROOT_STATE if root else _user_state(environ))
    runtime = _given(environ, "RUNTIME_DIRECTORY") or (_ROOT_RUNTIME if root else _user_runtime(environ))
    return Paths(state, runtime)


def client_socket(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> Path:
    """The daemon's socket as a client looks for it: one's own daemon, else the system's."""
    own = default_paths(environ, uid).api_socket
    system = _ROOT_RUNTIME / SOCKET_NAME
    return system if not own.exists() and system.exists() else own


def client_tokens(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> tuple[Path, ...]:
    """The files that may hold the daemon's token, in the order in which a client looks."""
    return default_paths(environ, uid).token, _ROOT_STATE / TOKEN_NAME


def _given(environ: Mapping[str, str], name: str) -> Path | None:
    """systemd.exec(5): several directories come separated by colons; the first is the service's own."""
    first = environ.get(name, "").partition(":")[0]
    return Path(first) if first else None


def _user_state(environ: Mapping[str, str]) -> Path:
    home = environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "vstore"


def _user_runtime(environ: Mapping[str, str]) -> Path:
    """Without a session's XDG_RUNTIME_DIR a place in the home: in /tmp anybody could have been there before."""
    session = environ.get("XDG_RUNTIME_DIR")
    return Path(session) / "vstore" if session else _user_state(environ) / "run"
