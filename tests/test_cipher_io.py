"""Encrypted disks: what is written is what qemu-io decrypts, and back; over parents, resized, never in the clear."""

import asyncio
import errno
import random
import resource
from array import array
from pathlib import Path

import pytest

from formats.errors import InvalidArgument, SecretNeeded, SecretWrong, UnsupportedFeature
from formats.host_file import HostFile
from formats.luks_key import MasterKey
from formats.qcow2.check import check
from formats.registry import create_image, open_chain, open_image
from tests.formats.contract import change_randomly
from tests.formats.reference import Reference, run
from vstore.chain import Chain
from vstore.disk import Disk
from vstore.scsi.medium import Held

MIB = 1 << 20
KEY = b"open sesame"


def qemu_io(path: Path, format: str, *commands: str) -> None:
    """With the key; a parent opens with the same one."""
    secret = ["--object", f"secret,id=k,data={KEY.decode()}"]
    key = "key-secret=k" if format == "luks" else "encrypt.format=luks,encrypt.key-secret=k"
    options = f"driver={format},file.filename={path},{key}"
    arguments = [argument for command in commands for argument in ("-c", command)]
    done = run("qemu-io", *secret, "--image-opts", options, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout, done.stdout


def flattened(path: Path, format: str, to: Path) -> bytes:
    """As qemu-img decrypts it."""
    secret = ["--object", f"secret,id=k,data={KEY.decode()}"]
    key = "key-secret=k" if format == "luks" else "encrypt.format=luks,encrypt.key-secret=k"
    options = f"driver={format},file.filename={path},{key}"
    done = run("qemu-img", "convert", *secret, "--image-opts", options, "-O", "raw", to)
    assert done.returncode == 0, done.stderr
    return to.read_bytes()


def assert_clean(path: Path) -> None:
    """No corruptions and no leaks; qemu-img wants the key even for that."""
    secret = ["--object", f"secret,id=k,data={KEY.decode()}"]
    options = f"driver=qcow2,file.filename={path},encrypt.format=luks,encrypt.key-secret=k"
    done = run("qemu-img", "check", *secret, "--image-opts", options)
    assert done.returncode == 0, done.stdout + done.stderr


def made(path: Path, format: str, length: int = 2 * MIB, **options: object) -> Path:
    create_image(
        format, path, length, options=({"encrypt.format": "luks"} if format == "qcow2" else {}) | options, secret=KEY
    )
    return path


def opened(path: Path, format: str, **options: bool) -> Disk:
    return Disk(*open_chain(format, path, secrets=[KEY], **options))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of hashing for each key protects nothing here."""
    monkeypatch.setattr("formats.luks._ITERATIONS", 4000)


VARIANTS = [
    ("luks", {}),
    ("qcow2", {}),
    ("qcow2", {"cluster_size": 512}),
    ("qcow2", {"cluster_size": "2M"}),
    ("qcow2", {"extended_l2": True}),
]


@pytest.mark.parametrize(("format", "options"), VARIANTS)
def test_random_changes_are_what_qemu_decrypts(tmp_path: Path, format: str, options: dict[str, object]) -> None:
    path = made(tmp_path / "disk", format, 2 * MIB + 512, **options)
    model = Reference(tmp_path / "model", 2 * MIB + 512)
    disk = opened(path, format)
    if format == "luks":  # what was never written is noise there
        disk.write_zeroes_blocking(0, disk.length, deallocate=False)
    change_randomly(disk, model, 7, [512, 4096, 65536, MIB])
    assert disk.read_blocking(0, disk.length) == model.read(0, disk.length)
    disk.close()
    if format == "qcow2":
        assert_clean(path)
    assert flattened(path, format, tmp_path / "flat") == model.path.read_bytes()
    disk = opened(path, format, read_only=True)
    assert disk.read_blocking(0, disk.length) == model.path.read_bytes()
    disk.close()


@pytest.mark.parametrize(("format", "options"), VARIANTS[:3])
def test_what_qemu_encrypted_is_read_and_written_and_read_by_qemu(
    tmp_path: Path, format: str, options: dict[str, object]
) -> None:
    secret = ["--object", f"secret,id=k,data={KEY.decode()}"]
    key = (
        "key-secret=k,iter-time=10"
        if format == "luks"
        else "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10"
    )
    words = [key, *(f"{name}={value}" for name, value in options.items())]
    path = tmp_path / "disk"
    done = run("qemu-img", "create", "-q", *secret, "-f", format, "-o", ",".join(words), path, "2M")
    assert done.returncode == 0, done.stderr
    qemu_io(path, format, "write -P 3 0 300k", "write -P 4 100k 700")
    disk = opened(path, format)
    assert disk.read_blocking(0, 300 << 10) == b"\3" * 102400 + b"\4" * 700 + b"\3" * (200 * 1024 - 700)
    disk.write_blocking(102_400 + 100, b"\5" * 100)
    disk.write_blocking(MIB, b"\6" * 4096)
    disk.close()
    qemu_io(path, format, "read -P 4 100k 100", "read -P 5 102500 100", "read -P 4 102600 500", "read -P 6 1M 4k")
    if format == "qcow2":
        assert_clean(path)


def test_nothing_lies_in_the_clear(tmp_path: Path) -> None:
    path = made(tmp_path / "disk", "qcow2")
    disk = opened(path, "qcow2")
    text = b"the secret words" * 256
    disk.write_blocking(70_000, text)
    disk.flush_blocking()
    disk.write_blocking(70_000, text)
    disk.close()
    assert b"secret words" not in path.read_bytes()


@pytest.mark.parametrize("top", ["plain", "encrypted"])
@pytest.mark.parametrize("bottom", ["plain", "encrypted"])
def test_encrypted_and_plain_images_lie_on_each_other(tmp_path: Path, top: str, bottom: str) -> None:
    model = Reference(tmp_path / "model", MIB)
    secret = {"encrypt.format": "luks"}
    for name, kind, below in (("base", bottom, {}), ("top", top, {"backing_file": "base", "backing_fmt": "qcow2"})):
        key = KEY if kind == "encrypted" else None
        create_image("qcow2", tmp_path / name, MIB, options=below | (secret if key else {}), secret=key)
        disk = opened(tmp_path / name, "qcow2")
        change_randomly(disk, model, len(name), [4096, 65536])
        disk.close()
    disk = opened(tmp_path / "top", "qcow2", read_only=True)
    assert disk.read_blocking(0, MIB) == model.read(0, MIB)
    disk.close()
    with HostFile.from_path(tmp_path / "top") as file:
        assert check(file).corruptions == check(file).leaks == 0


@pytest.mark.parametrize("format", ["luks", "qcow2"])
def test_an_encrypted_disk_grows_and_shrinks_with_zeros(tmp_path: Path, format: str) -> None:
    path, model = made(tmp_path / "disk", format, MIB + 512), Reference(tmp_path / "model", MIB + 512)
    disk = opened(path, format)
    disk.write_blocking(0, model.read(0, MIB + 512))  # a luks file begins as noise
    for length in (3 * MIB, 100 * 1024 + 512, 2 * MIB):
        change_randomly(disk, model, length, [65536])
        disk.resize(length)
        model.resize(length)
        assert disk.read_blocking(0, length) == model.read(0, length)
    disk.close()
    assert flattened(path, format, tmp_path / "flat") == model.path.read_bytes()
    with open_chain(format, path, secrets=[KEY])[0] as image:
        image.resize(MIB - 512)
        image.resize(2 * MIB)
    model.resize(MIB - 512)
    model.resize(2 * MIB)
    assert flattened(path, format, tmp_path / "flat") == model.path.read_bytes()


def test_a_luks_disk_that_has_no_room_to_grow_stays_as_it_was_and_in_use(tmp_path: Path) -> None:
    path = made(tmp_path / "disk", "luks", MIB + 512)
    before, limits = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    disk = opened(path, "luks")
    disk.write_blocking(MIB, b"\1" * 512)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + MIB + 4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            disk.resize(4 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (disk.length, path.stat().st_size) == (MIB + 512, before)
    with pytest.raises(InvalidArgument):
        disk.resize(0)
    disk.resize(2 * MIB)
    assert disk.read_blocking(MIB, MIB) == b"\1" * 512 + bytes(MIB - 512)
    disk.close()


def test_a_discarded_encrypted_disk_is_zeros_and_small(tmp_path: Path) -> None:
    path = made(tmp_path / "disk", "qcow2", 8 * MIB)
    disk = opened(path, "qcow2")
    disk.write_blocking(0, random.Random(1).randbytes(8 * MIB))
    disk.flush_blocking()
    full = path.stat().st_blocks
    disk.write_zeroes_blocking(0, 8 * MIB, deallocate=True)
    disk.flush_blocking()
    assert disk.read_blocking(0, 8 * MIB) == bytes(8 * MIB)
    assert full - path.stat().st_blocks > 7 * MIB // 512
    disk.close()
    assert_clean(path)


def test_without_the_key_nothing_is_read(tmp_path: Path) -> None:
    for format in ("luks", "qcow2"):
        path = made(tmp_path / format, format)
        with pytest.raises(SecretNeeded, match="give its secret"):
            open_chain(format, path)
        with pytest.raises(SecretNeeded, match="give its secret"):
            Disk(open_image(format, path))
        with pytest.raises(SecretWrong, match="the secret does not open"):
            open_chain(format, path, secrets=[b"wrong"])
        with open_image(format, path) as image:  # what it is can be told
            assert image.info()["virtual-size"] == 2 * MIB
    disk = opened(tmp_path / "qcow2", "qcow2")
    with pytest.raises(UnsupportedFeature, match="while nobody uses it"):
        disk.snapshot("x")
    disk.close()


@pytest.mark.parametrize(
    ("format", "options", "key", "message"),
    [
        ("luks", {}, None, "an encrypted image needs a secret"),
        ("luks", {}, b"", "an encrypted image needs a secret"),
        ("qcow2", {"encrypt.format": "luks"}, None, "encrypt.format and a secret go together"),
        ("qcow2", {}, b"k", "encrypt.format and a secret go together"),
        ("qcow2", {"encrypt.format": "aes"}, b"k", "encrypt.format is 'aes'; it must be one of luks"),
        ("qcow2", {"encrypt.format": "luks", "data_file": "d"}, b"k", "data_file together with encrypt.format"),
    ],
)
def test_what_makes_no_encrypted_image_is_refused(
    tmp_path: Path, format: str, options: dict[str, object], key: bytes | None, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        create_image(format, tmp_path / "disk", MIB, options=options, secret=key)
    assert not list(tmp_path.iterdir())


async def test_steps_alone_with_a_range_lose_no_count(tmp_path: Path) -> None:
    disk = opened(made(tmp_path / "disk", "qcow2"), "qcow2")

    def count(held: Held) -> None:
        held.write(700, (int.from_bytes(held.read(700, 8)) + 1).to_bytes(8))

    await asyncio.gather(*[disk.alone(512, 512, count) for _ in range(40)])
    assert int.from_bytes(await disk.read(700, 8)) == 40
    disk.close()


def test_what_has_room_is_told_of_an_encrypted_disk_too(tmp_path: Path) -> None:
    disk = opened(made(tmp_path / "disk", "qcow2", cluster_size=65536), "qcow2")
    disk.write_blocking(65536 + 5, b"x")
    disk.write_blocking(3 * 65536, bytes([1]) * 2 * 65536)
    disk.write_zeroes_blocking(4 * 65536, 65536, deallocate=True)
    told = [(65536 - 512, False), (65536, True), (65536, False), (65536, True), (2 * MIB - 4 * 65536, False)]
    assert disk.status_blocking(512, disk.length - 512) == told
    disk.flush_blocking()
    assert disk.status_blocking(512, disk.length - 512) == told
    disk.close()


def test_a_look_at_what_has_room_is_bounded_and_asks_for_many_blocks_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = opened(made(tmp_path / "disk", "qcow2", 1 << 40, cluster_size=65536), "qcow2")
    asked: list[int] = []
    entries = Chain.entries

    def counted(chain: Chain, first: int, count: int, *, top: int = 0) -> "array[int]":
        asked.append(count)
        return entries(chain, first, count, top=top)

    monkeypatch.setattr(Chain, "entries", counted)
    rows = disk.status_blocking(512, disk.length - 512)
    assert rows[:2] == [(4096 * 65536 - 512, False), (4096 * 65536, False)]
    assert len(asked) == len(rows) == 256
    assert set(asked) == {4096}
    disk.close()


@pytest.mark.parametrize("format", ["qcow2", "luks"])
def test_a_disk_whose_key_is_replaced_has_lost_all_and_holds_what_is_written_then(tmp_path: Path, format: str) -> None:
    path = made(tmp_path / "disk", format)
    disk = Disk(*open_chain(format, path, secrets=[KEY]))
    disk.write_blocking(0, b"secret.." * (MIB // 8))
    old = disk.image.cipher
    assert disk.encrypted
    assert disk.replaces_key
    disk.replace_key_blocking()
    assert b"secret.." not in disk.read_blocking(0, MIB)
    disk.write_blocking(3 * 512, b"open" * 128)
    disk.close()
    assert flattened(path, format, tmp_path / "raw")[3 * 512 : 4 * 512] == b"open" * 128
    assert old is not None
    if format == "qcow2":
        assert_clean(path)


def test_a_disk_over_a_parent_keeps_its_key(tmp_path: Path) -> None:
    """What shines through is not of it, and would be there after an erase as before."""
    made(tmp_path / "base", "qcow2")
    path = made(tmp_path / "disk", "qcow2", backing_file="base", backing_fmt="qcow2")
    disk = Disk(*open_chain("qcow2", path, secrets=[KEY]))
    assert not disk.replaces_key
    disk.close()


@pytest.mark.parametrize("format", ["qcow2", "luks"])
def test_after_a_failed_replacement_nothing_is_read_or_written_until_one_succeeds(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path / "disk", format)
    disk = Disk(*open_chain(format, path, secrets=[KEY]))
    disk.write_blocking(0, b"\1" * 512)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the host fails")

    with monkeypatch.context() as patch:
        patch.setattr(MasterKey, "_write", fail)
        with pytest.raises(OSError, match="the host fails"):
            disk.replace_key_blocking()
    for deed in (lambda: disk.read_blocking(0, 512), lambda: disk.write_blocking(0, bytes(512))):
        with pytest.raises(OSError, match="it is not known which key"):
            deed()
    disk.replace_key_blocking()
    disk.write_blocking(0, b"\2" * 512)
    assert disk.read_blocking(0, 512) == b"\2" * 512
    disk.close()
