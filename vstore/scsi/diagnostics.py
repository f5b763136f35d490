"""Handlers of SEND and RECEIVE DIAGNOSTIC, READ and WRITE BUFFER, and SECURITY PROTOCOL IN (SPC-4 clause 6).

A self-test really tests: the default and the short one flush the cache and read the first, the middle and the last
block; the extended one reads them all.
"""

from collections.abc import Awaitable, Callable, Mapping

from vstore.scsi.block_range import pieces
from vstore.scsi.buffers import BUFFER_BYTES, ECHO_BYTES
from vstore.scsi.commands import ReadBuffer10, ReceiveDiagnosticResults, SecurityProtocolIn, SendDiagnostic, WriteBuffer
from vstore.scsi.device_server import Handlers
from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.pages import BufferDescriptor, EchoBufferDescriptor
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense, SenseKey
from vstore.scsi.task import Task

# ---- self-tests ----------------------------------------------------------------------------------------

_FAILED = Sense(SenseKey.HARDWARE_ERROR, AdditionalSense.LOGICAL_UNIT_FAILED_SELF_TEST)


async def _short_test(unit: DirectAccessDevice) -> None:
    if not unit.read_only:
        await unit.medium.flush()
    size = unit.logical_block_length
    for lba in sorted({0, unit.blocks // 2, unit.blocks - 1}):
        await unit.medium.read(lba * size, size)


async def _extended_test(unit: DirectAccessDevice) -> None:
    await _short_test(unit)
    for offset, length in pieces(unit, 0, unit.blocks):
        await unit.medium.read(offset, length)


# SELFTEST, SELF-TEST CODE: those in the background need a log of their results, and there is none yet.
_TESTS: Mapping[tuple[int, int], Callable[[DirectAccessDevice], Awaitable[None]]] = {
    (1, 0b000): _short_test,
    (0, 0b101): _short_test,
    (0, 0b110): _extended_test,
}


async def send_diagnostic(unit: DirectAccessDevice, cdb: SendDiagnostic, _: Task) -> bytes:
    if not (cdb.selftest or cdb.self_test_code):
        return b""  # nothing is asked for
    test = _TESTS.get((cdb.selftest, cdb.self_test_code))
    if test is None:
        raise cdb.invalid(SendDiagnostic.self_test_code)
    try:
        await test(unit)
    except OSError as error:
        raise CheckCondition(_FAILED) from error
    return b""


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
