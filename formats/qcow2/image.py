"""Qcow2: an open qcow2 image as the block map sees it.

    header --> Regions (what is metadata)     Entries (what a word means)
                  |                              |
               Pages (4 KiB of metadata) --> Tables (L1, L2) --> load, masks, materialise
                  |                              |
               Refcounts --> Allocator -----> Writer --------> reserve, commit        (only when writable)

The image opens no other file: it tells its backing file, and asks the opener that it was handed for its data file.
A contradiction that shows while the image is writable sets its corrupt bit, so that nobody writes to it any more.
"""

import contextlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from formats.errors import ImageInUse, SecretNeeded, UnsupportedFeature
from formats.host_file import HostFile, Opener
from formats.image import (
    Change,
    Discard,
    Geometry,
    HostExtent,
    Image,
    Layer,
    LayerFlags,
    Masks,
    Reference,
    Run,
    check_length,
)
from formats.qcow2 import compression, discarding, encryption, info, parent, resize
from formats.qcow2.bitmaps import Bitmaps
from formats.qcow2.entries import Entries
from formats.qcow2.header import write_fixed
from formats.qcow2.packer import Packer
from formats.qcow2.pages import Pages
from formats.qcow2.recovery import recovered
from formats.qcow2.refcounts import Refcounts
from formats.qcow2.regions import L2_TABLE, Regions
from formats.qcow2.rewrite import rewrite
from formats.qcow2.snapshot_table import Snapshot
from formats.qcow2.snapshot_view import SnapshotView
from formats.qcow2.snapshots import Snapshots
from formats.qcow2.standing import Standing
from formats.qcow2.structures import OFFSET, SUBCLUSTERS, WORD, Autoclear, CompressionType, Extension
from formats.qcow2.tables import Tables
from formats.qcow2.widths import words_of
from formats.qcow2.writer import Writer

if TYPE_CHECKING:
    from formats.luks_key import MasterKey
    from formats.qcow2.deletion import Deletion
    from formats.qcow2.freeze import Freeze

_L1_STEP = 1 << 20  # bytes of L1 read together
_COMPRESSION = {CompressionType.ZLIB: LayerFlags.DEFLATE, CompressionType.ZSTD: LayerFlags.ZSTD}
_KEPT = 4  # decompressed clusters of a parent, which children of shorter blocks ask for once for each of theirs


class Qcow2(Image):
    """Owns its file, and its data file. Raises ImageError for all that it refuses."""

    format = "qcow2"
    resizes = True
    key: "MasterKey | None" = None

    def __init__(self, file: HostFile, *, opener: Opener | None = None, track_writes: bool = False) -> None:
        """`opener` is asked for the external data file of an image that has one, and for nothing else. `track_writes`:
        every change will be told by `touched`, so that the image's enabled bitmaps stay true; else they are given up.
        """
        self.file = file
        self.header = header = recovered(file)
        self.standing = Standing(file, header)
        cluster_size = header.cluster_size
        geometry = Geometry(
            header.start.size, cluster_size, cluster_size // SUBCLUSTERS if header.extended_l2 else None
        )
        super().__init__(geometry, read_only=file.read_only)
        self.backing = (
            None if header.backing is None else Reference(header.backing, self._text(Extension.BACKING_FORMAT))
        )
        self.pages, self.regions = Pages(file, cluster_size), Regions(file.name, cluster_size)
        self.entries = Entries(
            file.name,
            header.start.cluster_bits,
            version=header.start.version,
            extended=header.extended_l2,
            external=header.has_data_file,
        )
        self.tables = self._active_tables()
        self.data_file = self._open_data_file(opener)
        self.zeroes = header.start.version > 2 or self.backing is None
        self.identity = header.has_data_file
        self.writer: Writer | None = None
        self.change: Freeze | Deletion | None = None  # a snapshot that is being taken or deleted
        self._packer: Packer | None = None
        self._told = False  # somebody else tells what changes
        self._decompressed: dict[tuple[int, int], bytes] = {}
        try:
            self._map_metadata()
            if not self.read_only:
                self._begin_writing(track_writes=track_writes)
        except BaseException:
            if self.data_file is not None:
                self.data_file.close()
            raise

    # opening

    def _text(self, kind: Extension) -> str | None:
        data = self.header.extension(kind)
        return None if data is None else data.decode(errors="surrogateescape")

    def _active_tables(self) -> Tables:
        start = self.header.start
        return Tables(self.entries, self.pages, self.regions, start.l1_table_offset, start.l1_size)

    def _open_data_file(self, opener: Opener | None) -> HostFile | None:
        if not self.header.has_data_file:
            return None
        reference = self.data_reference
        if opener is None or reference is None:
            raise UnsupportedFeature(
                f"{self.file.name} keeps its data in another file"
                f"{'' if reference is None else f', {reference.name!r}'}; it must be handed in to open the image"
            )
        return opener(reference)

    @property
    def data_reference(self) -> Reference | None:
        """The external data file, as the image names it."""
        name = self._text(Extension.DATA_FILE)
        return Reference(name or "", "raw") if self.header.has_data_file else None

    def _map_metadata(self) -> None:
        start, size = self.header.start, self.header.cluster_size
        self.regions.add(0, size, "the header")
        self.regions.add(start.l1_table_offset, start.l1_size * WORD, "the L1 table")
        self.regions.add(start.refcount_table_offset, start.refcount_table_clusters * size, "the refcount table")
        if self.header.encrypted:
            where = self.header.encryption
            self.regions.add(where.offset, where.length, "the LUKS header")
        self.map_l2_tables()
        self.snapshots = Snapshots(self)
        self.bitmaps = Bitmaps(self)

    def map_l2_tables(self) -> None:
        """Tells the regions which L2 tables the active L1 table has."""
        self.regions.fill(L2_TABLE, self._l2_offsets())

    def _l2_offsets(self) -> Iterator[list[int]]:
        start = self.header.start
        length = start.l1_size * WORD
        for at in range(0, length, _L1_STEP):
            data = self.file.pread(start.l1_table_offset + at, min(_L1_STEP, length - at))
            if data.count(0) < len(data):
                yield [word & OFFSET for word in words_of(data) if word]

    def _begin_writing(self, *, track_writes: bool) -> None:
        repeated = self.regions.repeated(L2_TABLE)
        if repeated:
            self.tables.require_apart(repeated)
        self.tables.exclusive = not self.header.has_data_file
        refcounts = Refcounts(self.file, self.header, self.pages, self.regions)
        self.writer = Writer(self.tables, self.pages, self.regions, refcounts, self.data_file)
        self.writer.raw_data = self.header.raw_data
        self.writer.has_backing = self.backing is not None
        holder = self.file if self.data_file is None else self.data_file
        self.deallocates = holder.punches() and self.zeroes
        self._clear_unknown()
        self.bitmaps.begin(track=track_writes)

    def _clear_unknown(self) -> None:
        """Autoclear bits that are not known here go before anything is written; so do bitmaps that another program has
        made worthless by clearing theirs (their clusters leak until a repair)."""
        kept = self.header.features.autoclear_features & (Autoclear.RAW_DATA | Autoclear.BITMAPS)
        if self.header.features.autoclear_features != kept:
            self.header.features.autoclear_features = kept
            write_fixed(self.file, self.header)
        if not kept & Autoclear.BITMAPS and self.header.extension(Extension.BITMAPS) is not None:
            self.header.set_extension(Extension.BITMAPS, None)
            with contextlib.suppress(UnsupportedFeature):  # without the bit it says nothing, so it may stay
                rewrite(self.file, self.header)

    @property
    def encrypted(self) -> bool:
        return self.header.encrypted

    def unlock(self, secrets: Sequence[bytes]) -> None:
        encryption.unlock(self, secrets)

    @property
    def replaces_key(self) -> bool:
        return encryption.replaces_key(self)

    def replace_key(self) -> None:
        encryption.replace_key(self)

    def luks(self, offset: int, length: int) -> bytes:
        """Bytes of the area that has the LUKS header; fewer at its end."""
        where = self.header.encryption
        return self.file.pread(where.offset + offset, max(0, min(length, where.length - offset)))

    def _require_key(self) -> None:
        if self.encrypted and self.cipher is None:
            raise SecretNeeded(f"{self.file.name} is encrypted, so its disk is read and written with the secret only")

    # the map

    @property
    def layers(self) -> Sequence[Layer]:
        files = [self.file] if self.data_file is None else [self.file, self.data_file]
        layers = [file.layer for file in files]
        packing = _COMPRESSION[CompressionType(self.header.compression)]
        layers[0] = layers[0]._replace(flags=layers[0].flags | packing)
        return layers

    def load(self, first: int, count: int) -> list[Run]:
        self._require_key()
        with self.standing.condemning():
            return self.tables.load(first, count)

    def load_entries(self, first: int, count: int) -> "array[int]":
        self._require_key()
        with self.standing.condemning():
            return self.tables.load_entries(first, count)

    def masks(self, first: int, count: int) -> list[Masks]:
        with self.standing.condemning():
            return self.tables.masks(first, count)

    def materialise(self, block: int) -> bytes:
        """The whole cluster, also where the disk ends inside it. CorruptImage where it does not decompress."""
        return self.materialise_of(self.tables, block)

    def materialise_of(self, tables: Tables, block: int) -> bytes:
        """The same, of a block of other tables of the image."""
        if not self.read_only:
            return self.fetch_of(tables, block)()
        key = tables.l1_offset, block
        data = self._decompressed.pop(key, None) or self.fetch_of(tables, block)()
        self._decompressed[key] = data
        if len(self._decompressed) > _KEPT:
            del self._decompressed[next(iter(self._decompressed))]
        return data

    def fetch(self, block: int) -> Callable[[], bytes]:
        return self.fetch_of(self.tables, block)

    def fetch_of(self, tables: Tables, block: int) -> Callable[[], bytes]:
        """The same, of a block of other tables of the image."""
        data = tables.read_compressed(block)
        if data is None:
            raise UnsupportedFeature(f"cluster {block} of {self.file.name} is not compressed")
        what = f"{self.file.name}: compressed cluster {block}"
        return partial(compression.decompress, self.header.compression, data, self.header.cluster_size, what)

    def kept(self) -> Sequence[Snapshot]:
        return list(self.snapshots)

    def ready_to_freeze(self) -> None:
        self.require_writer("change its snapshots")
        self.snapshots.ready()

    def freeze(self, name: str) -> "Freeze":
        return self.snapshots.freeze(name)

    def begin_delete(self, which: str) -> "Deletion":
        return self.snapshots.begin_delete(which)

    def open_snapshot(self, which: str) -> SnapshotView:
        """The disk as an internal snapshot has it, by ID or name, to read. It needs this image to stay open, and the
        snapshot to stay. InvalidArgument where there is none."""
        return SnapshotView(self, which)

    def become_snapshot(self, which: str) -> SnapshotView:
        """The same, but it takes over this image, and closes it."""
        return SnapshotView(self, which, owning=True)

    # changes

    def require_writer(self, doing: str) -> Writer:
        """What changes the image; `doing` says what for (“resize it”). ReadOnlyImage, CorruptImage; OSError where it is
        not known any more what the file says."""
        self._require_writable(doing)
        self.standing.require(doing)
        assert self.writer is not None
        return self.writer

    def require_still(self, doing: str) -> Writer:
        """The same, for what cannot be done while a snapshot is being taken or deleted. ImageInUse."""
        writer = self.require_writer(doing)
        if writer.switch is not None:
            raise ImageInUse(f"a snapshot of {self.file.name} is being taken or deleted; {doing} when that is done")
        return writer

    def reserve(self, count: int) -> list[HostExtent]:
        writer = self.require_writer("reserve room in it")
        self._require_key()
        with self.standing.condemning():
            return writer.reserve(count)

    def commit(self, changes: Sequence[Change]) -> None:
        writer = self.require_writer("change its map")
        with self.standing.condemning():
            self._mark(changes)
            writer.apply(changes)
            self._packer = None  # it may hold on to a cluster that is free from here on
            writer.flush()

    def stage(self, changes: Sequence[Change]) -> None:
        writer = self.require_writer("change its map")
        with self.standing.condemning():
            self._mark(changes)
            writer.apply(changes)

    def stage_row(self, block: int, offset: int, count: int) -> None:
        writer = self.require_writer("change its map")
        with self.standing.condemning():
            self._mark([Change(block, 0, count=count)])
            writer.place_row(block, offset, count)

    def _mark(self, changes: Sequence[Change]) -> None:
        size = self.geometry.block_size
        if not self._told and self.bitmaps.granularity is not None:
            for change in changes:
                offset = change.block * size
                self.touched(offset, max(0, min(change.count * size, self.geometry.length - offset)))

    def resize(self, length: int) -> None:
        """Grows, or cuts; what is new reads as zeros, also where the parent is longer. An image with snapshots of
        version 2 keeps its length, because they do not say theirs."""
        self.require_still("resize it")
        self._require_key()  # because the rest of its last block has to be cleared
        check_length(length)
        with self.bitmaps.resizing():
            resize.resize(self, length)

    def name_parent(self, reference: Reference | None) -> None:
        parent.name_parent(self, reference)

    def place_discarded(self, how: Discard) -> None:
        discarding.place_discarded(self, how)

    def put_compressed(self, block: int, data: bytes) -> None:
        """Makes `data`, a whole cluster as `compression.compress` made it shorter, the content of a block; durable
        after the next commit. For converting, not for a disk in use. Errors: InvalidArgument, UnsupportedFeature."""
        writer = self.require_writer("compress into it")
        if self.encrypted:
            raise UnsupportedFeature(f"{self.file.name} is encrypted, and cannot hold compressed clusters too")
        if self._packer is None:
            self._packer = Packer(writer)
        self._mark([Change(block, 0)])
        with self.standing.condemning():
            self._packer.put(block, data)

    def free(self, extents: Sequence[HostExtent]) -> None:
        self.require_writer("give back its room").free(extents)

    def empty(self, extent: HostExtent) -> bool:
        size = self.header.cluster_size
        try:
            self.file.punch(extent.offset, extent.blocks * size)
        except OSError:
            return False
        return True

    def listens(self) -> int | None:
        self._told = True
        return self.bitmaps.granularity

    def untold(self) -> None:
        self.bitmaps.give_up()

    def touched(self, offset: int, length: int) -> None:
        self.bitmaps.touched(offset, length)

    def info(self) -> dict[str, object]:
        return info.describe(self)

    def close(self) -> None:
        """Makes all durable and leaves no leak. OSError where that fails, after everything was released."""
        try:
            if self.writer is not None and not self.standing.lost:
                if self.change is not None:
                    self.change.abandon()
                self.bitmaps.store(self.writer)
                self.writer.finish()
        finally:
            self.writer = None
            self.file.close()
            if self.data_file is not None:
                self.data_file.close()
