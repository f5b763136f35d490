"""After a start: what is on disk and what the catalog says become one again, and nothing is deleted on a guess.

Sizes follow the files, because a resize changes the file first; half-made and half-deleted files follow the catalog;
an image whose file is gone stays in the catalog as `missing`. Processes are the supervisor's part.
"""

import logging
from pathlib import Path
from typing import Any

from sqlalchemy import Row, insert, select

from formats.registry import open_image
from vstore.store import schema
from vstore.store.catalog import Catalog, birth
from vstore.store.errors import StoreError
from vstore.store.parts import change
from vstore.store.plans import LunPlan
from vstore.store.pool import Pool
from vstore.store.refusals import refusals_told

DEFAULT_POOL = "default"
_log = logging.getLogger(__name__)


def opened_pools(catalog: Catalog, state_directory: Path) -> dict[str, Pool]:
    """The pools by name; the first start makes the default one. Raises StoreError."""
    with catalog.write() as connection:
        rows = connection.execute(select(schema.pools)).all()
        if not rows:
            values = {**birth(), "labels": {}, "name": DEFAULT_POOL, "directory": f"pools/{DEFAULT_POOL}"}
            connection.execute(insert(schema.pools).values(**values))
            rows = connection.execute(select(schema.pools)).all()
    return {row.name: Pool(row.id, row.name, state_directory / row.directory) for row in rows}


def reconcile_pool(catalog: Catalog, pool: Pool) -> None:
    table = schema.images
    with catalog.read() as connection:
        rows = connection.execute(select(table).where(table.c.pool_id == pool.id)).all()
        mapped = set(connection.scalars(select(schema.luns.c.image_id)))
    pool.sweep({row.id for row in rows})
    for row in rows:
        if row.file is not None and row.id not in mapped:  # the keeper asks the process about those
            _reconcile_image(catalog, pool, row)


def known_targets(catalog: Catalog) -> list[str]:
    with catalog.read() as connection:
        return list(connection.scalars(select(schema.targets.c.name).order_by(schema.targets.c.name)))


def adopt_length(catalog: Catalog, plan: LunPlan, length: int) -> None:
    """Takes the length, in bytes, that a mapped image turned out to have."""
    table = schema.images
    with catalog.read() as connection:
        row = connection.execute(select(table).where(table.c.id == plan.image_id)).one_or_none()
    if row is not None:
        _take_length(catalog, row, length)


def _reconcile_image(catalog: Catalog, pool: Pool, row: Row[Any]) -> None:
    try:
        with (
            refusals_told(f"cannot read {row.file}"),
            open_image(row.format, pool.open(row.file, read_only=True)) as image,
        ):
            length = image.geometry.length
    except StoreError as error:
        _log.warning("image_not_readable", extra={"pool": pool.name, "image": row.name, "error": error.detail})
        return
    _take_length(catalog, row, length)


def _take_length(catalog: Catalog, row: Row[Any], length: int) -> None:
    if length == row.virtual_size_bytes:
        return
    told = {"image": row.name, "catalog_bytes": row.virtual_size_bytes, "image_bytes": length}
    if length % 512:
        _log.error("image_length_is_odd", extra=told)
        return
    _log.warning("image_length_adopted", extra=told)
    with catalog.write() as connection:
        change(connection, schema.images, row, virtual_size_bytes=length)
