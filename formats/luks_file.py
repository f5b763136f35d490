"""luks: a disk in a file behind a LUKS header, encrypted sector by sector; sector 0 is the disk's first.

Like raw it has all its blocks from the start, in a row. What was never written decrypts to noise, as with any disk
that was not wiped; what a longer disk gets is written, because it has to read as zeros.
"""

from collections.abc import Sequence

from formats.errors import CorruptImage, InvalidArgument, SecretNeeded, UnsupportedFeature
from formats.host_file import HostFile
from formats.image import SECTOR, BlockState, Change, Geometry, Image, Layer, Run, check_length, entry
from formats.luks import HEADER_BYTES, Luks, new, open_with
from formats.luks_key import Area, MasterKey
from formats.sector_cipher import PlacedCipher

BLOCK_SIZE = 65536
_STEP = 1 << 20  # bytes of zeros written at once


class LuksFile(Image):
    """Owns its file. Raises ImageError for all that it refuses."""

    format = "luks"
    resizes = True

    def __init__(self, file: HostFile) -> None:
        self.file = file
        self.luks = Luks(file.name, file.pread)
        self.payload_offset = self.luks.header.payload_offset * SECTOR
        if self.payload_offset < HEADER_BYTES:
            raise CorruptImage(f"{file.name}: its data begins at {self.payload_offset}, inside its LUKS header")
        length = (file.length - self.payload_offset) // SECTOR * SECTOR
        if length < SECTOR:
            raise CorruptImage(f"{file.name} ends at {file.length}, before its data at {self.payload_offset}")
        super().__init__(Geometry(length, BLOCK_SIZE), read_only=file.read_only)
        self._key: MasterKey | None = None

    @property
    def encrypted(self) -> bool:
        return True

    def unlock(self, secrets: Sequence[bytes]) -> None:
        opened = open_with(self.file.name, secrets, self.file.pread)
        self.cipher = PlacedCipher(opened.cipher, self.payload_offset)
        file = self.file
        self._key = MasterKey(file.name, opened, Area(self.payload_offset, file.pread, file.pwrite, file.fdatasync))

    @property
    def replaces_key(self) -> bool:
        return not self.read_only and self._key is not None and self._key.replaceable

    def replace_key(self) -> None:
        """All blocks read as noise afterwards."""
        self._require_writable("replace its key")
        assert self._key is not None
        self.cipher = PlacedCipher(self._key.replace(), self.payload_offset)
        self.luks = Luks(self.file.name, self.file.pread)

    @property
    def layers(self) -> Sequence[Layer]:
        return [self.file.layer]

    def load(self, first: int, count: int) -> Sequence[Run]:
        return [Run(first, count, entry(BlockState.DATA, 0, self.payload_offset + first * BLOCK_SIZE))]

    def resize(self, length: int) -> None:
        """Cuts the file, or writes encrypted zeros behind its end, which takes its time and its room. OSError; then the
        file has the length that it had."""
        self._require_writable("resize it")
        if self.cipher is None:
            raise SecretNeeded(f"{self.file.name} is encrypted, so its disk is made longer with its secret only")
        end = self.payload_offset + self.geometry.length
        if self.file.is_block_device:
            raise UnsupportedFeature(f"{self.file.name} is a block device; a luks image in one cannot be resized")
        try:
            self._write_zeros(end, self.payload_offset + check_length(length))
            self.file.fdatasync()
        except BaseException:
            self.file.truncate(end)
            raise
        self.file.truncate(self.payload_offset + length)
        self.file.fdatasync()
        self.geometry = Geometry(length, BLOCK_SIZE)

    def _write_zeros(self, start: int, end: int) -> None:
        assert self.cipher is not None
        for offset in range(start, end, _STEP):
            self.file.pwrite(offset, self.cipher.encrypt(offset, bytes(min(_STEP, end - offset))))
            self.going_on()

    def commit(self, changes: Sequence[Change]) -> None:
        """There is no map to change."""
        assert not changes
        self.file.fdatasync()

    def info(self) -> dict[str, object]:
        return {
            "filename": self.file.name,
            "format": self.format,
            "virtual-size": self.geometry.length,
            "actual-size": self.file.allocated,
            "encrypted": True,
            "dirty-flag": False,
        }

    def close(self) -> None:
        self.file.close()


def create(file: HostFile, length: int, preallocation: str, secret: object) -> None:
    """Makes an empty file a disk of `length` bytes that opens with `secret`. Errors: InvalidArgument; OSError."""
    if preallocation != "off":
        raise InvalidArgument(f"preallocation {preallocation!r}: luks images are made sparse; it must be off")
    head = new(the_secret(secret))
    file.truncate(len(head) + check_length(length))
    file.pwrite(0, head)
    file.fdatasync()


def the_secret(given: object) -> bytes:
    """The bytes that were given as a secret. InvalidArgument where none were."""
    if not isinstance(given, bytes) or not given:
        raise InvalidArgument("an encrypted image needs a secret, which is not empty")
    return given
