"""Jobs: long work on images, one worker process each, that a client starts, watches, waits for and cancels.

    start --> queued --> running --> succeeded | failed | cancelled     (terminal for ever)
                 \\_____________________________/
                        cancel: asked first, then killed

A job is a row of the catalog, so that it can be asked for after it ended, and a thread here while it lives; its images
are claimed meanwhile. What it makes appears in the catalog in the transaction that ends it. Progress is told from
memory. A daemon that starts marks what the last one left unended as failed; the pool's sweep clears its drafts away.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from vstore.store import schema
from vstore.store.catalog import Catalog
from vstore.store.claims import Claims
from vstore.store.errors import Busy, InvalidArgument, NotFound, StoreError
from vstore.store.identifiers import new_id, timestamp
from vstore.store.parts import Parts, decode_cursor, encode_cursor, page_limit
from vstore.store.records import Job, Page
from vstore.store.work import Workers
from vstore.worker.client import GRACE
from vstore.worker.wire import Cancelled, Work

_log = logging.getLogger(__name__)

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = STATES = ("queued", "running", "succeeded", "failed", "cancelled")
ENDED = (SUCCEEDED, FAILED, CANCELLED)
MOST_QUEUED = 64
MOST_KEPT = 1000  # ended jobs
_MOST_RUNNING = max(2, (os.cpu_count() or 1) // 2)
_GRACE_AT_THE_END = 2.0  # seconds that a worker has when the daemon stops


@dataclass(frozen=True)
class JobPlan:
    """What a job does. `work` runs in the job's thread and returns the result, or None once it has recorded it."""

    verb: str
    subject: str  # POOL/IMAGE
    arguments: Mapping[str, Any]
    work: Callable[["RunningJob"], Mapping[str, Any] | None]


@dataclass
class RunningJob:
    """A job from its start to its end."""

    id: str
    plan: JobPlan
    workers: Workers
    done_bytes: int = 0
    total_bytes: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    stopping: bool = False  # the daemon ends
    future: Future[None] | None = None

    def run(self, verb: str, file: str, chains: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Has a worker do it. Raises StoreError, Cancelled."""
        return self.workers.run(
            Work(verb, dict(chains), options),
            file,
            progress=self._progress,
            cancelled=self.cancelled.is_set,
            grace=lambda: _GRACE_AT_THE_END if self.stopping else GRACE,
        )

    def _progress(self, done: int, total: int) -> None:
        self.done_bytes, self.total_bytes = done, total

    def succeeded(self, connection: Connection, result: Mapping[str, Any]) -> None:
        """Records the end in the transaction that records what the job made."""
        _end(connection, self, SUCCEEDED, result=dict(result))


class Jobs:
    def __init__(self, catalog: Catalog, claims: Claims, workers: Workers) -> None:
        self._catalog = catalog
        self._claims = claims
        self._workers = workers
        self._lock = threading.Lock()
        self._active: dict[str, RunningJob] = {}
        self._threads = ThreadPoolExecutor(_MOST_RUNNING, "job")
        self._bury()

    def start(self, plan: JobPlan, *, alone: Sequence[str] = (), shared: Sequence[str] = ()) -> str:
        """The id of the new job, which claims these images. The caller holds their locks. Raises InUse, Busy."""
        job = RunningJob(new_id(), plan, self._workers)
        with self._lock:
            if len(self._active) >= MOST_QUEUED:
                raise Busy(f"{MOST_QUEUED} jobs are not done yet; try again when some of them are")
            self._claims.take(job.id, plan.verb, alone=alone, shared=shared)
            self._active[job.id] = job
        try:
            self._record(job)
            job.future = self._threads.submit(self._run, job)
        except BaseException:
            self._forget(job)
            raise
        return job.id

    def active(self, job_id: str) -> RunningJob | None:
        with self._lock:
            return self._active.get(job_id)

    def show(self, job_id: str) -> Job:
        """Raises NotFound."""
        active = self.active(job_id)  # before the catalog: a job that ends meanwhile is told a moment too late
        with self._catalog.read() as connection:
            row = connection.execute(select(schema.jobs).where(schema.jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFound(f"there is no job {job_id[:80]!r}", field="job")
        return _record(row, active)

    def cancel(self, job_id: str) -> None:
        """Asks it to end; one that is still queued ends at once."""
        job = self.active(job_id)
        if job is None:
            return
        job.cancelled.set()
        if job.future is not None and job.future.cancel():
            self._settle(job, CANCELLED)

    def close(self) -> None:
        """Ends all jobs. Whoever started them finds them failed."""
        with self._lock:
            active = list(self._active.values())
        for job in active:
            job.stopping = True
            self.cancel(job.id)
        self._threads.shutdown(wait=True)

    def _record(self, job: RunningJob) -> None:
        plan = job.plan
        kept = select(schema.jobs.c.id).where(schema.jobs.c.state.in_(ENDED)).order_by(schema.jobs.c.id.desc())
        with self._catalog.write() as connection:
            connection.execute(
                insert(schema.jobs).values(
                    id=job.id,
                    created_at=timestamp(),
                    revision=1,
                    verb=plan.verb,
                    subject=plan.subject,
                    arguments=dict(plan.arguments),
                    state=QUEUED,
                    done_bytes=0,
                    total_bytes=0,
                )
            )
            oldest = connection.scalar(kept.offset(MOST_KEPT).limit(1))
            if oldest is not None:
                old = schema.jobs.c.state.in_(ENDED) & (schema.jobs.c.id <= oldest)
                connection.execute(delete(schema.jobs).where(old))

    def _run(self, job: RunningJob) -> None:
        told = {"job": job.id, "verb": job.plan.verb, "image": job.plan.subject}
        try:
            with self._catalog.write() as connection:
                _change(connection, job.id, state=RUNNING, started_at=timestamp())
            _log.info("job_started", extra=told)
            result = job.plan.work(job)
        except Cancelled:
            self._settle(job, CANCELLED)
        except StoreError as error:
            self._settle(job, FAILED, error={"code": error.code, "detail": error.detail})
        except Exception:
            _log.exception("job_fault", extra=told)
            self._settle(job, FAILED, error={"code": "internal_error", "detail": "the daemon's log tells more"})
        else:
            self._settle(job, SUCCEEDED, result=result)
        _log.info("job_ended", extra=told)

    def _settle(self, job: RunningJob, state: str, **outcome: Any) -> None:
        if state == CANCELLED and job.stopping:
            state, outcome = FAILED, {"error": _INTERRUPTED}
        try:
            with self._catalog.write() as connection:
                if connection.scalar(select(schema.jobs.c.state).where(schema.jobs.c.id == job.id)) not in ENDED:
                    _end(connection, job, state, **outcome)
        except StoreError as error:  # the next start will find it unended
            _log.error("job_end_not_recorded", extra={"job": job.id, "error": error.detail})
        finally:
            self._forget(job)

    def _forget(self, job: RunningJob) -> None:
        self._claims.release(job.id)
        with self._lock:
            self._active.pop(job.id, None)

    def _bury(self) -> None:
        """Marks as failed what the last daemon did not end."""
        table = schema.jobs
        with self._catalog.write() as connection:
            left = connection.scalars(select(table.c.id).where(table.c.state.in_((QUEUED, RUNNING)))).all()
            for job_id in left:
                _log.warning("job_interrupted", extra={"job": job_id})
                _change(connection, job_id, state=FAILED, error=_INTERRUPTED, ended_at=timestamp())


_INTERRUPTED = {"code": "interrupted", "detail": "the daemon ended while the job was not done; start it again"}


class JobVerbs(Parts):
    def list_jobs(self, *, state: str | None = None, limit: int | None = None, cursor: str | None = None) -> Page[Job]:
        """The jobs, the newest first, perhaps only those in one state. Raises InvalidArgument."""
        limit, after, table = page_limit(limit), decode_cursor(cursor), schema.jobs
        query = select(table).order_by(table.c.id.desc()).limit(limit + 1)
        query = query.where(table.c.id < after) if after else query
        query = query.where(table.c.state == check_state(state)) if state is not None else query
        with self.catalog.read() as connection:
            rows = connection.execute(query).all()
        items = [self._job(row) for row in rows[:limit]]
        return Page(items, encode_cursor(items[-1].id) if len(rows) > limit else None)

    def show_job(self, job: str) -> Job:
        """Raises NotFound."""
        return self.jobs.show(job)

    def cancel_job(self, job: str) -> Job:
        """Asks the job to end, and kills it when it does not; the same again, or on one that ended, changes nothing.

        Raises NotFound.
        """
        self.show_job(job)
        self.jobs.cancel(job)
        return self.show_job(job)

    def _job(self, row: Row[Any]) -> Job:
        return _record(row, self.jobs.active(row.id))


def check_state(state: str) -> str:
    """Raises InvalidArgument."""
    if state not in STATES:
        raise InvalidArgument("state", f"{state[:80]!r} is no state of a job", f"choose {', '.join(STATES)}")
    return state


def _record(row: Row[Any], active: RunningJob | None) -> Job:
    pool, _, image = row.subject.partition("/")
    ended = row.state in ENDED
    return Job(
        id=row.id,
        verb=row.verb,
        pool=pool,
        image=image,
        arguments=row.arguments,
        state=RUNNING if ended and active is not None else row.state,  # it holds its images a moment longer
        done_bytes=active.done_bytes if active is not None else row.done_bytes,
        total_bytes=active.total_bytes if active is not None else row.total_bytes,
        result=None if active is not None else row.result,
        error=None if active is not None else row.error,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=None if active is not None else row.ended_at,
        revision=row.revision,
    )


def _end(connection: Connection, job: RunningJob, state: str, **outcome: Any) -> None:
    counts = {"done_bytes": job.done_bytes, "total_bytes": job.total_bytes}
    _change(connection, job.id, state=state, ended_at=timestamp(), **counts, **outcome)


def _change(connection: Connection, job_id: str, **values: Any) -> None:
    table = schema.jobs
    connection.execute(update(table).where(table.c.id == job_id).values(revision=table.c.revision + 1, **values))
