"""Snapshots of a LUN in use, over the control channel: taken, listed, forgotten, while the guest's commands go on."""

import json
import threading
from pathlib import Path

import pytest

from formats.registry import create_image
from tests.formats.reference import qemu_io, run
from tests.target.conftest import MIB, Running, request
from tests.target.guest import read_10, refusal, settle, write_10
from vstore.target.errors import ErrorCode
from vstore.target.verbs import ImageSource


@pytest.fixture
def image(target: Running, tmp_path: Path) -> Path:
    """Mapped as LUN 0."""
    path = tmp_path / "disk.qcow2"
    create_image("qcow2", path, 64 * MIB)
    target.map_file(path, image=ImageSource(format="qcow2", name="disk"))
    target.configure()
    return path


def test_a_snapshot_keeps_what_was_written_before_and_the_disk_goes_on(target: Running, image: Path) -> None:
    with target.device() as device:
        settle(device)
        write_10(device, 0, b"\1" * 4096)
        made = target.client.create_snapshot(0, "before")
        write_10(device, 4, b"\2" * 4096)
        assert read_10(device, 0, 12) == b"\1" * 2048 + b"\2" * 4096
        assert [row.name for row in target.client.snapshots(0)] == ["before"]
    assert made.pause_us is not None
    assert made.snapshots[0].created > 0
    target.client.stop()
    assert run("qemu-img", "check", image).returncode == 0
    qemu_io("qcow2", image, "read -P 1 0 2k", "read -P 2 2k 4k")
    told = json.loads(run("qemu-img", "info", "--output=json", image).stdout)["snapshots"]
    assert [(row["id"], row["name"]) for row in told] == [(made.snapshots[0].id, "before")]
    assert run("qemu-img", "snapshot", "-a", "before", image).returncode == 0
    qemu_io("qcow2", image, "read -P 1 0 4k", "read -P 0 4k 4k")


def test_a_snapshot_that_is_deleted_leaves_nothing_behind(target: Running, image: Path) -> None:
    with target.device() as device:
        settle(device)
        for number in range(3):
            write_10(device, 0, bytes([number + 1]) * 4096)
            target.client.create_snapshot(0, f"s{number}")
        left = target.client.delete_snapshot(0, "s1")
        assert ([row.name for row in left.snapshots], left.pause_us) == (["s0", "s2"], None)
        left = target.client.delete_snapshot(0, left.snapshots[0].id)
        assert [row.name for row in left.snapshots] == ["s2"]
        assert read_10(device, 0) == b"\3" * 512
    target.client.stop()
    assert run("qemu-img", "check", image).returncode == 0


def test_commands_that_run_are_not_disturbed(target: Running, image: Path) -> None:
    """Every write is answered GOOD, with no unit attention, and each is there afterwards."""
    with target.device() as device:
        settle(device)
        ended, written = threading.Event(), 0

        def snapshots() -> None:
            for number in range(5):
                target.client.create_snapshot(0, f"s{number}")
            ended.set()

        taking = threading.Thread(target=snapshots)
        taking.start()
        while not ended.is_set() or written < 64:
            at = written % 64
            write_10(device, at * 128, written.to_bytes(4, "big") * 128)
            assert read_10(device, at * 128) == written.to_bytes(4, "big") * 128
            written += 1
        taking.join()
        last = {at: max(n for n in range(written) if n % 64 == at) for at in range(64)}
        for at, number in last.items():
            assert read_10(device, at * 128) == number.to_bytes(4, "big") * 128
    target.client.stop()
    assert run("qemu-img", "check", image).returncode == 0


def test_what_cannot_be_done_is_refused(target: Running, image: Path, disk: Path) -> None:
    client = target.client
    target.map_file(disk, lun=1)
    for call, code, sentence in (
        (lambda: client.create_snapshot(1, "x"), ErrorCode.IMAGE_REFUSED, "raw images have no internal snapshots"),
        (lambda: client.delete_snapshot(0, "x"), ErrorCode.IMAGE_REFUSED, "'x'"),
        (lambda: client.create_snapshot(0, ""), ErrorCode.INVALID_REQUEST, "name is missing"),
        (lambda: client.create_snapshot(7, "x"), ErrorCode.NO_SUCH_LUN, "LUN 0:7 has no image"),
    ):
        error = refusal(call)
        assert (error.code, sentence in error.detail) == (code, True), error.detail
    assert client.snapshots(1) == ()
    client.unmap_lun(0)
    source = ImageSource(format="qcow2", name="disk")
    target.map_file(image, image=source, read_only=True)
    assert refusal(client.create_snapshot, 0, "x").code in (ErrorCode.IMAGE_REFUSED, ErrorCode.HOST_ERROR)
    assert client.map_lun(request(9, image=ImageSource(format="memory", length=MIB))).length == MIB
