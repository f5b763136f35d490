"""Jobs: from start to their one end, what they hold meanwhile, and what a daemon that died left behind."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.store.world import MIB, World, eventually
from vstore.store import Store, jobs
from vstore.store.errors import Busy, Conflict, InUse, InvalidArgument, NotFound
from vstore.store.jobs import JobPlan, RunningJob
from vstore.worker.wire import Cancelled


class Gate:
    """The work of a job that waits until the test lets it go on, or cancels it."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go = threading.Event()

    def work(self, job: RunningJob) -> Mapping[str, Any]:
        self.began.set()
        while not self.go.wait(0.01):
            if job.cancelled.is_set():
                raise Cancelled
        return {"answer": 42}


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


def plan(gate: Gate, subject: str = "default/a") -> JobPlan:
    return JobPlan("check_image", subject, {"repair": "none"}, gate.work)


def state(store: Store, job: str) -> str:
    return store.show_job(job).state


def ended(store: Store, job: str) -> str:
    eventually(lambda: state(store, job) in jobs.ENDED)
    return state(store, job)


def test_a_job_goes_from_queued_to_succeeded_and_keeps_its_result(store: Store, gate: Gate) -> None:
    job = store.jobs.start(plan(gate))
    gate.began.wait(10)
    running = store.show_job(job)
    assert (running.state, running.verb, running.pool, running.image) == ("running", "check_image", "default", "a")
    assert (running.arguments, running.result, running.ended_at) == ({"repair": "none"}, None, None)
    gate.go.set()
    assert ended(store, job) == "succeeded"
    done = store.show_job(job)
    assert (done.result, done.error) == ({"answer": 42}, None)
    assert done.created_at <= (done.started_at or "") <= (done.ended_at or "")


def test_a_refusal_ends_a_job_with_its_code_and_its_sentence(store: Store) -> None:
    def refuse(_job: RunningJob) -> None:
        raise Conflict("it cannot be")

    job = store.jobs.start(JobPlan("check_image", "default/a", {}, refuse))
    assert ended(store, job) == "failed"
    assert store.show_job(job).error == {"code": "conflict", "detail": "it cannot be"}


def test_a_fault_of_ours_ends_a_job_and_tells_nothing_of_itself(store: Store) -> None:
    def fault(_job: RunningJob) -> None:
        raise RuntimeError("/secret/path")

    job = store.jobs.start(JobPlan("check_image", "default/a", {}, fault))
    assert ended(store, job) == "failed"
    assert store.show_job(job).error == {"code": "internal_error", "detail": "the daemon's log tells more"}


def test_a_running_job_is_cancelled_and_cancelling_again_changes_nothing(store: Store, gate: Gate) -> None:
    job = store.jobs.start(plan(gate))
    gate.began.wait(10)
    assert store.cancel_job(job).id == job
    assert ended(store, job) == "cancelled"
    before = store.show_job(job)
    assert store.cancel_job(job) == before


def test_a_job_that_is_still_queued_is_cancelled_at_once(store: Store, gate: Gate) -> None:
    running = [store.jobs.start(plan(gate)) for _ in range(jobs._MOST_RUNNING)]
    waiting = store.jobs.start(plan(gate))
    assert state(store, waiting) == "queued"
    assert store.cancel_job(waiting).state == "cancelled"
    assert store.show_job(waiting).started_at is None
    gate.go.set()
    assert {ended(store, each) for each in running} == {"succeeded"}


def test_no_more_jobs_wait_than_can_be_kept_in_mind(store: Store, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST_QUEUED", 2)
    started = [store.jobs.start(plan(gate)) for _ in range(2)]
    with pytest.raises(Busy, match="2 jobs are not done yet"):
        store.jobs.start(plan(gate))
    gate.go.set()
    for each in started:
        ended(store, each)
    assert ended(store, store.jobs.start(plan(gate))) == "succeeded"


def test_what_a_job_uses_is_refused_to_verbs_until_it_has_ended(store: Store, gate: Gate) -> None:
    store.create_image("default", "a", virtual_size_bytes=MIB)
    store.create_target("t")
    job = store.jobs.start(plan(gate), alone=["default/a"])
    for verb in (
        lambda: store.delete_image("default", "a"),
        lambda: store.update_image("default", "a", virtual_size_bytes=2 * MIB),
        lambda: store.map_lun("t", "0", image="a", read_only=True),
        lambda: store.clone_image("default", "a", clone="b"),
        lambda: store.jobs.start(plan(gate), shared=["default/a"]),
    ):
        with pytest.raises(InUse, match=rf"job {job} \(check_image\) uses image a; wait until it ends, or cancel it"):
            verb()
    assert store.update_image("default", "a", labels={"x": "y"}).labels == {"x": "y"}
    gate.go.set()
    ended(store, job)
    assert store.delete_image("default", "a")


def test_what_a_job_only_reads_others_may_read_too(store: Store, gate: Gate) -> None:
    store.create_image("default", "a", virtual_size_bytes=MIB)
    store.create_target("t")
    job = store.jobs.start(plan(gate), shared=["default/a"])
    assert store.map_lun("t", "0", image="a", read_only=True)[1]
    assert store.clone_image("default", "a", clone="b")[1]
    other = store.jobs.start(plan(gate), shared=["default/a"])
    with pytest.raises(InUse):
        store.jobs.start(plan(gate), alone=["default/a"])
    with pytest.raises(InUse):
        store.delete_image("default", "a")
    gate.go.set()
    assert {ended(store, job), ended(store, other)} == {"succeeded"}


def test_a_name_that_a_job_will_give_is_taken(store: Store, gate: Gate) -> None:
    job = store.jobs.start(plan(gate), alone=["default/new"])
    with pytest.raises(InUse, match="uses image new"):
        store.create_image("default", "new", virtual_size_bytes=MIB)
    gate.go.set()
    ended(store, job)
    assert store.create_image("default", "new", virtual_size_bytes=MIB)[1]


def test_jobs_are_listed_newest_first_page_by_page_and_by_state(store: Store, gate: Gate) -> None:
    gate.go.set()
    made = [store.jobs.start(plan(gate, f"default/i{number}")) for number in range(5)]
    for job in made:
        ended(store, job)
    seen, cursor = [], None
    while True:
        page = store.list_jobs(limit=2, cursor=cursor)
        seen += [job.id for job in page.items]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == sorted(made, reverse=True)
    assert len(store.list_jobs(state="succeeded").items) == 5
    assert store.list_jobs(state="failed").items == []
    with pytest.raises(InvalidArgument, match="choose queued, running"):
        store.list_jobs(state="done")


def test_old_jobs_are_forgotten_and_unended_ones_never(
    store: Store, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MOST_KEPT", 2)
    waiting = store.jobs.start(plan(gate))
    quick = Gate()
    quick.go.set()
    made = []
    for _ in range(5):
        made.append(store.jobs.start(plan(quick)))
        ended(store, made[-1])
    assert {job.id for job in store.list_jobs().items} >= {waiting, *made[-2:]}
    assert len(store.list_jobs().items) == 4  # the one that waits, two that are kept, the newest one
    with pytest.raises(NotFound, match="there is no job"):
        store.show_job(made[0])
    gate.go.set()
    ended(store, waiting)


def test_a_daemon_that_stops_ends_its_jobs_and_says_why(store: Store, world: World, gate: Gate) -> None:
    job = store.jobs.start(plan(gate))
    gate.began.wait(10)
    world.close_store(store, stop_targets=True)
    again = world.open()
    told = again.show_job(job)
    assert told.state == "failed"
    assert told.error == {
        "code": "interrupted",
        "detail": "the daemon ended while the job was not done; start it again",
    }


def test_a_job_of_a_daemon_that_was_killed_has_failed(store: Store, world: World, gate: Gate) -> None:
    job = store.jobs.start(plan(gate))
    gate.began.wait(10)
    with store.catalog.read() as connection:
        frozen = connection.exec_driver_sql("SELECT * FROM jobs").one()
    gate.go.set()
    ended(store, job)
    with store.catalog.write() as connection:  # as the kill left it
        connection.exec_driver_sql("DELETE FROM jobs")
        connection.exec_driver_sql(f"INSERT INTO jobs VALUES ({', '.join('?' * len(frozen))})", tuple(frozen))
    world.close_store(store, stop_targets=True)
    again = world.open()
    assert again.show_job(job).state == "failed"
    assert (again.show_job(job).error or {})["code"] == "interrupted"
