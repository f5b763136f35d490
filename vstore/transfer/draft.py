"""Draft: a new file under a name of its own, that takes its right name only when it is complete and durable.

    create .vstore-draft-X --> write, fsync --> link (or rename over the old one) --> fsync the directory

Whatever happens before leaves nothing of that name, nor the draft; only a draft that can be resumed is kept.
"""

import contextlib
import errno
import os
from types import TracebackType
from typing import Self

from formats.errors import ImageExists, InvalidArgument, image_error
from formats.host_file import HostFile, Path, check_plain_name


class Draft:
    """Of the file `path`; with `directory`, a descriptor, that is a plain name in it. Errors: ImageError."""

    def __init__(self, path: Path, directory: int | None = None, *, force: bool = False, resume: bool = False) -> None:
        """`force`: what has the name already is replaced, if nobody uses it. `resume`: the draft has the same name each
        time, and stays when the work fails."""
        where, self._target = os.path.split(os.fspath(path)) if directory is None else ("", os.fspath(path))
        self.shown = os.fspath(path)
        check_plain_name(self._target)
        self.name = f".vstore-draft-{_mark(self._target) if resume else os.urandom(8).hex()}"
        self._force, self._resume = force, resume
        self.directory = self._open_directory(where, directory)
        self._beside: list[str] = []
        self._old: HostFile | None = None
        self._published = False

    def _open_directory(self, where: str, directory: int | None) -> int:
        try:
            if directory is not None:
                return os.dup(directory)
            return os.open(where or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise image_error(error, f"cannot create {self.shown}") from error

    def __enter__(self) -> Self:
        try:
            self._claim_old()
        except BaseException:
            os.close(self.directory)
            raise
        return self

    def _claim_old(self) -> None:
        """Refuses early; what is to be replaced stays locked until it is."""
        try:
            os.stat(self._target, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not self._force:
            raise ImageExists(f"{self.shown} exists; name another file, or say that it is to be replaced (--force)")
        self._old = HostFile.from_path(self._target, directory=self.directory)
        if self._old.is_block_device:
            self._old.close()
            raise InvalidArgument(f"{self.shown} is a block device; write into it as it is (--in-place)")

    @property
    def begun(self) -> bool:
        """Whether there is a draft that an earlier try left."""
        try:
            os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def accompany(self, name: str) -> None:
        """Another new file of the directory, which goes when the draft does."""
        self._beside.append(name)

    def publish(self) -> None:
        """The draft, which is complete, becomes durable and takes its name."""
        try:
            self._sync(self.name)
            if self._force:
                os.replace(self.name, self._target, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            else:
                self._link()
            self._published = True
            os.fsync(self.directory)
        except OSError as error:
            raise image_error(error, f"cannot give {self.shown} its name") from error

    def _sync(self, name: str) -> None:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.directory)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _link(self) -> None:
        """link(2) never replaces anything; file systems without it have only rename."""
        try:
            os.link(self.name, self._target, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            self._claim_old()
            os.rename(self.name, self._target, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        else:
            os.unlink(self.name, dir_fd=self.directory)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._old is not None:
            self._old.close()
        if not self._published and not self._resume:
            for name in (self.name, *self._beside):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self.directory)
        os.close(self.directory)


def _mark(name: str) -> str:
    """The same for the same name."""
    import hashlib  # which loads the whole of OpenSSL

    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
