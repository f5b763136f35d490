"""The verbs on an image's persistent bitmaps by their names, for whoever has it open: a worker, or a disk in use."""

from collections.abc import Sequence
from typing import Any

from formats.errors import InvalidArgument, UnsupportedFeature
from formats.image import Image
from formats.qcow2.bitmaps import Bitmaps
from formats.qcow2.image import Qcow2
from formats.qcow2.structures import BitmapFlags

ACTIONS = ("add", "remove", "enable", "disable", "clear", "merge")


def change(image: Image, action: str, name: str, *, sources: Sequence[str] = (), **how: Any) -> None:
    """`how`, of `add`: granularity (bytes per bit; None: the usual) and enabled. Raises InvalidArgument,
    UnsupportedFeature, ImageInUse (a snapshot is on its way), ReadOnlyImage, OSError."""
    bitmaps = _of(image)
    assert isinstance(image, Qcow2)
    image.require_still("change its bitmaps")
    if action == "merge":
        bitmaps.merge(name, [bitmaps.usable(source) for source in sources])
    elif action in ACTIONS:
        getattr(bitmaps, action)(name, **(how if action == "add" else {}))
    else:
        raise InvalidArgument(f"{action!r} is nothing that is done to a bitmap: choose {', '.join(ACTIONS)}")


def told(image: Image) -> list[dict[str, Any]]:
    """Of each: name, granularity, enabled, and whether what it says is true (else its last writer never closed it)."""
    bitmaps = _of(image)
    return [
        {
            "name": entry.name,
            "granularity": entry.granularity,
            "enabled": bool(entry.flags & BitmapFlags.AUTO),
            "consistent": bitmaps.consistent(entry),
        }
        for entry in bitmaps.entries
    ]


def _of(image: Image) -> Bitmaps:
    if not isinstance(image, Qcow2):
        raise UnsupportedFeature(f"{image.format} images hold no bitmaps; those of qcow2 do")
    return image.bitmaps
