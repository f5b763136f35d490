"""`/`: what this service is and can do."""

from fastapi import APIRouter

from api.schemas import Service
from formats.registry import FORMATS
from vstore import __version__

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
        version=__version__,
        api_versions=["v1"],
        capabilities=CAPABILITIES,
        image_formats=list(FORMATS),
    )
