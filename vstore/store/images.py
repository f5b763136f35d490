"""Verbs on images: a row of the catalog and a file of its pool, always changed together."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from formats.registry import FORMATS, open_image
from vstore.store import schema
from vstore.store.catalog import birth
from vstore.store.errors import Conflict, InUse, InvalidArgument, NotFound
from vstore.store.identifiers import LunAddress, check_labels, check_name, check_size
from vstore.store.parts import (
    Parts,
    change,
    check_revision,
    decode_cursor,
    encode_cursor,
    image_row,
    lun_names,
    merged_labels,
    page_limit,
    same_or_taken,
)
from vstore.store.pool import Pool
from vstore.store.records import Image, Page
from vstore.store.refusals import refusals_told

PREALLOCATIONS = ("off", "falloc", "full")


class ImageVerbs(Parts):
    def create_image(
        self,
        pool: str,
        name: str,
        *,
        virtual_size_bytes: int,
        format: str = "raw",
        preallocation: str = "off",
        labels: Mapping[str, str] | None = None,
    ) -> tuple[Image, bool]:
        """A new empty image, and True; or the one that is there already just so, and False.

        Raises InvalidArgument, NotFound (the pool), AlreadyExists (it is there and differs), PoolFull, PoolUnavailable.
        """
        where = self.pool(pool)
        wanted = {
            "format": _check_format(format),
            "virtual_size_bytes": check_size("virtual_size_bytes", virtual_size_bytes),
            "preallocation": _check_preallocation(preallocation),
        }
        if labels is not None:
            wanted["labels"] = check_labels(labels)
        with self.holding(image=f"{pool}/{check_name('image', name)}"):
            with self.catalog.read() as connection, suppress(NotFound):
                return self._image(
                    connection, where, same_or_taken(image_row(connection, where, name), wanted, f"image {name}")
                ), False
            row = {"labels": {}, **birth(), **wanted, "pool_id": where.id, "name": name, "file": _file(name, format)}
            with _made(where, row), self.catalog.write() as connection:
                connection.execute(insert(schema.images).values(**row))
            return self.show_image(pool, name), True

    def list_images(self, pool: str, *, limit: int | None = None, cursor: str | None = None) -> Page[Image]:
        """The images of a pool by name. Raises NotFound (the pool), InvalidArgument (limit, cursor)."""
        where, limit = self.pool(pool), page_limit(limit)
        table = schema.images
        query = select(table).where(table.c.pool_id == where.id, table.c.name > decode_cursor(cursor))
        with self.catalog.read() as connection:
            rows = connection.execute(query.order_by(table.c.name).limit(limit + 1)).all()
            mapped = _mapped(connection, [row.id for row in rows])
        items = [_record(where, row, mapped.get(row.id, [])) for row in rows[:limit]]
        return Page(items, encode_cursor(items[-1].name) if len(rows) > limit else None)

    def show_image(self, pool: str, name: str) -> Image:
        """Raises NotFound."""
        where = self.pool(pool)
        with self.catalog.read() as connection:
            return self._image(connection, where, image_row(connection, where, name))

    def update_image(
        self,
        pool: str,
        name: str,
        *,
        virtual_size_bytes: int | None = None,
        shrink: bool = False,
        labels: Mapping[str, str | None] | None = None,
        revision: int | None = None,
    ) -> Image:
        """Resizes, also under a running guest, and merges labels. `shrink` says that losing the end is meant.

        Raises NotFound, Stale, InvalidArgument, Conflict, InUse, Locked, PoolFull, TargetUnavailable.
        """
        where = self.pool(pool)
        with self.holding(image=f"{pool}/{name}"):
            with self.catalog.read() as connection:
                row = image_row(connection, where, name)
            check_revision(row, revision, f"image {name}")
            merged = merged_labels(row.labels, labels)
            size = row.virtual_size_bytes
            if virtual_size_bytes is not None and virtual_size_bytes != size:
                size = check_size("virtual_size_bytes", virtual_size_bytes)
                self._resize(where, row, size, shrink=shrink)
            with self.catalog.write() as connection:
                change(connection, schema.images, row, virtual_size_bytes=size, labels=merged)
            return self.show_image(pool, name)

    def delete_image(self, pool: str, name: str, *, revision: int | None = None) -> bool:
        """Removes the image and its file; False when there was none. Raises InUse naming the LUNs, Stale, Locked."""
        where = self.pool(pool)
        with self.holding(image=f"{pool}/{name}"):
            try:
                with self.catalog.read() as connection:
                    row = image_row(connection, where, name)
                    mapped = _mapped(connection, [row.id]).get(row.id, [])
            except NotFound:
                return False
            check_revision(row, revision, f"image {name}")
            if mapped:
                raise InUse(f"image {name} is mapped as LUN {', '.join(mapped)}; unmap it first")
            _check_unlocked(where, row)
            with _removed(where, row), self.catalog.write() as connection:
                connection.execute(delete(schema.images).where(schema.images.c.id == row.id))
            return True

    def _image(self, connection: Connection, pool: Pool, row: Row[Any]) -> Image:
        return _record(pool, row, _mapped(connection, [row.id]).get(row.id, []))

    def _resize(self, pool: Pool, row: Row[Any], size: int, *, shrink: bool) -> None:
        if size < row.virtual_size_bytes and not shrink:
            raise Conflict(
                f"image {row.name} has {row.virtual_size_bytes} bytes; cutting off its end takes shrink (--shrink)",
                field="virtual_size_bytes",
            )
        with self.catalog.read() as connection:
            mappings = connection.execute(_MAPPINGS.where(schema.luns.c.image_id == row.id)).all()
        if mappings:
            self._resize_mapped(row, size, mappings)
        elif row.file is not None:
            with (
                refusals_told(f"cannot resize {row.file}"),
                open_image(row.format, pool.open(row.file, read_only=False)) as image,
            ):
                image.resize(size)

    def _resize_mapped(self, row: Row[Any], size: int, mappings: Sequence[Row[Any]]) -> None:
        """The target process resizes what it serves, and tells the guest."""
        mapping = mappings[0]
        address = LunAddress(mapping.scsi_target, mapping.lun)
        where = f"{mapping.target}/{address}"
        if size < row.virtual_size_bytes or mapping.read_only:
            doing = "shrunk while it is mapped" if size < row.virtual_size_bytes else "resized while mapped read-only"
            raise InUse(f"image {row.name} cannot be {doing} as LUN {where}; unmap it first")
        if size % mapping.logical_block_length_bytes:
            raise InvalidArgument(
                "virtual_size_bytes",
                f"{size} is not a multiple of LUN {where}'s logical block length",
                f"choose a multiple of {mapping.logical_block_length_bytes}",
            )
        with self.holding(target=mapping.target):
            self.supervisor.resize_lun(mapping.target, address, size)


_MAPPINGS = select(schema.luns, schema.targets.c.name.label("target")).join(schema.targets)


def _check_format(format: str) -> str:
    if format not in FORMATS:
        raise InvalidArgument("format", f"{format[:80]!r} is not an image format", f"choose {', '.join(FORMATS)}")
    return format


def _check_preallocation(preallocation: str) -> str:
    if preallocation not in PREALLOCATIONS:
        right = f"choose {', '.join(PREALLOCATIONS)}"
        raise InvalidArgument("preallocation", f"{preallocation[:80]!r} is not offered", right)
    return preallocation


def _file(name: str, format: str) -> str | None:
    """Formats hold no dot, so two images cannot come to the same file name."""
    return f"{name}.{format}" if FORMATS[format].open else None


def _made(pool: Pool, row: Mapping[str, Any]) -> AbstractContextManager[None]:
    if row["file"] is None:
        return nullcontext()
    return pool.creating(row["id"], row["file"], row["format"], row["virtual_size_bytes"], row["preallocation"])


def _removed(pool: Pool, row: Row[Any]) -> AbstractContextManager[None]:
    return nullcontext() if row.file is None else pool.deleting(row.id, row.file)


def _check_unlocked(pool: Pool, row: Row[Any]) -> None:
    """Raises Locked when a program outside vstore has the image open."""
    if row.file is not None and pool.allocated_bytes(row.file) is not None:
        pool.open(row.file, read_only=False).close()


def _mapped(connection: Connection, image_ids: list[str]) -> dict[str, list[str]]:
    lun = schema.luns.c
    query = select(lun.image_id, schema.targets.c.name, lun.scsi_target, lun.lun).join(schema.targets)
    order = (schema.targets.c.name, lun.scsi_target, lun.lun)
    return lun_names(connection, query.where(lun.image_id.in_(image_ids)).order_by(*order))


def _record(pool: Pool, row: Row[Any], mapped: list[str]) -> Image:
    allocated = 0 if row.file is None else pool.allocated_bytes(row.file)
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
        luns=mapped,
        created_at=row.created_at,
        revision=row.revision,
        labels=row.labels,
    )
