import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import cdb, cdb_model
from tests.fuzz.cdb import FIXTURES, cases, minimise, report
from tests.fuzz.cdb_bench import Bench, attempt
from tests.fuzz.cdb_draws import Draws
from vstore.scsi import device_server, sbc, sense, verify
from vstore.scsi.commands import COMMANDS
from vstore.scsi.task import Response, Status, Task

CASES = sorted(path for path in FIXTURES.iterdir() if path.suffix != ".md")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_no_rule_is_broken_by_a_kept_case(path: Path) -> None:
    error = attempt(Bench(), path.read_bytes())
    if error:
        raise error


def test_no_rule_is_broken_by_new_cases_and_every_command_ends_well_and_badly() -> None:
    bench = Bench()
    for data in itertools.islice(cases(seed=20), 500):
        error = attempt(bench, data)
        if error:
            raise error
    for row in COMMANDS:
        ends = {end for name, end in bench.outcomes if name == row.name}
        assert ends & {"GOOD", "CONDITION MET"}, row.name
        assert len(ends) >= 3, row.name


# ---- the fuzzer itself ---------------------------------------------------------------------------------


def finds(monkeypatch: pytest.MonkeyPatch, where: object, name: str, replacement: object, most: int = 400) -> str:
    """What it says of a model with this fault in it."""
    monkeypatch.setattr(where, name, replacement)
    bench = Bench()
    for data in itertools.islice(cases(seed=1), most):
        error = attempt(bench, data)
        if error:
            return f"{type(error).__name__}: {error}"
    return "nothing"


def test_a_range_that_is_not_checked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    told = finds(monkeypatch, sbc, "check_range", lambda *_: None)
    # by the oracle, or by the medium
    assert "GOOD beyond the last block" in told or "<= len(self." in told


def test_a_wrong_offset_of_a_miscompare_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "INFORMATION is not where" in finds(monkeypatch, verify, "first_difference", lambda *_: 0)


def test_a_write_to_the_wrong_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(unit: object, lba: int, count: int) -> list[tuple[int, int]]:  # noqa: ARG001
        return [(lba * 512, count * 512)]

    assert "AssertionError" in finds(monkeypatch, sbc, "pieces", shifted)


def test_malformed_sense_data_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sense.Sense.encode
    told = finds(
        monkeypatch, sense.Sense, "encode", lambda self, *, descriptor: whole(self, descriptor=descriptor)[:-1]
    )
    assert "MalformedSenseError" in told


def test_data_in_beyond_the_allocation_length_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncut(self: object, task: Task, cdb_: object, data_in: bytes) -> Response:  # noqa: ARG001
        return Response(Status.GOOD, data_in[: task.data_in_room])

    assert "more data-in than the CDB allows" in finds(monkeypatch, device_server.DeviceServer, "_good", uncut)


def test_an_exception_in_a_handler_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    assert "ZeroDivisionError" in finds(monkeypatch, sbc, "check_transfer", broken)


def test_a_finding_is_minimised() -> None:
    data = bytes(range(200))
    assert minimise(data, lambda other: 77 in other and 150 in other) == bytes([77, 150])
    assert minimise(b"\5\5\5", lambda other: len(other) == 3) == bytes(3)


def test_decisions_past_the_end_are_zero() -> None:
    draws = Draws(b"\x07")
    assert (draws.left, draws.pick(5), draws.left) == (True, 2, False)
    assert (draws.pick(5), draws.number(4), draws.chance(1)) == (0, 0, True)


def test_the_report_names_every_command() -> None:
    lines = report(Bench()).splitlines()
    assert [line.split("  ")[0] for line in lines[:-1]] == [row.name for row in COMMANDS]


def test_the_oracle_knows_the_length_of_every_cdb() -> None:
    for row in COMMANDS:
        assert cdb_model.cdb_length(row.build()) == row.length


def test_plain_fuzzing_ends_with_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert cdb.fuzz_plain(0.2, 3, grow=False) == 0
    assert "no finding" in capsys.readouterr().out


def test_a_finding_is_kept_and_can_be_replayed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cdb, "FIXTURES", tmp_path)
    monkeypatch.setattr(sbc, "check_range", lambda *_: None)
    assert cdb.fuzz_plain(20, 1, grow=False) == 1
    (path,) = tmp_path.iterdir()
    assert len(path.read_bytes()) < 100
    assert cdb.replay([path]) == 1
    assert "finding: AssertionError" in capsys.readouterr().out
    monkeypatch.undo()
    assert cdb.replay([path]) == 0


def test_it_breeds_cases_by_coverage() -> None:
    command = [sys.executable, "-m", "tests.fuzz.cdb", "--atheris", "--seconds", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "TEST UNIT READY" in ended.stdout
