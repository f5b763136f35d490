"""The application: routes over one Store, problems as the only error bodies, loopback names as the only hosts."""

from fastapi import FastAPI

from api import errors
from api.routes import images, luns, service, targets
from api.security import BoundedBody, LoopbackNamesOnly
from api.version import vstore_version
from vstore.store import Store

ROUTERS = (service.router, images.router, targets.router, luns.router)


def create_app(store: Store) -> FastAPI:
    app = FastAPI(
        title="vstore",
        summary="Virtual SCSI targets from disk images",
        version=vstore_version(),
        docs_url=None,  # the stock page loads its scripts from a CDN; /openapi.json is there
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.store = store
    for router in ROUTERS:
        app.include_router(router)
    errors.install(app)
    app.add_middleware(BoundedBody)
    app.add_middleware(LoopbackNamesOnly)
    return app
