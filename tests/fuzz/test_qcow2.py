"""The kept damaged images stay without finding, new ones too, and faults that are put there are found."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import pace, qcow2, qcow2_session
from tests.fuzz.qcow2 import KEPT, Bench, FindingError
from tests.fuzz.qcow2_bases import BASES
from tests.fuzz.qcow2_layout import Layout
from tests.fuzz.qcow2_mutations import Damage, Mutator, parse
from tests.fuzz.qcow2_session import Told

ROOT = Path(__file__).parents[2]


def fuzz(*arguments: object) -> None:
    """In a process without threads, because each image is looked at in a child of it."""
    command = [sys.executable, "-m", "tests.fuzz.qcow2", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "no finding" in done.stdout


def test_the_kept_images_leave_everything_in_order() -> None:
    fuzz("--replay", *sorted(KEPT.iterdir()))


def test_new_images_leave_everything_in_order() -> None:
    fuzz("--seconds", 4, "--seed", 99)


@pytest.mark.parametrize("name", BASES)
def test_every_structure_of_a_base_has_its_places(tmp_path: Path, name: str) -> None:
    bench = Bench(tmp_path)
    kinds = set(Layout(bench.base(name)).places)
    assert {"header", "extension", "L1 table", "L2 table", "refcount table", "refcount block"} <= kinds
    assert ("snapshot table" in kinds) == any("snapshot -c" in command for command in BASES[name])
    assert ("compressed data" in kinds) == any("write -c" in command for command in BASES[name])
    assert ("bitmap table" in kinds) == ("bitmap directory" in kinds) == (name == "bitmaps")


def test_damage_is_the_same_after_it_was_kept_as_text(tmp_path: Path) -> None:
    data = Bench(tmp_path).base("snapshots")
    for seed in range(50):
        damage = Mutator("snapshots", data).draw(random.Random(seed))
        assert parse(f"# a comment\n{damage}") == damage
        assert parse(str(damage)).apply(data) == damage.apply(data)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (Told("ended by signal 11"), "signal 11"),
        (Told(wrote=True), "0 corruptions for qemu-img before it was written to, then"),
        (Told(repaired=True), "whole after a repair"),
    ],
)
def test_what_must_not_be_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told, sentence: str
) -> None:
    bench = Bench(tmp_path)
    bench.base("plain")

    def spoil(paths: list[Path], _seed: int, *, keeps: bool) -> Told:
        assert keeps
        for path in paths[1:]:
            path.write_bytes(path.read_bytes()[:8192].ljust(40960, b"\0"))
        return told

    monkeypatch.setattr(qcow2_session, "run", spoil)
    with pytest.raises(FindingError, match=sentence):
        bench.run(Damage("plain", ()), seed=0, sampled=True)


def test_a_case_is_kept_so_that_it_can_be_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qcow2, "KEPT", tmp_path)
    damage = Damage("plain", ((8, b"\1\2"), (100, b"\xff")), 4711)
    path = qcow2.keep(damage, 12)
    assert parse(path.read_text()) == damage
    assert "# session 12" in path.read_text()


def test_only_what_takes_too_long_each_time_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick, bench = Told("too long", slow=True), Told(), Bench(tmp_path)
    answers = [slow, slow, quick, *[slow] * qcow2.TRIES]
    monkeypatch.setattr(qcow2_session, "run", lambda *_, **__: answers.pop(0))
    bench.run(Damage("plain", ()), seed=0, sampled=False)
    with pytest.raises(FindingError, match="too long"):
        bench.run(Damage("plain", ()), seed=0, sampled=False)
    assert not answers


@pytest.mark.parametrize("slowness", [0.5, 1, 1.9, 50])
def test_a_phase_is_allowed_longer_where_everything_takes_longer_but_not_much(
    monkeypatch: pytest.MonkeyPatch, slowness: float
) -> None:
    clock, allowed = [0.0], qcow2_session.SECONDS * min(max(1, slowness), pace.WORST)
    monkeypatch.setattr(time, "process_time", lambda: clock[0])

    def work(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(pace, "_yardstick", lambda: work(slowness * pace.ALONE))
    with qcow2_session.phase("look", Told()):
        work(allowed - 0.01)
    with pytest.raises(qcow2_session.SlowError, match="look took"), qcow2_session.phase("look", Told()):
        work(allowed + 0.01)
