"""Images made to harm: each is refused with a sentence, in bounded time and memory, and no other file is touched."""

import contextlib
import random
import subprocess
import sys
import zlib
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from formats.errors import CorruptImage, ImageError, InvalidImage, UnsupportedFeature
from formats.host_file import HostFile
from formats.image import BlockState
from formats.qcow2.check import check
from formats.qcow2.header import Header
from formats.qcow2.image import Qcow2
from formats.qcow2.structures import Incompatible
from tests.formats.qcow2.oracle import open_qcow2, qemu_create
from tests.formats.qcow2.volume import AllocatingVolume
from tests.formats.reference import qemu_io, run

SIZE = 4096
L1, L2 = 3 * SIZE, 4 * SIZE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Header, refcount table, refcount block, L1, L2 and data in clusters 0 to 5 and on."""
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 2 << 20, cluster_size=SIZE)
    qemu_io("qcow2", path, "write -P 1 0 16k")
    return path


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def word(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "big")


HEADERS: dict[str, tuple[int, bytes, type[ImageError], str]] = {
    "no qcow2": (0, b"QFI\xfa", InvalidImage, "not a qcow2 image"),
    "version 4": (4, word(4, 4), UnsupportedFeature, "version 4"),
    "clusters of 1 byte": (20, word(0, 4), CorruptImage, "cluster_bits is 0; it must be 9 to 21"),
    "clusters of 2^200": (20, word(200, 4), CorruptImage, "cluster_bits is 200"),
    "a long backing name": (8, word(200) + word(1024, 4), CorruptImage, "backing_file_size is 1024"),
    "a backing name elsewhere": (8, word(1 << 40) + word(5, 4), CorruptImage, "backing_file_offset"),
    "a backing name in the header": (8, word(8) + word(5, 4), CorruptImage, "backing_file_offset is 8"),
    "a disk of 2^63": (24, word(1 << 63), UnsupportedFeature, "a disk of 9223372036854775808 bytes"),
    "a disk longer than L1": (24, word(1 << 40), CorruptImage, "l1_size is 1; it must be at least"),
    "AES": (32, word(1, 4), UnsupportedFeature, r"encrypted \(AES"),
    "method 9": (32, word(9, 4), UnsupportedFeature, "encrypted"),
    "a huge L1": (36, word(0xFFFFFFFF, 4), UnsupportedFeature, "a table of 34359738360 bytes"),
    "L1 behind the end": (40, word(1 << 40), CorruptImage, "l1_table_offset is 0x10000000000"),
    "L1 unaligned": (40, word(L1 + 512), CorruptImage, "multiple of 4096"),
    "L1 on the header": (40, word(0), CorruptImage, "l1_table_offset is 0x0"),
    "L1 on the refcount table": (40, word(SIZE), CorruptImage, "lies on"),
    "no refcount table": (48, word(0), CorruptImage, "refcount_table_offset is 0x0"),
    "refcount table of no clusters": (56, word(0, 4), CorruptImage, "refcount_table_clusters is 0"),
    "a huge refcount table": (56, word(0xFFFF, 4), UnsupportedFeature, "a table of"),
    "too many snapshots": (60, word(65537, 4), UnsupportedFeature, "65537 snapshots"),
    "snapshots nowhere": (60, word(1, 4) + word(0), CorruptImage, "snapshots_offset is 0x0"),
    "snapshots behind the end": (60, word(1, 4) + word(1 << 40), CorruptImage, "snapshot 0 lies behind the end"),
    "an unknown feature": (72, word(1 << 40), UnsupportedFeature, "incompatible bit 40"),
    "compression without its type": (72, word(8), CorruptImage, "compression_type is 0"),
    "raw data without a file": (88, word(2), CorruptImage, "no data file"),
    "bitmaps without extension": (88, word(1), CorruptImage, "no bitmaps extension"),
    "refcounts of 2^200 bits": (96, word(200, 4), CorruptImage, "refcount_order is 200"),
    "a short header": (100, word(40, 4), CorruptImage, "header_length is 40"),
    "an odd header": (100, word(107, 4), CorruptImage, "header_length is 107"),
    "a header longer than its cluster": (100, word(1 << 20, 4), CorruptImage, "header_length"),
    "a long extension": (112, word(0xE2792ACA, 4) + word(1 << 31, 4), CorruptImage, "2147483648 bytes"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_lies_is_refused(path: Path, case: str) -> None:
    offset, data, kind, sentence = HEADERS[case]
    patch(path, offset, data)
    before = path.read_bytes()
    for read_only in (True, False):
        with pytest.raises(kind, match=sentence):
            open_qcow2(path, read_only=read_only)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (0, "the data of cluster 0 at offset 0x0|HOLE"),
        (SIZE, "lies on the refcount table"),
        (2 * SIZE, "lies on a refcount block"),
        (L1, "lies on the L1 table"),
        (L2, "lies on an L2 table"),
        (5 * SIZE + 512, "not at a multiple of 4096"),
        (1 << 50, "but the file ends at"),
    ],
)
def test_data_on_metadata_or_nowhere_is_refused_and_the_image_is_marked_corrupt(
    path: Path, entry: int, sentence: str
) -> None:
    patch(path, L2, word(entry | 1 << 63))
    with open_qcow2(path) as image:
        if not entry:
            assert BlockState(image.load(0, 1)[0].entry >> 60) == BlockState.HOLE
            return
        with pytest.raises(CorruptImage, match=sentence):
            image.load(0, 1)
        with pytest.raises(CorruptImage, match="marked corrupt"):
            image.reserve(1)
    with HostFile.from_path(path, read_only=True) as file:
        assert Header.read(file).incompatible & Incompatible.CORRUPT
    with pytest.raises(CorruptImage, match="marked corrupt; repair it"):
        open_qcow2(path)
    with open_qcow2(path, read_only=True) as image:
        assert image.load(1, 1)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [(SIZE, "refcount table"), (L1, "L1 table"), (512, "multiple of 4096"), (1 << 50, "behind the end")],
)
def test_an_l2_table_on_metadata_or_nowhere_is_refused(path: Path, entry: int, sentence: str) -> None:
    patch(path, L1, word(entry | 1 << 63))
    with open_qcow2(path, read_only=True) as image, pytest.raises(CorruptImage, match=f"L1 entry 0 is .*{sentence}"):
        image.load(0, 1)


@pytest.mark.parametrize(("block", "sentence"), [(512, "not a multiple"), (1 << 50, "behind the end"), (L1, "lies on")])
def test_a_refcount_block_that_cannot_be_is_refused(path: Path, block: int, sentence: str) -> None:
    patch(path, SIZE, word(block))
    with pytest.raises(CorruptImage, match=sentence):
        open_qcow2(path)


def test_a_cluster_of_refcount_0_that_is_in_use_is_not_freed_again(path: Path) -> None:
    patch(path, 2 * SIZE, bytes(64))
    volume = AllocatingVolume(open_qcow2(path))
    volume.zero(0, SIZE)
    with pytest.raises(CorruptImage, match=r"whose refcount is 0|lies on"):
        volume.flush()
    volume.image.close()


def compressed_entry(offset: int, sectors: int) -> int:
    return 1 << 62 | (sectors - 1) << (62 - (12 - 8)) | offset


def test_a_deflate_bomb_gives_one_cluster_and_no_more(path: Path) -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = bomb.compress(bytes(200 << 20)) + bomb.flush()
    where = path.stat().st_size
    patch(path, where, data)
    patch(path, L2, word(compressed_entry(where, 8)))
    with open_qcow2(path, read_only=True) as image:
        assert image.materialise(0) == bytes(SIZE)


@pytest.mark.parametrize("data", [b"", b"\xff" * 512, b"\3\0"])
def test_compressed_data_that_is_none_is_refused(path: Path, data: bytes) -> None:
    where = path.stat().st_size
    patch(path, where, data)
    patch(path, L2, word(compressed_entry(where, 1)))
    with open_qcow2(path, read_only=True) as image, pytest.raises(CorruptImage, match="compressed cluster 0"):
        image.materialise(0)


def test_a_name_inside_an_image_is_told_and_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    made = run("qemu-img", "create", "-u", "-f", "qcow2", "-b", 'json:{"driver":"raw"}', "-F", "raw", path, "1M")
    assert made.returncode == 0, made.stderr
    with open_qcow2(path) as image:
        assert image.backing is not None
        assert image.backing.name == 'json:{"driver":"raw"}'
    data = tmp_path / "secret"
    qemu_create(tmp_path / "external", 1 << 20, data_file=data)
    with (
        HostFile.from_path(tmp_path / "external") as file,
        pytest.raises(UnsupportedFeature, match="must be handed in"),
    ):
        Qcow2(file)


def big_endian(words: range) -> bytes:
    found = array("Q", words)
    found.byteswap()
    return found.tobytes()


def huge_l1(path: Path) -> None:
    """4 million L1 entries, each another L2 table, in a sparse file."""
    words = big_endian(range(1 << 63 | 1 << 29, 1 << 63 | (1 << 22) + 1 << 29, 1 << 29))
    with path.open("r+b") as file:
        file.truncate(1 << 43)
        file.seek(1 << 30)
        file.write(words)
    patch(path, 20, word(9, 4) + word(1 << 37))
    patch(path, 36, word(1 << 22, 4) + word(1 << 30))


def huge_refcount_table(path: Path) -> None:
    """A million refcount blocks."""
    with path.open("r+b") as file:
        file.truncate(1 << 43)
        file.seek(1 << 30)
        file.write(big_endian(range(1 << 35, (1 << 35) + (1 << 42), 1 << 22)))
    patch(path, 48, word(1 << 30) + word(2048, 4))


def many_snapshots(path: Path) -> None:
    """65536 snapshots of one L1 table each, all the same."""
    entry = word(L1) + word(1, 4) + bytes(24) + word(16, 4) + bytes(16)
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(entry * 65536)
    patch(path, 60, word(65536, 4) + word(1 << 20))


PROBE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
from pathlib import Path
from formats.errors import ImageError
from tests.formats.qcow2.oracle import open_qcow2
for read_only in (True, False):
    try:
        with open_qcow2(Path(sys.argv[1]), read_only=read_only) as image:
            image.load(0, 4096)
            print("opened")
    except ImageError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.timeout(150)  # the machine may be busy with other things; a table that is walked in vain takes hours
@pytest.mark.parametrize("make", [huge_l1, huge_refcount_table, many_snapshots])
def test_huge_tables_take_bounded_time_and_memory(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    probed = subprocess.run(
        [sys.executable, "-c", PROBE, path], capture_output=True, text=True, timeout=120, check=False
    )
    assert probed.returncode == 0, probed.stderr[-2000:]
    assert len(probed.stdout.splitlines()) == 2


def snapshots(path: Path, tables: Iterable[tuple[int, int]]) -> None:
    """With L1 tables of (offset, entries) each."""
    rows = b"".join(word(at) + word(size, 4) + bytes(24) + word(16, 4) + bytes(16) for at, size in tables)
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(rows)
    patch(path, 60, word(len(rows) // 56, 4) + word(1 << 20))


def one_l1_of_all(path: Path) -> None:
    """65536 snapshots share one L1 table, all of whose entries name one L2 table."""
    patch(path, 1 << 30, word(L2) * 65536)
    snapshots(path, [(1 << 30, 65536)] * 65536)


def l1_tables_in_each_other(path: Path) -> None:
    patch(path, 1 << 30, word(L2) * 65536)
    snapshots(path, [((1 << 30) + n // 512 * SIZE, 65536 - n) for n in range(65536)])


def l1_tables_in_holes(path: Path) -> None:
    """65536 of 32 MiB of zeros each."""
    patch(path, (3 << 40) - 1, b"0")
    snapshots(path, [((1 << 30) + n * (32 << 20), 1 << 22) for n in range(65536)])


def bad_entries(path: Path) -> None:
    """A finding each."""
    patch(path, 1 << 30, word(12345 | 1 << 60) * (1 << 17))
    many_l2_tables(path)


def many_l2_tables(path: Path) -> None:
    patch(path, 24, word(1 << 30) + word(0, 4) + word(512, 4))
    patch(path, L1, b"".join(word((1 << 30) + n * SIZE | 1 << 63) for n in range(128)))


def scattered(path: Path) -> None:
    """Each of many entries names a cluster far from the others."""
    patch(path, 1 << 43, b"0")
    patch(path, 1 << 30, big_endian(range(1 << 63 | 1 << 31, 1 << 63 | (1 << 40) + (1 << 31), 1 << 23)))
    many_l2_tables(path)


CHECK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from pathlib import Path
from formats.errors import ImageError
from formats.host_file import HostFile
from formats.qcow2.check import check
with HostFile.from_path(Path(sys.argv[1]), read_only=True) as file:
    try:
        print(check(file).findings[:1])
    except ImageError as error:
        print(type(error).__name__, error)
# not ru_maxrss, which remembers what the process was before exec(): as large as the one that runs the tests
print(next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""

MAKERS = [one_l1_of_all, l1_tables_in_each_other, l1_tables_in_holes, bad_entries, scattered]


@pytest.mark.timeout(150)
@pytest.mark.parametrize("make", [many_snapshots, huge_refcount_table, huge_l1, *MAKERS])
def test_checking_huge_tables_takes_bounded_time_and_memory(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    checked = subprocess.run(
        [sys.executable, "-c", CHECK, path], capture_output=True, text=True, timeout=120, check=False
    )
    assert checked.returncode == 0, checked.stderr[-2000:]
    assert int(checked.stdout.splitlines()[-1]) < 256, "MiB"


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_gives_clear_errors_only(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = tmp_path / "disk.qcow2"
    options = draw.choice([{"cluster_size": SIZE}, {"cluster_size": 512}, {"cluster_size": 16384, "extended_l2": "on"}])
    qemu_create(path, 1 << 20, **options)
    qemu_io("qcow2", path, "write -P 1 0 100k")
    assert run("qemu-img", "snapshot", "-c", "one", path).returncode == 0
    whole = path.read_bytes()
    for _ in range(15):
        path.write_bytes(whole)
        for _ in range(draw.choice([1, 3, 20])):
            place = draw.choice([draw.randrange(112), draw.randrange(min(len(whole), 10 * 16384))])
            patch(path, place, draw.choice([b"\0", b"\xff", b"\x80", draw.randbytes(8)]))
        _use(path, draw)


def _use(path: Path, draw: random.Random) -> None:
    for read_only in (True, False):
        try:
            volume = AllocatingVolume(open_qcow2(path, read_only=read_only))
        except ImageError:
            continue
        with contextlib.suppress(ImageError):
            length = min(volume.length, 1 << 20)
            volume.read(0, length)
            if not read_only and length > 2000:
                volume.write(draw.randrange(length // 2), b"x" * 1000)
                volume.flush()
                volume.image.snapshots.take("two")
        with contextlib.suppress(ImageError):
            volume.image.close()
    with contextlib.suppress(ImageError), HostFile.from_path(path) as file:
        check(file, repair="all")


def test_an_l2_table_that_two_entries_have_for_themselves_is_not_written_to(path: Path) -> None:
    patch(path, 24, word(16 << 20) + word(0, 4) + word(8, 4))
    patch(path, L1 + 8, word(L2 | 1 << 63))
    before = path.read_bytes()
    with pytest.raises(CorruptImage, match=r"for it alone, but another entry names the same"):
        open_qcow2(path)
    assert path.read_bytes() == before
    with open_qcow2(path, read_only=True) as image:
        assert image.load(0, 1)


def test_a_cluster_that_two_blocks_have_for_themselves_is_not_written_to(path: Path) -> None:
    patch(path, L2 + 8 * 300, path.read_bytes()[L2 : L2 + 8])
    for read in (lambda image: image.load(0, 512), lambda image: image.load_entries(0, 512)):
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        with open_qcow2(copy) as image:
            with pytest.raises(CorruptImage, match=r"lies at 0x\w+, which cluster 0 has for itself too"):
                read(image)
            with pytest.raises(CorruptImage, match="marked corrupt"):
                image.reserve(1)
        with open_qcow2(path, read_only=True) as image:
            assert read(image)
