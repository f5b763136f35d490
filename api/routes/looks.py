"""`/v1/pools/{pool}/images/{image}/info` and `/map`: what an image is made of, also while a guest uses it."""

from typing import Any

from fastapi import APIRouter

from api.routes.access import Paging, TheStore, examples, problems
from api.schemas import Listing

router = APIRouter(prefix="/v1/pools/{pool}/images", tags=["images"])

INFO: dict[str, Any] = {
    "filename": "web-root.qcow2",
    "format": "qcow2",
    "virtual-size": 10737418240,
    "actual-size": 1196032,
    "cluster-size": 65536,
    "dirty-flag": False,
    "format-specific": {"type": "qcow2", "data": {"compat": "1.1", "compression-type": "zlib", "refcount-bits": 16}},
    "backing-filename": "debian-12.raw",
    "backing-filename-format": "raw",
}
EXTENT: dict[str, Any] = {
    "start": 0,
    "length": 65536,
    "depth": 0,
    "present": True,
    "zero": False,
    "data": True,
    "compressed": False,
    "offset": 327680,
}
_FAULTS = ("not_found", "conflict", "locked", "unsupported", "work_failed")


@router.get("/{image}/info", operation_id="ImageInfo", responses=examples(INFO, 200) | problems(*_FAULTS))
def info_image(pool: str, image: str, store: TheStore) -> dict[str, Any]:
    """What `qemu-img info --output=json` tells, under the same keys."""
    return store.info_image(pool, image)


@router.get(
    "/{image}/map",
    operation_id="ImageMap",
    responses=examples({"items": [EXTENT], "next": None}, 200) | problems(*_FAULTS),
)
def map_image(pool: str, image: str, store: TheStore, paging: Paging) -> Listing[dict[str, Any]]:
    """Where its bytes lie: the rows of `qemu-img map --output=json`, over the whole chain, page by page (`limit` goes
    up to 10000 here)."""
    return paging.listing(store.map_image(pool, image, limit=paging.limit, cursor=paging.cursor))
