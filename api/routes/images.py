"""`/v1/pools/{pool}/images`: disk images."""

from typing import Any

from fastapi import APIRouter, Query

from api.conditional import Changing, Creating, Preferring, Reading
from api.routes.access import Paging, TheStore, examples, problems
from api.routes.jobs import EXAMPLE as JOB
from api.schemas import CloneSpec, ImageChange, ImageSpec, Listing, Registration
from vstore.store.records import Image, Job

router = APIRouter(prefix="/v1/pools/{pool}/images", tags=["images"])

EXAMPLE: dict[str, Any] = {
    "id": "01a207a4-bba0-73fa-b3e7-183abdf9284e",
    "name": "web-root",
    "pool": "default",
    "format": "qcow2",
    "file": "web-root.qcow2",
    "state": "ready",
    "virtual_size_bytes": 10737418240,
    "actual_size_bytes": 1196032,
    "preallocation": "off",
    "options": {"cluster_size_bytes": 65536, "extended_l2": False, "refcount_bits": 16, "compression_type": "zlib"},
    "secret": None,
    "parent": "debian-12",
    "backing": "debian-12.raw",
    "chain_depth": 1,
    "children": [],
    "luns": ["web/0"],
    "created_at": "2026-11-23T09:02:46.176303Z",
    "revision": 1,
    "labels": {"owner": "web"},
}


@router.get("", operation_id="ImageList", responses=problems("not_found"))
def list_images(pool: str, store: TheStore, paging: Paging) -> Listing[Image]:
    """The images of a pool, by name."""
    return paging.listing(store.list_images(pool, limit=paging.limit, cursor=paging.cursor))


@router.put(
    "/{image}",
    operation_id="ImageCreate",
    status_code=201,
    responses=examples(EXAMPLE, 200, 201)
    | problems("not_found", "already_exists", "in_use", "exists", "pool_full", "busy"),
)
def create_image(pool: str, image: str, spec: ImageSpec, store: TheStore, creating: Creating) -> Image:
    """Makes an empty image, or an overlay on `parent`: 201; 200 if it is there already just so; 409 if it differs."""
    return creating.done(store.create_image(pool, image, **spec.given()), f"image {image}")


@router.post(
    "/{image}/clone",
    operation_id="ImageClone",
    status_code=201,
    responses=examples(EXAMPLE, 200, 201)
    | problems("not_found", "already_exists", "in_use", "exists", "pool_full", "busy"),
)
def clone_image(pool: str, image: str, spec: CloneSpec, store: TheStore, creating: Creating) -> Image:
    """Makes an overlay on the image, which from then on cannot change: 201; 200 if it is there already just so."""
    given = spec.given()
    clone = given.pop("name")
    return creating.done(store.clone_image(pool, image, clone=clone, **given), f"image {clone}")


@router.post(
    "/{image}/register",
    operation_id="ImageRegister",
    status_code=201,
    responses=examples(EXAMPLE, 200, 201)
    | problems(
        *("not_found", "already_exists", "conflict", "in_use", "unsupported", "secret_needed", "secret_wrong"),
        *("locked", "exists", "work_failed", "busy"),
    ),
)
def register_image(pool: str, image: str, spec: Registration, store: TheStore, creating: Creating) -> Image:
    """Takes a file of the pool's directory for an image: 201; 200 if it is that already."""
    return creating.done(store.register_image(pool, image, **spec.given()), f"image {image}")


@router.get("/{image}", operation_id="ImageShow", responses=examples(EXAMPLE, 200) | problems("not_found"))
def show_image(pool: str, image: str, store: TheStore, reading: Reading) -> Image:
    return reading.answer(store.show_image(pool, image))


@router.patch(
    "/{image}",
    operation_id="ImageUpdate",
    responses=examples(EXAMPLE, 200)
    | examples(JOB, 202)
    | problems("not_found", "in_use", "stale", "locked", "secret_needed", "secret_wrong", "target_unavailable", "busy"),
)
def update_image(
    pool: str,
    image: str,
    change: ImageChange,
    store: TheStore,
    changing: Changing,
    *,
    preferring: Preferring,
    shrink: bool = Query(False, description="cutting off the end of the disk is meant"),
) -> Image | Job:
    """Resizes the image, also under a running guest, merges labels, and names another secret.

    With `Prefer: respond-async` a job resizes."""
    how: dict[str, Any] = {"shrink": shrink, "revision": changing.revision, "detached": preferring.detached}
    done = store.update_image(pool, image, **how, **change.given())
    return preferring.accepted(done) if isinstance(done, Job) else changing.answer(done)


@router.delete(
    "/{image}",
    operation_id="ImageDelete",
    status_code=204,
    responses=problems("in_use", "stale", "gone", "locked", "busy"),
)
def delete_image(pool: str, image: str, store: TheStore, changing: Changing) -> None:
    """Removes the image and its file. Deleting what is gone is no error, unless `If-Match` insists."""
    changing.deleted(store.delete_image(pool, image, revision=changing.revision), f"image {image} in pool {pool}")
