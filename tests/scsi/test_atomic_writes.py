import errno
import itertools
import json
import logging
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import (
    INVALID_OPCODE,
    LBA_OUT_OF_RANGE,
    MIB,
    SHORT_DATA_OUT,
    WRITE_PROTECTED,
    Initiator,
    make_unit,
)
from vstore.scsi.atomic_writes import MAXIMUM_ATOMIC_BYTES, SECTION, AtomicWrites
from vstore.scsi.commands import Inquiry, WriteAtomic16
from vstore.scsi.kept_state import MemorySection, MemoryState, StateLost
from vstore.scsi.task import Status

BLOCKS = MIB // 512
MOST = MAXIMUM_ATOMIC_BYTES // 512


def ended(work: Coroutine[Any, Any, None]) -> None:
    with pytest.raises(StopIteration):
        work.send(None)


class LoggedSection(MemorySection):
    """Tells of its saves in the medium's log, and fails when told to."""

    def __init__(self, medium: FaultyMedium) -> None:
        super().__init__({}, SECTION)
        self.medium = medium
        self.error = 0

    def save_blocking(self, data: bytes) -> None:
        self.medium.calls.append(("intents", len(json.loads(data))))
        if self.error:
            raise OSError(self.error, "state")
        super().save_blocking(data)


class LoggedState(MemoryState):
    def __init__(self, medium: FaultyMedium) -> None:
        super().__init__()
        self.intents = LoggedSection(medium)

    def section(self, name: str) -> MemorySection:
        return self.intents if name == SECTION else super().section(name)


def logged() -> tuple[Initiator, FaultyMedium, LoggedSection]:
    medium = FaultyMedium()
    medium.data[:] = b"\x11" * MIB
    state = LoggedState(medium)
    return Initiator(make_unit(medium=medium, state=state)), medium, state.intents


def atomic(**settings: Any) -> Initiator:
    return Initiator(make_unit(state=MemoryState(), **settings))


# ---- the command ---------------------------------------------------------------------------------------


def test_write_atomic_is_laid_out_as_sbc_4_prints_it() -> None:
    cdb = WriteAtomic16.build(
        lba=0x0102030405060708, atomic_boundary=0x1112, transfer_length=0x2122, fua=1, dpo=1, group_number=0x3F
    )
    assert cdb.hex(" ") == "9c 18 01 02 03 04 05 06 07 08 11 12 21 22 3f 00"


@pytest.mark.parametrize("size", [512, 4096])
@pytest.mark.parametrize("boundary", [0, 1, 3])
def test_blocks_are_written_with_and_without_a_boundary(size: int, boundary: int) -> None:
    initiator = atomic(logical_block_length=size)
    cdb = WriteAtomic16.build(lba=3, transfer_length=2, atomic_boundary=boundary)
    response = initiator.send(cdb, b"\xa5" * 3 * size)
    assert (response.status, response.data_out_used) == (Status.GOOD, 2 * size)
    assert initiator.data == bytes(3 * size) + b"\xa5" * 2 * size + bytes(MIB - 5 * size)


@pytest.mark.parametrize("size", [512, 4096])
def test_the_block_limits_tell_how_much_is_written_at_once(size: int) -> None:
    initiator = atomic(logical_block_length=size)
    page = initiator.good(Inquiry.build(evpd=1, page_code=0xB0, allocation_length=64))
    fields = [int.from_bytes(page[at : at + 4]) for at in range(44, 64, 4)]
    most = MAXIMUM_ATOMIC_BYTES // size
    assert fields == [most, 0, 0, most, most]  # no alignment, no granularity
    for boundary in (0, most):
        cdb = WriteAtomic16.build(lba=1, transfer_length=most, atomic_boundary=boundary)
        initiator.good(cdb, b"\7" * MAXIMUM_ATOMIC_BYTES)
    assert initiator.refused(WriteAtomic16.build(transfer_length=most + 1)) == (12, 7)
    assert initiator.refused(WriteAtomic16.build(transfer_length=most + 1, atomic_boundary=1)) == (12, 7)
    assert initiator.refused(WriteAtomic16.build(transfer_length=1, atomic_boundary=most + 1)) == (10, 7)


def test_a_unit_that_keeps_nothing_promises_nothing_atomic() -> None:
    initiator = Initiator()
    page = initiator.good(Inquiry.build(evpd=1, page_code=0xB0, allocation_length=64))
    assert not any(page[44:64])
    assert initiator.check(WriteAtomic16.build(transfer_length=1), bytes(512)).code == INVALID_OPCODE
    assert initiator.good("a3 0c 01 9c 0000 00000100 00 00")[1] & 7 == 1  # not supported


def test_an_encrypted_disk_writes_nothing_atomically_because_its_bytes_would_lie_beside_it_in_clear() -> None:
    medium = FaultyMedium()
    medium.encrypted = True
    initiator = Initiator(make_unit(medium=medium, state=MemoryState()))
    assert initiator.check(WriteAtomic16.build(transfer_length=1), b"s" * 512).code == (5, 0x20, 0)
    assert initiator.unit.maximum_atomic == 0


def test_a_read_only_unit_is_write_protected_and_promises_nothing() -> None:
    initiator = atomic(read_only=True)
    assert initiator.check(WriteAtomic16.build(), bytes(512)).code == WRITE_PROTECTED
    page = initiator.good(Inquiry.build(evpd=1, page_code=0xB0, allocation_length=64))
    assert not any(page[44:64])


@pytest.mark.parametrize(
    ("lba", "count", "told"), [(BLOCKS - 1, 2, BLOCKS), (BLOCKS, 1, BLOCKS), ((1 << 64) - 1, MOST, None)]
)
def test_the_range_is_checked(lba: int, count: int, told: int | None) -> None:
    sense = atomic().check(WriteAtomic16.build(lba=lba, transfer_length=count), bytes(MAXIMUM_ATOMIC_BYTES))
    assert (sense.code, sense.information) == (LBA_OUT_OF_RANGE, told)


@pytest.mark.parametrize(("bits", "pointer"), [(0x20, (1, 7)), (0xE0, (1, 7)), (0x04, (1, 2)), (0x01, (1, 0))])
def test_protection_and_reserved_bits_are_refused(bits: int, pointer: tuple[int, int]) -> None:
    cdb = bytearray(WriteAtomic16.build(transfer_length=1))
    cdb[1] |= bits
    assert atomic().refused(bytes(cdb), bytes(512)) == pointer
    for byte, bit in ((14, 7), (14, 6), (15, 2)):
        cdb = bytearray(WriteAtomic16.build(transfer_length=1))
        cdb[byte] = 1 << bit
        assert atomic().refused(bytes(cdb), bytes(512)) == (byte, bit)


def test_too_little_data_writes_nothing_and_no_blocks_need_none() -> None:
    initiator, medium, _ = logged()
    assert initiator.check(WriteAtomic16.build(transfer_length=2), bytes(1023)).code == SHORT_DATA_OUT
    initiator.good(WriteAtomic16.build(lba=BLOCKS))
    assert medium.calls == []


# ---- all or nothing ------------------------------------------------------------------------------------


def test_an_intent_is_durable_before_a_block_changes_and_gone_before_the_end_is_told() -> None:
    initiator, medium, _ = logged()
    initiator.good(WriteAtomic16.build(lba=2, transfer_length=2), b"\x22" * 1024)
    assert medium.calls == [("read", 1024, 1024), ("intents", 1), ("write", 1024, 1024), ("flush",), ("intents", 0)]


@pytest.mark.parametrize(
    ("call", "number", "told"),
    [
        ("read", errno.EIO, (3, 0x11, 0)),
        ("write", errno.EIO, (3, 0x0C, 0)),
        ("write", errno.ENOSPC, (7, 0x27, 7)),
        ("flush", errno.EIO, (3, 0x0C, 0)),
    ],
)
def test_an_error_of_the_medium_is_told(call: str, number: int, told: tuple[int, int, int]) -> None:
    initiator, medium, _ = logged()
    medium.errors[call] = number
    assert initiator.check(WriteAtomic16.build(transfer_length=1), b"\x22" * 512).code == told


def test_without_room_for_the_intent_nothing_is_written() -> None:
    initiator, medium, intents = logged()
    intents.error = errno.ENOSPC
    assert initiator.check(WriteAtomic16.build(transfer_length=1), b"\x22" * 512).code == (7, 0x27, 7)
    assert medium.data == b"\x11" * MIB


def test_a_write_that_fails_half_way_is_undone() -> None:
    initiator, medium, intents = logged()

    def half(data: bytes | bytearray | memoryview) -> None:
        if data[0] == 0x22:
            medium.data[1024:1536] = data[:512]
            raise OSError(errno.ENOSPC, "full")

    medium.on_write = half
    assert initiator.check(WriteAtomic16.build(lba=2, transfer_length=2), b"\x22" * 1024).code == (7, 0x27, 7)
    assert medium.data == b"\x11" * MIB
    assert json.loads(intents.load() or b"") == []


@pytest.mark.parametrize("settled_by", ["another write", "the end of the unit"])
def test_a_write_whose_end_could_not_be_kept_does_not_undo_what_is_written_there_later(settled_by: str) -> None:
    initiator, medium, intents = logged()

    def full(_: bytes | bytearray | memoryview) -> None:
        intents.error = errno.ENOSPC

    medium.on_write = full
    assert initiator.check(WriteAtomic16.build(transfer_length=2), b"\x22" * 1024).code == (7, 0x27, 7)
    medium.on_write, intents.error = lambda _: None, 0
    medium.data[:512] = b"\x11" * 512  # a plain write, of what had been there before
    if settled_by == "another write":
        assert initiator.send(WriteAtomic16.build(lba=8, transfer_length=1), b"\x33" * 512).status is Status.GOOD
    else:
        ended(initiator.unit.settle())
    ended(AtomicWrites(MemorySection(intents._sections, SECTION)).heal(medium))
    assert medium.data[:1024] == b"\x11" * 512 + b"\x22" * 512


class PowerLost(BaseException):
    pass


class Losing:
    """Counts the steps down to a loss of power; of the write that meets it, any sectors may have reached the medium."""

    def __init__(self, steps: int, rng: random.Random) -> None:
        self.left, self.rng = steps, rng

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise PowerLost


class LosingMedium(FaultyMedium):
    """Its bytes are what a loss of power leaves: a write is there, or parts of it are, before the flush."""

    losing: Losing

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        try:
            self.losing.step()
        except PowerLost:
            for at in range(0, len(data), 512):
                if self.losing.rng.getrandbits(1):
                    self.data[offset + at : offset + at + 512] = data[at : at + 512]
            raise
        await super().write(offset, data)

    async def flush(self) -> None:
        self.losing.step()


class LosingSection(MemorySection):
    losing: Losing

    def save_blocking(self, data: bytes) -> None:
        """What the power is lost in may have been saved all the same, as a whole: a state has two slots."""
        try:
            self.losing.step()
        except PowerLost:
            if self.losing.rng.getrandbits(1):
                super().save_blocking(data)
            raise
        super().save_blocking(data)


@pytest.mark.parametrize("seed", range(60))
def test_a_loss_of_power_at_any_step_also_while_healing_leaves_all_or_nothing(seed: int) -> None:
    rng = random.Random(seed)
    medium, section = LosingMedium(64 << 10), LosingSection({}, SECTION)
    old, new = (rng.randbytes(512 * 24) for _ in range(2))
    new = old[: 512 * 4] + new[512 * 4 :]  # some of it is as it was
    medium.data[1024 : 1024 + len(old)] = old
    around = bytes(medium.data[:1024]), bytes(medium.data[1024 + len(old) :])
    for steps in itertools.count():
        medium.losing = section.losing = Losing(steps, rng)
        medium.data[1024 : 1024 + len(old)] = old
        try:
            ended(AtomicWrites(section).write(medium, 1024, new))
        except PowerLost:
            for healing in range(3):  # the power is lost while it is healed, too
                medium.losing = section.losing = Losing(healing if healing < 2 else 1000, rng)
                try:
                    ended(AtomicWrites(section).heal(medium))
                except PowerLost:
                    continue
            assert bytes(medium.data[1024 : 1024 + len(old)]) in (old, new)
            assert (bytes(medium.data[:1024]), bytes(medium.data[1024 + len(old) :])) == around
            assert json.loads(section.load() or b"[]") == []
        else:
            assert bytes(medium.data[1024 : 1024 + len(old)]) == new
            assert steps == 4
            return


# ---- healing -------------------------------------------------------------------------------------------


def intended(old: bytes, new: bytes, offset: int = 0) -> MemoryState:
    """The state after a loss of power right after the intent was saved."""
    state, medium = MemoryState(), LosingMedium(MIB)
    section = LosingSection(state.sections, SECTION)
    medium.data[offset : offset + len(old)] = old
    medium.losing = section.losing = Losing(1, random.Random(1))
    with pytest.raises(PowerLost):
        ended(AtomicWrites(section).write(medium, offset, new))
    return state


def test_what_was_broken_off_is_completed_before_the_unit_is_served() -> None:
    old, new = b"\x11" * 1536, b"\x22" * 1536
    medium = FaultyMedium()
    medium.data[4096:5632] = new[:512] + old[:512] + new[:512]
    unit = make_unit(medium=medium, state=intended(old, new, 4096))
    ended(unit.resume())
    assert medium.data[4096:5632] == new
    medium.calls.clear()
    ended(unit.resume())
    assert medium.calls == []


def test_what_others_wrote_since_stays(caplog: pytest.LogCaptureFixture) -> None:
    old, new = b"\x11" * 1536, b"\x22" * 1536
    medium = FaultyMedium()
    found = new[:512] + old[:512] + b"\x33" * 512
    medium.data[:1536] = found
    with caplog.at_level(logging.WARNING):
        ended(make_unit(medium=medium, state=intended(old, new)).resume())
    assert medium.data[:1536] == found
    assert "others wrote there since" in caplog.text


@pytest.mark.parametrize("byte", [0x11, 0x22])
def test_what_is_whole_is_not_written_again(byte: int) -> None:
    medium = FaultyMedium()
    medium.data[:1024] = bytes([byte]) * 1024
    ended(make_unit(medium=medium, state=intended(b"\x11" * 1024, b"\x22" * 1024)).resume())
    assert medium.calls == [("read", 0, 1024), ("flush",)]


def test_an_intent_behind_the_end_of_a_disk_that_was_made_shorter_is_dropped() -> None:
    medium = FaultyMedium(4096)
    state = intended(b"\x11" * 1024, b"\x22" * 1024, 8192)
    ended(make_unit(medium=medium, state=state).resume())
    assert medium.calls == [("flush",)]
    assert json.loads(state.sections[SECTION]) == []


def test_a_unit_whose_medium_fails_tries_again_at_the_next_power_on() -> None:
    medium = FaultyMedium()
    state = intended(b"\x11" * 1024, b"\x22" * 1024)
    medium.data[:1024] = b"\x11" * 512 + b"\x22" * 512
    medium.errors["write"] = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        make_unit(medium=medium, state=state).resume().send(None)
    del medium.errors["write"]
    ended(make_unit(medium=medium, state=state).resume())
    assert medium.data[:1024] == b"\x22" * 1024


@pytest.mark.parametrize("data", [b"[", b'[{"offset": 0}]', b'[{"offset": 0, "new": "AAAA", "old": [1]}]', None])
def test_intents_that_cannot_be_read_are_none_and_are_logged(
    data: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    class Lost(MemorySection):
        def load(self) -> bytes | None:
            raise StateLost

    section = MemorySection({SECTION: data}, SECTION) if data else Lost({}, SECTION)
    with caplog.at_level(logging.ERROR):
        atomic_writes = AtomicWrites(section)
    ended(atomic_writes.heal(FaultyMedium()))
    assert "cannot be read any more" in caplog.text


@pytest.mark.parametrize("broken", [False, True])
def test_a_read_only_medium_is_served_if_all_is_whole_and_refused_with_the_way_out_if_not(*, broken: bool) -> None:
    state = intended(b"\x11" * 1024, b"\x22" * 1024)
    kept = state.sections[SECTION]
    medium = FaultyMedium(read_only=True)
    medium.data[:1024] = b"\x11" * 512 + (b"\x22" if broken else b"\x11") * 512
    resuming = make_unit(medium=medium, state=state, read_only=True).resume()
    if broken:
        with pytest.raises(OSError, match="map it writable once") as caught:
            resuming.send(None)
        assert caught.value.errno == errno.EROFS
    else:
        ended(resuming)
    assert medium.calls == [("read", 0, 1024)]
    assert state.sections[SECTION] == kept
    medium.read_only = False
    ended(make_unit(medium=medium, state=state, read_only=True).resume())
    assert medium.data[:1024] == (b"\x22" if broken else b"\x11") * 1024
