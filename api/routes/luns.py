"""`/v1/targets/{target}/luns`: images behind a target, mapped and unmapped also under a running guest."""

from typing import Any

from fastapi import APIRouter

from api.conditional import Changing, Creating, Reading
from api.routes.access import Paging, TheStore, examples, problems
from api.schemas import Listing, LunSpec
from vstore.store.records import Lun

router = APIRouter(prefix="/v1/targets/{target}/luns", tags=["luns"])

EXAMPLE: dict[str, Any] = {
    "id": "01a207a4-bba0-73fa-b3e7-183abdf9284e",
    "name": "0",
    "target": "web",
    "scsi_target": 0,
    "lun": 0,
    "pool": "default",
    "image": "web-root",
    "virtual_size_bytes": 10737418240,
    "read_only": False,
    "direct": False,
    "logical_block_length_bytes": 512,
    "discard": "unref",
    "shared": False,
    "serial": "01a207a4bba073fab3e7183abdf9284e",
    "created_at": "2026-11-23T09:02:46.176303Z",
    "revision": 1,
    "labels": {},
}


@router.get("", operation_id="LunList", responses=problems("not_found"))
def list_luns(target: str, store: TheStore, paging: Paging) -> Listing[Lun]:
    """The LUNs of a target, in order."""
    return paging.listing(store.list_luns(target, limit=paging.limit, cursor=paging.cursor))


@router.put(
    "/{lun}",
    operation_id="LunMap",
    status_code=201,
    responses=examples(EXAMPLE, 200, 201)
    | problems("not_found", "already_exists", "in_use", "exists", "locked", "target_unavailable", "busy"),
)
def map_lun(target: str, lun: str, spec: LunSpec, store: TheStore, creating: Creating) -> Lun:
    """Puts an image behind `LUN` or `TARGET:LUN`: 201; 200 if it is there already just so; 409 if it differs."""
    return creating.done(store.map_lun(target, lun, **spec.given()), f"LUN {lun} of target {target}")


@router.get("/{lun}", operation_id="LunShow", responses=examples(EXAMPLE, 200) | problems("not_found"))
def show_lun(target: str, lun: str, store: TheStore, reading: Reading) -> Lun:
    return reading.answer(store.show_lun(target, lun))


@router.delete(
    "/{lun}",
    operation_id="LunUnmap",
    status_code=204,
    responses=problems("not_found", "stale", "gone", "target_unavailable", "busy"),
)
def unmap_lun(target: str, lun: str, store: TheStore, changing: Changing) -> None:
    """Takes the LUN away once its commands are done. Without it, no error, unless `If-Match` insists."""
    changing.deleted(store.unmap_lun(target, lun, revision=changing.revision), f"LUN {lun} of target {target}")
