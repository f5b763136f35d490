"""`vstore file` beside qemu-img: the same numbers under the same keys, the same exit codes, and bad input refused."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.cli import main
from formats.image import Reference
from formats.registry import open_image
from tests.formats.reference import run
from tests.transfer.chains import CLUSTER, assert_clean, assert_same, chain_of, create, qemu, told, write

LENGTHS = (40 * CLUSTER, 30 * CLUSTER + 1536, 50 * CLUSTER)
Q = ("-f", "qcow2")


class File:
    """Runs `vstore file …`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        code = main(["file", *map(str, arguments)])
        self.out, self.err = self._capsys.readouterr()
        return code

    def json(self, *arguments: object, code: int = 0) -> Any:
        assert self(*arguments, "--output", "json") == code, self.err
        return json.loads(self.out)


@pytest.fixture
def file(capsys: pytest.CaptureFixture[str]) -> File:
    return File(capsys)


@pytest.fixture
def chain(tmp_path: Path) -> list[Path]:
    return chain_of(tmp_path, LENGTHS)


# ---- the shapes of qemu-img ----


@pytest.mark.parametrize("options", ["", "compat=0.10", "extended_l2=on,cluster_size=128k", "lazy_refcounts=on"])
def test_info_tells_what_qemu_img_tells(tmp_path: Path, file: File, options: str) -> None:
    path = chain_of(tmp_path, LENGTHS[:2], ("", options))[-1]
    qemu("snapshot", "-c", "one", path)
    assert file.json("info", path, *Q) == told("info", *Q, path)
    assert file.json("info", path) == told("info", path)


def test_info_opens_nothing_that_the_image_names(file: File, chain: list[Path], tmp_path: Path) -> None:
    chain[1].unlink()
    assert file.json("info", chain[2], *Q)["backing-filename"] == chain[1].name
    create(tmp_path / "lone.qcow2", "qcow2", CLUSTER, options=f"data_file={tmp_path / 'bytes'}")
    (tmp_path / "bytes").unlink()
    assert file("info", tmp_path / "lone.qcow2", *Q) == 0


def test_info_of_the_chain_is_a_list(file: File, chain: list[Path]) -> None:
    theirs = told("info", *Q, "--backing-chain", chain[2])
    assert file.json("info", chain[2], *Q, "--backing-chain") == theirs


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_map_tells_what_qemu_img_tells(file: File, chain: list[Path], tmp_path: Path, format: str) -> None:
    path = chain[2]
    if format == "raw":
        path = tmp_path / "disk.raw"
        qemu("convert", *Q, "-O", "raw", chain[2], path)
    ours, theirs = file.json("map", path, "-f", format), told("map", "-f", format, path)
    data = [{key: row[key] for key in theirs[0] if key in row} for row in ours if row["data"]]
    assert data == [{key: row[key] for key in theirs[0] if key in row} for row in theirs if row["data"]]
    assert sum(row["length"] for row in ours) == sum(row["length"] for row in theirs)
    assert {row["filename"] for row in ours if "offset" in row} <= {str(each) for each in (*chain, path)}


def test_check_tells_what_qemu_img_tells(file: File, chain: list[Path]) -> None:
    assert file.json("check", chain[2], *Q) == told("check", *Q, chain[2])
    assert file("check", chain[2], *Q) == 0
    assert "no errors were found" in file.out


def leak(path: Path) -> None:
    """One cluster at the end of the file that is counted, and nothing names it."""
    with path.open("r+b") as image:
        cluster = -(-path.stat().st_size // CLUSTER)
        image.truncate((cluster + 1) * CLUSTER)
        image.seek(CLUSTER)
        block = int.from_bytes(image.read(8), "big")
        image.seek(block + 2 * cluster)
        image.write((1).to_bytes(2, "big"))


def lie(path: Path) -> None:
    """A cluster in use whose refcount is 0."""
    with path.open("r+b") as image:
        image.seek(CLUSTER)
        block = int.from_bytes(image.read(8), "big")
        image.seek(block + 2 * 5)
        image.write(bytes(2))


@pytest.mark.parametrize(("damage", "code", "repair"), [(leak, 3, "leaks"), (lie, 2, "all")])
def test_check_ends_as_qemu_img_does_and_repairs(
    file: File, tmp_path: Path, damage: Any, code: int, repair: str
) -> None:
    path = create(tmp_path / "disk.qcow2", "qcow2", 20 * CLUSTER)
    write(path, "qcow2", "write 0 640k")
    damage(path)
    theirs = run("qemu-img", "check", *Q, "--output=json", str(path))
    ours = file.json("check", path, *Q, code=code)
    assert theirs.returncode == code
    assert {key: ours[key] for key in ours if key != "findings"} == json.loads(theirs.stdout)
    fixed = file.json("check", path, *Q, "--repair", repair)
    assert fixed["leaks-fixed" if damage is leak else "corruptions-fixed"] > 0
    assert_clean(path)


def test_what_cannot_be_checked_has_exit_code_63(file: File, tmp_path: Path) -> None:
    path = create(tmp_path / "disk.raw", "raw", CLUSTER)
    assert file("check", path, "-f", "raw") == 63
    assert file("check", tmp_path / "nothing", *Q) == 1


@pytest.mark.parametrize("options", ["", "cluster_size=4k,refcount_bits=64", "extended_l2=on"])
def test_measure_tells_what_qemu_img_tells(file: File, chain: list[Path], tmp_path: Path, options: str) -> None:
    more = ("-o", options) if options else ()
    theirs = told("measure", *Q, "-O", "qcow2", *more, chain[2])
    assert file.json("measure", chain[2], *Q, "-O", "qcow2", *more) == theirs
    qemu("convert", *Q, "-O", "raw", chain[2], tmp_path / "disk.raw")
    theirs = told("measure", "-f", "raw", "-O", "qcow2", *more, tmp_path / "disk.raw")
    assert file.json("measure", tmp_path / "disk.raw", "-f", "raw", "-O", "qcow2", *more) == theirs
    theirs = told("measure", "--size", "1T", "-O", "qcow2", *more)
    assert file.json("measure", "--size", "1T", "-O", "qcow2", *more) == theirs


def test_compare_ends_as_qemu_img_does(file: File, chain: list[Path], tmp_path: Path) -> None:
    same = tmp_path / "same.raw"
    qemu("convert", *Q, "-O", "raw", chain[2], same)
    pair = (chain[2], same, *Q, "-F", "raw")
    assert file.json("compare", *pair) == {"identical": True, "difference": None, "offset": None}
    write(same, "raw", "write -P 250 1000k 512")
    theirs = run("qemu-img", "compare", *Q, "-F", "raw", str(chain[2]), str(same))
    assert theirs.returncode == 1
    offset = file.json("compare", *pair, code=1)["offset"]
    assert f"offset {offset // 512 * 512}!" in theirs.stdout
    assert file("compare", chain[2], tmp_path / "nothing", *Q, "-F", "raw") == 2


# ---- every verb ----


def test_create_makes_what_was_asked_for(file: File, tmp_path: Path) -> None:
    base, path = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    made = file.json("create", base, "10M", *Q, "-o", "cluster_size=4k,compat=0.10")
    assert (made["virtual-size"], made["cluster-size"]) == (10 << 20, 4096)
    made = file.json("create", path, *Q, "-b", "base.qcow2", "-F", "qcow2")
    assert (made["virtual-size"], made["backing-filename"]) == (10 << 20, "base.qcow2")
    assert_clean(path)
    assert file("create", path, "1M", *Q) == 1
    assert "File exists" in file.err


def test_a_clone_names_its_base_from_its_own_directory(file: File, chain: list[Path], tmp_path: Path) -> None:
    (tmp_path / "clones").mkdir()
    path = tmp_path / "clones" / "one.qcow2"
    made = file.json("clone", chain[2], path, *Q)
    assert (made["backing-filename"], made["virtual-size"]) == ("../layer2.qcow2", LENGTHS[2])
    assert_same(path, "qcow2", chain[2], "qcow2")
    assert file("map", path, *Q) == 1
    assert "--beneath" in file.err
    assert file("map", path, *Q, "--beneath", tmp_path) == 0


def test_a_disk_grows_and_shrinks_only_when_it_may(file: File, chain: list[Path]) -> None:
    assert file.json("resize", chain[2], "+1M", *Q)["virtual-size"] == LENGTHS[2] + (1 << 20)
    assert file("resize", chain[2], "-2M", *Q) == 1
    assert "--shrink" in file.err
    assert file.json("resize", chain[2], "-2M", *Q, "--shrink")["virtual-size"] == LENGTHS[2] - (1 << 20)
    assert_clean(chain[2])


def test_snapshots_are_taken_applied_and_deleted(file: File, tmp_path: Path) -> None:
    path = create(tmp_path / "disk.qcow2", "qcow2", 20 * CLUSTER)
    write(path, "qcow2", "write -P 1 0 256k")
    qemu("convert", *Q, "-O", "raw", path, tmp_path / "before")
    assert [each["name"] for each in file.json("snapshot", "create", path, "one", *Q)] == ["one"]
    write(path, "qcow2", "write -P 2 0 256k")
    assert file.json("snapshot", "list", path, *Q) == told("info", *Q, path)["snapshots"]
    assert file("snapshot", "list", path, *Q) == 0
    assert file("snapshot", "apply", path, "one", *Q) == 0
    assert_same(path, "qcow2", tmp_path / "before", "raw")
    assert file.json("snapshot", "delete", path, "one", *Q) == []
    assert file("snapshot", "delete", path, "one", *Q) == 1
    assert_clean(path)


def test_rebase_commit_and_convert_keep_the_disk(file: File, chain: list[Path], tmp_path: Path) -> None:
    before = tmp_path / "before.qcow2"
    converted = file.json("convert", chain[2], before, *Q, "-O", "qcow2", "-c", "-o", "compression_type=zstd")
    assert converted["format-specific"]["data"]["compression-type"] == "zstd"
    assert file.json("rebase", chain[2], *Q, "-b", chain[0].name, "-F", "qcow2")["backing-filename"] == chain[0].name
    assert_same(chain[2], "qcow2", before, "qcow2")
    assert file.json("commit", chain[2], *Q)["backing-filename"] == chain[0].name
    assert_same(chain[2], "qcow2", before, "qcow2")
    assert_same(chain[0], "qcow2", before, "qcow2")
    assert "backing-filename" not in file.json("rebase", chain[2], *Q, "-b", "")
    assert_same(chain[2], "qcow2", before, "qcow2")


def test_an_unsafe_rebase_records_the_format_that_was_missing(file: File, tmp_path: Path) -> None:
    create(tmp_path / "base.raw", "raw", 1 << 20)
    top = create(tmp_path / "top.qcow2", "qcow2", 1 << 20)
    with open_image("qcow2", top) as image:
        image.name_parent(Reference("base.raw"))
    assert file("map", top, *Q) == 1
    assert "vstore file rebase -f FORMAT -u -b base.raw -F PARENT-FORMAT" in file.err
    assert file("rebase", "-f", "qcow2", "-u", "-b", "base.raw", "-F", "raw", top) == 0
    assert file("map", top, *Q) == 0


def test_a_snapshot_is_converted_by_its_name(file: File, tmp_path: Path) -> None:
    path = create(tmp_path / "disk.qcow2", "qcow2", 20 * CLUSTER)
    write(path, "qcow2", "write -P 1 0 256k")
    qemu("snapshot", "-c", "first", path)
    write(path, "qcow2", "write -P 2 0 256k")
    assert file("convert", path, tmp_path / "ours", *Q, "-O", "raw", "-l", "first") == 0
    qemu("convert", *Q, "-O", "raw", "-l", "first", path, tmp_path / "theirs")
    assert_same(tmp_path / "ours", "raw", tmp_path / "theirs", "raw")


def test_a_target_that_is_there_is_written_in_place(file: File, chain: list[Path], tmp_path: Path) -> None:
    short, longer = tmp_path / "short.qcow2", tmp_path / "longer.qcow2"
    create(short, "qcow2", LENGTHS[2] - 512)
    create(longer, "qcow2", LENGTHS[2] + CLUSTER)
    write(longer, "qcow2", f"write -P 9 0 {LENGTHS[2]}")
    assert file("convert", chain[2], short, *Q, "-O", "qcow2", "-n") == 1
    assert "resize the target first" in file.err
    assert file("convert", chain[2], longer, *Q, "-O", "qcow2", "-n") == 0
    assert_same(chain[2], "qcow2", longer, "qcow2")
    assert_clean(longer)


@pytest.mark.parametrize("writing", [(), ("-w", "--pattern", "7", "--flush-interval", "50")])
def test_bench_tells_what_it_did(file: File, tmp_path: Path, writing: tuple[str, ...]) -> None:
    path = create(tmp_path / "disk.qcow2", "qcow2", 4 << 20)
    outcome = file.json("bench", path, *Q, "-c", "200", "-d", "4", "-s", "8192", *writing)
    assert (outcome["count"], outcome["size"], outcome["write"]) == (200, 8192, bool(writing))
    assert outcome["bytes-per-second"] == pytest.approx(outcome["iops"] * 8192)
    if writing:
        read = run("qemu-io", *Q, "-c", f"read -P 7 0 {200 * 8192}", str(path))
        assert "failed" not in read.stdout
    assert_clean(path)


def test_every_verb_has_help(file: File) -> None:
    assert file("--help") == 0
    verbs = [line.split()[0] for line in file.out.partition("Commands:")[2].splitlines() if line.strip()]
    assert {"create", "info", "map", "check", "convert", "compare", "rebase", "commit", "bench"} <= set(verbs)
    for verb in verbs:
        assert file(verb, "--help") == 0


# ---- bad input ----


@pytest.fixture
def here(chain: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the chain, to which names are relative."""
    monkeypatch.chdir(tmp_path)
    assert chain[0].parent == tmp_path
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("convert", "{top}", "out", *Q, "-O", "raw", "-S", "1000"), "1000"),
        (("convert", "{top}", "out", *Q, "-O", "qcow2", "-o", "cluster_size=1000"), "cluster_size"),
        (("convert", "{top}", "out", *Q, "-O", "qcow2", "-o", "nonsense=1"), "nonsense"),
        (("convert", "{top}", "out", *Q, "-O", "raw", "-c"), "compress"),
        (("convert", "{top}", "out", *Q, "-O", "qcow2", "-c", "--level", "99"), "99"),
        (("convert", "{top}", "out", *Q, "-O", "qcow2", "-B", "gone", "-F", "qcow2"), "gone"),
        (("convert", "{top}", "out", *Q, "-O", "raw", "-l", "nothing"), "nothing"),
        (("convert", "gone", "out", *Q, "-O", "raw"), "gone"),
        (("convert", "{top}", "nowhere/out", *Q, "-O", "raw"), "nowhere"),
        (("convert", "{top}", "{top}", *Q, "-O", "raw", "--force"), "layer2"),
        (("create", "out", *Q), "how long"),
        (("create", "out", "1M", *Q, "-b", "gone"), "backing_fmt"),
        (("clone", "gone", "out", *Q), "gone"),
        (("rebase", "{top}", *Q, "-b", "gone", "-F", "qcow2"), "gone"),
        (("rebase", "{top}", *Q, "-b", "{top}", "-F", "qcow2"), "layer2"),
        (("rebase", "{top}", *Q, "-b", "nbd:host", "-F", "raw"), "nbd"),
        (("commit", "{bottom}", *Q), "no parent"),
        (("bench", "{top}", *Q, "-c", "0"), "at least 1"),
        (("bench", "{top}", *Q, "-s", "1000000000"), "1000000000"),
        (("resize", "{top}", "12345", *Q), "12345"),
        (("map", "{top}", "-f", "raw", "--start-offset", "0"), ""),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_leaves_nothing(
    file: File, here: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    words = [word.format(top="layer2.qcow2", bottom="layer0.qcow2") for word in arguments]
    code = file(*words)
    assert code == (1 if said else 0), file.out
    assert said in file.err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def test_a_chain_that_comes_back_to_itself_is_refused(file: File, chain: list[Path]) -> None:
    qemu("rebase", "-u", "-b", chain[2].name, "-F", "qcow2", *Q, chain[0])
    for verb in (("map",), ("commit",), ("convert", chain[0].parent / "out", "-O", "raw")):
        assert file(verb[0], chain[2], *verb[1:], *Q) == 1
        assert "comes back" in file.err
    assert not (chain[0].parent / "out").exists()


def test_an_image_in_use_is_refused(file: File, chain: list[Path], tmp_path: Path) -> None:
    script = f"import sys\nfrom formats.registry import open_chain\nopen_chain('qcow2', {str(chain[2])!r})\n"
    script += "print('open', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        for words in (("check",), ("commit",), ("resize", "+1M"), ("convert", tmp_path / "out", "-O", "raw")):
            assert file(words[0], chain[2], *words[1:], *Q) == 1
        assert file("info", chain[2], *Q, "-U") == 0
        assert holder.stdin is not None
        holder.stdin.close()


# ---- ends in the middle ----


@contextlib.contextmanager
def files_no_longer_than(length: int) -> Iterator[None]:
    """A write beyond fails with EFBIG, as one on a full disk does with ENOSPC."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("more", [(), ("-c",)])
def test_a_conversion_that_finds_no_room_leaves_nothing(
    file: File, tmp_path: Path, format: str, more: tuple[str, ...]
) -> None:
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(8 << 20))
    if format == "raw":
        more = ()
    with files_no_longer_than(4 << 20):
        assert file("convert", source, tmp_path / "out", "-f", "raw", "-O", format, *more) == 1
    assert "File too large" in file.err
    assert [path.name for path in tmp_path.iterdir()] == ["source.raw"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(1 << 20) * 48)
    (tmp_path / "to").mkdir()
    words = ["file", "convert", source, tmp_path / "to" / "out", "-f", "raw", "-O", "qcow2", "-c", "-m", "1"]
    # a shell starts what it runs in the background deaf to SIGINT, and so are the tests then
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{hearing}; import sys; from api.cli import main; sys.exit(main({list(map(str, words))!r}))"
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) as converting:
        while converting.poll() is None and not list((tmp_path / "to").iterdir()):
            pass
        converting.send_signal(number)
        _, said = converting.communicate(timeout=30)
    assert (converting.returncode, said.strip()) == (130, "vstore: interrupted")
    assert not list((tmp_path / "to").iterdir())
