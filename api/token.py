"""The token that opens the API over TCP: 256 random bits in a file for the daemon's user alone.

Made at the first start and kept. The daemon itself remembers only its SHA-256, which is enough for a secret of that
many random bits: nobody can guess it, however fast the hash is.
"""

import hashlib
import os
import re
import secrets
import stat
from pathlib import Path

_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}\n?", re.ASCII)  # so many bytes in base64url
_MADE_ANEW = "delete it, and the next start makes a new one"


class TokenError(Exception):
    """The token cannot be read or made; the message says what to do."""


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def kept_digest(file: Path) -> bytes:
    """The digest of the token in `file`, which is made if there is none. Raises TokenError."""
    try:
        return digest(_kept(file) or _made(file))
    except OSError as error:
        raise TokenError(f"{file}: the token cannot be kept there: {error.strerror}") from error


def _kept(file: Path) -> str | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, encoding="ascii", errors="replace") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise TokenError(f"{file}: others could have read it ({stat.filemode(status.st_mode)}); {_MADE_ANEW}")
        content = opened.read(4096)
    if not _TOKEN.fullmatch(content):
        raise TokenError(f"{file}: this is no token of vstore's; {_MADE_ANEW}")
    return content.rstrip("\n")


def _made(file: Path) -> str:
    """Under its name it is whole, whatever happens; the state directory's lock keeps other daemons away."""
    token = secrets.token_urlsafe(_BYTES)
    fresh = file.with_name(f"{file.name}.new")
    fresh.unlink(missing_ok=True)  # of a start that was cut short
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as opened:
        opened.write(f"{token}\n")
        opened.flush()
        os.fsync(descriptor)
    fresh.rename(file)
    return token
