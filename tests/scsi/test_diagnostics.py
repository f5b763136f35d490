import errno

import pytest

from tests.scsi.disks import with_log
from tests.scsi.initiator import MIB, NOT_STARTED, SHORT_DATA_OUT, Initiator
from vstore.scsi.commands import (
    ReadBuffer10,
    ReceiveDiagnosticResults,
    SecurityProtocolIn,
    SendDiagnostic,
    StartStopUnit,
    WriteBuffer,
)
from vstore.scsi.logical_unit import ResetCause

SIZE, ECHO = 65536, 4096
ENDS = [("read", 0, 512), ("read", MIB // 2, 512), ("read", MIB - 512, 512)]


# ---- self-tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cdb", [SendDiagnostic.build(selftest=1), SendDiagnostic.build(self_test_code=0b101, pf=1)])
def test_a_short_self_test_flushes_and_reads_both_ends_and_the_middle(cdb: bytes) -> None:
    initiator, medium = with_log()
    initiator.good(cdb)
    assert medium.calls == [("flush",), *ENDS]


def test_an_extended_self_test_reads_everything() -> None:
    initiator, medium = with_log()
    initiator.good(SendDiagnostic.build(self_test_code=0b110))
    assert medium.calls == [("flush",), *ENDS, ("read", 0, MIB)]


def test_a_read_only_unit_is_tested_without_flushing() -> None:
    initiator, medium = with_log(read_only=True)
    initiator.good(SendDiagnostic.build(selftest=1))
    assert medium.calls == ENDS


@pytest.mark.parametrize("call", ["flush", "read"])
def test_a_medium_that_fails_fails_the_self_test(call: str) -> None:
    initiator, medium = with_log()
    medium.errors[call] = errno.EIO
    assert initiator.check(SendDiagnostic.build(selftest=1)).code == (4, 0x3E, 0x03)


def test_nothing_is_done_when_nothing_is_asked_for() -> None:
    initiator, medium = with_log()
    initiator.good(SendDiagnostic.build(pf=1, devoffl=1, unitoffl=1))
    assert medium.calls == []


@pytest.mark.parametrize(("selftest", "code"), [(0, 3), (0, 4), (0, 7), (1, 1), (1, 4), (1, 5), (1, 6)])
def test_self_test_codes_that_name_no_test_are_refused(selftest: int, code: int) -> None:
    assert Initiator().refused(SendDiagnostic.build(selftest=selftest, self_test_code=code)) == (1, 7)


def test_diagnostic_pages_cannot_be_sent_and_a_stopped_unit_is_not_tested() -> None:
    initiator = Initiator()
    assert initiator.refused(bytes([0x1D, 0x10, 0, 0, 4, 0]), bytes(4)) == (3, 7)
    assert initiator.refused(bytes([0x1D, 0x08, 0, 0, 0, 0])) == (1, 3)
    initiator.good(StartStopUnit.build())
    assert initiator.check(SendDiagnostic.build(selftest=1)).code == NOT_STARTED


@pytest.mark.parametrize("length", range(8))
def test_the_only_diagnostic_page_is_the_list_of_them(length: int) -> None:
    cdb = ReceiveDiagnosticResults.build(pcv=1, allocation_length=length)
    assert Initiator().good(cdb) == bytes.fromhex("0000000100")[:length]


def test_other_diagnostic_pages_are_refused() -> None:
    assert Initiator().refused(ReceiveDiagnosticResults.build(pcv=1, page_code=0x40)) == (2, 7)
    assert Initiator().refused(ReceiveDiagnosticResults.build()) == (1, 0)


# ---- buffers -------------------------------------------------------------------------------------------


def test_the_commands_of_buffers_are_laid_out_as_spc_4_prints_them() -> None:
    cdb = WriteBuffer.build(mode=2, buffer_id=0x11, buffer_offset=0x223344, parameter_list_length=0x556677)
    assert cdb.hex(" ") == "3b 02 11 22 33 44 55 66 77 00"
    cdb = ReadBuffer10.build(mode=2, buffer_id=0x11, buffer_offset=0x223344, allocation_length=0x556677)
    assert cdb.hex(" ") == "3c 02 11 22 33 44 55 66 77 00"


def test_what_is_written_to_the_buffer_is_read_from_it_by_any_nexus() -> None:
    one = Initiator()
    other = Initiator(one.target)
    data = bytes(range(1, 255))
    one.good(WriteBuffer.build(mode=2, buffer_offset=100, parameter_list_length=254), data)
    one.good(WriteBuffer.build(mode=2, buffer_offset=SIZE - 4, parameter_list_length=4), b"last")
    other.good("00")
    assert other.good(ReadBuffer10.build(mode=2, buffer_offset=99, allocation_length=256)) == b"\0" + data + b"\0"
    assert other.good(ReadBuffer10.build(mode=2, buffer_offset=SIZE - 4, allocation_length=99)) == b"last"
    assert other.good(ReadBuffer10.build(mode=2, buffer_offset=SIZE, allocation_length=99)) == b""


def test_each_nexus_has_an_echo_buffer_of_its_own() -> None:
    one = Initiator()
    other = Initiator(one.target)
    assert one.check(ReadBuffer10.build(mode=0x0A, allocation_length=4)).code == (5, 0x2C, 0)
    one.good(WriteBuffer.build(mode=0x0A, parameter_list_length=ECHO), b"o" * ECHO)
    other.good(WriteBuffer.build(mode=0x0A, parameter_list_length=5), b"other")
    assert one.good(ReadBuffer10.build(mode=0x0A, allocation_length=0xFFFF)) == b"o" * ECHO
    assert other.good(ReadBuffer10.build(mode=0x0A, allocation_length=4)) == b"othe"


@pytest.mark.parametrize(
    ("mode", "id", "told"),
    [(0x03, 0, "00 010000"), (0x03, 1, "00 000000"), (0x0B, 0, "01 00 1000")],
)
def test_descriptors_tell_what_buffers_there_are(mode: int, id: int, told: str) -> None:
    cdb = ReadBuffer10.build(mode=mode, buffer_id=id, allocation_length=255)
    assert Initiator().good(cdb) == bytes.fromhex(told)


@pytest.mark.parametrize("mode", [0x00, 0x01, 0x03, 0x04, 0x05, 0x07, 0x0B, 0x0D, 0x1F])
def test_other_modes_of_write_buffer_are_refused(mode: int) -> None:
    assert Initiator().refused(WriteBuffer.build(mode=mode)) == (1, 4)


@pytest.mark.parametrize("mode", [0x00, 0x01, 0x04, 0x0C, 0x1C])
def test_other_modes_of_read_buffer_are_refused(mode: int) -> None:
    assert Initiator().refused(ReadBuffer10.build(mode=mode)) == (1, 4)


@pytest.mark.parametrize(
    ("mode", "values", "pointer"),
    [
        (2, {"buffer_id": 1}, (2, 7)),
        (2, {"buffer_offset": SIZE + 1}, (3, 7)),
        (2, {"parameter_list_length": SIZE + 1}, (6, 7)),
        (2, {"buffer_offset": SIZE, "parameter_list_length": 1}, (6, 7)),
        (10, {"parameter_list_length": ECHO + 1}, (6, 7)),
    ],
)
def test_what_lies_outside_of_a_buffer_is_refused(mode: int, values: dict[str, int], pointer: tuple[int, int]) -> None:
    assert Initiator().refused(WriteBuffer.build(mode=mode, **values), bytes(SIZE + 1)) == pointer
    if "parameter_list_length" not in values:
        assert Initiator().refused(ReadBuffer10.build(mode=mode, **values)) == pointer


def test_the_echo_buffer_has_neither_an_id_nor_an_offset() -> None:
    initiator = Initiator()
    ignored = {"buffer_id": 0xFF, "buffer_offset": 0xFFFFFF}
    initiator.good(WriteBuffer.build(mode=0x0A, parameter_list_length=4, **ignored), b"echo")
    assert initiator.good(ReadBuffer10.build(mode=0x0A, allocation_length=9, **ignored)) == b"echo"


def test_what_one_machine_wrote_to_the_buffer_is_gone_when_another_is_powered_on() -> None:
    initiator = Initiator()
    initiator.good(WriteBuffer.build(mode=2, parameter_list_length=6), b"secret")
    initiator.unit.reset(ResetCause.LOGICAL_UNIT_RESET)
    initiator.check("00")
    assert initiator.good(ReadBuffer10.build(mode=2, allocation_length=6)) == b"secret"
    initiator.good(WriteBuffer.build(mode=0x0A, parameter_list_length=4), b"echo")
    initiator.unit.reset(ResetCause.POWER_ON)
    initiator.check("00")
    assert initiator.good(ReadBuffer10.build(mode=2, allocation_length=6)) == bytes(6)
    assert initiator.check(ReadBuffer10.build(mode=0x0A, allocation_length=4)).code == (5, 0x2C, 0)


def test_a_buffer_is_not_written_without_its_data() -> None:
    cdb = WriteBuffer.build(mode=2, parameter_list_length=8)
    assert Initiator().check(cdb, bytes(7)).code == SHORT_DATA_OUT


# ---- security ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("specific", "told"), [(0, "000000000000000100"), (1, "00000000")])
def test_there_is_only_the_protocol_that_lists_protocols(specific: int, told: str) -> None:
    for length in range(12):
        cdb = SecurityProtocolIn.build(security_protocol_specific=specific, allocation_length=length)
        assert Initiator().good(cdb) == bytes.fromhex(told)[:length]


def test_other_security_protocols_are_refused() -> None:
    assert Initiator().refused(SecurityProtocolIn.build(security_protocol=1)) == (1, 7)
    assert Initiator().refused(SecurityProtocolIn.build(security_protocol_specific=2)) == (2, 7)
    assert Initiator().refused(bytes([0xA2, 0, 0, 0, 0x80, 0, 0, 0, 0, 1, 0, 0])) == (4, 7)
