"""LiveSnapshots: internal snapshots of a disk in use, taken and deleted while the guest goes on writing.

    flush, again while that is slow   so that little is left to write in the pause
    | pause: quiesce, commit the rest, image.freeze, forget the map, resume        as long for a pebibyte as for nothing
    step, step, ...                   each under the map's lock, with a breath between: commits and loads get their turn
    lay_out, flush                    the last tables, made durable beside those who need the map
    finish                            one header write; before it a crash leaves no snapshot, after it the whole

Whatever fails on the way is given up: the image is as it would be had nobody asked. Blocking, in the caller's thread.
"""

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from formats.image import Deletion, Freeze, Image, Kept
from vstore.block_map import BlockMap
from vstore.dataplane import Volume

log = logging.getLogger(__name__)

_BREATH = 0.5  # of the time that a slice took
_LEAST, _MOST = 0.0005, 0.005  # seconds
_QUICK = 0.005  # seconds that a flush takes when little was left to write
_ROUNDS = 20


class LiveSnapshots:
    """Those of one disk. Raises OSError, and ImageError: UnsupportedFeature where the format has none, InvalidArgument
    (no such snapshot), ImageInUse (another one is being taken or deleted)."""

    def __init__(self, image: Image, volume: Volume, block_map: BlockMap) -> None:
        self._image, self._volume, self._map = image, volume, block_map
        self._stopping = threading.Event()

    def list(self) -> Sequence[Kept]:
        """In the order of the image's own table."""
        with self._map.lock:
            return tuple(self._image.kept())

    def take(self, name: str) -> tuple[Kept, int]:
        """Keeps the disk as it is at one moment between the call and the return: all writes that had ended before the
        call are in it. Returns the snapshot, durable, and how many microseconds writes had to wait."""
        self._image.ready_to_freeze()
        _until_quick(self._map.commits.flush)
        with contextlib.ExitStack() as undo:
            with self._map.commits.turn, self._map.lock:
                begun = time.perf_counter_ns()
                with self._map.editing():
                    freeze = self._image.freeze(name)
                    undo.enter_context(self._abandoning(freeze))
                pause = (time.perf_counter_ns() - begun) // 1000
            self._go_through(freeze.step)
            _until_quick(self._volume.flush)  # beside the writers, who wait for the lock that `finish` holds
            with self._map.commits.turn:  # no commit changes what is laid out
                with self._map.lock:
                    freeze.lay_out()
                self._volume.flush()
                with self._map.lock:
                    return freeze.finish(durable=True), pause

    def delete(self, which: str) -> None:
        """Forgets a snapshot, by ID or name, and frees what it alone held."""
        self._image.ready_to_freeze()
        with self._map.lock:
            deletion = self._image.begin_delete(which)
        with self._abandoning(deletion):
            self._go_through(deletion.step)
            _until_quick(self._volume.flush)
            with self._map.lock:
                deletion.finish()
        self._volume.drain()  # reads that began before a commit may still be on what the snapshot held
        self._go_through(deletion.reclaim)

    def _go_through(self, step: Callable[[], bool]) -> None:
        """Calls `step` until it has nothing more to do."""
        more = True
        while more:
            if self._stopping.is_set():
                raise OSError(errno.ECANCELED, "the disk is being closed")
            with self._map.lock:
                begun = time.perf_counter()
                more = step()
                took = time.perf_counter() - begun
            self._stopping.wait(min(max(took * _BREATH, _LEAST), _MOST))

    @contextlib.contextmanager
    def _abandoning(self, change: Freeze | Deletion) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with self._map.lock:
                try:
                    change.abandon()
                except OSError:
                    log.exception("what was kept for a snapshot that failed cannot be given back")
            raise

    def stop(self) -> None:
        """What is on its way is given up soon: the disk is about to be closed."""
        self._stopping.set()


def _until_quick(flush: Callable[[], object]) -> None:
    """Flushes until there is little to write, or until it is plain that a writer is as fast as the disk."""
    for _ in range(_ROUNDS):
        begun = time.perf_counter()
        with contextlib.suppress(OSError):  # what cannot be written is told by the commit that counts
            flush()
        if time.perf_counter() - begun < _QUICK:
            break
