"""BlockMap: the map of a disk, merged over its image chain, as far as Python must lend the data plane a hand.

    image (top) ---+   load: a page of the map, looked up through every parent at once          volume (C)
    parent --------+-> compose: the bytes of a block that no single ------------------>  reads and writes
    grandparent ---+            place holds (compressed, or patched together)              ^
                       Commits: room for new blocks, and tables that name them ------------+

Pages are loaded when something is met there for the first time, so opening a gibibyte costs the same as a pebibyte.
Entries name layers by number: the top image's files first, then each parent's. What a parent holds is SHARED, whatever
it is there, because a write has to go to the top.

All calls may come from any thread; `_lock` makes one structural change at a time, and who needs `commits.turn` too
takes that first. Blocking.
"""

import collections
import contextlib
import errno
import itertools
import logging
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence

from formats.errors import ImageError
from formats.image import BlockState, Discard, entry
from vstore import commits
from vstore.chain import Chain
from vstore.commits import Commits
from vstore.dataplane import Allocation, Partial, Volume

log = logging.getLogger(__name__)

PAGE = 512  # blocks loaded at once, as the data plane keeps them
CACHED = 64  # composed blocks kept, fewer where they are long:
CACHED_BYTES = 8 << 20
MOST_AHEAD = 16  # pages loaded ahead of who reads one after the other
COPY_UNIT = 4096  # bytes copied up at once, where the format does not say


class BlockMap:
    """Raises OSError, ImageError."""

    def __init__(self, volume: Volume, chain: Chain) -> None:
        self._volume = volume
        self._chain = chain
        self._top = chain.top
        self._block_size = self._top.geometry.block_size
        self._unit = self._top.geometry.sub_block_size or max(min(COPY_UNIT, self._block_size), self._block_size >> 9)
        self._has_masks = self._top.geometry.sub_block_size is not None
        self._lock = threading.RLock()
        self._composed: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self.commits = Commits(volume, self._top, self._lock)
        self._ahead, self._next_page = 0, -1  # pages
        self._empty = False  # what was loaded last
        for number, layer in enumerate(chain.layers):
            volume.set_layer(number, layer.descriptor, layer.flags, layer.alignment)
        self._load_flat()
        if not self._top.flat and (self._has_masks or not self._top.read_only):
            self._allow_allocation()
        with self._telling():
            pass

    def _load_flat(self) -> None:
        """A flat image's map is one run, or none for a disk without a block; other maps are loaded as they are met."""
        if self._top.flat and self._top.geometry.blocks:
            for run in self._top.load(0, self._top.geometry.blocks):
                self._volume.set_run(run.first, run.count, run.entry)

    def _allow_allocation(self) -> None:
        keeps = self._top.discard is not Discard.UNREF
        hides = keeps or self._chain.top.backing is not None or self._chain.depth > 1
        self._volume.allocates(
            Allocation(
                sub_shift=self._unit.bit_length() - 1,
                keeps_masks=self._has_masks,
                own_layers=len(self._top.layers),
                identity=int(self._top.identity),
                batch_limit=commits.MOST_PENDING,
                keeps_places=keeps,
                zero_entry=entry(BlockState.ZERO if hides else BlockState.HOLE)
                if self._top.zeroes and not self._top.identity
                else 0,
            )
        )

    # ---- resizing ----

    def resize(self, length: int) -> None:
        """The image and the volume become `length` bytes long. Nobody may use what is cut off any more."""
        with self.commits.turn, self._lock, self._telling():
            self.commits.commit()  # the image knows nothing of blocks that only the volume has
            if length < self._top.geometry.length:
                self._shrink(length)
            else:
                self._grow(length)

    def _shrink(self, length: int) -> None:
        old = self._top.geometry
        self._volume.resize(length)  # first, so that nothing is written where the file is about to end
        self._volume.drain()
        try:
            self._top.resize(length)
        except BaseException:
            self._volume.resize(old.length)
            self._load_flat()
            raise
        self._volume.resize(length)  # again, to let go of what it has mapped of the cut-off part

    def _grow(self, length: int) -> None:
        self._top.resize(length)
        self._volume.resize(length)
        self._load_flat()

    # ---- what has changed ----

    def _track(self) -> None:
        """From now on the volume notes what writes touch, if the image wants to be told. Quiesced."""
        granularity = self._top.listens()
        if granularity is not None:
            self._volume.track(granularity)

    def tell(self) -> None:
        """Tells the image what was noted. Nobody may write meanwhile."""
        try:
            for offset, length in self._volume.tracked():
                self._top.touched(offset, length)
        except OSError as error:
            log.warning("the bitmaps of an image are lost: %s", error)
            self._top.untold()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """The image has been told all, and nobody writes; what is touched afterwards is noted by its new length."""
        if self._top.listens() is None:
            yield
            return
        self._volume.quiesce()
        try:
            self.tell()
            try:
                yield
            finally:
                self._track()
        finally:
            self._volume.resume()

    @contextlib.contextmanager
    def telling_anew(self) -> Iterator[None]:
        """For changes of what the image wants to be told of: it has been told all, and nobody writes meanwhile."""
        with self.commits.turn, self._lock:
            self._volume.quiesce()
            try:
                self.tell()
                try:
                    yield
                finally:
                    self._track()
            finally:
                self._volume.resume()

    # ---- edits of the image's structure ----

    @property
    def lock(self) -> threading.RLock:
        """Held by whoever changes or asks the image."""
        return self._lock

    @contextlib.contextmanager
    def editing(self) -> Iterator[None]:
        """For changes of the image's structure: from here on nothing is written, all that was is committed, and what
        the map knew is forgotten afterwards. Reads go on; the caller must not write to the volume meanwhile. Raises
        OSError before anything is done."""
        with self.commits.turn, self._lock:
            self._volume.quiesce()
            try:
                self.commits.commit()
                try:
                    yield
                finally:
                    self._composed.clear()
                    self._volume.forget()
                    self._load_flat()
            finally:
                self._volume.resume()

    # ---- loading ----

    def load(self, offset: int, length: int) -> None:
        """Makes sure that the map knows what lies in this range of the disk."""
        first, last = offset // self._block_size, (offset + length - 1) // self._block_size
        with self._lock:
            for page in range(first // PAGE, last // PAGE + 1):
                self._load_page(page * PAGE)
            self._read_ahead(first // PAGE, last // PAGE + 1)
            if self._empty:
                self._load_empty(last // PAGE + 1)

    def _load_empty(self, page: int) -> None:
        """Where there is nothing, there is much of it, and it takes up no room in the map."""
        first = page * PAGE
        count = min(MOST_AHEAD * PAGE, self._top.geometry.blocks - first)
        if count > 0 and (row := self._volume.not_loaded(first, count)):
            with contextlib.suppress(OSError, ImageError):  # who comes there is told
                self._set(*row)

    def _read_ahead(self, page: int, following: int) -> None:
        """Who reads page after page finds more and more of them loaded."""
        self._ahead = min(max(1, 2 * self._ahead), MOST_AHEAD) if page == self._next_page else 0
        end = min(following + self._ahead, -(-self._top.geometry.blocks // PAGE))
        with contextlib.suppress(OSError, ImageError):  # who comes there is told
            for ahead in range(following, end):
                self._load_page(ahead * PAGE)
        self._next_page = max(end, following)

    def _load_page(self, first: int) -> None:
        """What of a page is not loaded: all of it, or what lies behind the end that the disk once had."""
        # under the lock, and only once: what the data plane has allocated there since must not be overwritten
        self._empty = False
        end = min(first + PAGE, self._top.geometry.blocks)
        while first < end and (row := self._volume.not_loaded(first, end - first)):
            self._set(*row)
            first = sum(row)

    def _set(self, first: int, count: int) -> None:
        """All of these blocks, or none; by pages where some of them are PARTIAL."""
        words = self._chain.entries(first, count)
        self._empty = words == array("Q", [entry(BlockState.HOLE)]) * count
        if not self._has_masks or max(words) >> 60 != BlockState.PARTIAL:
            self._volume.set_entries(first, words)
            return
        for page in range(first // PAGE, (first + count - 1) // PAGE + 1):
            start, end = max(first, page * PAGE), min(first + count, (page + 1) * PAGE)
            part = words[start - first : end - first]
            self._volume.set_partials(start, part, self._partials(start, part))

    def _partials(self, first: int, words: "array[int]") -> list[Partial]:
        beneath = self._chain.entries(first, len(words), top=1)
        found: list[Partial] = []
        for place, count in _rows([word >> 60 == BlockState.PARTIAL for word in words]):
            masks = self._top.masks(first + place, count)
            found += [
                Partial(old, mask.allocated, mask.zero, mask.shared)
                for old, mask in zip(beneath[place : place + count], masks, strict=True)
            ]
        return found

    # ---- composing ----

    def compose(self, block: int) -> bytes:
        """The whole bytes of a block that no single place holds; zeros behind the end of the disk."""
        with self._lock:
            data = self._composed.get(block)
            if data is None:
                data = self._chain.compose(block * self._block_size, self._block_size)
                self._composed[block] = data
                while len(self._composed) > min(CACHED, max(1, CACHED_BYTES // self._block_size)):
                    self._composed.popitem(last=False)
            self._composed.move_to_end(block)
            return data

    def settle(self, offset: int, length: int) -> None:
        """Makes what is composed in this range something that can be written to in part: a whole block that this image
        has compressed, or the units that the range begins and ends in where a parent has."""
        with self._lock:
            for block in range(offset // self._block_size, (offset + length - 1) // self._block_size + 1):
                word = self._volume.get_entry(block)
                if word >> 60 == BlockState.COMPRESSED and not self._over_parent(word):
                    self._settle(block)
            if self._has_masks:
                for at in {at // self._unit * self._unit for at in (offset, offset + length - 1)}:
                    self._settle_unit(at)

    def _over_parent(self, word: int) -> bool:
        """Whether the image need not have all of a block of which it is given a part."""
        return self._has_masks and word >> 48 & 0xFFF >= len(self._top.layers)

    def _settle_unit(self, at: int) -> None:
        block, within = divmod(at, self._block_size)
        data = self.compose(block)[within : within + self._unit]
        self._retried(lambda: self._volume.copy_up(at, data))

    def _settle(self, block: int) -> None:
        end = min(self._block_size, self._volume.length - block * self._block_size)
        data = self.compose(block)[:end]
        self._retried(lambda: self._volume.replace(block, data))
        self._composed.pop(block, None)

    def _retried(self, call: Callable[[], object]) -> None:
        """Makes room for what `call` allocates."""
        while True:
            self.commits.reserve_if_empty()
            try:
                call()
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # the loops took the last of the room in between
                    raise

    @property
    def allocates(self) -> bool:
        """Whether writes may need new blocks."""
        return not (self._top.flat or self._top.read_only)


def _rows(marks: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Where the marks stand: first and number of each row."""
    place = 0
    for marked, row in itertools.groupby(marks):
        count = len(list(row))
        if marked:
            yield place, count
        place += count
