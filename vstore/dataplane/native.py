"""The compiled module, and the one translation of its errors: -errno becomes OSError."""

import errno
import os
from typing import Any

from vstore.dataplane import _native  # type: ignore[attr-defined,unused-ignore]

ffi: Any = _native.ffi
lib: Any = _native.lib


def failure(result: int, call: str) -> OSError | None:
    """OSError that names the call, e.g. "vring_set_size(2, 3): Invalid argument"; None where the result is none."""
    if result >= 0:
        return None
    hint = "; raise the limit of open files (ulimit -n)" if -result == errno.EMFILE else ""
    return OSError(-result, f"{call}: {os.strerror(-result)}{hint}")


def checked(result: int, call: str) -> int:
    """The result, or its `failure`."""
    error = failure(result, call)
    if error is not None:
        raise error
    return result


def lent(data: bytes | bytearray | memoryview) -> Any:
    """The bytes as C sees them, inside a `with`: given back before any error is raised. An error may hold on to its
    frames in a cycle, and CPython dies when it collects a memoryview there that is still lent (its tp_clear lets go of
    what the release then needs)."""
    return ffi.from_buffer(data)


def made(pointer: Any, call: str) -> Any:
    """The pointer, or OSError from errno where it is NULL."""
    if pointer == ffi.NULL:
        raise OSError(ffi.errno, f"{call}: {os.strerror(ffi.errno)}")
    return pointer
