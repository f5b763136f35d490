"""A new key in a LUKS1 header: the secret opens it, nothing of the old one is left, a crash leaves one of the two."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from formats.errors import SecretNeeded, SecretWrong, UnsupportedFeature
from formats.host_file import HostFile
from formats.luks import HEADER_BYTES, SLOTS, Header, KeySlot, Luks, new
from formats.luks_key import Area, MasterKey
from formats.qcow2.image import Qcow2
from formats.raw import Raw
from formats.registry import create_image, open_chain
from formats.sector_cipher import SECTOR, SectorCipher
from tests.formats.reference import run

SECRET = b"hush"
LENGTH = 1 << 20
PLAIN = b"plain text" * 512


@pytest.fixture(scope="module")
def made() -> bytes:
    """A header with its key material, made quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("formats.luks._ITERATIONS", 1000)
        patch.setattr("formats.luks._STRIPES", 40)
        return new(SECRET)


class Store:
    """The area of a header in memory. `log`: each write, None for each sync."""

    def __init__(self, data: bytes, fails_at: int = 1 << 30) -> None:
        self.data = bytearray(data)
        self.log: list[tuple[int, bytes] | None] = []
        self.fails_at = fails_at

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self._log((offset, data))
        self.data[offset : offset + len(data)] = data

    def sync(self) -> None:
        self._log(None)

    def _log(self, done: tuple[int, bytes] | None) -> None:
        if len(self.log) == self.fails_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.log.append(done)

    def open(self, secret: bytes = SECRET) -> tuple[SectorCipher, MasterKey]:
        opened = Luks("x", self.read).open(secret)
        return opened.cipher, MasterKey("x", opened, Area(len(self.data), self.read, self.write, self.sync))

    def material(self, number: int) -> bytes:
        place = Luks("x", self.read).material(number)
        return bytes(self.data[place.start : place.stop])


def same(one: SectorCipher, other: SectorCipher) -> bool:
    return one.encrypt(PLAIN, 7) == other.encrypt(PLAIN, 7)


def test_the_secret_opens_the_new_key_and_nothing_of_the_old_one_is_left(made: bytes) -> None:
    store = Store(made)
    old, key = store.open()
    before = [store.material(number) for number in range(SLOTS)]
    fresh = key.replace()
    assert not same(old, fresh)
    assert same(store.open()[0], fresh)
    assert all(store.material(number) != before[number] for number in range(SLOTS))
    header = Luks("x", store.read)
    assert [slot.active for slot in header.slots].count(0x00AC71F3) == 1
    assert header.header.mk_digest != Luks("x", Store(made).read).header.mk_digest
    assert store.log[-1] is None
    with pytest.raises(SecretWrong):
        store.open(b"other")


def test_it_can_be_replaced_again_and_again(made: bytes) -> None:
    store = Store(made)
    ciphers, key = [store.open()[0]], store.open()[1]
    for _ in range(9):
        ciphers.append(key.replace())
        assert same(store.open()[0], ciphers[-1])
    assert len({cipher.encrypt(PLAIN, 0) for cipher in ciphers}) == 10


def moved(data: bytes, slot: int) -> bytes:
    """The header with its only key in another slot, and all others said to be in use by others."""
    luks, area = Luks("x", Store(data).read), bytearray(data)
    for number, each in enumerate(luks.slots):
        row = KeySlot(0x00AC71F3, 1, os.urandom(32), each.key_material_offset, each.stripes)
        if number == slot:
            mine = luks.slots[0]
            row = KeySlot(0x00AC71F3, mine.iterations, mine.salt, each.key_material_offset, each.stripes)
            area[luks.material(number).start : luks.material(number).stop] = Store(data).material(0)
        at = Header.SIZE + number * KeySlot.SIZE
        area[at : at + KeySlot.SIZE] = row.pack()
    return bytes(area)


@pytest.mark.parametrize("slot", [0, 3, 6, 7])
def test_the_keys_of_other_secrets_are_lost_too_whichever_slot_was_open(made: bytes, slot: int) -> None:
    store = Store(moved(made, slot))
    old, key = store.open()
    assert key.replaceable
    fresh = key.replace()
    assert same(store.open()[0], fresh)
    assert not same(old, fresh)
    assert sum(each.active == 0x00AC71F3 for each in Luks("x", store.read).slots) == 1


def crashes(store: Store, before: bytes) -> Iterator[bytes]:
    """What may be on the disk after a loss of power at any time: all up to a sync, and any one of the writes behind it
    by sectors of which each is there or not (the first half, the second half, all, none)."""
    durable, waiting = bytearray(before), list[tuple[int, bytes]]()
    for done in store.log:
        if done is None:
            for offset, data in waiting:
                durable[offset : offset + len(data)] = data
            waiting.clear()
            continue
        waiting.append(done)
        half = len(done[1]) // 2 // SECTOR * SECTOR
        for part in (slice(0, half), slice(half, None), slice(None)):
            torn, start = bytearray(durable), done[0] + (part.start or 0)
            torn[start : start + len(done[1][part])] = done[1][part]
            yield bytes(torn)
    yield bytes(durable)


@pytest.mark.parametrize("slot", [0, 6])
def test_a_crash_at_any_time_leaves_the_old_key_or_the_new_one(made: bytes, slot: int) -> None:
    before = moved(made, slot)
    store = Store(before)
    old, key = store.open()
    fresh = key.replace()
    seen = set()
    for state in crashes(store, before):
        assert len(state) == len(before)
        found = Store(state).open()[0]
        assert same(found, old) or same(found, fresh)
        seen.add(same(found, old))
    assert seen == {True, False}


def test_after_a_failure_at_any_step_another_attempt_succeeds_and_all_that_was_there_is_lost(made: bytes) -> None:
    steps = len((probe := Store(made)).open()[1].replace() and probe.log)
    for step in range(steps):
        store = Store(made, fails_at=step)
        old, key = store.open()
        with pytest.raises(OSError, match="Input/output"):
            key.replace()
        Store(bytes(store.data)).open()  # a crash now would leave a disk that opens
        store.fails_at = 1 << 30
        failed_at = len(store.log)
        before = bytes(store.data)
        fresh = key.replace()
        assert same(store.open()[0], fresh)
        assert not same(old, fresh)
        again = Store(before)
        again.log = store.log[failed_at:]
        for state in crashes(again, before):
            Store(state).open()


WRONG: dict[str, Callable[[list[KeySlot]], tuple[int, int]]] = {  # slot, and its key_material_offset
    "inside the header": lambda _: (5, 1),
    "on another's": lambda slots: (5, slots[4].key_material_offset + 1),
    "behind the end": lambda _: (7, 1 << 20),
}


@pytest.mark.parametrize("kind", WRONG)
def test_slots_without_a_place_of_their_own_are_left_alone(made: bytes, kind: str) -> None:
    luks = Luks("x", Store(made).read)
    slot, offset = WRONG[kind](luks.slots)
    data = bytearray(made)
    at = Header.SIZE + slot * KeySlot.SIZE
    data[at : at + KeySlot.SIZE] = KeySlot(0x0000DEAD, 0, b"", offset, 40).pack()
    assert not Store(bytes(data)).open()[1].replaceable
    data[at : at + KeySlot.SIZE] = KeySlot(0x0000DEAD, 0, b"", luks.slots[slot].key_material_offset, 0).pack()
    assert not Store(bytes(data)).open()[1].replaceable
    assert len(data) > HEADER_BYTES


# ---- images --------------------------------------------------------------------------------------------


def image_of(path: Path, format: str) -> Path:
    """An empty disk that SECRET opens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("formats.luks._ITERATIONS", 1000)
        options = {"encrypt.format": "luks"} if format == "qcow2" else {}
        create_image(format, path, LENGTH, options=options, secret=SECRET)
    return path


@pytest.mark.parametrize("format", ["qcow2", "luks"])
def test_qemu_opens_the_disk_with_the_same_secret_and_finds_it_sound(tmp_path: Path, format: str) -> None:
    path = image_of(tmp_path / "disk", format)
    (image,) = open_chain(format, path, secrets=[SECRET])
    assert image.replaces_key
    image.replace_key()
    image.close()
    key = "key-secret=k" if format == "luks" else "encrypt.format=luks,encrypt.key-secret=k"
    options = f"driver={format},file.filename={path},{key}"
    secret = ("--object", f"secret,id=k,data={SECRET.decode()}")
    verbs = [("qemu-io", *secret, "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k", "--image-opts", options)]
    if format == "qcow2":
        verbs.append(("qemu-img", "check", *secret, "--image-opts", options))
    for verb in verbs:
        done = run(*verb)
        assert (done.returncode, "failed" in done.stdout) == (0, False), done.stdout + done.stderr


@pytest.mark.parametrize("format", ["qcow2", "luks"])
def test_an_image_that_is_read_only_or_not_unlocked_keeps_its_key(tmp_path: Path, format: str) -> None:
    path = image_of(tmp_path / "disk", format)
    (image,) = open_chain(format, path, read_only=True, secrets=[SECRET])
    assert not image.replaces_key
    image.close()
    if format == "qcow2":
        with Qcow2(HostFile.from_path(path)) as locked:
            assert not locked.replaces_key
            with pytest.raises(SecretNeeded, match="no key that was found"):
                locked.replace_key()


def test_an_image_with_a_snapshot_keeps_the_key_of_the_snapshot(tmp_path: Path) -> None:
    path = image_of(tmp_path / "disk", "qcow2")
    with Qcow2(HostFile.from_path(path)) as image:
        image.snapshots.take("one")
        image.unlock([SECRET])
        assert not image.replaces_key


def test_an_image_in_the_clear_has_no_key(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(LENGTH))
    with Raw(HostFile.from_path(tmp_path / "raw")) as image:
        assert not image.replaces_key
        with pytest.raises(UnsupportedFeature, match="have no key"):
            image.replace_key()
