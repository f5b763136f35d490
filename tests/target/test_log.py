"""A target process's log: one JSON object a line, and a guest cannot flood it."""

import json
import logging
import sys

import pytest

from vstore.target.log import LINES_PER_SECOND, Allowance, JsonLine, TextLine


def record(message: str = "lun_mapped", **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("vstore.x", logging.WARNING, __file__, 1, message, (), None)
    made.__dict__.update(extra)
    return made


def test_line_is_json_with_what_extra_gave() -> None:
    line = json.loads(JsonLine().format(record(lun=3, image='a "b"\n')))
    assert line.pop("ts").endswith("+00:00")
    assert line == {"level": "warning", "event": "lun_mapped", "logger": "vstore.x", "lun": 3, "image": 'a "b"\n'}


def test_exception_stays_on_its_line() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        made = record()
        made.exc_info = sys.exc_info()
    text = JsonLine().format(made)
    assert "\n" not in text
    assert "ValueError: no" in json.loads(text)["exception"]


def test_person_reads_level_event_and_extra() -> None:
    assert TextLine().format(record(lun=3)) == "vstore: warning: lun_mapped lun=3"


def test_flood_is_cut_and_the_next_second_says_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    allowance = Allowance()
    assert [allowance.filter(record()) for _ in range(LINES_PER_SECOND + 7)].count(True) == LINES_PER_SECOND
    now += 1
    later = record()
    assert allowance.filter(later)
    assert json.loads(JsonLine().format(later))["lines_left_out"] == 7
