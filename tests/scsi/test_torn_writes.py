"""An atomic write that failed and could not be undone: nobody meets half of it, and nothing of it comes back later."""

import errno
import json

from tests.scsi.examples import EXAMPLES, cdb_of
from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import Initiator, make_unit
from tests.scsi.test_atomic_writes import LoggedSection, ended, logged
from vstore.scsi.atomic_writes import SECTION
from vstore.scsi.commands import Read10, SanitizeBlockErase, Write10, WriteAtomic16
from vstore.scsi.kept_state import MemoryState
from vstore.scsi.task import Status


def torn(failing: str = "write") -> tuple[Initiator, FaultyMedium, LoggedSection]:
    """A part of an atomic write to the blocks 2 and 3 is there, and the host neither writes nor flushes any more."""
    initiator, medium, intents = logged()

    def half(data: bytes | bytearray | memoryview) -> None:
        medium.data[1024:1536] = data[:512]
        medium.errors[failing] = errno.EIO
        medium.on_write = lambda _: None
        raise OSError(errno.EIO, "the host fails")

    medium.on_write = half
    assert initiator.check(WriteAtomic16.build(lba=2, transfer_length=2), b"\x22" * 1024).code == (3, 0x0C, 0)
    return initiator, medium, intents


def test_what_is_torn_is_neither_read_nor_written_and_all_else_is() -> None:
    initiator, medium, intents = torn()
    gate = initiator.unit.fast_path(initiator.nexus)
    assert not gate.read
    assert not gate.write
    assert initiator.check(Read10.build(lba=3, transfer_length=1)).code == (3, 0x11, 0)
    assert initiator.check(Write10.build(lba=1, transfer_length=2), bytes(1024)).code == (3, 0x0C, 0)
    assert initiator.good(Read10.build(lba=4, transfer_length=1)) == b"\x11" * 512
    assert initiator.good(Read10.build(lba=0, transfer_length=2)) == b"\x11" * 1024
    assert len(json.loads(intents.load() or b"")) == 1
    medium.errors.clear()
    assert initiator.good(Read10.build(lba=2, transfer_length=2)) == b"\x11" * 1024
    assert json.loads(intents.load() or b"") == []
    assert initiator.unit.fast_path(initiator.nexus).write


def test_what_was_put_back_but_may_not_outlive_a_crash_is_read_and_not_written() -> None:
    initiator, medium, _ = torn("flush")
    assert initiator.good(Read10.build(lba=2, transfer_length=2)) == b"\x11" * 1024
    assert initiator.check(Write10.build(lba=2, transfer_length=1), b"\x33" * 512).code == (3, 0x0C, 0)
    medium.errors.clear()
    initiator.good(Write10.build(lba=2, transfer_length=1), b"\x33" * 512)
    assert medium.data[1024:2048] == b"\x33" * 512 + b"\x11" * 512


def test_a_write_that_waited_for_the_range_when_it_was_torn_stays() -> None:
    """By the data plane, which has the range next and is told to keep off only then."""
    initiator, medium, intents = torn()
    medium.data[1536:2048] = b"\x44" * 512
    medium.errors.clear()
    assert initiator.good(Read10.build(lba=2, transfer_length=2)) == b"\x11" * 512 + b"\x44" * 512
    assert json.loads(intents.load() or b"") == []


def test_what_cannot_be_read_again_stays_torn() -> None:
    initiator, medium, _ = torn()
    medium.errors = {"read": errno.EIO}
    assert initiator.check(Write10.build(lba=2, transfer_length=2), bytes(1024)).code == (3, 0x0C, 0)
    medium.errors.clear()
    assert initiator.good(Read10.build(lba=2, transfer_length=2)) == b"\x11" * 1024


def test_a_loss_of_power_before_it_is_undone_makes_all_of_it_new() -> None:
    _, medium, intents = torn()
    medium.errors.clear()
    state = MemoryState()
    state.sections[SECTION] = intents.load() or b""
    ended(make_unit(medium=medium, state=state).resume())
    assert medium.data[1024:2048] == b"\x22" * 1024


def test_what_others_write_after_it_was_undone_stays_after_a_loss_of_power() -> None:
    initiator, medium, intents = torn()
    medium.errors.clear()
    initiator.good(Write10.build(lba=2, transfer_length=1), b"\x22" * 512)  # as the atomic write would have left it
    state = MemoryState()
    state.sections[SECTION] = intents.load() or b""
    ended(make_unit(medium=medium, state=state).resume())
    assert medium.data[1024:2048] == b"\x22" * 512 + b"\x11" * 512


def test_a_copy_neither_reads_nor_writes_what_is_torn() -> None:
    initiator, medium, _ = torn()
    example = EXAMPLES["EXTENDED COPY (LID1)"]  # one block from 1 to 2
    assert initiator.check(cdb_of("EXTENDED COPY (LID1)"), example.data_out).code == (0xA, 0x0D, 0x01)
    medium.errors.clear()
    initiator.good(cdb_of("EXTENDED COPY (LID1)"), example.data_out)
    assert not initiator.unit.atomic_writes.torn


def test_an_erasure_begins_only_when_no_intent_can_bring_back_what_was_written() -> None:
    initiator, medium, intents = logged()

    def full(_: bytes | bytearray | memoryview) -> None:
        intents.error = errno.ENOSPC

    medium.on_write = full
    old_and_new = b"\x22" * 512 + bytes(512)  # zeros are old in one sector, and new in the other
    initiator.check(WriteAtomic16.build(transfer_length=2), old_and_new)
    medium.on_write = lambda _: None
    erase = SanitizeBlockErase.build()
    assert initiator.send(erase).status is not Status.GOOD
    assert medium.data[:1024] == old_and_new
    intents.error = 0
    initiator.good(erase)
    assert json.loads(intents.load() or b"") == []
