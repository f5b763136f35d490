"""The kinds of ImageError."""

import errno
import os

import pytest

from formats.errors import (
    HostRefusal,
    ImageError,
    ImageExists,
    ImageInUse,
    ImageNotFound,
    ReadOnlyImage,
    UnsupportedFeature,
    image_error,
)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, ImageNotFound),
        (errno.EEXIST, ImageExists),
        (errno.EBUSY, ImageInUse),
        (errno.EROFS, ReadOnlyImage),
        (errno.EOPNOTSUPP, UnsupportedFeature),
        (errno.EACCES, HostRefusal),
        (errno.ENOSPC, HostRefusal),
        (errno.ELOOP, HostRefusal),
    ],
)
def test_a_refused_system_call_becomes_its_kind_and_keeps_the_reason(number: int, kind: type[ImageError]) -> None:
    error = image_error(OSError(number, os.strerror(number)), "cannot open x.raw")
    assert type(error) is kind
    assert str(error) == f"cannot open x.raw: {os.strerror(number)}"


def test_an_os_error_without_a_number_is_told_too() -> None:
    assert str(image_error(OSError("odd"), "cannot read x")) == "cannot read x: odd"
