"""`/`: what this service is and can do."""

from fastapi import APIRouter

from api.schemas import Service
from api.version import vstore_version
from vstore.store.image_spec import FORMATS_KEPT

router = APIRouter(tags=["service"])

CAPABILITIES = [
    "images",
    "chains",
    "snapshots",
    "jobs",
    "targets",
    "luns",
    "attach_lines",
    "conditional_requests",
    "keyset_pages",
]


@router.get("/", operation_id="ServiceShow")
def show_service() -> Service:
    """Versions and capabilities; what is not named here is not offered."""
    return Service(
        name="vstore",
        version=vstore_version(),
        api_versions=["v1"],
        capabilities=CAPABILITIES,
        image_formats=list(FORMATS_KEPT),
    )
