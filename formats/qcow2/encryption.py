"""Encryption: the key of an encrypted qcow2 image, found with a secret, and replaced when what it hides is to be lost.

The modules of keys and ciphers are loaded only here and only for such an image: the cryptography package takes longer
to load than an image to open.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from formats.errors import SecretNeeded

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2


def unlock(image: "Qcow2", secrets: Sequence[bytes]) -> None:
    """As `Image.unlock`."""
    if not image.encrypted:
        return
    from formats.luks import open_with
    from formats.luks_key import Area, MasterKey
    from formats.sector_cipher import PlacedCipher

    opened, where, file = open_with(image.file.name, secrets, image.luks), image.header.encryption, image.file

    def write(offset: int, data: bytes) -> None:
        file.pwrite(where.offset + offset, data)

    image.cipher = PlacedCipher(opened.cipher)
    image.key = MasterKey(file.name, opened, Area(where.length, image.luks, write, file.fdatasync))


def replaces_key(image: "Qcow2") -> bool:
    """Internal snapshots are encrypted with the same key, and are not to be lost with the disk."""
    return not image.read_only and image.key is not None and image.key.replaceable and not image.kept()


def replace_key(image: "Qcow2") -> None:
    """As `Image.replace_key`."""
    from formats.sector_cipher import PlacedCipher

    image.require_still("replace its key")
    if image.key is None:
        raise SecretNeeded(f"{image.file.name} has no key that was found with its secret, so none is replaced")
    image.cipher = PlacedCipher(image.key.replace())
