"""How long a request waits for its worker: as long as that makes progress, and not much longer."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vstore.store import work
from vstore.store.errors import WorkFailed
from vstore.store.work import Workers
from vstore.worker.wire import Cancelled


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    monkeypatch.setattr(work, "LONGEST", 0.5)
    workers = Workers(tmp_path / "lock")
    yield workers
    workers.close()


def worker(*, steps: int) -> Callable[..., dict[str, Any]]:
    """What stands in for one: it tells of some steps, and then of nothing until it is ended."""

    def run(_work: object, *, progress: Callable[[int, int], None], cancelled: Callable[[], bool], **_: object) -> Any:
        for step in range(steps):
            time.sleep(0.1)
            if cancelled():
                raise Cancelled("it was ended")
            progress(step, steps)
        if steps > 1:
            return {"steps": steps}
        while not cancelled():
            time.sleep(0.01)
        raise Cancelled("it was ended")

    return run


def test_a_request_waits_as_long_as_its_worker_makes_progress(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work.client, "run", worker(steps=10))
    assert workers.do("take_snapshot", "disk.qcow2", {}) == {"steps": 10}


def test_a_worker_without_progress_is_ended(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work.client, "run", worker(steps=1))
    with pytest.raises(WorkFailed, match=r"take_snapshot\) made no progress for 0\.5 s"):
        workers.do("take_snapshot", "disk.qcow2", {})
