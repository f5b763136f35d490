"""Handlers of SEND and RECEIVE DIAGNOSTIC, READ and WRITE BUFFER, and SECURITY PROTOCOL IN (SPC-4 clause 6).

A self-test really tests: the default and the short one flush the cache and read the first, the middle and the last
block; the extended one reads them all. All but the default one are logged (self_test.py).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from vstore.scsi.block_range import pieces
from vstore.scsi.buffers import BUFFER_BYTES, ECHO_BYTES
from vstore.scsi.cdb import Access
from vstore.scsi.commands import ReadBuffer10, ReceiveDiagnosticResults, SecurityProtocolIn, SendDiagnostic, WriteBuffer
from vstore.scsi.device_server import Handlers, sense_of
from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.pages import BufferDescriptor, EchoBufferDescriptor
from vstore.scsi.self_test import NO_ADDRESS, Ended, Segment, SelfTest
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense, SenseKey
from vstore.scsi.task import Task

# ---- self-tests ----------------------------------------------------------------------------------------

_FAILED = Sense(SenseKey.HARDWARE_ERROR, AdditionalSense.LOGICAL_UNIT_FAILED_SELF_TEST)
_ABORT_BACKGROUND = 0b100


class _Kind(NamedTuple):
    extended: bool
    background: bool = False
    logged: bool = True


_DEFAULT = _Kind(extended=False, logged=False)
# SELF-TEST CODE (SPC-4 table 239).
_KINDS: Mapping[int, _Kind] = {
    0b001: _Kind(extended=False, background=True),
    0b010: _Kind(extended=True, background=True),
    0b101: _Kind(extended=False),
    0b110: _Kind(extended=True),
}


async def send_diagnostic(unit: DirectAccessDevice, cdb: SendDiagnostic, _: Task) -> bytes:
    """A background test ends after its command; there is one test at a time (SPC-4 5.13.4)."""
    code, running = cdb.self_test_code, unit.self_tests.running
    if not (cdb.selftest or code):
        return b""  # nothing is asked for
    if code == _ABORT_BACKGROUND and not cdb.selftest:
        if running is None or not running.background:
            raise cdb.invalid(SendDiagnostic.self_test_code)
        running.end(Ended.ABORTED_BY_SEND_DIAGNOSTIC)
        return b""
    kind = _DEFAULT if cdb.selftest and not code else None if cdb.selftest else _KINDS.get(code)
    if kind is None:
        raise cdb.invalid(SendDiagnostic.self_test_code)
    if running:
        raise CheckCondition(running.told)
    test = _begun(unit, code, kind)
    if kind.background:
        await unit.in_background(_test(unit, test, kind))
        return b""
    await _test(unit, test, kind)
    if test.result is not Ended.PASSED:
        raise CheckCondition(_FAILED)
    return b""


def _begun(unit: DirectAccessDevice, code: int, kind: _Kind) -> SelfTest:
    total = unit.blocks * unit.logical_block_length if kind.extended else 3 * unit.logical_block_length
    test = SelfTest(code, min(unit.statistics.minutes // 60, 0xFFFF), total, kind.background)
    if kind.logged:
        unit.self_tests.begin(test)
    return test


async def _test(unit: DirectAccessDevice, test: SelfTest, kind: _Kind) -> None:
    """Ends as it must also when its command is aborted."""
    try:
        for segment, offset, length in _steps(unit, kind):
            if not test.running:
                return
            await _step(unit, test, segment, offset, length)
        test.end(Ended.PASSED)
    finally:
        test.end(Ended.ABORTED_OTHERWISE)


def _steps(unit: DirectAccessDevice, kind: _Kind) -> Iterator[tuple[Segment, int, int]]:
    """(segment, offset, length) of what is read; a length of zero: the cache is flushed."""
    size = unit.logical_block_length
    yield Segment.CACHE, 0, 0
    for lba in sorted({0, unit.blocks // 2, unit.blocks - 1}):
        yield Segment.ENDS, lba * size, size
    if kind.extended:
        for offset, length in pieces(unit, 0, unit.blocks):
            yield Segment.MEDIUM, offset, length


async def _step(unit: DirectAccessDevice, test: SelfTest, segment: Segment, offset: int, length: int) -> None:
    try:
        if length:
            await unit.medium.read(offset, length)
            test.done += length
        elif not unit.read_only:
            await unit.medium.flush()
    except OSError as error:
        address = offset // unit.logical_block_length if length else NO_ADDRESS
        test.fail(segment, address, sense_of(error, Access.READ if length else Access.FLUSH))


_SUPPORTED_PAGES = bytes([0x00, 0x00, 0x00, 0x01, 0x00])


async def receive_diagnostic_results(_: DirectAccessDevice, cdb: ReceiveDiagnosticResults, __: Task) -> bytes:
    """The one page there is: which there are (SPC-4 7.2.3). No results wait for anyone without PCV."""
    if not cdb.pcv:
        raise cdb.invalid(ReceiveDiagnosticResults.pcv)
    if cdb.page_code:
        raise cdb.invalid(ReceiveDiagnosticResults.page_code)
    return _SUPPORTED_PAGES


# ---- buffers -------------------------------------------------------------------------------------------

_DATA, _DESCRIPTOR, _ECHO, _ECHO_DESCRIPTOR = 0x02, 0x03, 0x0A, 0x0B


def _check_buffer(cdb: WriteBuffer | ReadBuffer10) -> None:
    """In the echo modes both fields are ignored."""
    if cdb.buffer_id:
        raise cdb.invalid_field("buffer_id")
    if cdb.buffer_offset > BUFFER_BYTES:
        raise cdb.invalid_field("buffer_offset")


async def write_buffer(unit: DirectAccessDevice, cdb: WriteBuffer, task: Task) -> bytes:
    """Data, and echo; there is no microcode to be downloaded."""
    write = _WRITES.get(cdb.mode)
    if write is None:
        raise cdb.invalid(WriteBuffer.mode)
    write(unit, cdb, task)
    return b""


def _write_data(unit: DirectAccessDevice, cdb: WriteBuffer, task: Task) -> None:
    _check_buffer(cdb)
    start, end = cdb.buffer_offset, cdb.buffer_offset + cdb.parameter_list_length
    if end > BUFFER_BYTES:
        raise cdb.invalid(WriteBuffer.parameter_list_length)
    unit.buffers.data[start:end] = task.fetch(end - start)


def _write_echo(unit: DirectAccessDevice, cdb: WriteBuffer, task: Task) -> None:
    if cdb.parameter_list_length > ECHO_BYTES:
        raise cdb.invalid(WriteBuffer.parameter_list_length)
    unit.buffers.echo[task.nexus] = task.fetch(cdb.parameter_list_length)


async def read_buffer(unit: DirectAccessDevice, cdb: ReadBuffer10, task: Task) -> bytes:
    read = _READS.get(cdb.mode)
    if read is None:
        raise cdb.invalid(ReadBuffer10.mode)
    return read(unit, cdb, task)


def _read_data(unit: DirectAccessDevice, cdb: ReadBuffer10, _: Task) -> bytes:
    _check_buffer(cdb)
    return bytes(unit.buffers.data[cdb.buffer_offset : cdb.buffer_offset + cdb.allocation_length])


def _read_descriptor(_: DirectAccessDevice, cdb: ReadBuffer10, __: Task) -> bytes:
    """Any offset is possible; of a buffer that is not there all is zero."""
    return BufferDescriptor.of(buffer_capacity=0 if cdb.buffer_id else BUFFER_BYTES).encode()


def _read_echo(unit: DirectAccessDevice, _: ReadBuffer10, task: Task) -> bytes:
    """What this nexus wrote last."""
    data = unit.buffers.echo.get(task.nexus)
    if data is None:
        raise CheckCondition(Sense.illegal(AdditionalSense.COMMAND_SEQUENCE_ERROR))
    return data


def _read_echo_descriptor(_: DirectAccessDevice, __: ReadBuffer10, ___: Task) -> bytes:
    """EBOS: no other nexus writes over it."""
    high, low = divmod(ECHO_BYTES, 256)
    return EchoBufferDescriptor.of(ebos=1, buffer_capacity=high, buffer_capacity_low=low).encode()


_WRITES: Mapping[int, Callable[[DirectAccessDevice, WriteBuffer, Task], None]] = {
    _DATA: _write_data,
    _ECHO: _write_echo,
}
_READS: Mapping[int, Callable[[DirectAccessDevice, ReadBuffer10, Task], bytes]] = {
    _DATA: _read_data,
    _DESCRIPTOR: _read_descriptor,
    _ECHO: _read_echo,
    _ECHO_DESCRIPTOR: _read_echo_descriptor,
}

# ---- security ------------------------------------------------------------------------------------------

# SECURITY PROTOCOL SPECIFIC of protocol 00h: the list of protocols, which is this one; a certificate, which is empty.
_SECURITY_INFORMATION = {0x0000: bytes.fromhex("000000000000 0001 00"), 0x0001: bytes.fromhex("0000 0000")}


async def security_protocol_in(_: DirectAccessDevice, cdb: SecurityProtocolIn, __: Task) -> bytes:
    """SPC-4 7.7.1."""
    if cdb.security_protocol:
        raise cdb.invalid(SecurityProtocolIn.security_protocol)
    information = _SECURITY_INFORMATION.get(cdb.security_protocol_specific)
    if information is None:
        raise cdb.invalid(SecurityProtocolIn.security_protocol_specific)
    return information


HANDLERS: Handlers = {
    ReceiveDiagnosticResults: receive_diagnostic_results,
    SendDiagnostic: send_diagnostic,
    WriteBuffer: write_buffer,
    ReadBuffer10: read_buffer,
    SecurityProtocolIn: security_protocol_in,
}
