"""ImageError and its kinds: the one currency in which opening, creating and restructuring an image fails.

Each message is a sentence that names what was wrong and what would be right. Moving bytes of an open image fails with
OSError instead, because there the errno is the whole story and decides the sense data.
"""

# ruff: noqa: N818  (the names say what is wrong; the base class says that it is an error)

import errno


class ImageError(Exception):
    """Base of everything that can be wrong with an image or with what was asked of it."""


class InvalidImage(ImageError):
    """These bytes, or this kind of file, are not an image of the format that was named."""


class CorruptImage(ImageError):
    """The image is of its format, but its structures contradict each other."""


class UnsupportedFeature(ImageError):
    """The image, its file system, or the request needs something that is not offered here."""


class InvalidArgument(ImageError):
    """The request itself makes no sense: a length, a name or a choice out of range."""


class ReferenceOutside(InvalidArgument):
    """An image names a file that lies outside every directory in which references may lie."""


class SecretNeeded(InvalidArgument):
    """An image is encrypted, and no secret came that could open it."""


class SecretWrong(InvalidArgument):
    """An image is encrypted, and the secret that came opens none of its key slots."""


class ReadOnlyImage(ImageError):
    """A change was asked of what was opened, or lies on a file system mounted, read-only."""


class ImageInUse(ImageError):
    """Another process holds the image in a way that excludes this use."""


class ImageNotFound(ImageError):
    """Nothing has that name."""


class ImageExists(ImageError):
    """Something has that name already, and nothing is ever overwritten."""


class HostRefusal(ImageError):
    """The host's kernel refused for a reason of its own: permissions, space, a device that fails."""


_BY_ERRNO: dict[int, type[ImageError]] = {
    errno.ENOENT: ImageNotFound,
    errno.ENOTDIR: ImageNotFound,
    errno.EEXIST: ImageExists,
    errno.EBUSY: ImageInUse,
    errno.ETXTBSY: ImageInUse,
    errno.EROFS: ReadOnlyImage,
    errno.EOPNOTSUPP: UnsupportedFeature,
}


def image_error(error: OSError, doing: str) -> ImageError:
    """The ImageError that tells a failed system call made while `doing` something (“cannot open disk.raw”)."""
    reason = error.strerror or str(error)
    return _BY_ERRNO.get(error.errno or 0, HostRefusal)(f"{doing}: {reason}")
