"""Reversion: the disk becomes what an internal snapshot has kept; nobody may use it meanwhile.

The snapshot's L2 tables get a second version without COPIED flags, which the active L1 names from the switch on; what
they name is counted once more, and what the active ones named loses a reference.
"""

from typing import TYPE_CHECKING

import numpy as np

from formats.image import Geometry
from formats.qcow2 import arrays
from formats.qcow2.snapshot_table import Snapshot
from formats.qcow2.structures import COPIED, WORD
from formats.qcow2.switch import Switch, roots

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2


def revert(image: "Qcow2", snapshot: Snapshot, geometry: Geometry) -> None:
    """All of it. Errors: OSError, CorruptImage, UnsupportedFeature; nothing has changed then."""
    with image.standing.condemning():
        _revert(image, snapshot, geometry)


def _revert(image: "Qcow2", snapshot: Snapshot, geometry: Geometry) -> None:
    old = roots(image.tables)
    switch = Switch(image, "apply a snapshot to it")
    try:
        l1 = _prepare(image, snapshot, switch, old)
        switch.turn(l1, snapshots=list(image.snapshots), length=geometry.length)
    except BaseException:
        switch.abandon()
        raise
    image.geometry = geometry
    for _ in switch.reclaim(old):
        pass


def _prepare(image: "Qcow2", snapshot: Snapshot, switch: Switch, old: list[int]) -> arrays.Words:
    """The new L1 table."""
    tables = image.snapshots.tables(snapshot)
    l1 = np.zeros(max(snapshot.start.l1_size, 1), np.uint64)
    for index, _ in tables.tables():
        table = switch.table(tables.table(index))
        descriptors = table[:: tables.entry_size // WORD]
        descriptors[arrays.placed(descriptors)] &= arrays.NOT_COPIED
        switch.put_table(index, table)
        l1[index] = image.tables.second[index] | COPIED
        for _ in switch.counts.gather(arrays.hosts(descriptors, tables.entries), 1):
            pass
    for _ in switch.counts.settle(1):
        pass
    for _ in switch.subtract(old):
        pass
    return l1
