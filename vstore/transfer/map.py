"""map: which bytes of the disk lie where, over the whole chain, as rows with the keys of qemu-img's JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from formats.image import Image
from vstore.transfer.extents import Extent, extents


@dataclass(frozen=True, slots=True)
class Row:
    """`start` and `length` in bytes of the disk. `depth`: 0 for the top image. `present`: an image of the chain says
    what is there. `data`: bytes are stored; `zero`: they read as zeros. `offset`: in the file of the image at `depth`
    (file `layer` of it), where they lie as they are."""

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    compressed: bool
    offset: int | None = None
    layer: int = 0

    def as_json(self) -> dict[str, object]:
        names = ("start", "length", "depth", "present", "zero", "data", "compressed")
        told: dict[str, object] = {name: getattr(self, name) for name in names}
        return told if self.offset is None else told | {"offset": self.offset}


def map_rows(images: Sequence[Image], start: int = 0, length: int | None = None) -> Iterator[Row]:
    """Of a chain of opened images, the top one first; neighbours that go on are one row. Raises ImageError, OSError."""
    end = images[0].geometry.length
    if length is not None:
        end = min(end, start + length)
    last: Row | None = None
    for extent in extents(images, start, end) if start < end else ():
        row = _row(extent)
        if last is not None and _goes_on(last, row):
            last = Row(last.start, last.length + row.length, *_rest(last), last.offset, last.layer)
            continue
        if last is not None:
            yield last
        last = row
    if last is not None:
        yield last


def _row(extent: Extent) -> Row:
    data = extent.present and not extent.zero
    length = extent.end - extent.start
    kind = (extent.depth, extent.present, extent.zero, data, extent.compressed)
    return Row(extent.start, length, *kind, extent.offset, extent.layer)


def _rest(row: Row) -> tuple[int, bool, bool, bool, bool]:
    return row.depth, row.present, row.zero, row.data, row.compressed


def _goes_on(row: Row, after: Row) -> bool:
    offset = None if row.offset is None else row.offset + row.length
    return (_rest(row), row.layer, offset) == (_rest(after), after.layer, after.offset)
