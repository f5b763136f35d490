"""`vstore export` serves disks in the foreground, and says in one line what is wrong when it cannot."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from api.cli import main
from formats.registry import create_image, open_chain
from tests.formats.reference import qemu_io, run
from tests.target.conftest import MIB, VSTORE, exporting, hint, until
from tests.target.guest import GOOD, read_10, settle, write_10
from vstore.client import VstoreDevice
from vstore.disk import Disk

USAGE, FAILED = 64, 1


def refused(*arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [*VSTORE, "export", *map(str, arguments)], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip()


def inquiry(device: VstoreDevice, page: int | None = None) -> bytes:
    cdb = bytes([0x12, page is not None, page or 0, 0, 255, 0])
    return device.command(cdb, data_in_length=255).data_in


@pytest.fixture
def vhost(tmp_path: Path) -> Path:
    return tmp_path / "vhost.sock"


def test_raw_image_is_served_until_sigterm_which_leaves_only_the_image(disk: Path, vhost: Path) -> None:
    with exporting(disk, "--format", "raw", "--socket", vhost) as process:
        line = hint(process)
        with VstoreDevice(vhost, timeout=10) as device:
            settle(device)
            assert device.command(bytes([0x2A, 0, 0, 0, 0, 5, 0, 0, 1, 0]), data_out=b"q" * 512).status == GOOD
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=15)
    assert (process.returncode, errors) == (0, "")
    assert f"path={vhost}" in line
    assert disk.read_bytes()[5 * 512 : 6 * 512] == b"q" * 512
    assert os.listdir(disk.parent) == [disk.name]


def test_hint_quotes_what_shell_and_qemu_would_misread(disk: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a b,c.sock"
    with exporting(disk, "--format", "raw", "--socket", odd) as process:
        words = shlex.split(hint(process))
    assert f"socket,id=vstore-export,path={str(odd).replace(',', ',,')}" in words
    assert "vhost-user-scsi-pci,chardev=vstore-export,num_queues=1" in words


def test_several_images_are_luns_in_order_with_serials_of_their_own(tmp_path: Path, vhost: Path) -> None:
    paths = [tmp_path / f"{number}.raw" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes((number + 1) * MIB))
    serials = set()
    with exporting(*paths, "--format", "raw", "--socket", vhost) as process:
        hint(process)
        for lun in range(3):
            with VstoreDevice(vhost, lun=lun, timeout=10) as device:
                settle(device)
                last = device.command(bytes([0x25, *bytes(9)]), data_in_length=8).data_in[:4]
                assert int.from_bytes(last, "big") == (lun + 1) * MIB // 512 - 1
                serials.add(inquiry(device, 0x80)[4:])
    assert len(serials) == 3


def test_serial_is_the_same_for_the_same_path_each_time(disk: Path, vhost: Path) -> None:
    seen = []
    for path in (disk, disk.parent / "." / disk.name):
        with exporting(path, "--format", "raw", "--socket", vhost) as process:
            hint(process)
            with VstoreDevice(vhost, timeout=10) as device:
                seen.append(inquiry(device, 0x80)[4:])
            process.terminate()
            process.wait(timeout=10)
    assert seen[0] == seen[1]


def test_options_reach_the_guest(vhost: Path) -> None:
    options = ["--serial", "S-42", "--product", "FAST DISK", "--block-size", "4096", "--physical-block-size", "8k"]
    options += ["--thick", "--no-write-cache", "--vmm", "crosvm"]
    with exporting("--format", "memory", "--size", "1M", "--socket", vhost, *options) as process:
        assert hint(process).startswith("crosvm run ")
        with VstoreDevice(vhost, timeout=10) as device:
            assert inquiry(device)[16:32] == b"FAST DISK       "
            assert inquiry(device, 0x80)[4:] == b"S-42"
            settle(device)
            told = device.command(bytes([0x9E, 0x10, *bytes(11), 32, 0, 0]), data_in_length=32).data_in
            assert (int.from_bytes(told[:8], "big"), int.from_bytes(told[8:12], "big")) == (MIB // 4096 - 1, 4096)
            assert told[13] & 0xF == 1  # two logical blocks in a physical one
            assert told[14] >> 7 == 0  # LBPME: no thin provisioning
            caching = device.command(bytes([0x1A, 8, 8, 0, 255, 0]), data_in_length=255).data_in
            assert caching[4 + 2] & 4 == 0  # WCE


@pytest.mark.parametrize("connected", [False, True])
def test_inherited_socket_serves_listening_or_connected(disk: Path, vhost: Path, connected: bool) -> None:
    """QEMU's conventions: --fd. A connected socket is served once, and then there is nothing left to do."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(vhost))
        listening.listen()
        if not connected:
            with exporting(disk, "--format", "raw", "--fd", listening.fileno(), pass_fds=(listening.fileno(),)) as one:
                assert str(vhost) in hint(one)
                with VstoreDevice(vhost, timeout=10) as device:
                    settle(device)
                one.terminate()
                assert one.wait(timeout=15) == 0
            assert vhost.exists()
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            words = (disk, "--format", "raw", "--fd", theirs.fileno())
            with exporting(*words, pass_fds=(theirs.fileno(),)) as process:
                theirs.close()
                ours.sendall(bytes.fromhex("010000000100000000000000"))  # GET_FEATURES
                assert len(ours.recv(20)) == 20
                ours.close()
                assert process.wait(timeout=15) == 0


def test_capabilities_are_printed_as_qemu_expects() -> None:
    told = subprocess.check_output([*VSTORE, "export", "--print-capabilities"])
    assert json.loads(told) == {"type": "scsi"}


def test_missing_format_is_refused_telling_what_the_file_looks_like(tmp_path: Path, vhost: Path) -> None:
    image = tmp_path / "x.img"
    image.write_bytes(b"QFI\xfb" + bytes(MIB))
    code, text = refused(image, "--socket", vhost)
    assert code == USAGE
    assert text.startswith("vstore: --format is missing: a format is never guessed from an image's bytes.")
    assert f"{image} looks like qcow2" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--format", "raw", "--socket", "s"], "a raw disk lies in a file: give its path as IMAGE"),
        (["x", "--format", "memory", "--size", "1M", "--socket", "s"], "has no file: give --size, and no"),
        (["--format", "memory", "--size", "1M", "--direct", "--socket", "s"], "give --size, and no IMAGE or --direct"),
        (["--format", "memory", "--size", "0", "--socket", "s"], "a memory disk has no file: give --size"),
        (["--format", "null", "--socket", "s"], "a null disk has no file: give --size"),
        (["--format", "null", "--size", "1000", "--socket", "s"], "nearest: 512 or 1024 bytes"),
        (["--format", "qcow9", "x", "--socket", "s"], "'qcow9' is not one of 'raw', 'qcow2', 'luks', 'memory', 'null'"),
        (["x", "--format", "raw"], "give either --socket PATH or --fd N"),
        (["x", "--format", "raw", "--socket", "s", "--fd", "0"], "give either --socket PATH or --fd N"),
        (["x", "y", "--format", "raw", "--socket", "s", "--serial", "S"], "--serial names one disk"),
        (["x", "--format", "raw", "--socket", "s", "--serial", "ä"], "serial: "),
        (["x", "--format", "raw", "--socket", "s", "--product", "x" * 17], "at most 16 characters"),
        (["x", "--format", "raw", "--socket", "s", "--physical-block-size", "1536"], "1536 is not one of 512, 1024, "),
        (["x", "--format", "raw", "--socket", "s", "--queues", "65"], "65 is not in the range 1<=x<=64"),
        (["x", "--format", "raw", "--fd", "999"], "--fd: descriptor 999 is not a socket"),
    ],
)
def test_wrong_usage_is_exit_code_64_and_one_line(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments]) == USAGE
    out, errors = capsys.readouterr()
    assert (out, sentence in errors, errors.count("\n")) == ("", True, 1), errors


def test_socket_path_that_is_too_long_is_refused_with_the_limit(disk: Path) -> None:
    code, text = refused(disk, "--format", "raw", "--socket", "s" * 108)
    assert (code, "a UNIX socket's path has 1 to 107 bytes" in text) == (USAGE, True), text


def test_impossible_starts_are_exit_code_1_and_one_line(tmp_path: Path, disk: Path, vhost: Path) -> None:
    odd = tmp_path / "odd.raw"
    odd.write_bytes(bytes(4096 + 512))
    raw = ("--format", "raw", "--socket", vhost)
    cases = [
        ((tmp_path / "none.raw", *raw), r"none\.raw"),
        ((tmp_path, *raw), "is a directory; an image is a regular file or a block device"),
        ((odd, *raw, "--block-size", "4096"), "4608 bytes are not a multiple of the 4096-byte logical block; 4096 or"),
        ((disk, "--format", "raw", "--socket", tmp_path / "none" / "s"), "there is no such directory"),
        ((disk, "--format", "raw", "--socket", odd), "exists and is no socket"),
        ((disk, disk, *raw), "is in use"),
    ]
    for arguments, sentence in cases:
        code, text = refused(*arguments)
        assert code == FAILED, text
        assert re.search(sentence, text), text
        assert text.count("\n") == 0
    assert sorted(os.listdir(tmp_path)) == ["disk.raw", "odd.raw"]


def test_image_or_socket_that_another_export_has_is_refused(tmp_path: Path, disk: Path, vhost: Path) -> None:
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(MIB))
    with exporting(disk, "--format", "raw", "--socket", vhost) as process:
        hint(process)
        code, text = refused(other, "--format", "raw", "--socket", vhost)
        assert (code, "in use" in text) == (FAILED, True), text
        code, text = refused(disk, "--format", "raw", "--socket", tmp_path / "second.sock")
        assert (code, "in use" in text) == (FAILED, True), text
        with VstoreDevice(vhost, timeout=10) as device:
            settle(device)


def test_socket_left_by_a_killed_export_is_taken_over(disk: Path, vhost: Path) -> None:
    with exporting(disk, "--format", "raw", "--socket", vhost) as process:
        hint(process)
        process.kill()
        process.wait()
    assert vhost.exists()
    with exporting(disk, "--format", "raw", "--socket", vhost) as process:
        hint(process)
        with VstoreDevice(vhost, timeout=10) as device:
            settle(device)


def test_without_io_uring_it_warns_and_serves(disk: Path, vhost: Path) -> None:
    """A seccomp filter refuses io_uring_setup(2), as container engines do."""
    words = [sys.executable, "-m", "tests.target.no_io_uring", str(disk), "--format", "raw", "--socket", str(vhost)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert str(vhost) in hint(process)
        with VstoreDevice(vhost, timeout=10) as device:
            settle(device)
            assert device.command(bytes([0x2A, 0, 0, 0, 0, 5, 0, 0, 1, 0]), data_out=b"u" * 512).status == GOOD
            assert device.command(bytes([0x35, *bytes(9)])).status == GOOD
            assert device.command(bytes([0x28, 0, 0, 0, 0, 5, 0, 0, 1, 0]), data_in_length=512).data_in == b"u" * 512
        process.terminate()
        _, errors = process.communicate(timeout=15)
    assert process.returncode == 0
    assert "no io_uring here" in errors
    assert disk.read_bytes()[2560:3072] == b"u" * 512


def test_second_signal_ends_it_without_waiting(disk: Path, vhost: Path) -> None:
    """Stopped first, so that both signals are there when it looks."""
    with exporting(disk, "--format", "raw", "--socket", vhost) as process:
        hint(process)
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        process.wait(timeout=10)
    assert process.returncode in (0, FAILED)
    until(lambda: not vhost.exists())


def test_an_overlay_is_served_over_its_parents(disk: Path, vhost: Path) -> None:
    qemu_io("raw", disk, "write -P 3 0 1M")
    top = disk.parent / "top.qcow2"
    names = ["-b", disk.name, "-F", "raw"]
    assert run("qemu-img", "create", "-q", "-f", "qcow2", *names, top).returncode == 0
    with exporting(top, "--format", "qcow2", "--socket", vhost) as process:
        hint(process)
        with VstoreDevice(vhost, timeout=10) as device:
            settle(device)
            assert read_10(device, 0, 2) == b"\3" * 1024
            write_10(device, 1, b"w" * 512)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=15)
    assert (process.returncode, errors) == (0, "")
    assert run("qemu-img", "check", top).returncode == 0
    qemu_io("qcow2", top, "read -P 3 0 512", "read -P 0x77 512 512", "read -P 3 1024 512")


def test_a_parent_elsewhere_needs_its_directory_allowed(disk: Path, tmp_path: Path, vhost: Path) -> None:
    (tmp_path / "mine").mkdir()
    top = tmp_path / "mine/top.qcow2"
    assert run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", top).returncode == 0
    code, errors = refused(top, "--format", "qcow2", "--socket", vhost)
    assert code == FAILED
    assert f"the backing file of {top}, lies outside" in errors
    assert "--beneath" in errors
    with exporting(top, "--format", "qcow2", "--socket", vhost, "--beneath", tmp_path) as process:
        assert str(vhost) in hint(process)


def test_an_encrypted_image_is_served_with_its_key_and_refused_without(tmp_path: Path, vhost: Path) -> None:
    path, key = tmp_path / "disk.qcow2", tmp_path / "key"
    key.write_bytes(b"pass phrase")
    create_image("qcow2", path, MIB, options={"encrypt.format": "luks"}, secret=b"pass phrase")
    code, errors = refused(path, "--format", "qcow2", "--socket", vhost)
    assert code == FAILED
    assert "is encrypted (LUKS); give its secret" in errors
    with exporting(path, "--format", "qcow2", "--socket", vhost, "--secret-file", key) as process:
        hint(process)
        with VstoreDevice(vhost, timeout=10) as device:
            settle(device)
            write_10(device, 3, b"clear words!" * 43 * 2 + bytes(-12 * 86 % 512))
            assert read_10(device, 3)[:12] == b"clear words!"
            assert device.command(bytes.fromhex("48 03 00 00 00 00 00 0000 00")).status == 0  # CRYPTOGRAPHIC ERASE
            assert not any(read_10(device, 3))
            write_10(device, 5, b"other words!" * 43 * 2 + bytes(-12 * 86 % 512))
        process.terminate()
        assert process.wait(timeout=15) == 0
    assert b"clear words!" not in path.read_bytes()
    (image,) = open_chain("qcow2", path, read_only=True, secrets=[b"pass phrase"])
    found = Disk(image)
    assert found.read_blocking(5 * 512, 12) == b"other words!"
    found.close()


def test_a_sanitize_begins_again_after_kill_9_and_the_disk_is_not_ready_before_it_has_ended(
    disk: Path, vhost: Path
) -> None:
    disk.write_bytes(b"\1" * 16 * MIB)
    parameters = bytes.fromhex("0a 00 0002 a55a")
    with exporting(disk, "--format", "raw", "--socket", vhost) as process:
        hint(process)
        with VstoreDevice(vhost, timeout=10) as device:
            settle(device)
            begun = device.command(bytes.fromhex("48 81 00 00 00 00 00 0006 00"), parameters)
            assert begun.status == 0
        process.kill()
        process.wait()
    with exporting(disk, "--format", "raw", "--socket", vhost) as process:
        hint(process)
        with VstoreDevice(vhost, timeout=10) as device:
            told = device.command(bytes(6)).sense
            while told[2:3] == b"\6":  # the power on
                told = device.command(bytes(6)).sense
            assert (told[2], told[12:14].hex()) == (2, "041b")  # SANITIZE IN PROGRESS
            until(lambda: device.command(bytes(6)).status == 0, 60)
    assert disk.read_bytes() == bytes.fromhex("a55a") * (8 * MIB)
