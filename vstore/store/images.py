"""Verbs on images: a row of the catalog and a file of its pool, always changed together."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from formats.registry import open_image
from vstore.store import schema
from vstore.store.catalog import birth
from vstore.store.chains import check_childless, parents
from vstore.store.errors import AlreadyExists, Conflict, InUse, InvalidArgument, NotFound
from vstore.store.identifiers import LunAddress, check_labels, check_name, check_size
from vstore.store.image_records import image_record, image_records, luns_of
from vstore.store.image_spec import ImageSpec, effective, file_name, files_of, offered
from vstore.store.inside import Run
from vstore.store.jobs import JobPlan, RunningJob
from vstore.store.mappings import check_still, check_there, mappings, place
from vstore.store.parenting import Parenting
from vstore.store.parts import (
    change,
    check_revision,
    decode_cursor,
    encode_cursor,
    image_row,
    merged_labels,
    page_limit,
    renew,
    same_or_taken,
)
from vstore.store.pool import Draft, Pool
from vstore.store.reconcile import following
from vstore.store.records import Image, Job, Page
from vstore.store.refusals import refusals_told
from vstore.store.work import image_files, plain

Resize = Callable[[Run], None]


class ImageVerbs(Parenting):
    def create_image(
        self,
        pool: str,
        name: str,
        *,
        virtual_size_bytes: int | None = None,
        format: str = "raw",
        preallocation: str = "off",
        options: Mapping[str, Any] | None = None,
        parent: str | None = None,
        secret: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> tuple[Image, bool]:
        """A new empty image, and True; or the one that is there already just so, and False.

        With `parent` it is an overlay, whose content is its parent's until it is written to; it is as long as its
        parent unless a size is given. With `secret`, the name of one, it is encrypted. Options that are left out are
        the format's choice.
        Raises InvalidArgument, NotFound (pool, parent, secret), AlreadyExists (it is there and differs), InUse
        (somebody changes the parent), PoolFull, PoolUnavailable.
        """
        where = self.pool(pool)
        spec = ImageSpec.checked(format, preallocation, options, overlay=parent is not None, secret=secret)
        wanted = _wanted(spec, virtual_size_bytes, parent, labels)
        with self.holding(images=_both(pool, check_name("image", name), parent), secrets=[secret]):
            with self.catalog.read() as connection, suppress(NotFound):
                row = image_row(connection, where, name)
                _check_same(connection, row, wanted, spec)
                return image_record(connection, where, row), False
            self.claims.check(f"{pool}/{name}", alone=True)
            base = None if parent is None else self.to_be_parent(where, parent)
            self._create(where, name, spec, wanted, base)
            return self.show_image(pool, name), True

    def clone_image(
        self,
        pool: str,
        name: str,
        *,
        clone: str,
        format: str = "qcow2",
        virtual_size_bytes: int | None = None,
        preallocation: str = "off",
        options: Mapping[str, Any] | None = None,
        secret: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> tuple[Image, bool]:
        """The overlay `clone` on the image, and True; or the one that is there already just so, and False.

        Raises what `create_image` raises.
        """
        return self.create_image(
            pool,
            clone,
            virtual_size_bytes=virtual_size_bytes,
            format=format,
            preallocation=preallocation,
            options=options,
            parent=name,
            secret=secret,
            labels=labels,
        )

    def list_images(self, pool: str, *, limit: int | None = None, cursor: str | None = None) -> Page[Image]:
        """The images of a pool by name. Raises NotFound (the pool), InvalidArgument (limit, cursor)."""
        where, limit = self.pool(pool), page_limit(limit)
        table = schema.images
        query = select(table).where(table.c.pool_id == where.id, table.c.name > decode_cursor(cursor))
        with self.catalog.read() as connection:
            rows = connection.execute(query.order_by(table.c.name).limit(limit + 1)).all()
            items = image_records(connection, where, rows[:limit])
        return Page(items, encode_cursor(items[-1].name) if len(rows) > limit else None)

    def show_image(self, pool: str, name: str) -> Image:
        """Raises NotFound."""
        where = self.pool(pool)
        with self.catalog.read() as connection:
            return image_record(connection, where, image_row(connection, where, name))

    def update_image(
        self,
        pool: str,
        name: str,
        *,
        virtual_size_bytes: int | None = None,
        shrink: bool = False,
        labels: Mapping[str, str | None] | None = None,
        secret: str | None = None,
        revision: int | None = None,
        detached: bool = False,
    ) -> Image | Job:
        """Resizes, also under a running guest, merges labels, and takes another name of what opens it. `shrink` says
        that losing the end is meant, `detached` that a job does it, where the size changes.

        Raises NotFound, Stale, InvalidArgument, Conflict, InUse (an overlay on it, a job), Locked, PoolFull,
        SecretWrong, TargetUnavailable.
        """
        where = self.pool(pool)
        with self.holding(images=[f"{pool}/{name}"], secrets=[secret]):
            with self.catalog.read() as connection:
                row = image_row(connection, where, name)
            check_revision(row, revision, f"image {name}")
            merged, named = merged_labels(row.labels, labels), row.secret
            if secret not in (None, named):
                named = self._opening(where, row, secret, by_itself=virtual_size_bytes is None)
            size = row.virtual_size_bytes
            if virtual_size_bytes is not None and virtual_size_bytes != size:
                size = check_size("virtual_size_bytes", virtual_size_bytes)
                resize = self._resizing(where, row, size, shrink=shrink)
                if detached:
                    return self._resize_later(where, row, size, labels, resize)
                resize(self.workers.do)
            with self.catalog.write() as connection:
                change(connection, schema.images, row, virtual_size_bytes=size, labels=merged, secret=named)
            return self.show_image(pool, name)

    def delete_image(self, pool: str, name: str, *, revision: int | None = None) -> bool:
        """Removes the image and its file; False when there was none. Raises InUse naming the LUNs, the overlays on it,
        or the job; Stale, Locked."""
        where = self.pool(pool)
        with self.holding(images=[f"{pool}/{name}"]):
            try:
                with self.catalog.read() as connection:
                    row = image_row(connection, where, name)
                    check_revision(row, revision, f"image {name}")
                    mapped = luns_of(connection, [row.id]).get(row.id, [])
                    check_childless(connection, row, "deleted")
            except NotFound:
                return False
            self.claims.check(f"{pool}/{name}", alone=True)
            if mapped:
                raise InUse(f"image {name} is mapped as LUN {', '.join(mapped)}; unmap it first")
            _check_unlocked(where, row)
            with _removed(where, row), self.catalog.write() as connection:
                connection.execute(delete(schema.images).where(schema.images.c.id == row.id))
            return True

    def _opening(self, pool: Pool, row: Row[Any], secret: str | None, *, by_itself: bool) -> str | None:
        """The name, if it is that of what opens the image. Raises NotFound, InvalidArgument, InUse, SecretWrong."""
        if not by_itself:
            raise InvalidArgument("secret", "it is not changed together with the size", "send one after the other")
        value = self.secret_value(secret)
        assert value is not None
        self.claims.check(f"{pool.name}/{row.name}", alone=True)
        with self.catalog.read() as connection:  # the guest may replace the key, which then has the old secret alone
            check_still(connection, row, "given another secret")
        with image_files(pool, [row], live=True, sealed=True) as (file,):
            opening = replace(file, secret=plain(value))
            told = self.workers.do("unlock", str(row.file), {"image": [opening]})
        if not told["encrypted"]:
            raise InvalidArgument("secret", f"image {row.name} is not encrypted", "leave it out")
        return secret

    def _create(
        self, pool: Pool, name: str, spec: ImageSpec, wanted: Mapping[str, Any], parent: Row[Any] | None
    ) -> None:
        """The caller holds both images."""
        row = {"labels": {}, "virtual_size_bytes": parent and parent.virtual_size_bytes, **birth(), **wanted}
        row |= {"pool_id": pool.id, "name": name, "file": file_name(name, spec.format), "options": {}}
        row["parent_id"] = None if parent is None else parent.id
        del row["parent"]
        options = spec.for_format()
        if parent is not None:
            options |= {"backing_file": parent.file, "backing_fmt": parent.format}
        with (
            _made(pool, row, options, spec.data_file, self.secret_value(spec.secret)),
            self.catalog.write() as connection,
        ):
            if offered(spec.format):
                with refusals_told(f"cannot read {row['file']}"):
                    row["options"] = effective(
                        spec.format, pool.open(row["file"], read_only=True), pool.data_opener(spec.data_file)
                    )
            connection.execute(insert(schema.images).values(**row))

    def _resize_later(
        self, pool: Pool, row: Row[Any], size: int, labels: Mapping[str, str | None] | None, resize: Resize
    ) -> Job:
        def work(job: RunningJob) -> Mapping[str, Any]:
            resize(job.run)
            with self.catalog.write() as connection:
                now = image_row(connection, pool, row.name)
                merged = merged_labels(now.labels, labels)
                renew(connection, schema.images, now, virtual_size_bytes=size, labels=merged)
            return asdict(self.show_image(pool.name, row.name))

        name = f"{pool.name}/{row.name}"
        plan = JobPlan("update_image", name, {"virtual_size_bytes": size}, work)
        return self.jobs.show(self.jobs.start(plan, alone=[name]))

    def _resizing(self, pool: Pool, row: Row[Any], size: int, *, shrink: bool) -> Resize:
        """What gives the image its new length, now that it is known that it may."""
        if size < row.virtual_size_bytes and not shrink:
            raise Conflict(
                f"image {row.name} has {row.virtual_size_bytes} bytes; cutting off its end takes shrink (--shrink)",
                field="virtual_size_bytes",
            )
        with self.catalog.read() as connection:
            check_childless(connection, row, "resized")
            chain = [row, *parents(connection, row.id)]
            luns = mappings(connection, row.id)
        self.claims.check(f"{pool.name}/{row.name}", alone=True)
        if luns:
            return self._resizing_mapped(row, size, luns[0])

        def resize(run: Run) -> None:
            if row.format == "raw":  # no tables to read: the host does all of it
                with (
                    refusals_told(f"cannot resize {row.file}"),
                    open_image(row.format, pool.open(row.file, read_only=False)) as image,
                ):
                    image.resize(size)
            elif row.file is not None:
                with following(self.catalog, pool, row), image_files(pool, chain, writable=1) as files:
                    run("resize", row.file, {"image": files}, length=size)

        return resize

    def _resizing_mapped(self, row: Row[Any], size: int, mapping: Row[Any]) -> Resize:
        """The target process resizes what it serves, and tells the guest."""
        address = LunAddress(mapping.scsi_target, mapping.lun)
        where = place(mapping)
        if size < row.virtual_size_bytes or mapping.read_only:
            doing = "shrunk while it is mapped" if size < row.virtual_size_bytes else "resized while mapped read-only"
            raise InUse(f"image {row.name} cannot be {doing} as LUN {where}; unmap it first")
        if size % mapping.logical_block_length_bytes:
            raise InvalidArgument(
                "virtual_size_bytes",
                f"{size} is not a multiple of LUN {where}'s logical block length",
                f"choose a multiple of {mapping.logical_block_length_bytes}",
            )

        def resize(_run: Run) -> None:
            with self.holding(target=mapping.target):
                with self.catalog.read() as connection:
                    check_there(connection, mapping)
                self.supervisor.resize_lun(mapping.target, address, size)

        return resize


def _both(pool: str, name: str, parent: str | None) -> list[str]:
    return [f"{pool}/{each}" for each in (name, parent) if each is not None]


def _wanted(spec: ImageSpec, size: int | None, parent: str | None, labels: Mapping[str, str] | None) -> dict[str, Any]:
    """What was asked for, by columns (and `parent` by its name). Raises InvalidArgument."""
    wanted: dict[str, Any] = {"format": spec.format, "preallocation": spec.preallocation, "parent": parent}
    wanted["secret"] = spec.secret
    if size is not None:
        wanted["virtual_size_bytes"] = check_size("virtual_size_bytes", size)
    elif parent is None:
        raise InvalidArgument("virtual_size_bytes", "it is missing", "give the size of the disk, or a parent")
    if labels is not None:
        wanted["labels"] = check_labels(labels)
    return wanted


def _check_same(connection: Connection, row: Row[Any], wanted: Mapping[str, Any], spec: ImageSpec) -> None:
    """Raises AlreadyExists when the image differs from what was asked for."""
    parent = connection.scalar(select(schema.images.c.name).where(schema.images.c.id == row.parent_id))
    same_or_taken(SimpleNamespace(**row._mapping, parent=parent), wanted, f"image {row.name}")
    for name, (present, value) in spec.differences(row.options).items():
        raise AlreadyExists(
            f"image {row.name} exists with {name} {present!r}, not {value!r}; leave it out or choose another name",
            field=f"options/{name}",
        )


def _made(
    pool: Pool, row: Mapping[str, Any], options: Mapping[str, Any], data_file: str | None, secret: bytes | None
) -> AbstractContextManager[None]:
    if row["file"] is None:
        return nullcontext()
    draft = Draft(row["id"], row["file"], row["format"], secret, data_file)
    return pool.creating(draft, row["virtual_size_bytes"], row["preallocation"], options)


def _removed(pool: Pool, row: Row[Any]) -> AbstractContextManager[None]:
    return nullcontext() if row.file is None else pool.deleting(row.id, *files_of(row))


def _check_unlocked(pool: Pool, row: Row[Any]) -> None:
    """Raises Locked when a program outside vstore has the image open."""
    for file in files_of(row):
        if pool.allocated_bytes(file) is not None:
            pool.open(file, read_only=False).close()
