"""The tail: L2 tables that were placed behind room reserved in vain move in front of it, and the file ends there.

    | used | room that nobody used ..................... | L2 | L2 |      before
    | used | L2 | L2 |                                                    after

Room for guest data is reserved in large steps, and tables come to lie behind it. It is a sparse part of the file, but
whoever copies or lists the file takes it for long. A table moves as it does when a snapshot needs the old one: the copy
is durable before the L1 table names it, so a crash at any instant leaks at worst. What a snapshot shares stays.
"""

import contextlib
from typing import TYPE_CHECKING

from formats.errors import CorruptImage
from formats.qcow2.pages import Stage
from formats.qcow2.structures import COPIED, OFFSET

if TYPE_CHECKING:
    from formats.qcow2.writer import Writer

_MOST_BYTES = 16 << 20  # moved at one close
_LONGEST_L1 = 1 << 18  # words looked through at one close


def draw_in(writer: "Writer") -> None:
    """Moves what is worth it; for a writer that has flushed and given back what it had reserved. Raises OSError."""
    if writer.switch is not None or writer.tables.l1_size > _LONGEST_L1 or not writer.allocator.has_grown:
        return
    with contextlib.suppress(CorruptImage):  # of a table that nobody has looked at: that is no reason not to close
        moving = _movable(writer)
        writer.allocator.prefer_lowest()
        for index in moving:
            writer.own_table(index)
    if writer.pages.dirty(Stage.POINTER):
        writer.flush()


def _movable(writer: "Writer") -> list[int]:
    """L1 indices of the tables at the end of the file that only free clusters, or each other, are between; none unless
    the file gets shorter by at least as many clusters again."""
    size = writer.tables.entries.cluster_size
    allocator, counts = writer.allocator, writer.refcounts
    places = {word & OFFSET: index for index, word in writer.tables.tables() if word & COPIED}
    found: list[int] = []
    last = end = allocator.end
    if any(offset % size or offset >= end * size for offset in places):
        return []
    for offset in sorted(places, reverse=True)[: _MOST_BYTES // size]:
        cluster = offset // size
        if cluster < allocator.first_appended or (last - cluster > 1 and counts.most(cluster + 1, last - cluster - 1)):
            break
        found.append(places[offset])
        last = cluster
    while last > allocator.first_appended and not counts.get(last - 1):
        last -= 1
    return found if end - last >= 3 * len(found) else []
