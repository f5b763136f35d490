"""What formats and the host's kernel refuse, in management's one currency, and without the host's paths."""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from formats import errors as formats_errors
from formats.errors import ImageError
from vstore.store.errors import (
    AlreadyExists,
    Conflict,
    InvalidArgument,
    Locked,
    PoolFull,
    PoolUnavailable,
    SecretNeeded,
    SecretWrong,
    StoreError,
    Unsupported,
)

Refusal = Callable[[str], StoreError]


_RIGHT = {"virtual_size_bytes": "choose a size that the format and the file system can hold"}


def _misfit(argument: str, detail: str) -> StoreError:
    return InvalidArgument(argument, detail, _RIGHT.get(argument, "correct the value that is named"))


def _size_refused(detail: str) -> StoreError:
    return _misfit("virtual_size_bytes", detail)


_BY_ERRNO: dict[int, Refusal] = {
    errno.EEXIST: AlreadyExists,
    errno.ENOENT: Conflict,  # the catalog lists it, so it should be there
    errno.ELOOP: Conflict,  # O_NOFOLLOW met a symbolic link
    errno.ENOSPC: PoolFull,
    errno.EDQUOT: PoolFull,
    errno.EFBIG: _size_refused,
}
_BY_SECRET: dict[type[ImageError], Refusal] = {
    formats_errors.SecretNeeded: lambda detail: SecretNeeded(f"{detail}: vstore image update --secret SECRET"),
    formats_errors.SecretWrong: lambda detail: SecretWrong(f"{detail}; give it another: vstore image update --secret"),
}
_BY_IMAGE_ERROR: dict[type[ImageError], Refusal] = {
    formats_errors.ImageExists: AlreadyExists,
    formats_errors.ImageNotFound: Conflict,
    formats_errors.ImageInUse: Locked,
    formats_errors.UnsupportedFeature: Unsupported,
    formats_errors.InvalidImage: Conflict,
    formats_errors.CorruptImage: Conflict,
}


@contextmanager
def refusals_told(
    doing: str, renamed: Mapping[str, str] = MappingProxyType({}), *, argument: str = "virtual_size_bytes"
) -> Iterator[None]:
    """Turns OSError and ImageError of the block into StoreError. `renamed` names files as people know them, `argument`
    what is at fault when the format finds that something cannot be."""
    try:
        yield
    except (OSError, ImageError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        refusal = _BY_ERRNO.get(cause.errno or 0) if isinstance(cause, OSError) else _BY_SECRET.get(type(error))  # type: ignore[arg-type]
        if refusal is None and isinstance(error, formats_errors.InvalidArgument):
            raise _misfit(argument, f"{doing}: {_told(error, renamed)}") from error
        if refusal is None:
            refusal = _BY_IMAGE_ERROR.get(type(error), PoolUnavailable)  # type: ignore[arg-type]
        raise refusal(f"{doing}: {_told(error, renamed)}") from error


def _told(error: Exception, renamed: Mapping[str, str]) -> str:
    told = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    for old, new in renamed.items():
        told = told.replace(old, new)
    return told
