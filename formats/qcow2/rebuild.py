"""Building all refcount structures anew, behind everything that is in use, where the old ones cannot be trusted.

    ... everything that is named ... | refcount blocks | refcount table |
                                                              ^ the header names it last, after a barrier

The old structures are not named by anything afterwards, and their clusters are free.
"""

from collections.abc import Sequence

from formats.errors import UnsupportedFeature
from formats.host_file import HostFile
from formats.qcow2 import widths
from formats.qcow2.cluster_counts import Counts
from formats.qcow2.header import Header, write_fixed
from formats.qcow2.structures import MAX_REFCOUNT_TABLE_BYTES, WORD


def rebuild(file: HostFile, header: Header, counts: Counts, structure: Sequence[int]) -> None:
    """`counts` are all references, those of the old refcount structures (`structure`, by cluster) included; they are
    taken out of it. UnsupportedFeature where a count does not fit its width, OSError."""
    for cluster in structure:
        counts.add(cluster, 1, -1)
    size = header.cluster_size
    per_block = size * 8 // header.refcount_bits
    first = max(counts.end, -(-file.length // size))
    indexes, table_clusters = _plan(counts, first, per_block, size)
    places = {index: first + n for n, index in enumerate(indexes)}
    table = first + len(indexes)
    counts.add(first, len(indexes) + table_clusters)
    if table_clusters * size > MAX_REFCOUNT_TABLE_BYTES:
        raise UnsupportedFeature(f"{file.name} would need a refcount table of {table_clusters * size} bytes")
    for index, place in places.items():
        values = counts.span(index * per_block, per_block)
        if max(values) > (1 << header.refcount_bits) - 1:
            raise UnsupportedFeature(
                f"{file.name} has a cluster with more references than {header.refcount_bits} bits count"
            )
        file.pwrite(place * size, widths.pack(values, header.refcount_bits))
    words = b"".join((places.get(n, 0) * size).to_bytes(WORD, "big") for n in range(max(indexes) + 1))
    file.pwrite(table * size, words.ljust(table_clusters * size, b"\0"))
    file.fdatasync()
    header.start.refcount_table_offset, header.start.refcount_table_clusters = table * size, table_clusters
    write_fixed(file, header)


def _plan(counts: Counts, first: int, per_block: int, size: int) -> tuple[list[int], int]:
    """Indexes of the blocks that are needed, and clusters of the table, their own references included."""
    named = {index for index in range(-(-counts.end // per_block)) if any(counts.span(index * per_block, per_block))}
    blocks = table = 0
    while True:
        last = first + blocks + table
        own = set(range(first // per_block, last // per_block + 1))
        indexes = sorted(named | own)
        longer = -(-(indexes[-1] + 1) * WORD // size)
        if len(indexes) == blocks and longer == table:
            return indexes, table
        blocks, table = max(blocks, len(indexes)), max(table, longer)
        if len(indexes) < blocks:  # one block more than is named: harmless, and the end of the search
            return sorted(named | set(range(first // per_block, last // per_block + 1))), table
