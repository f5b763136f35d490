"""One trial: a variant made, used under the recorder, and crashed in as many ways as wanted.

folder/before   the files as they were        folder/files   the same, used       folder/log   what happened
folder/initial  a generation for each sector    folder/output  what the process said
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash import faulty, nursery, states
from tests.crash.history import History
from tests.crash.judge import Judge
from tests.crash.recording import Fault, Kind, Recording, environment
from tests.crash.small import small_numbers
from tests.crash.states import State
from tests.crash.variants import Variant, prepare
from tests.crash.workload import Work

ROOT = Path(__file__).parents[2]
MEMORY = Path("/dev/shm")
KEPT = ROOT / "build" / "crash"


@dataclass
class Outcome:
    """How many states were judged, and what was wrong with the first of those that failed."""

    variant: str
    seed: int
    states: int = 0
    events: int = 0
    failures: list[str] = field(default_factory=list)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, where a barrier costs nothing."""
    with tempfile.TemporaryDirectory(prefix="vstore-crash-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


def record(folder: Path, variant: Variant, seed: int, mutant: str = "", fault: Fault | None = None) -> None:
    """Fills an empty folder."""
    files = folder / "files"
    files.mkdir()
    initial = prepare(variant, files, seed)
    shutil.copytree(files, folder / "before")
    (folder / "initial").write_text(json.dumps(initial))
    (folder / "log").touch()
    work = Work(variant.name, seed, mutant, fault)
    code = nursery.run(environment(folder, refuse=variant.refuse, fault=fault), folder, work)
    began = b"answer" in (folder / "log").read_bytes()
    if code and not (mutant and began):  # a defect may end it half way
        said = (folder / nursery.OUTPUT).read_text()
        raise RuntimeError(f"{work} ended with {code}:\n{said}")


def history_of(folder: Path, recording: Recording) -> History:
    return History(json.loads((folder / "initial").read_text()), recording.events)


def crash(
    variant: Variant,
    seed: int,
    most: int,
    *,
    qemu_every: int = 25,
    mutant: str = "",
    patience: int = 1,
    fault: Fault | None = None,
) -> Outcome:
    """Judges at most `most` states, every `qemu_every`th with qemu-img; stops after `patience` that fail. The recording
    of a failure is kept."""
    outcome = Outcome(variant.name, seed)
    with scratch() as folder, small_numbers(variant.cluster_size):
        record(folder, variant, seed, mutant, fault)
        recording = Recording.load(folder)
        assert any(event.kind == Kind.FILE for event in recording.events), "the recorder was not loaded"
        outcome.events = len(recording.events)
        judge = _judge(folder, recording)
        for state in states.states(recording, most, seed):
            complaints = judge.judge(state, qemu=outcome.states % qemu_every == 0)
            outcome.states += 1
            if complaints:
                kept = folder if mutant else _keep(folder, variant, seed, fault)
                outcome.failures.append(_told(kept, state, recording, complaints))
                if len(outcome.failures) == patience:
                    break
    return outcome


def calls(variant: Variant, seed: int) -> dict[Kind, int]:
    """How many calls of each kind that can fail there are where none does."""
    with scratch() as folder, small_numbers(variant.cluster_size):
        record(folder, variant, seed)
        kinds = Counter(event.kind for event in Recording.load(folder).events)
    return {kind: number for kind, number in kinds.items() if kind in faulty.ERRORS}


def _judge(folder: Path, recording: Recording) -> Judge:
    (folder / "state").mkdir(exist_ok=True)
    return Judge(folder / "state", history_of(folder, recording))


def _keep(folder: Path, variant: Variant, seed: int, fault: Fault | None) -> Path:
    kept = KEPT / f"{variant.name.replace(' ', '-')}-{seed}{f'-{fault}' if fault else ''}"
    if not kept.exists():
        shutil.copytree(folder, kept)
    return kept


def _told(folder: Path, state: State, recording: Recording, complaints: list[str]) -> str:
    last = [event for event in recording.events[: state.position] if event.kind != Kind.MARK][-3:]
    return "\n".join(
        [
            f"a crash behind event {state.position} (subset {state.draw}), after {'; '.join(map(str, last))}:",
            *(f"    {complaint}" for complaint in complaints),
            f"    again: .venv/bin/python -m tests.crash --again {folder} {state.name}",
        ]
    )


def again(folder: Path, name: str) -> list[str]:
    """Judges one state of a recording that was kept; it lies in the recording's state folder afterwards."""
    recording = Recording.load(folder)
    with small_numbers(4096):
        return _judge(folder, recording).judge(states.at(recording, name), qemu=True)
