"""Image: what a format must answer, which is where each block lies and nothing about moving its bytes.

    bytes of the disk   |  block 0  |  block 1  |  block 2  | ... | last (may be partial)
                              |           |           |
    entries, 64 bits      state 63:60 | layer 59:48 | file offset / 512, 47:0
                              |
    layers              one descriptor each, with the way its bytes are reached

A format hands its entries over as runs, and whoever moves the bytes follows them without asking again.
So a format is metadata only: it never sees a read or a write of the guest.
"""

import abc
from array import array
from collections.abc import Callable, Sequence
from enum import IntEnum, IntFlag, StrEnum
from types import TracebackType
from typing import ClassVar, NamedTuple, Protocol, Self

from formats.errors import InvalidArgument, ReadOnlyImage, UnsupportedFeature

SECTOR = 512  # entries count file offsets in it, and no disk is shorter
MAX_LENGTH = 1 << 56  # bytes of one disk: far inside the 57 bits that an entry's offset has


class BlockState(IntEnum):
    """What is known of one block; the numbers are those of dataplane.h."""

    NOT_LOADED = 0  # ask Image.load
    HOLE = 1  # nothing here: look in the parent; zeros at the bottom
    ZERO = 2  # reads as zeros, hides the parent
    DATA = 3  # at (layer, offset); may be overwritten in place
    SHARED = 4  # at (layer, offset); a write must allocate
    COMPRESSED = 5  # its bytes are made from those at a byte offset; 0: by Image.materialise
    PARTIAL = 6  # some sub-blocks here, the others in the parent


def entry(state: BlockState, layer: int = 0, offset: int = 0) -> int:
    """The 64-bit map entry; `offset` in bytes of the layer's file, a multiple of 512."""
    assert 0 <= layer < 1 << 12
    assert 0 <= offset < 1 << 57
    assert offset % SECTOR == 0
    return state << 60 | layer << 48 | offset // SECTOR


def compressed_entry(offset: int) -> int:
    """Of a block whose compressed bytes, at most a block long, begin at this byte of layer 0. Where `offset` is 0, or
    more than an entry can hold, whoever wants the block has to ask `Image.materialise`."""
    return BlockState.COMPRESSED << 60 | (offset if offset < 1 << 48 else 0)


class Run(NamedTuple):
    """`count` blocks from `first` on. DATA and SHARED advance their offset by the block size from block to block."""

    first: int
    count: int  # type: ignore[assignment]  # not the method of a tuple
    entry: int


class Geometry(NamedTuple):
    """`length` of the disk in bytes, any number; the last block may be partial. Block sizes are powers of two."""

    length: int
    block_size: int
    sub_block_size: int | None = None

    @property
    def blocks(self) -> int:
        """Blocks in the map, the partial last one included."""
        return -(-self.length // self.block_size)


class Discard(StrEnum):
    """What becomes of the place of a block that is discarded."""

    UNREF = "unref"  # it is free, for other blocks too
    PUNCH = "punch"  # it stays the block's, and the host gets its space back
    KEEP = "keep"  # it stays the block's, and as full as it was


class LayerFlags(IntFlag):
    """How a layer's bytes are reached; the numbers are the VS_FILE_* of dataplane.h."""

    NONE = 0
    READ_ONLY = 1
    DIRECT = 2  # opened with O_DIRECT: aligned I/O only
    MEMORY = 4  # a memfd of ours, always resident
    NULL = 8  # no file: I/O succeeds and moves nothing
    INSTANT = 16  # plain calls never block (tmpfs)
    BLOCK_DEVICE = 32
    DEFLATE = 256  # compressed blocks in it are raw deflate (RFC 1951),
    ZSTD = 512  # or a zstd frame (RFC 8878)


class Losing(Protocol):
    """Keeps the errno of a flush that lost writes, for good; 0 while none did."""

    lost: int


class Layer(NamedTuple):
    """One file under the map. The descriptor stays the image's, which closes it; -1 where there is no file.

    `alignment`: bytes that offsets, lengths and memory addresses of I/O on it must be multiples of (1: any).
    `file`: what the image itself flushes it with; Linux tells of a lost write only one of those who share a descriptor,
    so each tells the other.
    """

    descriptor: int
    flags: LayerFlags = LayerFlags.NONE
    alignment: int = 1
    file: Losing | None = None


class HostExtent(NamedTuple):
    """Room for `blocks` new blocks in a row, at byte `offset` of the image's own file (layer 0)."""

    offset: int
    blocks: int


class Change(NamedTuple):
    """The new entry of one block: DATA or PARTIAL in a reserved place (or the one it has), ZERO or HOLE; the last two
    of `count` blocks in a row. A later change of a block undoes an earlier one.

    `allocated` and `zero`: for PARTIAL, one bit for each sub-block, the lowest for the first.
    """

    block: int
    entry: int
    allocated: int = 0
    zero: int = 0
    count: int = 1  # type: ignore[assignment]  # not the method of a tuple


class Masks(NamedTuple):
    """A PARTIAL block: bit n of `allocated`: sub-block n is here, of `zero`: it reads as zeros; neither: in the parent.

    `shared`: the place is not this map's alone, so that even a write to an allocated sub-block needs a new one.
    """

    allocated: int
    zero: int
    shared: bool = False


class Reference(NamedTuple):
    """Another file that an image names. It is told, never opened, by the image that names it."""

    name: str
    format: str | None = None


class Cipher(Protocol):
    """What lies between an image's files and what they mean; of whole sectors, by their place in the file."""

    def encrypt(self, offset: int, data: bytes) -> bytes: ...

    def decrypt(self, offset: int, data: bytes) -> bytes: ...


class Kept(Protocol):
    """An internal snapshot: a state of the disk that the image itself keeps. `id` is unique, `name` need not be."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    def as_json(self) -> dict[str, object]:
        """As `qemu-img info --output=json` tells it."""


class Freeze(Protocol):
    """A snapshot on its way, made while the disk is written to. Between the calls the image may be used as ever."""

    def step(self) -> bool:
        """Does a few milliseconds of the work; False when `finish` may be called."""

    def lay_out(self) -> None:
        """Writes what `finish` will name, when the steps are done."""

    def finish(self, *, durable: bool = False) -> Kept:
        """The snapshot, durable. `durable`: all that was written until `lay_out` returned has been made so since, and
        nothing was committed; then there is less to wait for."""

    def abandon(self) -> None:
        """Gives it up, and everything that was kept for it back. Due after an error, too."""


class Deletion(Protocol):
    """A snapshot that is being forgotten while the disk is written to."""

    def step(self) -> bool:
        """Does a few milliseconds of the work; False when `finish` may be called."""

    def finish(self) -> None:
        """The snapshot is gone, durably."""

    def reclaim(self) -> bool:
        """Frees some of what it held, when nobody reads that any more; False when nothing is left."""

    def abandon(self) -> None:
        """The snapshot stays; not after `finish`."""


class Image(abc.ABC):
    """An open disk image. Raises ImageError for all that it refuses; a context manager that closes it."""

    format: ClassVar[str]

    backing: Reference | None = None
    """The parent, whose blocks show through every HOLE."""
    flat: bool = False
    """Whether the whole disk lies in one row, so that the map never changes."""
    cipher: Cipher | None = None
    """What its data, not its tables, goes through, once it is unlocked."""
    resizes: bool = False
    """Whether `resize` can make it longer and shorter."""
    zeroes: bool = False
    """Whether a change to ZERO (and, without a parent, to HOLE) can be committed."""
    going_on: Callable[[], None] = staticmethod(lambda: None)
    """Called now and then while a verb of the image takes long."""
    discard: Discard = Discard.UNREF
    """Unless UNREF, `load` tells the places that ZERO blocks have kept, and a write goes there again."""
    identity: bool = False
    """Whether new blocks lie in layer 1 at the guest's own offset, so that none need be reserved."""

    def __init__(self, geometry: Geometry, *, read_only: bool = False, deallocates: bool = False) -> None:
        """`deallocates`: a discarded range reads as zeros afterwards and gives its space back to the host."""
        self.geometry = geometry
        self.read_only = read_only
        self.deallocates = deallocates

    @property
    @abc.abstractmethod
    def layers(self) -> Sequence[Layer]:
        """The files that entries name by their place in this sequence."""

    @abc.abstractmethod
    def load(self, first: int, count: int) -> Sequence[Run]:
        """The map of `count` blocks from `first` on, in ascending order and without a gap."""

    def load_entries(self, first: int, count: int) -> "array[int]":
        """The same as `load`, one entry for each block: the quicker way where neighbours have nothing in common."""
        found = array("Q")
        step = self.geometry.block_size // SECTOR
        for run in self.load(first, count):
            if run.entry >> 60 in (BlockState.DATA, BlockState.SHARED):
                found.extend(range(run.entry, run.entry + run.count * step, step))
            else:
                found.extend(array("Q", [run.entry]) * run.count)
        return found

    def resize(self, length: int) -> None:
        """Makes the disk `length` bytes long: what is cut off is gone, what is new reads as zeros."""
        raise UnsupportedFeature(f"{self.format} images cannot be resized; {length} bytes were asked for")

    def name_parent(self, reference: Reference | None) -> None:
        """Names another parent, or none, durably. No map changes: the caller sees to it that the disk stays right."""
        raise UnsupportedFeature(f"{self.format} images have no parent; {reference} cannot become one")

    def masks(self, first: int, count: int) -> Sequence[Masks]:
        """Of `count` blocks from `first` on, which `load` told to be PARTIAL."""
        raise UnsupportedFeature(f"{self.format} images have no sub-blocks; {count} of block {first} were asked for")

    def reserve(self, count: int) -> Sequence[HostExtent]:
        """Room for `count` new blocks, theirs to write to before any map names them. What is never committed is free
        again when the image is closed; after a crash it is lost until a repair. OSError (ENOSPC) without room."""
        raise UnsupportedFeature(f"{self.format} images do not allocate; {count} blocks were asked for")

    def commit(self, changes: Sequence[Change]) -> None:
        """Makes a batch of map changes durable, and before them all that was written to the image's files so far.

        A crash meanwhile leaves each block as it was or as it will be. What the changes let go of is free for the next
        `reserve`. After an OSError the same batch may be handed over again, if each block is in it once.
        """
        raise UnsupportedFeature(f"{self.format} images have no map to change; {len(changes)} changes were handed over")

    def stage(self, changes: Sequence[Change]) -> None:
        """As `commit`, but perhaps in memory only until the next one: for an image that nobody uses yet."""
        self.commit(changes)

    def stage_row(self, block: int, offset: int, count: int) -> None:
        """As `stage`: `count` blocks from `block` on become DATA, in reserved places in a row from `offset` on."""
        step = self.geometry.block_size
        self.stage([Change(block + n, entry(BlockState.DATA, 0, offset + n * step)) for n in range(count)])

    def materialise(self, block: int) -> bytes:
        """The bytes of a COMPRESSED block."""
        raise UnsupportedFeature(f"{self.format} images hold nothing compressed; block {block} was asked for")

    def fetch(self, block: int) -> Callable[[], bytes]:
        """As `materialise`, in two steps: what the file has is read now; the call, which any thread may make, makes the
        block's bytes of it."""
        data = self.materialise(block)
        return lambda: data

    def free(self, extents: Sequence[HostExtent]) -> None:
        """Gives back what `reserve` handed out and no committed change names."""
        raise UnsupportedFeature(f"{self.format} images do not allocate; {len(extents)} extents were handed back")

    def place_discarded(self, how: Discard) -> None:
        """From now on the places of whole blocks that become ZERO are dealt with so; before anybody asks for the map.
        UnsupportedFeature."""
        if how is not Discard.UNREF:
            raise UnsupportedFeature(
                f"{self.format} images have no clusters that a discard could keep; use discard=unref"
            )

    def empty(self, extent: HostExtent) -> bool:  # noqa: ARG002
        """Makes reserved room read as zeros if that is cheap, so that what nobody writes there need not be written."""
        return False

    def kept(self) -> Sequence[Kept]:
        """The internal snapshots."""
        return ()

    def ready_to_freeze(self) -> None:
        """Loads what `freeze` needs, so that the moment itself takes no time."""
        raise UnsupportedFeature(f"{self.format} images have no internal snapshots")

    def freeze(self, name: str) -> Freeze:
        """Begins a snapshot of the disk as it is now; nothing of it that was ever told by `load` may be written in
        place any more, so it has to be asked again. Errors: InvalidArgument, UnsupportedFeature, ImageInUse."""
        raise UnsupportedFeature(f"{self.format} images have no internal snapshots; {name!r} was asked for")

    def begin_delete(self, which: str) -> Deletion:
        """Begins to forget the snapshot of this ID or name. Errors: as `freeze`."""
        raise UnsupportedFeature(f"{self.format} images have no internal snapshots; {which!r} was asked for")

    def become_snapshot(self, which: str) -> "Image":
        """The snapshot of this ID or name as an image to read, which takes this one over and closes it. Errors: as
        `freeze`; this one is still the caller's to close then."""
        raise UnsupportedFeature(f"{self.format} images have no internal snapshots; {which!r} was asked for")

    @property
    def encrypted(self) -> bool:
        """Whether its bytes can only be read with a secret."""
        return False

    def unlock(self, secrets: Sequence[bytes]) -> None:  # noqa: B027  (most have nothing to unlock)
        """Finds the `cipher` of an encrypted image. Errors: SecretWrong (none of the secrets is right), SecretNeeded
        (none is given), UnsupportedFeature."""

    @property
    def replaces_key(self) -> bool:
        """Whether `replace_key` can be called: where nothing else that is kept needs the key."""
        return False

    def replace_key(self) -> None:
        """Destroys the key that the disk is encrypted with, and gives it another, which the same secret opens. What
        was written is noise from there on, unless it is zeroed. Durable; after an error (OSError, CorruptImage) either
        key may be the disk's, and it must be tried again before anything is read or written."""
        raise UnsupportedFeature(f"{self.format} images have no key that could be replaced")

    def listens(self) -> int | None:
        """Bytes in the smallest piece of the disk of which it matters whether it has changed; None: it does not matter.
        Who asks will tell every change (`touched`) before the image is closed or resized; until somebody does, it
        takes the blocks of each `commit` for changed."""
        return None

    def untold(self) -> None:  # noqa: B027
        """Some changes could not be told."""

    def touched(self, offset: int, length: int) -> None:  # noqa: B027  (a format without bitmaps has none to keep)
        """These bytes of the disk have changed since the image was opened: for formats that keep bitmaps of it."""

    @abc.abstractmethod
    def info(self) -> dict[str, object]:
        """What `qemu-img info --output=json` would tell, under the same keys."""

    def close(self) -> None:  # noqa: B027  (an image without a file has nothing to release)
        """Releases descriptors and locks; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _require_writable(self, doing: str) -> None:
        if self.read_only:
            raise ReadOnlyImage(f"cannot {doing}: the image is open read-only; open it writable first")


def check_length(length: int) -> int:
    """`length` if a disk can be that long, in bytes; InvalidArgument otherwise."""
    if length < SECTOR or length % SECTOR or length > MAX_LENGTH:
        raise InvalidArgument(
            f"a disk of {length} bytes cannot be made: the length must be a multiple of {SECTOR}, "
            f"at least {SECTOR} and at most {MAX_LENGTH}"
        )
    return length
