"""Frontend, GuestMemory, Vring and Transport against a back-end that is not ours: qemu-storage-daemon."""

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.client.blk_probe import SECTOR, BlkProbe
from tests.client.qemu import storage_daemon
from vstore.client.errors import BackendGone, BackendRefused
from vstore.client.frontend import KNOWN_PROTOCOL_FEATURES, ProtocolFeature
from vstore.client.memory import MIB
from vstore.client.transport import TransportSettings

_LENGTH = 4 * MIB
_BASE = TransportSettings(region_sizes=(8 * MIB,))
_SETTINGS = {
    "plain": replace(_BASE, indirect=False, event_index=False),
    "indirect": replace(_BASE, event_index=False),
    "event index": replace(_BASE, indirect=False),
    "both": _BASE,
    "small ring": replace(_BASE, queue_size=4),
    "regions apart": replace(_BASE, region_sizes=(MIB, MIB, 4 * MIB)),
    "regions in a row, inside their files": replace(
        _BASE, region_sizes=(MIB, MIB, 4 * MIB), region_gap=0, mmap_offset=MIB
    ),
    "one memory table": replace(
        _BASE,
        region_sizes=(MIB, 4 * MIB),
        protocol_features=KNOWN_PROTOCOL_FEATURES & ~ProtocolFeature.CONFIGURE_MEM_SLOTS,
    ),
    "no acknowledgements": replace(_BASE, protocol_features=KNOWN_PROTOCOL_FEATURES & ~ProtocolFeature.REPLY_ACK),
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(_LENGTH))
    return path


@pytest.fixture
def socket(tmp_path: Path, image: Path) -> Iterator[Path]:
    with storage_daemon(tmp_path, image, queues=2) as path:
        yield path


@pytest.mark.parametrize("settings", _SETTINGS.values(), ids=_SETTINGS.keys())
def test_what_is_written_is_in_the_file_and_is_read_back(
    socket: Path, image: Path, settings: TransportSettings
) -> None:
    data = random.Random(2).randbytes(64 * SECTOR)
    segment_bytes = 700 if settings.indirect else 1 << 20
    with BlkProbe(socket, settings, segment_bytes=segment_bytes) as probe:
        assert probe.read(8, 16 * SECTOR) == image.read_bytes()[8 * SECTOR : 24 * SECTOR]
        probe.write(100, data)
        probe.flush()
        assert image.read_bytes()[100 * SECTOR :][: len(data)] == data
        assert probe.read(100, len(data)) == data


@pytest.mark.parametrize("settings", _SETTINGS.values(), ids=_SETTINGS.keys())
def test_many_requests_in_flight_wrap_the_ring_and_each_gets_its_own_data(
    socket: Path, image: Path, settings: TransportSettings
) -> None:
    contents = image.read_bytes()
    choice = random.Random(3)
    with BlkProbe(socket, settings) as probe:
        in_flight = []
        for _ in range(2000):
            sector = choice.randrange(_LENGTH // SECTOR)
            in_flight.append((sector, probe.submit_read(sector, SECTOR)))
            if len(in_flight) == settings.queue_size // 4:
                sector, key = in_flight.pop(choice.randrange(len(in_flight)))
                assert probe.finish(key) == contents[sector * SECTOR :][:SECTOR]
        for sector, key in in_flight:
            assert probe.finish(key) == contents[sector * SECTOR :][:SECTOR]


def test_the_ring_index_wraps_past_65535(socket: Path, image: Path) -> None:
    first = image.read_bytes()[:SECTOR]
    with BlkProbe(socket, replace(_BASE, first_index=65535 - 100)) as probe:
        for _ in range(10):
            keys = [probe.submit(0, 0, room=SECTOR, publish=False) for _ in range(32)]
            probe.transport.publish(0)
            assert all(probe.finish(key) == first for key in keys)
        assert probe.transport.ring(0).base == 320 - 101
        assert probe.transport.stop() == [320 - 101]


def test_two_queues_serve_side_by_side(socket: Path, image: Path) -> None:
    contents = image.read_bytes()
    with BlkProbe(socket, _BASE, queues=2) as probe:
        keys = [(index, probe.submit_read(index, SECTOR, queue=index % 2)) for index in range(40)]
        for index, key in keys:
            assert probe.finish(key) == contents[index * SECTOR :][:SECTOR]


def test_buffers_that_cross_the_border_of_two_regions_are_served(socket: Path, image: Path) -> None:
    # Not indirect: libvhost-user counts the pieces of a cut buffer against the indirect table's length, and gives up.
    settings = replace(_BASE, region_sizes=(MIB, MIB), region_gap=0, indirect=False)
    with BlkProbe(socket, settings, segment_bytes=1 << 20) as probe:
        memory = probe.transport.memory
        border = memory.regions[1].guest_address
        room_before = memory.allocate(1)
        memory.release(room_before)
        filler = memory.allocate(border - room_before.address - 700)
        assert filler.end == border - 700
        data = probe.read(0, 4 * SECTOR)
        assert data == image.read_bytes()[: 4 * SECTOR]


def test_a_back_end_that_dies_is_gone_at_once_with_requests_in_flight(socket: Path) -> None:
    with BlkProbe(socket, _BASE) as probe:
        probe.read(0, SECTOR)
        process = _owner_of(socket)
        os.kill(process, signal.SIGSTOP)
        probe.submit_read(0, SECTOR)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(BackendGone, match=r"closed the connection|connection broke"):
            probe.transport.poll(10)
        with pytest.raises(BackendGone):
            probe.submit_read(0, SECTOR)


def test_more_queues_than_the_back_end_serves_are_refused_with_both_numbers(socket: Path) -> None:
    with pytest.raises(BackendRefused, match="serves 2 virtqueues and 3 are needed"):
        BlkProbe(socket, _BASE, queues=3)


def test_a_second_connection_works_after_the_first_was_closed(socket: Path, image: Path) -> None:
    for _ in range(3):
        with BlkProbe(socket, _BASE) as probe:
            assert probe.read(0, SECTOR) == image.read_bytes()[:SECTOR]


def test_closing_leaks_no_descriptor(socket: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with BlkProbe(socket, replace(_BASE, region_sizes=(MIB, MIB)), queues=2) as probe:
        probe.read(0, SECTOR)
    with pytest.raises(BackendRefused):
        BlkProbe(socket, _BASE, queues=3)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_socket_without_a_back_end_is_gone_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(BackendGone, match=r"nobody\.sock: No such file"):
        BlkProbe(tmp_path / "nobody.sock", _BASE)


def _owner_of(socket: Path) -> int:
    """The process that was started with this socket in its arguments."""
    for entry in Path("/proc").glob("[0-9]*"):
        arguments = entry.joinpath("cmdline").read_bytes() if entry.joinpath("cmdline").exists() else b""
        if arguments.startswith(b"qemu-storage-daemon") and bytes(socket) in arguments:
            return int(entry.name)
    raise AssertionError(f"no process exports {socket}")
