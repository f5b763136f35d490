"""`/v1/jobs`: long work on images, to be watched, waited for and cancelled."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool

from api.conditional import Reading
from api.routes.access import Paging, TheStore, examples, problems
from api.schemas import Listing
from vstore.store.jobs import ENDED
from vstore.store.records import Job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

LONGEST_WAIT = 60  # seconds
_LOOK_EVERY = 0.1

EXAMPLE: dict[str, Any] = {
    "id": "01a207a4-bba0-73fa-b3e7-183abdf9284e",
    "verb": "convert_image",
    "pool": "default",
    "image": "web-root",
    "arguments": {"into": "web-export", "format": "qcow2", "compress": True, "snapshot": None},
    "state": "running",
    "done_bytes": 4294967296,
    "total_bytes": 10737418240,
    "result": None,
    "error": None,
    "created_at": "2026-11-23T09:02:46.176303Z",
    "started_at": "2026-11-23T09:02:46.181190Z",
    "ended_at": None,
    "revision": 2,
}


@router.get("", operation_id="JobList", responses=problems())
def list_jobs(
    store: TheStore,
    paging: Paging,
    state: Annotated[str | None, Query(description="queued, running, succeeded, failed or cancelled")] = None,
) -> Listing[Job]:
    """The jobs, the newest first."""
    kept = {} if state is None else {"state": state}
    return paging.listing(store.list_jobs(state=state, limit=paging.limit, cursor=paging.cursor), **kept)


@router.get("/{job}", operation_id="JobShow", responses=examples(EXAMPLE, 200) | problems("not_found"))
async def show_job(
    job: str,
    store: TheStore,
    reading: Reading,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT, description="seconds to wait for its end")] = 0,
) -> Job:
    """The job as it is now, or, with `wait`, as soon as it has ended. Who waits holds no thread."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    record = await run_in_threadpool(store.show_job, job)
    while record.state not in ENDED and loop.time() < deadline:
        await asyncio.sleep(_LOOK_EVERY)
        record = await run_in_threadpool(store.show_job, job)
    return reading.answer(record)


@router.delete(
    "/{job}", operation_id="JobCancel", status_code=202, responses=examples(EXAMPLE, 202) | problems("not_found")
)
def cancel_job(job: str, store: TheStore, reading: Reading) -> Job:
    """Asks it to end, and kills it when it does not. Of one that has ended, this changes nothing."""
    return reading.answer(store.cancel_job(job))
