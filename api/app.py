"""The application: routes over one Store, problems as the only error bodies, and the guards before them."""

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer

from api import errors
from api.routes import bitmaps, images, jobs, looks, luns, secrets, service, snapshots, targets, transfers
from api.routes.access import refusals
from api.security import TOKEN_PLACE, BearerOnly, BoundedBody, LoopbackNamesOnly
from vstore import __version__
from vstore.store import Store

ROUTERS = tuple(
    each.router for each in (service, images, looks, snapshots, bitmaps, transfers, secrets, targets, luns, jobs)
)

# Only tells OpenAPI; BearerOnly asks for the token, of paths without a route too.
_BEARER = HTTPBearer(
    scheme_name="token", description=f"Over TCP: {TOKEN_PLACE}. Over the UNIX socket none is needed.", auto_error=False
)


def create_app(store: Store, token_digest: bytes) -> FastAPI:
    """`token_digest`: SHA-256 of the token that requests over TCP show."""
    app = FastAPI(
        title="vstore",
        summary="Virtual SCSI targets from disk images",
        version=__version__,
        docs_url=None,  # the stock page loads its scripts from a CDN; /openapi.json is there
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.store = store
    for router in ROUTERS:
        app.include_router(router, dependencies=[Security(_BEARER)], responses=refusals("unauthorized", "host_refused"))
    errors.install(app)
    app.add_middleware(BoundedBody)  # what is added last comes first
    app.add_middleware(BearerOnly, token_digest=token_digest)
    app.add_middleware(LoopbackNamesOnly)
    return app
