"""One word of an L2 table and what it means, both ways.

    standard    | COPIED | 0 |  host cluster offset 55:9            | ZERO |   (extended: + 64 bits of sub-clusters)
    compressed  |   0    | 1 |  extra sectors  |  host byte offset         |

Decoding checks what the word says by itself; whether its clusters are metadata, or behind the end of the file, is
checked once for a whole run of them.
"""

from typing import NamedTuple

from formats.errors import CorruptImage
from formats.image import BlockState
from formats.qcow2.structures import ALL_SUBCLUSTERS, COMPRESSED, COPIED, OFFSET, SUBCLUSTERS, ZERO

_SECTOR = 512


class Meaning(NamedTuple):
    """State of a guest cluster. `offset` is that of its host cluster, 0 where it has none (but in a data file)."""

    state: BlockState
    offset: int = 0
    shared: bool = False
    allocated: int = 0  # sub-clusters, one bit each; only when PARTIAL
    zero: int = 0


class Entries:
    """The code of one image's L2 tables. `name` begins every error."""

    def __init__(self, name: str, cluster_bits: int, *, version: int, extended: bool, external: bool) -> None:
        self._name = name
        self.cluster_size = 1 << cluster_bits
        self.cluster_bits = cluster_bits
        self.extended = extended
        self.external = external
        self.can_zero = version > 2
        self._offset_bits = 62 - (cluster_bits - 8)

    def decode(self, block: int, word: int, subclusters: int = 0) -> Meaning:
        """Raises CorruptImage, naming the block and the word."""
        if word & COMPRESSED:
            if self.external:
                raise self._corrupt(block, word, "compressed, which an image with a data file cannot have")
            return Meaning(BlockState.COMPRESSED)
        offset = word & OFFSET
        present = bool(offset) or bool(self.external and word & COPIED)
        if offset % self.cluster_size:
            raise self._corrupt(block, word, f"not at a multiple of {self.cluster_size}")
        if self.external and present and offset != block * self.cluster_size:
            raise self._corrupt(block, word, f"not at the guest's own offset {block * self.cluster_size:#x}")
        shared = present and not word & COPIED
        if self.extended:
            return self._decode_extended(block, word, subclusters, Meaning(BlockState.HOLE, offset, shared), present)
        if word & ZERO and self.can_zero:
            return Meaning(BlockState.ZERO, offset, shared)
        if not present:
            return Meaning(BlockState.HOLE)
        return Meaning(BlockState.SHARED if shared else BlockState.DATA, offset, shared)

    def _decode_extended(self, block: int, word: int, bits: int, bare: Meaning, present: bool) -> Meaning:
        allocated, zero = bits & ALL_SUBCLUSTERS, bits >> SUBCLUSTERS
        if allocated & zero or (allocated and not present):
            wrong = "both" if present else "no cluster for its"
            raise self._corrupt(block, word, f"with {wrong} allocated and zero sub-clusters {bits:#018x}")
        if allocated == ALL_SUBCLUSTERS:
            return Meaning(BlockState.SHARED if bare.shared else BlockState.DATA, bare.offset, bare.shared)
        if not allocated and zero in (0, ALL_SUBCLUSTERS):
            return Meaning(BlockState.ZERO if zero else BlockState.HOLE, bare.offset, bare.shared)
        return Meaning(BlockState.PARTIAL, bare.offset, bare.shared, allocated, zero)

    def encode(self, meaning: Meaning) -> tuple[int, int]:
        """Word and sub-clusters of anything but COMPRESSED; a host cluster that is named belongs to it alone."""
        state = meaning.state
        placed = meaning.offset or (self.external and state in (BlockState.DATA, BlockState.PARTIAL))
        word = meaning.offset | COPIED if placed else 0
        if not self.extended:
            return word | (ZERO if state == BlockState.ZERO else 0), 0
        masks = {
            BlockState.DATA: (ALL_SUBCLUSTERS, 0),
            BlockState.ZERO: (0, ALL_SUBCLUSTERS),
            BlockState.HOLE: (0, 0),
        }
        allocated, zero = masks.get(state, (meaning.allocated, meaning.zero))
        return word, zero << SUBCLUSTERS | allocated

    def compressed_span(self, word: int) -> tuple[int, int]:
        """Byte offset and length that a compressed cluster may take up; the data may end earlier."""
        offset = word & (1 << self._offset_bits) - 1
        sectors = ((word & COMPRESSED - 1) >> self._offset_bits) + 1
        return offset, sectors * _SECTOR - offset % _SECTOR

    def compressed_word(self, offset: int, length: int) -> int:
        """The word of compressed data there."""
        extra = (offset + length - 1) // _SECTOR - offset // _SECTOR
        assert offset < 1 << min(self._offset_bits, 56)
        return COMPRESSED | extra << self._offset_bits | offset

    def host_clusters(self, word: int) -> range:
        """Numbers of the host clusters that hold a reference by this word; none in a data file."""
        if word & COMPRESSED:
            offset, length = self.compressed_span(word)
            return range(offset >> self.cluster_bits, (offset + length - 1 >> self.cluster_bits) + 1)
        first = (word & OFFSET) >> self.cluster_bits
        return range(first, first + bool(first and not self.external))

    def _corrupt(self, block: int, word: int, what: str) -> CorruptImage:
        return CorruptImage(f"{self._name}: the L2 entry of cluster {block} is {word:#018x}: {what}")
