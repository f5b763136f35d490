"""Packer: lays compressed clusters one behind the other, byte by byte, so that several share a host cluster.

    | host cluster n                  | host cluster n + 1 (only when it is the next one in the file)
    | data of 7 | data of 9 | data of 12 ...  | data of 30 | <- here the next one begins

Each guest cluster holds one reference to every host cluster that its data touches.
"""

from formats.errors import InvalidArgument, UnsupportedFeature
from formats.image import SECTOR
from formats.qcow2.writer import Writer


class Packer:
    """Writes into one image; what it has written is named durably by the next `Writer.flush`."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._size = writer.tables.entries.cluster_size
        self._next = 0  # byte offset, 0 where a new cluster must be taken

    def put(self, block: int, data: bytes) -> None:
        """Makes `data`, already compressed and shorter than a cluster, the content of a block.

        Errors: InvalidArgument, UnsupportedFeature (a data file), OSError.
        """
        writer, entries = self._writer, self._writer.tables.entries
        if entries.external:
            raise UnsupportedFeature("an image with a data file holds nothing compressed")
        if not 0 < len(data) < self._size:
            raise InvalidArgument(f"{len(data)} bytes cannot be a compressed cluster of {self._size}; write it plain")
        offset = self._place(len(data))
        writer.pages.file.pwrite(offset, data)
        end = offset + len(data)
        if end % SECTOR and end == writer.pages.file.length:
            writer.pages.file.truncate(-(-end // SECTOR) * SECTOR)  # readers take whole sectors
        writer.point(block, entries.compressed_word(offset, len(data)))

    def _place(self, length: int) -> int:
        refcounts, allocator = self._writer.refcounts, self._writer.allocator
        cluster, within = divmod(self._next, self._size)
        shared = bool(within) and refcounts.get(cluster) < refcounts.maximum
        if shared and within + length <= self._size:
            refcounts.add(cluster, 1, 1)
            offset = self._next
        else:
            ((new, _),) = allocator.take(1)
            offset = new * self._size
            if shared and new == cluster + 1:
                refcounts.add(cluster, 1, 1)
                offset = self._next
        self._next = offset + length
        return offset
