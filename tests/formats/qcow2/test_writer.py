"""Writing: random changes over random geometries, to and fro between our writer and qemu-io, against one model."""

import random
from pathlib import Path

import pytest

from formats.errors import InvalidArgument
from formats.host_file import HostFile
from formats.image import BlockState, Change, entry
from formats.qcow2.create import Options, create
from formats.qcow2.structures import Incompatible
from tests.formats.qcow2.oracle import assert_clean, assert_same_map, open_qcow2, qemu_create
from tests.formats.qcow2.volume import AllocatingVolume, Reader, nothing
from tests.formats.reference import Reference, assert_equal_for_qemu, qemu_io, run


class Session:
    """One image, its model, and who works on it in turn."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        self.directory = directory
        self.path = directory / "disk.qcow2"
        self.bits = self.draw.randint(9, 21)
        self.size = 1 << self.bits
        length = min(self.size * self.draw.randint(3, 300), 24 << 20) + self.draw.choice([0, 512])
        self.model = Reference(directory / "model", length)
        self.parent: Reader = nothing
        self.zeroes = True
        self._make(length)

    def _make(self, length: int) -> None:
        options: dict[str, object] = {"cluster_size": self.size}
        kind = self.draw.choice(["plain", "v2", "backing", "extended", "extended backing", "data file", "compressed"])
        if kind == "v2":
            options["compat"] = "0.10"
        else:
            options["refcount_bits"] = self.draw.choice([1, 2, 4, 8, 16, 32, 64])
        if "extended" in kind and self.bits >= 14:
            options["extended_l2"] = "on"
        if kind == "data file":
            options |= {"data_file": self.directory / "disk.data", "data_file_raw": self.draw.choice(["on", "off"])}
        if "backing" in kind:
            options |= {"backing_file": self._base(length), "backing_fmt": "raw"}
        if kind == "compressed":
            self._compressed(length, options)
        else:
            qemu_create(self.path, length, **options)

    def _base(self, length: int) -> Path:
        base = self.directory / "base"
        base.write_bytes(self.draw.randbytes(length))
        self.model.write(0, base.read_bytes())
        self.parent = Reference.read.__get__(Reference(self.directory / "copy", length))
        (self.directory / "copy").write_bytes(base.read_bytes())
        return base

    def _compressed(self, length: int, options: dict[str, object]) -> None:
        content = b"".join(
            bytes([self.draw.randrange(256)]) * 1000 + self.draw.randbytes(24) for _ in range(length // 1024)
        )
        self.model.write(0, content)
        options["compression_type"] = self.draw.choice(["zlib", "zstd"])
        text = ",".join(f"{name}={value}" for name, value in options.items())
        made = run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", text, self.model.path, self.path)
        assert made.returncode == 0, made.stderr

    def open(self) -> AllocatingVolume:
        return AllocatingVolume(open_qcow2(self.path), self.parent, window=self.draw.randint(1, 20))

    def change(self, volume: AllocatingVolume, count: int) -> None:
        for _ in range(count):
            offset, length = self.span()
            if self.draw.random() < 0.7:
                data = self.draw.randbytes(length)
                volume.write(offset, data)
                self.model.write(offset, data)
            else:
                volume.zero(offset, length, self.draw.random() < 0.5)
                self.model.zero(offset, length)
            if self.draw.random() < 0.2:
                volume.flush()

    def span(self) -> tuple[int, int]:
        total = self.model.length
        offset = self.draw.randrange(total) & self.draw.choice([~0, ~511, ~(self.size - 1)])
        longest = min(3 * self.size, 200_000, total - offset)
        return offset, self.draw.choice([1, min(512, longest), longest, self.draw.randint(1, longest)])

    def let_qemu_change(self, count: int) -> None:
        commands = []
        for n in range(count):
            offset, length = self.span()
            if self.draw.random() < 0.7:
                commands.append(f"write -P {n + 1} {offset} {length}")
                self.model.write(offset, bytes([n + 1]) * length)
            else:
                commands.append(f"write -z {self.draw.choice(['', '-u'])} {offset} {length}")
                self.model.zero(offset, length)
        qemu_io("qcow2", self.path, *commands)

    def assert_equal(self, volume: AllocatingVolume) -> None:
        for _ in range(8):
            offset, length = self.span()
            assert volume.read(offset, length) == self.model.read(offset, length)


@pytest.mark.parametrize("seed", range(40))
def test_random_changes_by_us_and_by_qemu_leave_a_clean_image_with_the_models_bytes(tmp_path: Path, seed: int) -> None:
    session = Session(tmp_path, seed)
    for turn in range(3):
        volume = session.open()
        session.change(volume, 25)
        session.assert_equal(volume)
        volume.close()
        assert_clean(session.path)
        assert_equal_for_qemu("qcow2", session.path, session.model)
        if turn < 2:
            session.let_qemu_change(6)
    assert_same_map(session.path)


def test_room_that_is_never_used_is_no_leak_after_closing(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 1 << 30)
    length = path.stat().st_size
    with open_qcow2(path) as image:
        image.reserve(100)
        extents = image.reserve(100)
        image.commit([Change(7, entry(BlockState.DATA, 0, extents[0].offset))])
        image.free(extents[1:])
    assert_clean(path)
    assert path.stat().st_size < length + 210 * 65536


def test_a_place_that_was_not_reserved_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 1 << 30)
    with open_qcow2(path) as image:
        with pytest.raises(InvalidArgument, match="block 3 cannot lie in host cluster 1, which is not reserved"):
            image.commit([Change(3, entry(BlockState.DATA, 0, 65536))])
        with pytest.raises(InvalidArgument, match="beyond the end"):
            image.commit([Change(1 << 40, entry(BlockState.ZERO))])
        with pytest.raises(InvalidArgument, match="cannot become COMPRESSED"):
            image.commit([Change(3, entry(BlockState.COMPRESSED))])
        assert not image.header.incompatible & Incompatible.CORRUPT
    assert_clean(path)


@pytest.mark.parametrize("options", [{}, {"extended_l2": "on"}, {"data_file": "data"}, {"cluster_size": 512}])
def test_a_row_of_new_places_makes_the_map_that_single_changes_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)  # qemu looks for a data file there
    rows = [(3, 60), (64, 1), (70, 900), (1500, 700), (66, 2)]  # first block and number; over pages and tables
    loaded = []
    for kind in ("rows", "single"):
        path = tmp_path / kind
        qemu_create(path, 1 << 28, **options | ({"data_file": f"{kind}.data"} if "data_file" in options else {}))
        with open_qcow2(path) as image:
            size = image.geometry.block_size
            image.commit([Change(n, entry(BlockState.ZERO)) for n in (100, 101, 1600)])
            for block, count in rows:
                offset = block * size if image.identity else image.reserve(count)[0].offset
                if kind == "rows":
                    image.stage_row(block, offset, count)
                else:
                    step = size // 512
                    word = entry(BlockState.DATA, 0, offset)
                    image.stage([Change(block + n, word + n * step) for n in range(count)])
            image.commit([])
            loaded.append(list(image.load_entries(0, 2300)))
        assert_clean(path)
    assert loaded[0] == loaded[1]


def test_a_row_in_places_that_were_not_reserved_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 1 << 30)
    with open_qcow2(path) as image:
        (extent,) = image.reserve(20)
        image.stage_row(5, extent.offset, 10)
        with pytest.raises(InvalidArgument, match="block 40 cannot lie in host cluster"):
            image.stage_row(40, extent.offset, 10)
        with pytest.raises(InvalidArgument, match="beyond the end"):
            image.stage_row(1 << 40, extent.offset + 10 * 65536, 3)
        image.commit([])
    assert_clean(path)


def test_a_small_refcount_width_and_clusters_grow_table_and_blocks(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    with HostFile.create(path) as file:
        create(file, 64 << 20, options=Options(cluster_size=512, refcount_bits=64))
    volume = AllocatingVolume(open_qcow2(path), window=50)
    draw = random.Random(1)
    model = Reference(tmp_path / "model", 64 << 20)
    for _ in range(4000):
        at = draw.randrange(64 << 20) & ~511
        volume.write(at, at.to_bytes(8, "big"))
        model.write(at, at.to_bytes(8, "big"))
    volume.close()
    assert_clean(path)
    assert_equal_for_qemu("qcow2", path, model)
