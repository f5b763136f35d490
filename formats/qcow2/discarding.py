"""Discards that give no cluster up: it reads as zeros and keeps its host cluster, as with qemu's discard-no-unref.

    word before   | COPIED |  host cluster  | 0    |        and after   | COPIED |  host cluster  | ZERO |

So a file never falls apart into pieces, and never grows longer than its disk. What a snapshot uses too is given up all
the same, because the next write needs another place anyway; so is what is compressed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from formats.errors import UnsupportedFeature
from formats.image import BlockState, Discard
from formats.qcow2.entries import Meaning
from formats.qcow2.structures import ALL_SUBCLUSTERS, COMPRESSED, COPIED, OFFSET, SUBCLUSTERS, ZERO

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2


def place_discarded(image: "Qcow2", how: Discard) -> None:
    """See `Image.place_discarded`."""
    reasons = {
        "is of version 2, which has no zero clusters": image.header.start.version < 3,
        "keeps its data in another file": image.header.has_data_file,
        "is encrypted": image.encrypted,
    }
    wrong = [reason for reason, true in reasons.items() if true]
    if how is not Discard.UNREF and wrong:
        raise UnsupportedFeature(f"{image.file.name} {wrong[0]}, so no cluster of it is kept; use discard=unref")
    image.discard = how
    image.tables.keeps_places = how is not Discard.UNREF and not image.read_only
    if image.writer is not None:
        image.writer.keep_places(image.tables.keeps_places)


def is_kept(word: int) -> bool:
    """Whether a discard leaves this word's host cluster to it."""
    return bool(word & OFFSET and word & COPIED) and not word & COMPRESSED


def kept_meaning(new: Meaning, old_word: int) -> Meaning:
    """What a block with this word becomes, where clusters are kept."""
    if new.state is BlockState.ZERO and is_kept(old_word):
        return Meaning(BlockState.ZERO, old_word & OFFSET)
    return new


def cleared(words: Sequence[int], *, extended: bool) -> list[int]:
    """The descriptors of blocks with these words when all are zeroed and keep their clusters."""
    kept = [word & (OFFSET | COPIED) if is_kept(word) else 0 for word in words]
    if not extended:
        return [word | ZERO for word in kept]
    return [half for word in kept for half in (word, ALL_SUBCLUSTERS << SUBCLUSTERS)]
