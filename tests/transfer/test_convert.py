import os
import resource
from pathlib import Path

import pytest

from formats.errors import CorruptImage, ImageError, ImageExists, InvalidArgument
from formats.registry import open_chain, open_image
from tests.transfer.chains import CLUSTER, assert_clean, assert_same, chain_of, create, scribble, told, write
from vstore.transfer import bulk
from vstore.transfer.convert import Convert, Target, convert
from vstore.transfer.draft import Draft
from vstore.transfer.progress import TransferCancelled

LENGTHS = (40 * CLUSTER, 30 * CLUSTER + 1536, 50 * CLUSTER)


def converted(source: Path, format: str, target: Target, how: Convert | None = None, **others: object) -> Path:
    images = open_chain(format, source, read_only=True)
    try:
        convert(images, target, how, **others)  # type: ignore[arg-type]
    finally:
        for image in images:
            image.close()
    return Path(target.path)


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small disk has many."""
    monkeypatch.setattr(bulk, "STRETCH", 8 * CLUSTER)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("raw", {}),
        ("qcow2", {}),
        ("qcow2", {"cluster_size": 512}),
        ("qcow2", {"cluster_size": "2M"}),
        ("qcow2", {"extended_l2": "on"}),
        ("qcow2", {"compat": "0.10"}),
        ("qcow2", {"data_file": "data"}),
        ("qcow2", {"data_file": "data", "data_file_raw": "on"}),
    ],
)
@pytest.mark.parametrize("options_below", ["", "extended_l2=on"])
def test_any_chain_becomes_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, options: dict[str, object], options_below: str
) -> None:
    monkeypatch.chdir(tmp_path)  # qemu looks for a data file there
    top = chain_of(tmp_path, LENGTHS, ("", options_below, ""))[-1]
    out = converted(top, "qcow2", Target(format, tmp_path / "out", options=options))
    assert_same(top, "qcow2", out, format)
    if format == "qcow2":
        assert_clean(out)


@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize(
    ("format", "options"),
    [("raw", {}), ("qcow2", {}), ("qcow2", {"cluster_size": 512}), ("qcow2", {"cluster_size": "2M"})],
)
def test_plain_and_compressed_stretches_follow_each_other(
    tmp_path: Path, format: str, options: dict[str, object]
) -> None:
    length = 100 * CLUSTER + 1536
    base = create(tmp_path / "plain.qcow2", "qcow2", length)
    scribble(base, "qcow2", length, 3)
    packed = converted(base, "qcow2", Target("qcow2", tmp_path / "packed.qcow2"), Convert(compress=True))
    write(
        packed, "qcow2", f"write -P 7 {20 * CLUSTER + 512} {24 * CLUSTER}", f"write -P 8 {70 * CLUSTER} {2 * CLUSTER}"
    )
    write(packed, "qcow2", f"write -P 0 {22 * CLUSTER} {CLUSTER}", f"write -P 9 {length - 1024} 1024")
    out = converted(packed, "qcow2", Target(format, tmp_path / "out", options=options))
    assert_same(packed, "qcow2", out, format)
    if format == "qcow2":
        assert_clean(out)


@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, format: str) -> None:
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(40 * CLUSTER))
    before, limits = listing(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30 * CLUSTER, limits[1]))
    try:
        with pytest.raises(ImageError, match="File too large"):
            converted(source, "raw", Target(format, tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
def test_a_preallocated_target_is_written_in_its_places(tmp_path: Path, preallocation: str) -> None:
    top = chain_of(tmp_path, LENGTHS)[-1]
    out = converted(top, "qcow2", Target("qcow2", tmp_path / "out", preallocation))
    assert_same(top, "qcow2", out, "qcow2")
    assert_clean(out)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_a_compressed_target_holds_the_same_in_less(tmp_path: Path, kind: str) -> None:
    top = chain_of(tmp_path, LENGTHS)[-1]
    plain = converted(top, "qcow2", Target("qcow2", tmp_path / "plain"))
    out = converted(top, "qcow2", Target("qcow2", tmp_path / kind, options={"compression_type": kind}), Convert(True))
    assert_same(top, "qcow2", out, "qcow2")
    assert_clean(out)
    assert out.stat().st_size < plain.stat().st_size / 4
    back = converted(out, "qcow2", Target("raw", tmp_path / "back"))
    assert_same(top, "qcow2", back, "raw")


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_a_damaged_compressed_block_is_named_and_leaves_no_target(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source.raw"
    source.write_bytes(b"".join(b"%07d\n" % n for n in range(5 * CLUSTER // 8)))
    packed = converted(
        source, "raw", Target("qcow2", tmp_path / "packed", options={"compression_type": kind}), Convert(compress=True)
    )
    with open_image("qcow2", packed, read_only=True) as image:
        place = image.load_entries(3, 1)[0] & (1 << 48) - 1
    with packed.open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 64)
    with pytest.raises(CorruptImage, match="compressed cluster 3"):
        converted(packed, "qcow2", Target("raw", tmp_path / "out"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["packed", "source.raw"]


def test_what_does_not_get_shorter_is_kept_plain(tmp_path: Path) -> None:
    source = tmp_path / "noise.raw"
    source.write_bytes(os.urandom(3 * CLUSTER) + b"x" * (CLUSTER + 512))
    out = converted(source, "raw", Target("qcow2", tmp_path / "out"), Convert(compress=True))
    assert_same(source, "raw", out, "qcow2")
    assert_clean(out)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("length", [10 * CLUSTER, 60 * CLUSTER])
@pytest.mark.parametrize("options", [{}, {"extended_l2": True}])
def test_over_a_backing_file_only_what_differs_is_kept(
    tmp_path: Path, compress: bool, length: int, options: dict[str, object]
) -> None:
    top = chain_of(tmp_path, LENGTHS)[-1]
    base = create(tmp_path / "base.qcow2", "qcow2", length)
    scribble(base, "qcow2", length, 5)
    backing = open_chain("qcow2", base, read_only=True)
    options = {**options, "backing_file": "base.qcow2", "backing_fmt": "qcow2"}
    out = converted(
        top, "qcow2", Target("qcow2", tmp_path / "out", options=options), Convert(compress), backing=backing
    )
    assert_same(top, "qcow2", out, "qcow2")
    assert_clean(out)
    twin = Target("qcow2", tmp_path / "twin", options=options)
    converted(base, "qcow2", twin, backing=backing)
    with open_image("qcow2", tmp_path / "twin", read_only=True) as image:
        assert [run.entry >> 60 for run in image.load(0, image.geometry.blocks)] == [1]
    for image in backing:
        image.close()


def test_holes_and_zeros_of_a_raw_image_take_no_room(tmp_path: Path) -> None:
    source = create(tmp_path / "source.raw", "raw", 64 << 20)
    write(source, "raw", "write -P 0 0 8M", "write -P 1 20M 4k", "write -P 0 30M 1M")
    for format in ("raw", "qcow2"):
        out = converted(source, "raw", Target(format, tmp_path / format))
        assert_same(source, "raw", out, format)
        assert out.stat().st_blocks * 512 < 600_000


def test_with_no_search_for_zeros_everything_is_written(tmp_path: Path) -> None:
    source = create(tmp_path / "source.raw", "raw", 4 << 20)
    for format in ("raw", "qcow2"):
        out = converted(source, "raw", Target(format, tmp_path / format), Convert(sparse=0))
        assert_same(source, "raw", out, format)
        assert out.stat().st_blocks * 512 >= 4 << 20


@pytest.mark.usefixtures("short_stretches")
def test_the_same_source_gives_the_same_file(tmp_path: Path) -> None:
    top = chain_of(tmp_path, LENGTHS)[-1]
    files = [converted(top, "qcow2", Target("qcow2", tmp_path / f"out{n}"), Convert(threads=n)) for n in (1, 7)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_internal_snapshot_is_a_source(tmp_path: Path) -> None:
    path = create(tmp_path / "disk.qcow2", "qcow2", 10 * CLUSTER)
    write(path, "qcow2", "write -P 1 0 128k")
    before = converted(path, "qcow2", Target("raw", tmp_path / "before"))
    with open_image("qcow2", path) as image:
        image.snapshots.take("first")  # type: ignore[attr-defined]
    write(path, "qcow2", "write -P 2 0 640k")
    with open_image("qcow2", path, read_only=True) as image:
        convert([image.open_snapshot("first")], Target("raw", tmp_path / "out"))  # type: ignore[attr-defined]
    assert_same(tmp_path / "out", "raw", before, "raw")


# ---- what fails leaves nothing ----


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_old_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    top = chain_of(tmp_path, LENGTHS)[-1]
    out = tmp_path / "out"
    out.write_bytes(b"precious")
    with pytest.raises(ImageExists, match="--force"):
        converted(top, "qcow2", Target("raw", out))
    assert out.read_bytes() == b"precious"
    converted(top, "qcow2", Target("raw", out), Convert(force=True))
    assert_same(top, "qcow2", out, "raw")


def test_a_cancelled_conversion_leaves_nothing(tmp_path: Path) -> None:
    top = chain_of(tmp_path, LENGTHS)[-1]
    before = listing(tmp_path)
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 1

    with pytest.raises(TransferCancelled):
        converted(top, "qcow2", Target("qcow2", tmp_path / "out", options={"data_file": "data"}), cancelled=cancelled)
    assert listing(tmp_path) == before


@pytest.mark.usefixtures("short_stretches")
def test_a_resumed_conversion_trusts_nothing_and_completes_what_is_there(tmp_path: Path) -> None:
    top = chain_of(tmp_path, LENGTHS)[-1]
    target, how = Target("raw", tmp_path / "out"), Convert(resume=True, threads=1)
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 2

    before = listing(tmp_path)
    with pytest.raises(TransferCancelled):
        converted(top, "qcow2", target, how, cancelled=cancelled)
    (draft,) = listing(tmp_path) - before
    write(tmp_path / draft, "raw", "write -P 99 100k 64k", "write -P 98 3M 1k")
    out = converted(top, "qcow2", target, how)
    assert_same(top, "qcow2", out, "raw")
    assert listing(tmp_path) - before == {"out"}


@pytest.mark.parametrize("sparse", [4096, 0])
@pytest.mark.parametrize("old_length", [8 << 20, 3 << 20, 12 << 20])
def test_what_an_earlier_try_left_is_not_seen_where_the_source_is_zeros_now(
    tmp_path: Path, old_length: int, sparse: int
) -> None:
    source = create(tmp_path / "source.raw", "raw", 8 << 20)
    write(source, "raw", "write -P 5 1M 1M", "write -P 0 6M 100k", "write -P 6 7M 1M")
    with Draft(tmp_path / "out", resume=True) as draft:
        left = create(tmp_path / draft.name, "raw", old_length)
    write(left, "raw", "write -P 9 512 70k", "write -P 5 1M 512k", f"write -P 9 {old_length - (2 << 20)} 2M")
    out = converted(source, "raw", Target("raw", tmp_path / "out"), Convert(resume=True, sparse=sparse))
    assert out.read_bytes() == source.read_bytes()


def test_only_raw_targets_are_resumed(tmp_path: Path) -> None:
    top = chain_of(tmp_path, LENGTHS)[-1]
    with pytest.raises(Exception, match="resumed"):
        converted(top, "qcow2", Target("qcow2", tmp_path / "out"), Convert(resume=True))


@pytest.mark.parametrize("sparse", [-1, 3, 100, 5000, 1 << 30])
def test_a_strange_piece_to_look_for_zeros_in_is_refused(tmp_path: Path, sparse: int) -> None:
    top = chain_of(tmp_path, LENGTHS)[-1]
    with pytest.raises(InvalidArgument, match=str(sparse)):
        converted(top, "qcow2", Target("raw", tmp_path / "out"), Convert(sparse=sparse))


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    top = chain_of(tmp_path, LENGTHS)[-1]
    seen: list[tuple[int, int]] = []
    converted(top, "qcow2", Target("raw", tmp_path / "out"), progress=lambda *told: seen.append(told))
    assert seen[0] == (0, LENGTHS[-1])
    assert seen[-1] == (LENGTHS[-1], LENGTHS[-1])
    assert seen == sorted(seen)


@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize("left", [0, 30 * CLUSTER, 100 * CLUSTER - 512])
@pytest.mark.parametrize(
    ("format", "how"),
    [("raw", Convert()), ("raw", Convert(sparse=0)), ("qcow2", Convert()), ("qcow2", Convert(compress=True))],
)
@pytest.mark.parametrize("from_", ["raw", "qcow2"])
def test_a_source_that_is_cut_short_while_it_is_read_is_named_and_leaves_no_target(
    tmp_path: Path, from_: str, format: str, how: Convert, left: int
) -> None:
    source = create(tmp_path / "source", from_, 100 * CLUSTER)
    write(source, from_, f"write -P 1 0 {100 * CLUSTER}")
    before = listing(tmp_path)

    def cut(done: int, total: int) -> None:  # noqa: ARG001
        os.truncate(source, left)

    with pytest.raises(CorruptImage, match=rf"{source}.*(was cut from \d+ to {left} bytes|the file ends at)"):
        converted(source, from_, Target(format, tmp_path / "out"), how, progress=cut)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_what_lies_behind_the_end_of_the_file_is_zeros(tmp_path: Path, format: str) -> None:
    source = create(tmp_path / "source", "qcow2", 20 * CLUSTER)
    write(source, "qcow2", f"write -P 1 0 {9 * CLUSTER}", f"write -P 2 {12 * CLUSTER} {CLUSTER}")
    os.truncate(source, source.stat().st_size - 1024)
    out = converted(source, "qcow2", Target(format, tmp_path / "out"))
    assert_same(source, "qcow2", out, format)


@pytest.mark.parametrize(("format", "how"), [("raw", None), ("qcow2", None), ("qcow2", Convert(compress=True))])
def test_a_raw_source_may_end_within_a_sector_which_zeros_then_complete(
    tmp_path: Path, format: str, how: Convert | None
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * (3 * CLUSTER + 100))
    out = converted(source, "raw", Target(format, tmp_path / "out"), how)
    assert_same(source, "raw", out, format)
    assert told("info", "-f", format, out)["virtual-size"] == 3 * CLUSTER + 512
    if format == "qcow2":
        assert_clean(out)
