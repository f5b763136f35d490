"""Logging of a target process: one JSON object per line on stderr, readable text on a terminal.

A guest's doings reach the log, so each logger may say only so much per second; what was left out is counted.
"""

import json
import logging
import sys
import time
from datetime import UTC, datetime

LINES_PER_SECOND = 20

_ORDINARY = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonLine(logging.Formatter):
    """`ts level event logger`, then what `extra` gave."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLine(logging.Formatter):
    """For a person: level, event, and what `extra` gave as `key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {key}={value}" for key, value in _extra(record).items())
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"vstore: {record.levelname.lower()}: {record.getMessage()}{extra}{trace}"


class Allowance(logging.Filter):
    """Lets LINES_PER_SECOND lines of a logger pass in each second."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0
        self._spent: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            left_out = sum(max(0, spent - LINES_PER_SECOND) for spent in self._spent.values())
            self._second, self._spent = second, {}
            if left_out:
                record.lines_left_out = left_out
        spent = self._spent[record.name] = self._spent.get(record.name, 0) + 1
        return spent <= LINES_PER_SECOND


def set_up(level: int = logging.INFO) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextLine() if sys.stderr.isatty() else JsonLine())
    handler.addFilter(Allowance())
    logging.basicConfig(level=level, handlers=[handler])


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in record.__dict__.items() if key not in _ORDINARY}
