"""`vstore fuzz`: what it runs, tells, keeps and refuses."""

import json
from pathlib import Path

import pytest

from api.cli import main
from vstore.scsi import sbc
from vstore.scsi.commands import COMMANDS

Out = pytest.CaptureFixture[str]


def test_it_reports_each_command_and_that_nothing_was_found(capsys: Out, tmp_path: Path) -> None:
    assert main(["fuzz", "--commands", "300", "--cases", str(tmp_path / "cases")]) == 0
    out = capsys.readouterr().out
    assert all(row.name in out for row in COMMANDS)
    assert "no finding" in out.splitlines()[-1]
    assert not (tmp_path / "cases").exists()


def test_json_has_the_numbers_of_the_table(capsys: Out, tmp_path: Path) -> None:
    assert main(["fuzz", "--commands", "300", "--jobs", "2", "--cases", str(tmp_path), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert sum(sum(ends.values()) for ends in body["by_command"].values()) == body["commands"] >= 300
    assert body["finding"] is None


def test_a_finding_is_kept_told_and_replayed(capsys: Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sbc, "check_range", lambda *_: None)
    assert main(["fuzz", "--commands", "100000", "--cases", str(tmp_path)]) == 1
    (case,) = tmp_path.iterdir()
    assert f"vstore fuzz --replay {case}" in capsys.readouterr().err
    assert main(["fuzz", "--replay", str(case)]) == 1
    assert "finding: " in capsys.readouterr().out
    monkeypatch.undo()
    assert main(["fuzz", "--replay", str(case)]) == 0


def test_new_ways_to_end_are_kept_where_wanted(tmp_path: Path) -> None:
    assert main(["fuzz", "--commands", "100", "--cases", str(tmp_path), "--grow"]) == 0
    assert all(case.name.startswith("case-") for case in tmp_path.iterdir())
    assert main(["fuzz", *(f"--replay={case}" for case in tmp_path.iterdir())]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--commands", "0"], "--commands"),
        (["--bred", "--jobs", "2"], "--bred runs in one process"),
        (["--bred", "--commands", "9"], "--bred runs in one process"),
        (["--grow", "--jobs", "2"], "--grow is for one process"),
        (["--replay", "/nowhere"], "/nowhere"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], told: str, capsys: Out) -> None:
    assert main(["fuzz", *arguments]) == 64
    assert told in capsys.readouterr().err


def test_a_finding_that_cannot_be_kept_is_told(capsys: Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sbc, "check_range", lambda *_: None)
    (tmp_path / "file").touch()
    assert main(["fuzz", "--commands", "100000", "--cases", str(tmp_path / "file" / "cases")]) == 1
    assert "cannot keep the finding" in capsys.readouterr().err
