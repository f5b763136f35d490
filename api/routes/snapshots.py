"""`/v1/pools/{pool}/images/{image}/snapshots`: states of a disk that its image keeps, taken also under a guest."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from api.conditional import Changing, Creating, Preferring, Reading, Starting
from api.routes.access import Paging, TheStore, examples, problems
from api.routes.jobs import EXAMPLE as JOB
from api.schemas import Listing
from vstore.store.records import Job, Snapshot

router = APIRouter(prefix="/v1/pools/{pool}/images/{image}/snapshots", tags=["snapshots"])

EXAMPLE: dict[str, Any] = {
    "id": "1",
    "name": "before-upgrade",
    "image": "web-root",
    "virtual_size_bytes": 10737418240,
    "vm_state_size_bytes": 0,
    "created_at": "2026-11-23T09:02:46.176303Z",
    "revision": 1795424566176303,
    "pause_us": 812,
}
_FAULTS = ("not_found", "in_use", "unsupported", "locked", "busy", "work_failed")


@router.get("", operation_id="SnapshotList", responses=problems("not_found", "unsupported", "locked", "work_failed"))
def list_snapshots(pool: str, image: str, store: TheStore, paging: Paging) -> Listing[Snapshot]:
    """The snapshots, in the order in which they were taken."""
    return paging.listing(store.list_snapshots(pool, image, limit=paging.limit, cursor=paging.cursor))


@router.put(
    "/{snapshot}",
    operation_id="SnapshotCreate",
    status_code=201,
    responses=examples(EXAMPLE, 200, 201)
    | examples(JOB, 202)
    | problems(*_FAULTS, "exists", "pool_full", "target_unavailable"),
)
def create_snapshot(
    pool: str, image: str, snapshot: str, *, store: TheStore, creating: Creating, preferring: Preferring
) -> Snapshot | Job:
    """Keeps the disk as it is now: 201, and `pause_us` tells how long a running guest's writes stood still; 200 if
    there is a snapshot of that name already. With `Prefer: respond-async` a job takes it."""
    done = store.create_snapshot(pool, image, snapshot, detached=preferring.detached)
    if isinstance(done, Job):
        return preferring.accepted(done)
    return creating.done(done, f"snapshot {snapshot} of image {image}")


@router.get(
    "/{snapshot}",
    operation_id="SnapshotShow",
    responses=examples(EXAMPLE, 200) | problems("not_found", "unsupported", "locked", "work_failed"),
)
def show_snapshot(pool: str, image: str, snapshot: str, store: TheStore, reading: Reading) -> Snapshot:
    return reading.answer(store.show_snapshot(pool, image, snapshot))


@router.delete(
    "/{snapshot}",
    operation_id="SnapshotDelete",
    status_code=204,
    response_model=None,
    responses=examples(JOB, 202) | problems(*_FAULTS, "stale", "gone", "target_unavailable"),
)
def delete_snapshot(
    pool: str, image: str, snapshot: str, *, store: TheStore, changing: Changing, preferring: Preferring
) -> JSONResponse | None:
    """Forgets it and frees what it alone held. Deleting what is gone is no error, unless `If-Match` insists. With
    `Prefer: respond-async` a job does it."""
    done = store.delete_snapshot(pool, image, snapshot, revision=changing.revision, detached=preferring.detached)
    if isinstance(done, Job):
        return JSONResponse(asdict(done), 202, preferring.headers(done))
    changing.deleted(done, f"snapshot {snapshot} of image {image}")
    return None


@router.post(
    "/{snapshot}/apply",
    operation_id="SnapshotApply",
    status_code=202,
    responses=examples(JOB, 202) | problems(*_FAULTS, "stale"),
)
def apply_snapshot(pool: str, image: str, snapshot: str, store: TheStore, starting: Starting) -> Job:
    """A job that makes the disk what it was then; what it is now is lost. `If-Match` is the image's tag."""
    return starting.accepted(store.apply_snapshot(pool, image, snapshot, revision=starting.revision))
