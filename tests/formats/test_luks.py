"""LUKS1 inside qcow2: what qemu encrypts is read with the secret, alone, in snapshots and as a parent."""

import errno
import json
import random
from pathlib import Path

import pytest

from api.cli import main
from formats import luks_file
from formats.errors import CorruptImage, ImageError, InvalidArgument, SecretNeeded
from formats.host_file import HostFile
from formats.luks import Luks
from formats.qcow2.check import check
from formats.qcow2.image import Qcow2
from formats.registry import open_chain
from formats.sector_cipher import SectorCipher
from tests.formats.reference import run
from vstore.disk import Disk

LENGTH = 3 << 20
SECRET = b"hush"
OBJECT = ("--object", f"secret,id=s,data={SECRET.decode()}")

CIPHERS = {
    "usual": "",
    "xts 128, sha512": "encrypt.cipher-alg=aes-128,encrypt.hash-alg=sha512,encrypt.ivgen-alg=plain",
    "cbc": "encrypt.cipher-alg=aes-256,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256",
    "sha1, small clusters": "encrypt.hash-alg=sha1,cluster_size=4096",
}


def make(path: Path, more: str = "") -> None:
    usual = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    options = f"{usual},{more}" if more else usual
    made = run("qemu-img", "create", "-q", *OBJECT, "-f", "qcow2", "-o", options, path, str(LENGTH))
    assert made.returncode == 0, made.stderr


def fill(path: Path, content: bytes) -> None:
    """qemu writes the whole disk."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(content)
    target = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
    done = run("qemu-img", "convert", *OBJECT, "-n", "-f", "raw", "--target-image-opts", raw, target)
    assert done.returncode == 0, done.stderr


def assert_sound(path: Path) -> None:
    """For us and for qemu, which asks for the secret."""
    with HostFile.from_path(path, read_only=True) as file:
        report = check(file)
    assert (report.corruptions, report.leaks) == (0, 0)
    checked = run(
        "qemu-img", "check", *OBJECT, "--image-opts", f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def content(seed: str) -> bytes:
    """With holes in it."""
    draw = random.Random(seed)
    return b"".join(draw.choice([bytes(65536), draw.randbytes(65536)]) for _ in range(LENGTH // 65536))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("luks") / "disk"
    make(path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", CIPHERS)
def test_what_qemu_encrypts_is_read_with_the_secret(tmp_path: Path, kind: str) -> None:
    path, expected = tmp_path / "disk", content(kind)
    make(path, CIPHERS[kind])
    fill(path, expected)
    disk = Disk(*open_chain("qcow2", path, read_only=True, secrets=[b"other", SECRET]))
    assert disk.read_blocking(0, LENGTH) == expected
    assert disk.read_blocking(70001, 99) == expected[70001:70100]
    disk.close()
    assert_sound(path)


def test_without_the_right_secret_nothing_is_read_and_nothing_written(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(sound)
    with pytest.raises(InvalidArgument, match="; give its secret"):
        open_chain("qcow2", path, read_only=True)
    with pytest.raises(InvalidArgument, match="the secret does not open"):
        open_chain("qcow2", path, read_only=True, secrets=[b"wrong"])
    with Qcow2(HostFile.from_path(path)) as image:
        for deed in (lambda: image.load(0, 1), lambda: image.reserve(1), lambda: image.resize(2 * LENGTH)):
            with pytest.raises(SecretNeeded, match="with the secret"):
                deed()
    assert path.read_bytes() == sound


def test_snapshots_need_no_secret_to_be_taken_and_one_to_be_read(tmp_path: Path) -> None:
    path, then, now = tmp_path / "disk", content("then"), content("now")
    make(path)
    fill(path, then)
    with Qcow2(HostFile.from_path(path)) as image:
        image.snapshots.take("one")
    fill(path, now)
    assert_sound(path)
    for snapshot, expected in (("one", then), (None, now)):
        disk = Disk(*open_chain("qcow2", path, read_only=True, snapshot=snapshot, secrets=[SECRET]))
        assert disk.read_blocking(0, LENGTH) == expected
        disk.close()


def test_an_overlay_shows_its_encrypted_parent(tmp_path: Path) -> None:
    base, path, expected = tmp_path / "base", tmp_path / "disk", bytearray(content("base"))
    make(base)
    fill(base, bytes(expected))
    made = run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "base", "-F", "qcow2", path, str(LENGTH))
    assert made.returncode == 0, made.stderr
    disk = Disk(*open_chain("qcow2", path, secrets=[SECRET]))
    for offset in (5, 65536 * 3 + 777, LENGTH - 4096):
        disk.write_blocking(offset, b"written" * 100)
        expected[offset : offset + 700] = b"written" * 100
    assert disk.read_blocking(0, LENGTH) == expected
    disk.close()
    disk = Disk(*open_chain("qcow2", path, read_only=True, secrets=[SECRET]))
    assert disk.read_blocking(0, LENGTH) == expected
    disk.close()


def test_info_tells_what_qemu_img_does(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(sound)
    with Qcow2(HostFile.from_path(path, read_only=True)) as image:
        assert image.info() == json.loads(run("qemu-img", "info", "--output=json", path).stdout)


@pytest.mark.parametrize("mode", ["xts-plain64", "xts-plain", "cbc-plain64", "cbc-essiv:sha256"])
def test_what_is_encrypted_is_decrypted_by_the_same_sectors_only(mode: str) -> None:
    draw = random.Random(mode)
    cipher, plain = SectorCipher("aes", mode, draw.randbytes(32)), draw.randbytes(512 * 9)
    hidden = cipher.encrypt(plain, 1 << 33)
    assert cipher.decrypt(hidden, 1 << 33) == plain
    assert cipher.decrypt(hidden[512:], (1 << 33) + 1) == plain[512:]
    assert cipher.decrypt(hidden, 7) != plain


HOSTILE = {  # offset in the LUKS header, bytes, and what is said
    "no magic": (0, b"XXXX", "its LUKS header begins"),
    "version 2": (6, b"\0\2", "LUKS version 2"),
    "cipher": (8, b"serpent\0", "cipher serpent-xts-plain64 is not known"),
    "mode": (40, b"ctr-plain\0", "cipher aes-ctr-plain is not known"),
    "hash": (72, b"md5\0\0\0\0", "hash 'md5' is not known"),
    "key length": (108, b"\xff\xff\xff\xff", "a LUKS key of"),
    "iterations of the digest": (164, b"\xff\xff\xff\xff", "iterations of PBKDF2"),
    "iterations of a slot": (212, b"\xff\xff\xff\xff", "iterations of PBKDF2"),
    "place of a slot": (248, b"\xff\xff\xff\xff", "ends behind the end"),
    "stripes": (252, b"\xff\xff\xff\xff", "stripes"),
    "no stripes": (252, b"\0\0\0\0", "stripes"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_header_that_cannot_be_is_refused_at_once(tmp_path: Path, sound: bytes, kind: str) -> None:
    path = tmp_path / "disk"
    data = bytearray(sound)
    at, wrong, said = HOSTILE[kind]
    start = data.index(b"LUKS\xba\xbe")
    data[start + at : start + at + len(wrong)] = wrong
    path.write_bytes(data)
    with pytest.raises(ImageError, match=said):
        open_chain("qcow2", path, read_only=True, secrets=[SECRET])


def test_a_header_that_is_cut_off_is_corrupt() -> None:
    with pytest.raises(CorruptImage, match="its LUKS header"):
        Luks("x", lambda offset, length: b"LUKS\xba\xbe\0\1"[offset : offset + length])


def test_the_command_line_takes_secrets_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, key, expected = tmp_path / "disk", tmp_path / "key", content("usual")
    make(path)
    fill(path, expected)
    key.write_bytes(SECRET)
    arguments = ["file", "convert", str(path), str(tmp_path / "raw"), "--format", "qcow2", "-O", "raw"]
    assert main(arguments) != 0
    assert "is encrypted (LUKS); give its secret" in capsys.readouterr().err
    assert main([*arguments, "--secret-file", str(key)]) == 0
    assert (tmp_path / "raw").read_bytes() == expected


def test_a_disk_that_would_lie_on_its_own_header_is_refused(tmp_path: Path) -> None:
    with HostFile.create(tmp_path / "disk") as file:
        luks_file.create(file, 1 << 20, "off", b"secret")
        file.pwrite(104, bytes(4))  # payload-offset
    with HostFile.from_path(tmp_path / "disk") as file, pytest.raises(CorruptImage, match="inside its LUKS header"):
        luks_file.LuksFile(file)


def test_an_encrypted_file_is_resized_and_what_is_new_reads_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "disk.luks"
    with HostFile.create(path) as file:
        luks_file.create(file, LENGTH, "off", SECRET)
    locked = luks_file.LuksFile(HostFile.from_path(path))
    with pytest.raises(SecretNeeded, match="with its secret only"):
        locked.resize(2 * LENGTH)
    locked.close()
    image = luks_file.LuksFile(HostFile.from_path(path))
    image.unlock([SECRET])
    disk = Disk(image)
    disk.write_blocking(0, b"\1" * LENGTH)
    disk.resize(LENGTH // 2)
    disk.resize(LENGTH + 512)
    disk.write_blocking(LENGTH, b"\2" * 512)
    disk.close()
    raw = tmp_path / "raw"
    source = f"driver=luks,key-secret=s,file.filename={path}"
    done = run("qemu-img", "convert", *OBJECT, "--image-opts", source, "-O", "raw", raw)
    assert done.returncode == 0, done.stderr
    assert raw.read_bytes() == b"\1" * (LENGTH // 2) + bytes(LENGTH // 2) + b"\2" * 512


@pytest.mark.parametrize("failing", ["pwrite", "fdatasync"])
def test_an_encrypted_file_that_cannot_grow_keeps_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "disk.luks"
    with HostFile.create(path) as file:
        luks_file.create(file, LENGTH, "off", SECRET)
    before = path.stat().st_size
    with luks_file.LuksFile(HostFile.from_path(path)) as image:
        image.unlock([SECRET])

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(image.file, failing, full)
        with pytest.raises(OSError, match="No space left"):
            image.resize(2 * LENGTH)
        assert image.geometry.length == LENGTH
    assert path.stat().st_size == before


def test_the_command_line_resizes_with_the_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, key = tmp_path / "disk", tmp_path / "key"
    make(path)
    key.write_bytes(SECRET)
    arguments = ["file", "resize", "--format", "qcow2", str(path), str(2 * LENGTH)]
    assert main(arguments) != 0
    assert "is encrypted" in capsys.readouterr().err
    assert main([*arguments, "--secret-file", str(key)]) == 0
    assert json.loads(run("qemu-img", "info", "--output=json", path).stdout)["virtual-size"] == 2 * LENGTH
    assert_sound(path)
