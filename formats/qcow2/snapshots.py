"""Internal snapshots: states of the disk that share clusters with it; taken, listed, read, applied and deleted.

    active L1 ----+                        taking one: every cluster that the active L1 leads to gets one reference
                  +--> L2 --> data         more and loses its COPIED flag, so the next write goes elsewhere;
    snapshot L1 --+                        the snapshot's L1 is a copy of the active one

Each verb changes many counts and flags, which no order of single writes makes safe; how they change all at once is
told in switch.py. Taking and deleting also come in slices (freeze.py, deletion.py), between which a guest may write.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from formats.errors import InvalidArgument, UnsupportedFeature
from formats.image import Geometry, Run, check_length
from formats.qcow2 import snapshot_table
from formats.qcow2.header import check_span
from formats.qcow2.snapshot_table import Snapshot
from formats.qcow2.structures import MAX_L1_BYTES, MAX_SNAPSHOTS, WORD
from formats.qcow2.tables import Tables

if TYPE_CHECKING:
    from formats.qcow2.deletion import Deletion
    from formats.qcow2.freeze import Freeze
    from formats.qcow2.image import Qcow2


class Snapshots:
    """Those of one image, in the order of its table. `which` is an ID or, where no ID fits, a name."""

    def __init__(self, image: "Qcow2") -> None:
        """Reads the table; it and the snapshots' L1 tables become known metadata. CorruptImage, UnsupportedFeature."""
        self._image = image
        self._all = snapshot_table.read(image.file, image.header)
        regions, offset = image.regions, image.header.start.snapshots_offset
        regions.add(offset, snapshot_table.length(self._all), "the snapshot table")
        for snapshot in self._all:
            start = snapshot.start
            if start.l1_size * WORD > MAX_L1_BYTES:
                raise UnsupportedFeature(f"{image.file.name}: snapshot {snapshot.id} has {start.l1_size} L1 entries")
            name = f"the L1 table of snapshot {snapshot.id}"
            check_span(image.file, name, start.l1_table_offset, start.l1_size * WORD, image.header.cluster_size)
            regions.add(start.l1_table_offset, start.l1_size * WORD, name)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def find(self, which: str) -> Snapshot:
        """InvalidArgument where there is none."""
        for snapshot in [s for s in self._all if s.id == which] + [s for s in self._all if s.name == which]:
            return snapshot
        raise InvalidArgument(f"{self._image.file.name} has no snapshot {which!r}")

    # reading

    def tables(self, snapshot: Snapshot) -> Tables:
        """The snapshot's own L1 table and what it leads to."""
        image, start = self._image, snapshot.start
        return Tables(image.entries, image.pages, image.regions, start.l1_table_offset, start.l1_size)

    def geometry(self, snapshot: Snapshot) -> Geometry:
        """The disk as it was when the snapshot was taken."""
        geometry = self._image.geometry
        length = geometry.length if snapshot.disk_size is None else check_length(snapshot.disk_size)
        longest = snapshot.start.l1_size * self._image.tables.per_table * geometry.block_size
        if length > longest:
            raise UnsupportedFeature(f"snapshot {snapshot.id} of {length} bytes has an L1 table for {longest}")
        return Geometry(length, geometry.block_size, geometry.sub_block_size)

    def load(self, snapshot: Snapshot, first: int, count: int) -> list[Run]:
        """The map of the snapshot; its DATA is never anybody's to overwrite."""
        return self.tables(snapshot).load(first, count)

    # changing

    def new(self, identity: str | None, name: str) -> str:
        """The ID of a new snapshot. InvalidArgument, UnsupportedFeature."""
        if identity is None:
            identity = str(1 + max((int(s.id) for s in self._all if s.id.isdecimal()), default=0))
        if any(identity == other.id for other in self._all):
            raise InvalidArgument(f"{self._image.file.name} has a snapshot {identity!r} already")
        if max(len(identity.encode()), len(name.encode(errors="surrogateescape"))) > 0xFFFF:
            raise InvalidArgument("ID and name of a snapshot have at most 65535 bytes each")
        if len(self._all) >= MAX_SNAPSHOTS:
            raise UnsupportedFeature(f"{self._image.file.name} has {MAX_SNAPSHOTS} snapshots; no more are possible")
        return identity

    def become(self, snapshots: Sequence[Snapshot]) -> None:
        """The table that the header names now."""
        self._all = list(snapshots)
        offset = self._image.header.start.snapshots_offset
        self._image.regions.add(offset, snapshot_table.length(self._all), "the snapshot table")

    @staticmethod
    def ready() -> None:
        """Loads all that `freeze` needs, so that the moment itself takes no time."""
        import formats.qcow2.freeze  # noqa: F401

    def freeze(self, name: str, *, identity: str | None = None, now: int | None = None) -> "Freeze":
        """The disk as it is now is kept, from now on; its steps make a snapshot of it. `now`: nanoseconds since the
        Epoch. Errors: InvalidArgument, UnsupportedFeature (a data file), ImageInUse (another verb), OSError."""
        self._require("take a snapshot of it")
        from formats.qcow2.freeze import Freeze  # numpy takes longer to load than an image to open

        return Freeze(self._image, name, identity=identity, now=now)

    def begin_delete(self, which: str) -> "Deletion":
        """The snapshot is to be forgotten; the steps of what is returned do it. Errors: as `freeze`."""
        self._require("delete a snapshot of it")
        from formats.qcow2.deletion import Deletion

        return Deletion(self._image, self.find(which))

    def take(self, name: str, *, identity: str | None = None, now: int | None = None) -> Snapshot:
        """Keeps the disk as it is now. Errors: as `freeze`, and UnsupportedFeature (refcounts too narrow)."""
        freeze = self.freeze(name, identity=identity, now=now)
        with _abandoning(freeze):
            while freeze.step():
                self._image.going_on()
            return freeze.finish()

    def delete(self, which: str) -> None:
        """Forgets the snapshot and frees what it alone held."""
        deletion = self.begin_delete(which)
        with _abandoning(deletion):
            while deletion.step():
                self._image.going_on()
            deletion.finish()
        while deletion.reclaim():
            self._image.going_on()

    def apply(self, which: str) -> None:
        """Makes the disk what it was, its length included; the snapshot stays. Nobody may use the disk meanwhile."""
        image, snapshot = self._image, self.find(which)
        self._require("apply a snapshot to it")
        from formats.qcow2.reversion import revert

        geometry = self.geometry(snapshot)
        if len(image.bitmaps) and geometry.length != image.geometry.length:
            raise UnsupportedFeature(f"snapshot {which!r} has another length than the bitmaps; remove them first")
        image.touched(0, image.geometry.length)
        revert(image, snapshot, geometry)

    def _require(self, doing: str) -> None:
        if self._image.header.has_data_file:
            raise UnsupportedFeature(f"cannot {doing}: qcow2 has no snapshots of images with a data file")
        self._image.require_still(doing)


@contextlib.contextmanager
def _abandoning(change: "Freeze | Deletion") -> Iterator[None]:
    """Gives it up where it fails."""
    try:
        yield
    except BaseException:
        change.abandon()
        raise
