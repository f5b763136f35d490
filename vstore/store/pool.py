"""A pool: one flat directory of image files, and the order of file operations that a crash cannot hurt.

The directory entry is the intent. A file is made under `.creating-ID.FILE` and gets its real name by link(2), which
never replaces anything; it is removed by renaming it to `.deleting-ID.FILE`. The catalog's transaction lies between:

    creating:  make .creating-*   link FILE        | COMMIT |  unlink .creating-*
    deleting:  rename FILE to .deleting-*          | COMMIT |  unlink .deleting-*

    replacing: both at once, the new file of another name than the old one's
so whatever instant a crash picks, `sweep` knows from the files that the catalog's rows name whether the verb was done,
and finishes or undoes it.
Only names checked by `identifiers.check_name` come here, and no symbolic link is followed: nothing leads out of it.
"""

import contextlib
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from formats.host_file import HostFile, Opener, open_beneath
from formats.registry import create_image
from vstore.store.errors import AlreadyExists
from vstore.store.refusals import refusals_told
from vstore.store.secret_files import SecretFiles

_INTENT = re.compile(r"\.(creating|deleting)-([0-9a-f-]{36})\.(.+)")
_log = logging.getLogger(__name__)

STATE = ".vstore-state"  # behind the image's name: vstore.target.state_file


@dataclass(frozen=True)
class Draft:
    """A file in the making, and what it will be called."""

    image_id: str
    file: str
    format: str
    secret: bytes | None = field(default=None, repr=False)  # it is encrypted, and this opens it
    data_file: str | None = None  # what its bytes lie in, if not in the file itself

    @property
    def entry(self) -> str:
        return self._entry(self.file)

    @property
    def data_entry(self) -> str:
        assert self.data_file is not None
        return self._entry(self.data_file)

    @property
    def entries(self) -> dict[str, str]:
        """What each is called now, and what it will be."""
        files = [self.file] if self.data_file is None else [self.data_file, self.file]
        return {self._entry(file): file for file in files}

    def _entry(self, file: str) -> str:
        return f".creating-{self.image_id}.{file}"


class Pool:
    def __init__(self, pool_id: str, name: str, directory: Path, secrets: SecretFiles) -> None:
        """`directory` is made if it is not there; `secrets` open its images. Raises StoreError."""
        self.secrets = secrets
        self.id = pool_id
        self.name = name
        self.directory = directory
        with refusals_told(f"cannot use the directory of pool {name}"):
            directory.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._descriptor)

    def open(self, file: str, *, read_only: bool, direct: bool = False, lock: bool = True) -> HostFile:
        """The image file, open and locked as QEMU locks it, the caller's to close. Raises StoreError.

        Without `lock` it is one that somebody else may write to, only to be looked at.
        """
        with refusals_told(f"cannot open {file}"):
            return open_beneath(self._descriptor, file, read_only=read_only, direct=direct, lock=lock)

    @contextmanager
    def state_of(self, file: str) -> Iterator[int]:
        """A descriptor of the file with what the unit of an image keeps over a restart; empty at first.

        Raises StoreError.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        with refusals_told(f"cannot open {file}{STATE}"):
            try:
                descriptor = os.open(file + STATE, flags, dir_fd=self._descriptor)
            except FileNotFoundError:  # what is saved in it later is durable if its name is
                descriptor = os.open(file + STATE, flags | os.O_CREAT, 0o600, dir_fd=self._descriptor)
                os.fsync(self._descriptor)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def drop_state(self, file: str, *, if_empty: bool) -> None:
        """Nobody has it open any more."""
        with contextlib.suppress(OSError):
            if not if_empty or not os.stat(file + STATE, dir_fd=self._descriptor, follow_symlinks=False).st_size:
                os.unlink(file + STATE, dir_fd=self._descriptor)

    def allocated_bytes(self, file: str) -> int | None:
        """What the file takes of the host's disk; None: there is no such file."""
        try:
            # stat(2): st_blocks counts 512 bytes whatever the file system's block size
            return os.stat(file, dir_fd=self._descriptor, follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            return None

    @contextmanager
    def creating(self, draft: Draft, length: int, preallocation: str, options: Mapping[str, Any]) -> Iterator[None]:
        """A new image of `length` bytes is there under its name inside the block, which commits the catalog's row.

        Raises StoreError; if anything fails, the block included, nothing stays behind.
        """
        with self.drafting(draft, length, preallocation, options), self.publishing(draft):
            yield

    @contextmanager
    def drafting(self, draft: Draft, length: int, preallocation: str, options: Mapping[str, Any]) -> Iterator[None]:
        """A new image of `length` bytes is there inside the block, out of sight. Raises StoreError."""
        argument = "options" if options else "virtual_size_bytes"
        try:
            with (
                refusals_told(f"cannot create {draft.file}", draft.entries, argument=argument),
                self._data_draft(draft) as data_file,
            ):
                create_image(
                    draft.format,
                    draft.entry,
                    length,
                    preallocation=preallocation,
                    directory=self._descriptor,
                    options=options,
                    secret=draft.secret,
                    data_file=data_file,
                )
            yield
        finally:
            for entry in draft.entries:
                self._clear_away(entry)

    def _data_draft(self, draft: Draft) -> AbstractContextManager[HostFile | None]:
        if draft.data_file is None:
            return contextlib.nullcontext()
        return HostFile.create(draft.data_entry, directory=self._descriptor)

    def open_draft(self, draft: Draft, *, data: bool = False, read_only: bool = False) -> HostFile:
        """The draft, or its `data` file. Raises StoreError."""
        with refusals_told(f"cannot open {draft.file}", draft.entries):
            return open_beneath(self._descriptor, draft.data_entry if data else draft.entry, read_only=read_only)

    def data_opener(self, data_file: str | None) -> Opener | None:
        """What opens the data file of an image that is only looked at."""
        return None if data_file is None else lambda _: self.open(data_file, read_only=True)

    @contextmanager
    def publishing(self, draft: Draft) -> Iterator[None]:
        """The draft has its name inside the block, which commits the catalog's row, and loses it if that fails."""
        with contextlib.ExitStack() as undo:
            for entry, file in draft.entries.items():
                self._link(entry, file)
                undo.callback(self._remove, file)
            with refusals_told(f"cannot create {draft.file}"):
                self._sync_directory()
            yield
            undo.pop_all()

    @contextmanager
    def replacing(self, draft: Draft, *old: str) -> Iterator[None]:
        """As `publishing`, while the image's `old` files, which have other names, go as those of `deleting` do. What
        its unit keeps goes along."""
        with self.publishing(draft), self._state_carried(old[0], draft.file), self.deleting(draft.image_id, *old):
            yield

    @contextmanager
    def _state_carried(self, old: str, new: str) -> Iterator[None]:
        """It has both names inside the block."""
        with refusals_told(f"cannot keep {old}{STATE}"), contextlib.suppress(FileNotFoundError):
            os.link(old + STATE, new + STATE, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        try:
            yield
        except BaseException:
            self.drop_state(new, if_empty=False)
            raise

    @contextmanager
    def deleting(self, image_id: str, *files: str) -> Iterator[None]:
        """The files are out of sight inside the block, which commits the row's end; they come back if it fails."""
        doomed = {f".deleting-{image_id}.{file}": file for file in files}
        with contextlib.ExitStack() as undo:
            with refusals_told(f"cannot delete {files[0]}"):
                for entry, file in doomed.items():
                    undo.callback(self._restore, entry, file)
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(file, entry, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
                self._sync_directory()
            yield
            undo.pop_all()
        for entry, file in doomed.items():
            self.drop_state(file, if_empty=False)
            self._clear_away(entry)

    def sweep(self, known: Mapping[str, Collection[str]]) -> None:
        """Finishes or undoes what a crash left half done; `known`: the files of the catalog's images, by their ids."""
        for entry in os.listdir(self._descriptor):
            match = _INTENT.fullmatch(entry)
            if not match:
                continue
            doing, image_id, file = match.groups()
            _log.warning("pool_swept", extra={"pool": self.name, "image": file, "left": doing})
            named = file in known.get(image_id, ())
            if doing == "creating":
                self._finish_creation(entry, file, done=named)
            elif named:
                self._restore_or_tell(entry, file)
            else:
                self.drop_state(file, if_empty=False)
                self._remove(entry)

    def _finish_creation(self, draft: str, file: str, *, done: bool) -> None:
        if not done and self._same_file(draft, file):
            self.drop_state(file, if_empty=False)
            self._remove(file)
        self._remove(draft)

    def _link(self, draft: str, file: str) -> None:
        try:
            with refusals_told(f"cannot create {file}"):
                os.link(draft, file, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor, follow_symlinks=False)
        except AlreadyExists:
            raise AlreadyExists(
                f"pool {self.name} holds a file {file} that belongs to no image; move it away or choose another name"
            ) from None

    def _restore(self, doomed: str, file: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not self._same_file(doomed, file):  # else a crash has ended this restoring between its two steps
                self._link(doomed, file)
            self._remove(doomed)

    def _restore_or_tell(self, doomed: str, file: str) -> None:
        """Where another file has the name now, both stay, and all other images are served."""
        try:
            self._restore(doomed, file)
        except AlreadyExists:
            _log.error("pool_entry_left", extra={"pool": self.name, "image": doomed, "error": f"there is a new {file}"})

    def _clear_away(self, entry: str) -> None:
        """The verb is done whether this succeeds or not; what stays is swept at the next start."""
        try:
            self._remove(entry)
        except OSError as error:
            _log.warning("pool_entry_left", extra={"pool": self.name, "image": entry, "error": error.strerror})

    def _remove(self, entry: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(entry, dir_fd=self._descriptor)
            self._sync_directory()

    def _same_file(self, one: str, other: str) -> bool:
        try:
            first, second = (os.stat(e, dir_fd=self._descriptor, follow_symlinks=False) for e in (one, other))
        except FileNotFoundError:
            return False
        return os.path.samestat(first, second)

    def _sync_directory(self) -> None:
        os.fsync(self._descriptor)
