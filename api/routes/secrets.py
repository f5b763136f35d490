"""`/v1/secrets`: what opens encrypted images. A value goes in and never comes out."""

from typing import Any

from fastapi import APIRouter

from api.conditional import Changing, Creating, Reading
from api.routes.access import Paging, TheStore, examples, problems
from api.schemas import Listing, SecretSpec
from vstore.store.records import Secret

router = APIRouter(prefix="/v1/secrets", tags=["secrets"])

EXAMPLE: dict[str, Any] = {
    "name": "payroll",
    "images": ["default/payroll-root"],
    "set_at": "2026-11-23T09:02:46.176303Z",
    "revision": 1795424566176303,
}


@router.get("", operation_id="SecretList", responses=problems())
def list_secrets(store: TheStore, paging: Paging) -> Listing[Secret]:
    """The secrets by name, and which images each one opens."""
    return paging.listing(store.list_secrets(limit=paging.limit, cursor=paging.cursor))


@router.put(
    "/{secret}",
    operation_id="SecretSet",
    status_code=201,
    responses=examples(EXAMPLE, 200, 201) | problems("in_use", "exists", "busy"),
)
def set_secret(secret: str, spec: SecretSpec, store: TheStore, creating: Creating) -> Secret:
    """Keeps a passphrase under a name: 201; 200 if it is that already, or replaces one that no image names."""
    kept = store.set_secret(secret, replace=not creating.must_be_new, **spec.given())
    return creating.done(kept, f"secret {secret}")


@router.get("/{secret}", operation_id="SecretShow", responses=examples(EXAMPLE, 200) | problems("not_found"))
def show_secret(secret: str, store: TheStore, reading: Reading) -> Secret:
    return reading.answer(store.show_secret(secret))


@router.delete(
    "/{secret}", operation_id="SecretDelete", status_code=204, responses=problems("in_use", "stale", "gone", "busy")
)
def delete_secret(secret: str, store: TheStore, changing: Changing) -> None:
    """Forgets a secret that no image names. Deleting what is gone is no error, unless `If-Match` insists."""
    changing.deleted(store.delete_secret(secret, revision=changing.revision), f"secret {secret}")
