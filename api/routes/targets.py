"""`/v1/targets`: virtual SCSI targets, and how a VMM attaches to one."""

from typing import Any

from fastapi import APIRouter, Query

from api.conditional import Changing, Creating, Reading
from api.routes.access import Paging, TheStore, examples, problems
from api.schemas import Listing, TargetChange, TargetSpec
from vstore.store.records import Attach, Target
from vstore.store.targets import DEFAULT_GUEST_MEMORY

router = APIRouter(prefix="/v1/targets", tags=["targets"])

EXAMPLE: dict[str, Any] = {
    "id": "01a207a4-bba0-73fa-b3e7-183abdf9284e",
    "name": "web",
    "socket": "/run/vstore/targets/web/vhost.sock",
    "request_queues": 4,
    "threads": 1,
    "poll_us": None,
    "config_space": False,
    "socket_mode": "0660",
    "socket_owner": None,
    "socket_group": "kvm",
    "beside": None,
    "port": 1,
    "process": {"state": "connected", "pid": 4711, "restarts": 0, "problem": None},
    "luns": ["0", "1"],
    "created_at": "2026-11-23T09:02:46.176303Z",
    "revision": 1,
    "labels": {},
}


@router.get("", operation_id="TargetList", responses=problems())
def list_targets(store: TheStore, paging: Paging) -> Listing[Target]:
    """The targets, by name."""
    return paging.listing(store.list_targets(limit=paging.limit, cursor=paging.cursor))


@router.put(
    "/{target}",
    operation_id="TargetCreate",
    status_code=201,
    responses=examples(EXAMPLE, 200, 201) | problems("already_exists", "exists", "target_unavailable", "busy"),
)
def create_target(target: str, spec: TargetSpec, store: TheStore, creating: Creating) -> Target:
    """Starts a target that listens for a VMM: 201; 200 if it is there already just so; 409 if it differs."""
    return creating.done(store.create_target(target, **spec.given()), f"target {target}")


@router.get("/{target}", operation_id="TargetShow", responses=examples(EXAMPLE, 200) | problems("not_found"))
def show_target(target: str, store: TheStore, reading: Reading) -> Target:
    return reading.answer(store.show_target(target))


@router.patch(
    "/{target}", operation_id="TargetUpdate", responses=examples(EXAMPLE, 200) | problems("not_found", "stale", "busy")
)
def update_target(target: str, change: TargetChange, store: TheStore, changing: Changing) -> Target:
    """Merges labels; the other settings are for life."""
    return changing.answer(store.update_target(target, revision=changing.revision, **change.given()))


@router.delete(
    "/{target}", operation_id="TargetDelete", status_code=204, responses=problems("in_use", "stale", "gone", "busy")
)
def delete_target(target: str, store: TheStore, changing: Changing) -> None:
    """Ends the target and its process. Deleting what is gone is no error, unless `If-Match` insists."""
    changing.deleted(store.delete_target(target, revision=changing.revision), f"target {target}")


@router.get("/{target}/attach", operation_id="TargetAttach", responses=problems("not_found"))
def attach_lines(
    target: str,
    store: TheStore,
    memory_bytes: int = Query(DEFAULT_GUEST_MEMORY, description="memory of the guest, whole MiB"),
) -> Attach:
    """The exact command line of each VMM for this target."""
    return store.attach_lines(target, memory_bytes=memory_bytes)
