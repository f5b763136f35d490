"""The rules against the device model as it is, and against models with a fault in them; campaigns and findings."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from vstore.fuzz import byte_model
from vstore.fuzz.bench import Bench, attempt
from vstore.fuzz.breed import CannotBreedError, breed
from vstore.fuzz.campaign import Budget, by_command, drawn, keep, minimise, replay, report, run, run_parallel
from vstore.fuzz.draws import Draws
from vstore.scsi import device_server, sbc, sense, verify
from vstore.scsi.commands import COMMANDS
from vstore.scsi.task import Response, Status, Task

FIXTURES = Path(__file__).parents[2] / "fixtures" / "cdb"
CASES = sorted(path for path in FIXTURES.iterdir() if path.suffix != ".md")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_no_rule_is_broken_by_a_kept_case(path: Path) -> None:
    error = attempt(Bench(), path.read_bytes())
    if error:
        raise error


def test_no_rule_is_broken_by_new_cases_and_every_command_ends_well_and_badly() -> None:
    bench = Bench()
    for data in itertools.islice(drawn(seed=21), 1200):
        error = attempt(bench, data)
        if error:
            raise error
    for row in COMMANDS:
        ends = {end for name, end in bench.outcomes if name == row.name}
        # Some take commands of one nexus in order: persistent reservations, and what is told of a copy (tests/scsi).
        assert ends & {"GOOD", "CONDITION MET"} or row.opcode in (0x5F, 0x84), row.name
        assert len(ends) >= 3, row.name


# ---- the fuzzer itself ---------------------------------------------------------------------------------


def finds(monkeypatch: pytest.MonkeyPatch, where: object, name: str, replacement: object, most: int = 1000) -> str:
    """What it says of a model with this fault in it."""
    monkeypatch.setattr(where, name, replacement)
    bench = Bench()
    for data in itertools.islice(drawn(seed=1), most):
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

    assert "RuleBroken" in finds(monkeypatch, sbc, "pieces", shifted)


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
    lines = report(Counter()).splitlines()
    assert [line.split("  ")[0] for line in lines[:-1]] == [row.name for row in COMMANDS]


def test_the_report_tells_good_ends_from_refusals() -> None:
    (line,) = (
        line
        for line in report(Counter({("READ (10)", "GOOD"): 3, ("READ (10)", "5/21/00"): 2})).splitlines()
        if line.startswith("READ (10)")
    )
    assert line.split()[2:] == ["5", "ended", "well", "3", "5/21/00", "2"]


def test_the_oracle_knows_the_length_of_every_cdb() -> None:
    for row in COMMANDS:
        assert byte_model.cdb_length(row.build()) == row.length


def test_the_oracle_knows_where_every_allocation_length_lies() -> None:
    for row in COMMANDS:
        most = row.fields["allocation_length"].limit if "allocation_length" in row.fields else 0
        told = byte_model.most_data_in(row.build(allocation_length=most), 512) if most else 0
        assert told == most, row.name


def test_a_campaign_ends_after_its_commands_or_its_time() -> None:
    ran = run(3, Budget(None, 200))
    assert 200 <= ran.commands < 200 + 24
    assert ran.cases
    assert run(3, Budget(0.0)).cases == 0


def test_the_same_seed_runs_the_same_commands() -> None:
    assert run(5, Budget(None, 300)) == run(5, Budget(None, 300)) != run(6, Budget(None, 300))


def test_processes_share_the_commands_and_take_a_seed_each() -> None:
    shared = run_parallel(5, Budget(None, 400), 2)
    apart = run(5, Budget(None, 200)), run(6, Budget(None, 200))
    assert shared.outcomes == apart[0].outcomes + apart[1].outcomes
    assert shared.cases == apart[0].cases + apart[1].cases


def test_cases_that_end_a_command_in_a_new_way_are_told() -> None:
    told: list[bytes] = []
    ran = run(5, Budget(None, 3000), told.append)
    bench = Bench()
    for data in told:
        assert attempt(bench, data) is None
    assert set(bench.outcomes) == set(ran.outcomes)
    assert len(told) < ran.cases


def test_a_finding_is_minimised_kept_and_can_be_replayed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[str] = []
    monkeypatch.setattr(sbc, "check_range", lambda *_: None)
    findings = [found for seed in (1, 2, 3) if (found := run(seed, Budget(None, 100_000)).finding)]
    shortest = sorted(findings, key=lambda each: len(each.data))
    assert len(shortest[1].data) < 100  # of three: how much must stay is a matter of the case; most have over 200 bytes
    finding = shortest[0]
    path = keep(tmp_path, finding.data, "finding")
    again = replay([path], told.append)
    assert again == finding
    assert any("LUN" in line for line in told)
    monkeypatch.undo()
    assert replay([path], told.append) is None


def test_it_breeds_cases_by_coverage() -> None:
    ran = breed(1, 4, FIXTURES)
    assert ran.cases  # instrumented, and mostly the seeds: few on a busy machine
    assert ran.finding is None
    assert by_command(ran.outcomes)["TEST UNIT READY"]


def test_who_cannot_breed_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(CannotBreedError, match="pip install"):
        breed(1, 1, tmp_path)
