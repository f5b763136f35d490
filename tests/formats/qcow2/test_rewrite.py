"""A header written anew: whatever sectors of it a crash lets through, it is the old one or the new one."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats.errors import UnsupportedFeature
from formats.host_file import HostFile
from formats.image import Reference
from formats.qcow2.header import Header
from formats.qcow2.image import Qcow2
from formats.qcow2.structures import Extension
from tests.formats.qcow2.oracle import assert_clean, qemu_create
from tests.formats.qcow2.recorder import SECTOR, Recording, Step
from tests.formats.reference import run

LENGTH = 1 << 20
HEAD = 4096  # bytes of cluster 0 that a header may take up here
OTHER = (0x12345678).to_bytes(4, "big")  # an extension that nobody knows


def torn(recording: Recording, name: str) -> Iterator[bytes]:
    """The file after a crash at any step, with every subset of the header's sectors that no barrier has covered; of
    what else was written, all or nothing."""
    content = bytearray(recording.before[name])
    loose: list[Step] = []
    for step in recording.steps:
        if step.kind == "barrier":
            for change in loose:
                change.apply(content)
            loose = []
            continue
        head = step.kind == "write" and step.offset < HEAD
        cut = range(0, len(step.data), SECTOR) if head else range(0)
        parts = [Step("write", name, step.offset + at, step.data[at : at + SECTOR]) for at in cut] or [step]
        loose += [part for part in parts if not head or content[part.offset :][: len(part.data)] != part.data]
        for chosen in itertools.product((False, True), repeat=len(loose)):
            state = bytearray(content)
            for change in itertools.compress(loose, chosen):
                change.apply(state)
            yield bytes(state)


def named(path: Path) -> tuple[str | None, str | None]:
    with HostFile.from_path(path, read_only=True) as file:
        header = Header.read(file)
    told = header.extension(Extension.BACKING_FORMAT)
    return header.backing, None if told is None else told.decode()


def named_for_qemu(path: Path) -> tuple[str | None, str | None]:
    told = run("qemu-img", "info", "--output=json", path)
    assert told.returncode == 0, told.stderr
    info = json.loads(told.stdout)
    return info.get("backing-filename"), info.get("backing-filename-format")


_NAMES = (
    Reference("other", "raw"),
    Reference("a-rather-long-name-of-a-parent" * 5, "qcow2"),
    None,
    Reference("parent", "parallels"),
    Reference("without-a-format"),
    Reference("parent", "qcow2"),
    Reference("n" * 300, "qcow2"),
    Reference("m" * 300, "raw"),
    None,
)


@pytest.mark.parametrize("options", [{}, {"cluster_size": 1024}, {"cluster_size": 512}, {"compat": "0.10"}])
def test_a_crash_while_another_parent_is_named_leaves_the_old_or_the_new_one(
    tmp_path: Path, options: dict[str, object]
) -> None:
    path, crashed = tmp_path / "disk", tmp_path / "crashed"
    qemu_create(path, LENGTH, **options)
    before: tuple[str | None, str | None] = (None, None)
    for reference in _NAMES:
        recording = Recording()
        with Qcow2(recording.watch(path)) as image:
            extensions = {kind for kind, _ in image.header.extensions}
            image.name_parent(reference)
        after = (None, None) if reference is None else (reference.name, reference.format)
        for state in {hash(state): state for state in torn(recording, path.name)}.values():
            crashed.write_bytes(state)
            assert named(crashed) in (before, after)
        assert named(path) == after
        assert named_for_qemu(path) == after
        with Qcow2(HostFile.from_path(path)) as image:
            kept = {kind for kind, _ in image.header.extensions} | {Extension.BACKING_FORMAT}
            assert kept >= extensions - ({Extension.FEATURE_NAMES} if "cluster_size" in options else set())
        before = after
    assert_clean(path)


def test_what_is_not_known_stays_and_qemu_can_write_the_header_too(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    (tmp_path / "parent").write_bytes(bytes(LENGTH))
    (tmp_path / "other-parent").write_bytes(bytes(LENGTH))
    qemu_create(path, LENGTH)
    with path.open("r+b") as file:
        names = file.read(4096).index(Extension.FEATURE_NAMES.to_bytes(4, "big"))
        file.seek(names)
        file.write(OTHER)
    for reference in (Reference("parent", "raw"), Reference("other-parent", "raw"), None, Reference("parent", "raw")):
        with Qcow2(HostFile.from_path(path)) as image:
            image.name_parent(reference)
            unknown = image.header.extension(int.from_bytes(OTHER, "big"))
        with HostFile.from_path(path, read_only=True) as file:
            header = Header.read(file)
        assert header.extension(int.from_bytes(OTHER, "big")) == unknown
        assert unknown is not None
        renamed = run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "other-parent", "-F", "raw", path)
        assert renamed.returncode == 0, renamed.stderr
        assert named(path) == ("other-parent", "raw")
    assert_clean(path)


@pytest.mark.parametrize("cluster_size", [1024, 65536])
def test_a_crash_while_bitmaps_come_or_go_leaves_the_parent_and_bitmaps_of_before_or_after(
    tmp_path: Path, cluster_size: int
) -> None:
    path, crashed = tmp_path / "disk", tmp_path / "crashed"
    (tmp_path / "parent").write_bytes(bytes(LENGTH))
    made = run(
        "qemu-img", "create", "-f", "qcow2", "-b", "parent", "-F", "raw", "-o", f"cluster_size={cluster_size}", path
    )
    assert made.returncode == 0, made.stderr
    seen: list[tuple[str, ...]] = [()]
    for verb, name in (("add", "one"), ("add", "two"), ("remove", "one"), ("remove", "two")):
        recording = Recording()
        with Qcow2(recording.watch(path), track_writes=True) as image:
            getattr(image.bitmaps, verb)(name)
            seen.append(tuple(entry.name for entry in image.bitmaps.entries))
        for state in {hash(state): state for state in torn(recording, path.name)}.values():
            crashed.write_bytes(state)
            assert named(crashed) == ("parent", "raw")
            with Qcow2(HostFile.from_path(crashed, read_only=True)) as image:
                assert tuple(entry.name for entry in image.bitmaps.entries) in seen[-2:]
    assert_clean(path)


def test_a_longer_header_is_written_a_sector_at_a_time(tmp_path: Path) -> None:
    """Fields that came after version 3 may reach into the second sector."""
    path = tmp_path / "disk"
    qemu_create(path, LENGTH)
    with path.open("r+b") as file:
        file.seek(100)
        file.write((1024).to_bytes(4, "big") + bytes(920))
    recording = Recording()
    with Qcow2(recording.watch(path)) as image:
        image.resize(600 << 20)
        image.name_parent(Reference("parent", None))
        with pytest.raises(UnsupportedFeature, match="no room"):
            image.name_parent(Reference("parent", "raw"))
    heads = [len(step.data) for step in recording.steps if step.kind == "write" and step.offset == 0]
    assert heads
    assert set(heads) == {SECTOR}
    assert named(path) == ("parent", None)


def test_a_name_that_fits_nowhere_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    for size, length, wrong in ((512, 370, "must fit into one cluster"), (1024, 600, "no room for another header")):
        qemu_create(path, LENGTH, cluster_size=size)
        with Qcow2(HostFile.from_path(path)) as image:
            image.name_parent(Reference("p" * length, "raw"))
            with pytest.raises(UnsupportedFeature, match=wrong):
                image.name_parent(Reference("q" * 600, "raw"))
        assert named(path) == ("p" * length, "raw")
        path.unlink()
