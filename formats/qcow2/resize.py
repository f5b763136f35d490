"""Changing the length of the disk: a longer L1 table first, or the cut-off clusters freed first, then the header.

What is new reads as zeros. Where a parent is longer than the disk was, it would show through the new blocks, so those
become ZERO before the header says the new length. Where the disk ended inside a block, the rest of that may hold bytes
that were cut off once, by us or by QEMU, which leaves them there: they are cleared before they come into sight.

Only what the parent holds in the rest of a block without a cluster of its own cannot be cleared here, where the parent
is not at hand: over a parent, resize through `vstore.disk.Disk`.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from formats.errors import UnsupportedFeature
from formats.image import SECTOR, BlockState, Change, entry
from formats.qcow2 import structures as disk
from formats.qcow2.header import replace_start
from formats.qcow2.pages import Stage

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2

_PLACE = (1 << 48) - 1  # of an entry
_BATCH = 1 << 18  # blocks changed together


def resize(image: "Qcow2", length: int, *, shows_parent: bool = False) -> None:
    """See `Qcow2.resize`. `shows_parent`: the image is still being made, so that what is new shows its parent.
    Errors: ReadOnlyImage, UnsupportedFeature, CorruptImage, OSError."""
    writer = image.require_writer("resize it")
    header = image.header
    if header.start.nb_snapshots and header.start.version == 2:
        raise UnsupportedFeature(f"{image.file.name} has snapshots of version 2, so its length is theirs; delete them")
    if image.data_file is not None and header.raw_data and image.data_file.length < length:
        image.data_file.truncate(length)
    size = header.cluster_size
    if length < image.geometry.length:
        first = -(-length // size)
        _cut_off(image, first, image.geometry.blocks - first)
    else:
        _grow_l1(image, -(-length // (size * header.l2_entries)))
        _clear_tail(image, length)
        if image.backing is not None and not shows_parent:
            _zero_all(image, image.geometry.blocks, -(-length // size) - image.geometry.blocks)
    writer.flush()
    _name(image, size=length)
    image.geometry = type(image.geometry)(length, size, image.geometry.sub_block_size)
    file = image.data_file
    if file is not None and not file.is_block_device and file.length > length:
        file.truncate(length)


def _cut_off(image: "Qcow2", first: int, count: int) -> None:
    """Frees blocks; those that are HOLE already cost nothing. Until the header says the new length a crash would show
    them, so they become ZERO where a parent has older bytes for them (version 2 cannot say so)."""
    assert image.writer is not None
    over_parent = image.backing is not None and image.entries.can_zero
    state = BlockState.ZERO if over_parent else BlockState.HOLE
    for at, few in _batches(first, count):
        for run in image.load(at, few):
            if run.entry != entry(BlockState.HOLE):
                image.writer.apply([Change(run.first, entry(state), count=run.count)])
        image.writer.flush()
        image.going_on()


def _zero_all(image: "Qcow2", first: int, count: int) -> None:
    """Makes blocks ZERO, whatever they are."""
    assert image.writer is not None
    for at, few in _batches(first, count):
        image.writer.apply([Change(at, entry(BlockState.ZERO), count=few)])
        image.writer.flush()
        image.going_on()


def _batches(first: int, count: int) -> Iterator[tuple[int, int]]:
    end = first + count
    for at in range(first, end, _BATCH):
        yield at, min(_BATCH, end - at)


def _clear_tail(image: "Qcow2", length: int) -> None:
    """Zeroes what the block in which the disk ends has between there and its own end, or `length`."""
    size = image.header.cluster_size
    block, within = divmod(image.geometry.length, size)
    end = min(size, length - block * size)
    if not within or end <= within:
        return
    (run,) = image.load(block, 1)
    state = BlockState(run.entry >> 60)
    if state in (BlockState.HOLE, BlockState.ZERO):
        return
    if state is BlockState.COMPRESSED:
        data = image.materialise(block)
        _rewrite(image, Change(block, entry(BlockState.DATA)), data[:within].ljust(size, b"\0"))
        return
    file = image.data_file if image.identity and image.data_file is not None else image.file
    offset = (run.entry & _PLACE) * SECTOR
    masks = image.masks(block, 1)[0] if state is BlockState.PARTIAL else None
    if masks is not None and not masks.allocated:
        return  # it need not even have a place: its offset may be 0, where the header lies
    if not image.identity and _counted(image, offset) > 1:
        data = file.pread(offset, size)
        data = (image.cipher.decrypt(offset, data) if image.cipher else data)[:within].ljust(size, b"\0")
        bits = (0, 0) if masks is None else (masks.allocated, masks.zero)
        _rewrite(image, Change(block, entry(BlockState.DATA if masks is None else state), *bits), data)
    else:
        zeros = bytes(end - within)
        file.pwrite(offset + within, image.cipher.encrypt(offset + within, zeros) if image.cipher else zeros)


def _counted(image: "Qcow2", offset: int) -> int:
    assert image.writer is not None
    return image.writer.refcounts.get(offset // image.header.cluster_size)


def _rewrite(image: "Qcow2", change: Change, data: bytes) -> None:
    """Gives a block a cluster of its own with these bytes."""
    assert image.writer is not None
    (extent,) = image.writer.reserve(1)
    image.file.pwrite(extent.offset, image.cipher.encrypt(extent.offset, data) if image.cipher else data)
    image.writer.apply([change._replace(entry=change.entry | extent.offset // SECTOR)])


def _grow_l1(image: "Qcow2", entries: int) -> None:
    """A longer copy of the L1 table; durable before the header names it. The old one is free after that."""
    writer, start, size = image.writer, image.header.start, image.header.cluster_size
    assert writer is not None
    if entries <= start.l1_size:
        return
    if entries * disk.WORD > disk.MAX_L1_BYTES:
        raise UnsupportedFeature(f"{image.file.name} would need {entries} L1 entries; its clusters are too short")
    clusters = -(-entries * disk.WORD // size)
    old, old_size = start.l1_table_offset, start.l1_size
    words = writer.pages.read(old, old_size * disk.WORD)
    offset = writer.allocator.take_row(clusters) * size
    writer.pages.clear(offset, clusters * size)
    writer.pages.write(offset, words, Stage.TARGET)
    image.regions.add(offset, clusters * size, "the L1 table")
    writer.flush()
    _name(image, l1_table_offset=offset, l1_size=entries)
    image.tables.l1_offset, image.tables.l1_size = offset, entries
    image.regions.remove(old)
    writer.pages.forget(old, -(-old_size * disk.WORD // size) * size)
    writer.allocator.drop(old // size, -(-old_size * disk.WORD // size))
    writer.allocator.settle()


def _name(image: "Qcow2", **fields: int) -> None:
    """Puts these into the header."""
    start = dataclasses.replace(image.header.start, **fields)  # type: ignore[arg-type]
    replace_start(image.file, image.header, start)
