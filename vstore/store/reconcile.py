"""After a start: what is on disk and what the catalog says become one again, and nothing is deleted on a guess.

Sizes follow the files, because a resize changes the file first; half-made and half-deleted files follow the catalog;
an image whose file is gone stays in the catalog as `missing`. Processes are the supervisor's part.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from formats.image import Image
from formats.registry import open_image
from vstore.store import schema
from vstore.store.catalog import Catalog, birth
from vstore.store.errors import StoreError
from vstore.store.image_spec import data_file_of, files_of
from vstore.store.parts import change, image_row
from vstore.store.plans import LunPlan
from vstore.store.pool import Pool
from vstore.store.refusals import refusals_told
from vstore.store.secret_files import SecretFiles

DEFAULT_POOL = "default"
_log = logging.getLogger(__name__)


def opened_pools(catalog: Catalog, state_directory: Path, secrets: SecretFiles) -> dict[str, Pool]:
    """The pools by name; the first start makes the default one. Raises StoreError."""
    with catalog.write() as connection:
        rows = connection.execute(select(schema.pools)).all()
        if not rows:
            values = {**birth(), "labels": {}, "name": DEFAULT_POOL, "directory": f"pools/{DEFAULT_POOL}"}
            connection.execute(insert(schema.pools).values(**values))
            rows = connection.execute(select(schema.pools)).all()
    return {row.name: Pool(row.id, row.name, state_directory / row.directory, secrets) for row in rows}


def reconcile_pool(catalog: Catalog, pool: Pool) -> None:
    table = schema.images
    with catalog.read() as connection:
        rows = connection.execute(select(table).where(table.c.pool_id == pool.id)).all()
        moving = _rebases_under_way(connection)
        mapped = set(connection.scalars(select(schema.luns.c.image_id)))
    pool.sweep({row.id: files_of(row) for row in rows})
    for row in rows:
        if row.file is not None and row.id not in mapped:  # the keeper asks the process about those
            _reconcile_image(catalog, pool, row)
            if f"{pool.name}/{row.name}" in moving:
                _reconcile_parent(catalog, pool, row, moving[f"{pool.name}/{row.name}"])


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


@contextmanager
def following(catalog: Catalog, pool: Pool, *images: Row[Any]) -> Iterator[None]:
    """Around work that changes the length of images: where it ends early, the catalog takes what they have then."""
    try:
        yield
    except BaseException:
        for image in images:
            if image.file is not None:
                with catalog.read() as connection:
                    row = image_row(connection, pool, image.name)
                _reconcile_image(catalog, pool, row)
        raise


def _reconcile_image(catalog: Catalog, pool: Pool, row: Row[Any]) -> None:
    try:
        with (
            refusals_told(f"cannot read {row.file}"),
            _looked_at(pool, row) as image,
        ):
            length = image.geometry.length
    except StoreError as error:
        _log.warning("image_not_readable", extra={"pool": pool.name, "image": row.name, "error": error.detail})
        return
    _take_length(catalog, row, length)


def _looked_at(pool: Pool, row: Row[Any]) -> Image:
    """Raises StoreError, ImageError."""
    file = pool.open(row.file, read_only=True)
    return open_image(row.format, file, opener=pool.data_opener(data_file_of(row)))


def _rebases_under_way(connection: Connection) -> dict[str, str | None]:
    """What the last daemon's unended jobs were about to do: the new parent's name (None: none) by POOL/IMAGE."""
    job = schema.jobs.c
    query = select(job.subject, job.arguments).where(job.verb == "rebase_image", job.state.in_(("queued", "running")))
    return {row.subject: row.arguments["parent"] for row in connection.execute(query)}


def _reconcile_parent(catalog: Catalog, pool: Pool, row: Row[Any], wanted: str | None) -> None:
    """A rebase names the new parent in the image last of all, and the catalog hears of it after that. Only the parent
    that the job was told is believed, whatever the image says."""
    table = schema.images
    with catalog.write() as connection:
        query = select(table).where(table.c.pool_id == pool.id, table.c.name == wanted)
        parent = connection.execute(query).one_or_none()
        if wanted is not None and parent is None:
            return
        if named_parent(pool, row) == (parent and parent.file):
            _log.warning("image_parent_adopted", extra={"image": row.name, "parent": wanted})
            change(connection, table, image_row(connection, pool, row.name), parent_id=parent and parent.id)


def named_parent(pool: Pool, row: Row[Any]) -> str | None:
    """The file that the image says its parent is; its own where it cannot be read, which is nobody's parent."""
    try:
        with (
            refusals_told(f"cannot read {row.file}"),
            _looked_at(pool, row) as image,
        ):
            return None if image.backing is None else image.backing.name
    except StoreError:
        return str(row.file)


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
