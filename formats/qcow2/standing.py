"""Whether an open image may still be written to: not once it was found to contradict itself, and not where a write
failed so late that what is known of it in memory, or what its header says, is not certain any more."""

import contextlib
import errno
from collections.abc import Iterator

from formats.errors import CorruptImage
from formats.host_file import HostFile
from formats.qcow2.header import Header, write_fixed
from formats.qcow2.structures import Incompatible


class Standing:
    """That of one open image."""

    def __init__(self, file: HostFile, header: Header) -> None:
        self._file, self._header = file, header
        self._condemned = self._stopped = False

    @property
    def lost(self) -> bool:
        """Whether nothing more may be written."""
        return self._condemned or self._stopped or self._header.lost

    def stop(self) -> None:
        """Nothing more is written, though what is on disk is whole."""
        self._stopped = True

    def require(self, doing: str) -> None:
        """CorruptImage, or OSError where a write has failed, unless it may; `doing` says what for (“resize it”)."""
        if self._condemned:
            what = "contradicts itself" if self._header.start.version == 2 else "is marked corrupt"
            raise CorruptImage(f"{self._file.name} {what}; repair it before you {doing}")
        self._header.require_known(self._file)
        if self._stopped:
            raise OSError(errno.EIO, f"{self._file.name} failed while it changed; close it before you {doing}")

    @contextlib.contextmanager
    def condemning(self) -> Iterator[None]:
        """A contradiction met in a writable image sets the corrupt bit (which version 2 has not): what we know of it in
        memory is not to be trusted, and nothing more of it reaches the disk."""
        try:
            yield
        except CorruptImage:
            if not self._file.read_only and not self._condemned:
                self._condemned = True
                self._mark()
            raise

    def _mark(self) -> None:
        if self._header.start.version > 2:
            self._header.features.incompatible_features |= Incompatible.CORRUPT
            with contextlib.suppress(OSError):
                write_fixed(self._file, self._header)
