"""`/v1/pools/{pool}/images/{image}/bitmaps`: what of a disk has changed since; kept and changed also under a guest."""

from typing import Any

from fastapi import APIRouter

from api.conditional import Changing, Creating, Reading
from api.routes.access import Paging, TheStore, examples, problems
from api.schemas import BitmapMerge, BitmapSpec, Listing
from vstore.store.records import Bitmap

router = APIRouter(prefix="/v1/pools/{pool}/images/{image}/bitmaps", tags=["bitmaps"])

EXAMPLE: dict[str, Any] = {
    "name": "since-monday",
    "image": "web-root",
    "granularity_bytes": 65536,
    "enabled": True,
    "consistent": True,
    "revision": 4,
}
_FAULTS = ("not_found", "in_use", "unsupported", "locked", "busy", "work_failed", "target_unavailable")
_CHANGE = examples(EXAMPLE, 200) | problems(*_FAULTS)


@router.get("", operation_id="BitmapList", responses=problems(*_FAULTS))
def list_bitmaps(pool: str, image: str, store: TheStore, paging: Paging) -> Listing[Bitmap]:
    """The bitmaps by their names."""
    return paging.listing(store.list_bitmaps(pool, image, limit=paging.limit, cursor=paging.cursor))


@router.put(
    "/{bitmap}",
    operation_id="BitmapAdd",
    status_code=201,
    responses=examples(EXAMPLE, 200, 201) | problems(*_FAULTS, "exists", "pool_full", "conflict"),
)
def add_bitmap(pool: str, image: str, bitmap: str, *, spec: BitmapSpec, store: TheStore, creating: Creating) -> Bitmap:
    """A new bitmap, in which nothing is dirty: 201; 200 if there is just such a one already."""
    return creating.done(store.add_bitmap(pool, image, bitmap, **spec.given()), f"bitmap {bitmap} of image {image}")


@router.get("/{bitmap}", operation_id="BitmapShow", responses=_CHANGE)
def show_bitmap(pool: str, image: str, bitmap: str, store: TheStore, reading: Reading) -> Bitmap:
    return reading.answer(store.show_bitmap(pool, image, bitmap))


@router.delete("/{bitmap}", operation_id="BitmapRemove", status_code=204, responses=problems(*_FAULTS, "gone"))
def remove_bitmap(pool: str, image: str, bitmap: str, store: TheStore, changing: Changing) -> None:
    """Also one that was lost in a crash. Removing what is gone is no error, unless `If-Match` insists."""
    changing.deleted(store.remove_bitmap(pool, image, bitmap), f"bitmap {bitmap} of image {image}")


@router.post("/{bitmap}/enable", operation_id="BitmapEnable", responses=_CHANGE)
def enable_bitmap(pool: str, image: str, bitmap: str, store: TheStore, reading: Reading) -> Bitmap:
    """From now on it records what is written to the disk."""
    return reading.answer(store.enable_bitmap(pool, image, bitmap))


@router.post("/{bitmap}/disable", operation_id="BitmapDisable", responses=_CHANGE)
def disable_bitmap(pool: str, image: str, bitmap: str, store: TheStore, reading: Reading) -> Bitmap:
    """It stays as it is."""
    return reading.answer(store.disable_bitmap(pool, image, bitmap))


@router.post("/{bitmap}/clear", operation_id="BitmapClear", responses=_CHANGE)
def clear_bitmap(pool: str, image: str, bitmap: str, store: TheStore, reading: Reading) -> Bitmap:
    """Nothing is dirty in it any more."""
    return reading.answer(store.clear_bitmap(pool, image, bitmap))


@router.post("/{bitmap}/merge", operation_id="BitmapMerge", responses=_CHANGE)
def merge_bitmap(pool: str, image: str, bitmap: str, *, spec: BitmapMerge, store: TheStore, reading: Reading) -> Bitmap:
    """What is dirty in any of the sources is dirty in it too."""
    return reading.answer(store.merge_bitmap(pool, image, bitmap, **spec.given()))
