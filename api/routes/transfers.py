"""Long work on an image, as jobs: `/check`, `/rebase`, `/commit`, `/convert`, `/compare`, `/bench` below it."""

from typing import Any

from fastapi import APIRouter

from api.conditional import Starting
from api.routes.access import TheStore, examples, problems
from api.routes.jobs import EXAMPLE
from api.schemas import Bench, Check, Commit, Comparison, Conversion, Rebase
from vstore.store.records import Job

router = APIRouter(prefix="/v1/pools/{pool}/images", tags=["images"])


def _job(*codes: str) -> dict[int | str, dict[str, Any]]:
    return examples(EXAMPLE, 202) | problems("not_found", "in_use", "stale", "busy", *codes)


@router.post("/{image}/check", operation_id="ImageCheck", status_code=202, responses=_job("unsupported"))
def check_image(pool: str, image: str, spec: Check, store: TheStore, starting: Starting) -> Job:
    """Looks for leaks and corruptions, and repairs them if that is asked for. The result is that of `qemu-img check`,
    and `findings` in words."""
    return starting.accepted(store.check_image(pool, image, revision=starting.revision, **spec.given()))


@router.post("/{image}/rebase", operation_id="ImageRebase", status_code=202, responses=_job("unsupported"))
def rebase_image(pool: str, image: str, spec: Rebase, store: TheStore, starting: Starting) -> Job:
    """Puts the image on another parent, or on none; its content stays what it is."""
    return starting.accepted(store.rebase_image(pool, image, revision=starting.revision, **spec.given()))


@router.post("/{image}/commit", operation_id="ImageCommit", status_code=202, responses=_job("conflict"))
def commit_image(pool: str, image: str, spec: Commit, store: TheStore, starting: Starting) -> Job:
    """Writes what the image has into its parent, and leaves an empty overlay."""
    return starting.accepted(store.commit_image(pool, image, revision=starting.revision, **spec.given()))


@router.post(
    "/{image}/convert",
    operation_id="ImageConvert",
    status_code=202,
    responses=_job("already_exists", "unsupported", "conflict"),
)
def convert_image(pool: str, image: str, spec: Conversion, store: TheStore, starting: Starting) -> Job:
    """Makes a new image of the same content, in any format, or changes that of the image itself; done once the job has
    succeeded."""
    return starting.accepted(store.convert_image(pool, image, revision=starting.revision, **spec.given()))


@router.post("/{image}/compare", operation_id="ImageCompare", status_code=202, responses=_job())
def compare_image(pool: str, image: str, spec: Comparison, store: TheStore, starting: Starting) -> Job:
    """Tells whether two images hold the same; the result has `identical`, and `kind` and `offset_bytes` of the first
    difference."""
    return starting.accepted(store.compare_image(pool, image, **spec.given()))


@router.post("/{image}/bench", operation_id="ImageBench", status_code=202, responses=_job())
def bench_image(pool: str, image: str, spec: Bench, store: TheStore, starting: Starting) -> Job:
    """Reads from the image, and tells how fast it was."""
    return starting.accepted(store.bench_image(pool, image, **spec.given()))
