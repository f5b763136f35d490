"""Image records out of rows of the catalog: what the row says, its kin, its LUNs, what its file takes of the host."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, select

from vstore.store import schema
from vstore.store.chains import children, depths
from vstore.store.image_spec import files_of
from vstore.store.parts import lun_names
from vstore.store.pool import Pool
from vstore.store.records import Image


class _Kin(NamedTuple):
    """Where an image stands in its chain."""

    parent: Row[Any] | None
    depth: int
    children: list[str]


def image_record(connection: Connection, pool: Pool, row: Row[Any]) -> Image:
    return image_records(connection, pool, [row])[0]


def image_records(connection: Connection, pool: Pool, rows: Sequence[Row[Any]]) -> list[Image]:
    ids = [row.id for row in rows]
    mapped, below, deep = luns_of(connection, ids), children(connection, ids), depths(connection, ids)
    query = select(schema.images).where(schema.images.c.id.in_({row.parent_id for row in rows}))
    above = {row.id: row for row in connection.execute(query)}
    kin = {row.id: _Kin(above.get(row.parent_id), deep[row.id], below.get(row.id, [])) for row in rows}
    return [_record(pool, row, kin[row.id], mapped.get(row.id, [])) for row in rows]


def luns_of(connection: Connection, image_ids: list[str]) -> dict[str, list[str]]:
    """By the id of each image: where it is mapped, as TARGET/LUN."""
    lun = schema.luns.c
    query = select(lun.image_id, schema.targets.c.name, lun.scsi_target, lun.lun).join(schema.targets)
    order = (schema.targets.c.name, lun.scsi_target, lun.lun)
    return lun_names(connection, query.where(lun.image_id.in_(image_ids)).order_by(*order))


def _record(pool: Pool, row: Row[Any], kin: _Kin, mapped: list[str]) -> Image:
    found = [pool.allocated_bytes(file) for file in files_of(row)]
    allocated = None if None in found else sum(filter(None, found))
    return Image(
        id=row.id,
        name=row.name,
        pool=pool.name,
        format=row.format,
        file=row.file,
        state="missing" if allocated is None else "ready",
        virtual_size_bytes=row.virtual_size_bytes,
        actual_size_bytes=allocated or 0,
        preallocation=row.preallocation,
        options=row.options,
        secret=row.secret,
        parent=kin.parent and kin.parent.name,
        backing=kin.parent and kin.parent.file,
        chain_depth=kin.depth,
        children=kin.children,
        luns=mapped,
        created_at=row.created_at,
        revision=row.revision,
        labels=row.labels,
    )
