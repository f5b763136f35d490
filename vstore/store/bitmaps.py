"""Verbs on the persistent dirty bitmaps of an image, which say what of its disk has changed since they began. The image
alone says which there are; under a running guest the target process keeps and changes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row

from vstore.store.errors import Conflict, InvalidArgument, NotFound
from vstore.store.inside import ChangingInside, address
from vstore.store.mappings import mappings
from vstore.store.parts import decode_cursor, encode_cursor, image_row, page_limit
from vstore.store.pool import Pool
from vstore.store.records import Bitmap, Page
from vstore.target.verbs import BitmapLun, BitmapSource

_LONGEST_NAME = 1023  # bytes: what qcow2 and qemu-img take


class BitmapVerbs(ChangingInside):
    def list_bitmaps(
        self, pool: str, image: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Page[Bitmap]:
        """The bitmaps by their names. Raises NotFound, InvalidArgument, Unsupported, TargetUnavailable."""
        limit, after = page_limit(limit), decode_cursor(cursor)
        rest = sorted((each for each in self._bitmaps(pool, image) if each.name > after), key=lambda each: each.name)
        return Page(rest[:limit], encode_cursor(rest[limit - 1].name) if len(rest) > limit else None)

    def show_bitmap(self, pool: str, image: str, bitmap: str) -> Bitmap:
        """Raises NotFound, Unsupported, TargetUnavailable."""
        return _named(self._bitmaps(pool, image), image, bitmap)

    def add_bitmap(
        self, pool: str, image: str, bitmap: str, *, granularity_bytes: int | None = None, enabled: bool = True
    ) -> tuple[Bitmap, bool]:
        """A new one, in which nothing is dirty, and True; or False: there is just such a one. `granularity_bytes`:
        bytes of the disk per bit; None: a cluster, 4 KiB to 64 KiB.

        Raises InvalidArgument, NotFound, Conflict, InUse, Unsupported, Locked, TargetUnavailable.
        """
        if not 0 < len(bitmap.encode(errors="replace")) <= _LONGEST_NAME:
            raise InvalidArgument("bitmap", "the name is too long", f"choose 1 to {_LONGEST_NAME} bytes")
        with self.holding(images=[f"{pool}/{image}"]):
            present = next((each for each in self._bitmaps(pool, image) if each.name == bitmap), None)
            if present is None:
                how = {"granularity": granularity_bytes, "enabled": enabled}
                return _named(self._change(pool, image, "add", bitmap, **how), image, bitmap), True
            if present.enabled != enabled or granularity_bytes not in (None, present.granularity_bytes):
                raise Conflict(f"image {image} has a bitmap {bitmap[:80]!r} already, and it differs")
            return present, False

    def remove_bitmap(self, pool: str, image: str, bitmap: str) -> bool:
        """Also one that was lost; False when there was none. Raises as `enable_bitmap`."""
        with self.holding(images=[f"{pool}/{image}"]):
            if all(each.name != bitmap for each in self._bitmaps(pool, image)):
                return False
            self._change(pool, image, "remove", bitmap)
            return True

    def enable_bitmap(self, pool: str, image: str, bitmap: str) -> Bitmap:
        """From now on what changes becomes dirty in it.

        Raises NotFound, InUse, Unsupported (it was lost), Locked, TargetUnavailable.
        """
        return self._changed(pool, image, "enable", bitmap)

    def disable_bitmap(self, pool: str, image: str, bitmap: str) -> Bitmap:
        """It stays as it is. Raises as `enable_bitmap`."""
        return self._changed(pool, image, "disable", bitmap)

    def clear_bitmap(self, pool: str, image: str, bitmap: str) -> Bitmap:
        """Nothing is dirty in it any more. Raises as `enable_bitmap`."""
        return self._changed(pool, image, "clear", bitmap)

    def merge_bitmap(self, pool: str, image: str, bitmap: str, *, sources: Sequence[str]) -> Bitmap:
        """What is dirty in any of these bitmaps of the image is dirty in it too. Raises as `enable_bitmap`."""
        return self._changed(pool, image, "merge", bitmap, sources=list(sources))

    def _changed(self, pool: str, image: str, action: str, name: str, sources: Sequence[str] = ()) -> Bitmap:
        with self.holding(images=[f"{pool}/{image}"]):
            present = self._bitmaps(pool, image)
            for each in (name, *sources):
                _named(present, image, each)
            return _named(self._change(pool, image, action, name, sources=sources), image, name)

    def _change(self, pool: str, image: str, action: str, name: str, **how: Any) -> list[Bitmap]:
        """Those that there are afterwards. The caller holds the image's lock."""
        where = self.pool(pool)
        row, lun = self.to_change(where, image, "given other bitmaps")
        if lun is None:
            told = self.change_offline(where, row, "change_bitmap", action=action, name=name, **how)
            return [_record(image, each) for each in told["bitmaps"]]
        with self.holding(target=lun.target):
            return self._asked(image, lun, action, name, **how)

    def _bitmaps(self, pool: str, image: str) -> list[Bitmap]:
        """Of an image that a guest writes to only its process knows."""
        where = self.pool(pool)
        with self.catalog.read() as connection:
            row = image_row(connection, where, image)
            writers = [lun for lun in mappings(connection, row.id) if not lun.read_only]
        return self._asked(image, writers[0], "list") if writers else self._looked_at(where, row)

    def _looked_at(self, pool: Pool, row: Row[Any]) -> list[Bitmap]:
        return [_record(row.name, each) for each in self.look(pool, [row], "bitmaps")["bitmaps"]]

    def _asked(self, image: str, lun: Row[Any], action: str, name: str = "", **how: Any) -> list[Bitmap]:
        sources = tuple(BitmapSource(name=each) for each in how.pop("sources", ()))
        at = address(lun)
        request = BitmapLun(target=at.scsi_target, lun=at.lun, action=action, name=name, sources=sources, **how)
        rows = self.supervisor.change_bitmap(lun.target, request)
        fields = ("name", "granularity", "enabled", "consistent")
        return [_record(image, {field: getattr(row, field) for field in fields}) for row in rows]


def _record(image: str, told: Mapping[str, Any]) -> Bitmap:
    state = told["enabled"] * 2 + told["consistent"]
    return Bitmap(told["name"], image, told["granularity"], told["enabled"], told["consistent"], 1 + state)


def _named(bitmaps: Sequence[Bitmap], image: str, name: str) -> Bitmap:
    for each in bitmaps:
        if each.name == name:
            return each
    raise NotFound(f"image {image} has no bitmap {name[:80]!r}", field="bitmap")
