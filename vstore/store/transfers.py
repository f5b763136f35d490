"""Verbs that move whole disks, or read all of them: each is a job.

What it writes to, a job has for itself: no LUN, no overlay, no other job. What it only reads may be read by others.
A new image is made as a draft, and appears in the catalog once it is complete.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from vstore.store import schema
from vstore.store.catalog import birth
from vstore.store.chains import check_childless, check_depth, parents
from vstore.store.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, StoreError, Unsupported
from vstore.store.identifiers import check_labels, check_name
from vstore.store.image_spec import ImageSpec, effective, file_name, offered, takes_parent
from vstore.store.jobs import JobPlan, RunningJob
from vstore.store.looks import Looking
from vstore.store.mappings import check_still, check_unmapped
from vstore.store.parts import Parts, check_revision, image_row, renew
from vstore.store.pool import Draft, Pool
from vstore.store.reconcile import following, named_parent
from vstore.store.records import Job
from vstore.store.secrets import claim_of
from vstore.store.work import draft_file, image_files
from vstore.worker.wire import Cancelled

REPAIRS = ("none", "leaks", "all")
MOST_REQUESTS = 1 << 24
MOST_DEPTH = 256
LARGEST_REQUEST = 16 << 20

Chain = list[Row[Any]]


class TransferVerbs(Looking):
    def check_image(self, pool: str, name: str, *, repair: str = "none", revision: int | None = None) -> Job:
        """A job that looks for leaks and corruptions, and mends `none`, the `leaks` or `all` of them.

        Raises InvalidArgument, NotFound, Stale, InUse, Unsupported, Busy.
        """
        if repair not in REPAIRS:
            raise InvalidArgument("repair", f"{repair[:80]!r} is not offered", f"choose {', '.join(REPAIRS)}")
        where, mending = self.pool(pool), repair != "none"

        def work(job: RunningJob) -> Mapping[str, Any]:
            with image_files(where, [row], writable=int(mending), sealed=True) as files:
                return job.run("check", row.file, {"image": files}, repair=repair)

        with self._rows(where, name) as (connection, (row,)):
            check_revision(row, revision, f"image {name}")
            check_unmapped(connection, row, "checked")
            if row.format != "qcow2":
                raise Unsupported(f"{row.format} images have no structure that could be checked")
            plan = JobPlan("check_image", _key(where, row), {"repair": repair}, work)
            return self._start(plan, **{"alone" if mending else "shared": [_key(where, row)]})

    def rebase_image(
        self, pool: str, name: str, *, parent: str | None, unsafe: bool = False, revision: int | None = None
    ) -> Job:
        """A job that puts the image on another parent, or on none, while its content stays what it is. `unsafe`: only
        the parent is changed, because the new one is known to hold what the old one did.

        Raises NotFound, Stale, InvalidArgument, InUse (mapped, overlays on it, a job), Unsupported, Busy.
        """
        where = self.pool(pool)
        if parent == name:
            raise InvalidArgument("parent", "an image cannot be its own parent", "name another one")

        def work(job: RunningJob) -> None:
            renaming = _unless_renamed(where, row, new[0] if new else None)
            below = image_files(where, new, sealed=unsafe)
            with renaming, image_files(where, old, writable=1, sealed=unsafe) as chain, below as above:
                reference = None if not new else [new[0].file, new[0].format]
                options = {"reference": reference, "unsafe": unsafe}
                job.run("rebase", old[0].file, {"image": chain, "parents": above}, **options)
            self._moved(job, old[0], new[0].id if new else None)

        with self._rows(where, name, parent) as (connection, (row, *bases)):
            check_revision(row, revision, f"image {name}")
            self._check_changeable(connection, row, "rebased")
            if not takes_parent(row.format):
                raise Unsupported(f"{row.format} images have no parent")
            old = [row, *parents(connection, row.id)]
            new = _new_parents(connection, row, bases)
            plan = JobPlan("rebase_image", _key(where, row), {"parent": parent, "unsafe": unsafe}, work)
            return self._start(plan, alone=[_key(where, row)], shared=[_key(where, each) for each in (*old[1:], *new)])

    def commit_image(self, pool: str, name: str, *, revision: int | None = None) -> Job:
        """A job that writes what the image has into its parent; the image is an empty overlay afterwards. If it is
        cancelled or fails, the image is what it was, and its parent no more than a part of it.

        Raises NotFound, Stale, Conflict (no parent), InUse (mapped, other overlays, a job), Busy.
        """
        where = self.pool(pool)

        def work(job: RunningJob) -> None:
            with following(self.catalog, where, *chain[:2]), image_files(where, chain, writable=2) as files:
                told = job.run("commit", row.file, {"image": files})
            with self.catalog.write() as connection:
                for each in chain[:2]:
                    now = image_row(connection, where, each.name)
                    renew(
                        connection, schema.images, now, virtual_size_bytes=max(each.virtual_size_bytes, told["length"])
                    )
                job.succeeded(connection, {"parent": chain[1].name})

        with self._rows(where, name, self._parent_name(where, name)) as (connection, (row, *bases)):
            check_revision(row, revision, f"image {name}")
            if not bases or row.parent_id != bases[0].id:
                raise Conflict(f"image {name} has no parent to commit into")
            self._check_changeable(connection, row, "committed")
            check_unmapped(connection, bases[0], "written to by a commit")
            check_childless(connection, bases[0], "written to by a commit", but=row.id)
            chain = [row, *parents(connection, row.id)]
            plan = JobPlan("commit_image", _key(where, row), {"parent": bases[0].name}, work)
            above = [_key(where, each) for each in chain[2:]]
            return self._start(plan, alone=[_key(where, each) for each in chain[:2]], shared=above)

    def convert_image(
        self,
        pool: str,
        name: str,
        *,
        into: str,
        format: str = "qcow2",
        preallocation: str = "off",
        options: Mapping[str, Any] | None = None,
        compress: bool = False,
        snapshot: str | None = None,
        secret: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Job:
        """A job that makes the image `into` with the same content and no parent, in any format that lies in a file;
        with `snapshot`, the content as it was then, which is the way for an image that a guest writes to; with
        `secret`, the name of one, encrypted.

        Raises InvalidArgument, NotFound, AlreadyExists, InUse (mapped writable, a job), Unsupported, Busy.
        """
        where, spec = self.pool(pool), ImageSpec.checked(format, preallocation, options, secret=secret)
        arguments = {"into": check_name("into", into), "format": format, "compress": compress, "snapshot": snapshot}
        _check_target(spec, compress=compress)
        made = _new_row(where, into, spec, labels)

        def work(job: RunningJob) -> None:
            _convert(self, job, _Conversion(where, chain, made, spec, compress, snapshot, length))

        with self._rows(where, name, into, missing=True, secret=secret) as (connection, (row, *taken)):
            if taken:
                raise AlreadyExists(f"there is an image {into}; choose another name", field="into")
            if snapshot is None:
                check_still(connection, row, "converted", "unmap it, or convert a snapshot of it (--snapshot)")
            chain, length = [row, *parents(connection, row.id)], row.virtual_size_bytes
            if snapshot is not None:
                length = self.snapshot(where, row, snapshot).virtual_size_bytes
            plan = JobPlan("convert_image", _key(where, row), arguments, work)
            read = [_key(where, each) for each in chain] + ([] if secret is None else [claim_of(secret)])
            return self._start(plan, alone=[f"{pool}/{into}"], shared=read)

    def compare_image(self, pool: str, name: str, *, other: str, strict: bool = False) -> Job:
        """A job that tells whether two images hold the same; where one is longer, it has to be zeros. `strict`: also
        lengths and allocation.

        Raises NotFound, InUse (mapped writable, a job), Busy.
        """
        where = self.pool(pool)

        def work(job: RunningJob) -> Mapping[str, Any]:
            with image_files(where, one) as first, image_files(where, two) as second:
                return job.run("compare", one[0].file, {"one": first, "two": second}, strict=strict)

        with self._rows(where, name, other) as (connection, rows):
            one, two = [[row, *parents(connection, row.id)] for row in (rows[0], rows[-1])]
            for row in rows:
                check_still(connection, row, "compared")
            plan = JobPlan("compare_image", _key(where, rows[0]), {"other": other, "strict": strict}, work)
            return self._start(plan, shared=[_key(where, each) for each in (*one, *two)])

    def bench_image(
        self, pool: str, name: str, *, requests: int = 75000, depth: int = 64, request_bytes: int = 4096
    ) -> Job:
        """A job that reads from the image, `depth` requests at once, and tells how fast it was.

        Raises InvalidArgument, NotFound, InUse (mapped writable, a job), Busy.
        """
        where = self.pool(pool)
        _check_range("requests", requests, MOST_REQUESTS)
        _check_range("depth", depth, MOST_DEPTH)
        _check_range("request_bytes", request_bytes, LARGEST_REQUEST)
        load = {"requests": requests, "depth": depth, "request_bytes": request_bytes}

        def work(job: RunningJob) -> Mapping[str, Any]:
            with image_files(where, chain) as files:
                return job.run("bench", chain[0].file, {"image": files}, **load)

        with self._rows(where, name) as (connection, (row,)):
            check_still(connection, row, "measured")
            if request_bytes > row.virtual_size_bytes:
                right = f"choose at most {row.virtual_size_bytes}"
                raise InvalidArgument("request_bytes", "it is more than the whole disk", right)
            chain = [row, *parents(connection, row.id)]
            plan = JobPlan("bench_image", _key(where, row), load, work)
            return self._start(plan, shared=[_key(where, each) for each in chain])

    @contextmanager
    def _rows(
        self, pool: Pool, name: str, other: str | None = None, *, missing: bool = False, secret: str | None = None
    ) -> Iterator[tuple[Connection, Chain]]:
        """Both rows, the images held meanwhile, and the secret, which has to be there; with `missing`, the second image
        may not be. Raises NotFound, Busy."""
        names = [name] if other is None or other == name else [name, other]
        holding = self.holding(images=[f"{pool.name}/{each}" for each in names], secrets=[secret])
        with holding, self.catalog.read() as connection:
            self.secret_value(secret)
            rows = [image_row(connection, pool, name)]
            if names[1:]:
                try:
                    rows.append(image_row(connection, pool, names[1]))
                except NotFound:
                    if not missing:
                        raise
            yield connection, rows

    def _parent_name(self, pool: Pool, name: str) -> str | None:
        with self.catalog.read() as connection:
            parent = image_row(connection, pool, name).parent_id
            return connection.scalar(select(schema.images.c.name).where(schema.images.c.id == parent))

    def _check_changeable(self, connection: Connection, row: Row[Any], doing: str) -> None:
        """Raises InUse."""
        check_unmapped(connection, row, doing)
        check_childless(connection, row, doing)

    def _start(self, plan: JobPlan, *, alone: Sequence[str] = (), shared: Sequence[str] = ()) -> Job:
        return self.jobs.show(self.jobs.start(plan, alone=alone, shared=shared))

    def _moved(self, job: RunningJob, row: Row[Any], parent_id: str | None) -> None:
        with self.catalog.write() as connection:
            now = connection.execute(select(schema.images).where(schema.images.c.id == row.id)).one()
            renew(connection, schema.images, now, parent_id=parent_id)
            job.succeeded(connection, {"parent": job.plan.arguments["parent"]})


@contextmanager
def _unless_renamed(pool: Pool, row: Row[Any], parent: Row[Any] | None) -> Iterator[None]:
    """Around a rebase: what is ended when the image names its new parent, which it does last of all, was done."""
    try:
        yield
    except (StoreError, Cancelled):
        file = None if parent is None else parent.file
        if row.parent_id == (parent and parent.id) or named_parent(pool, row) != file:
            raise


@dataclass(frozen=True)
class _Conversion:
    pool: Pool
    chain: Chain
    made: Mapping[str, Any]
    spec: ImageSpec
    compress: bool
    snapshot: str | None
    length: int  # bytes of the disk


def _convert(store: Parts, job: RunningJob, wanted: _Conversion) -> None:
    """The draft is the target from its first byte on; it gets its name in the transaction that ends the job."""
    pool, made, length = wanted.pool, dict(wanted.made), wanted.length
    live, source = wanted.snapshot is not None, str(wanted.chain[0].file)
    with image_files(pool, wanted.chain, live=live) as files:
        opening = None if made["secret"] is None else pool.secrets.of_image(made["name"], made["secret"])
        draft = Draft(made["id"], made["file"], made["format"], opening)
        with pool.drafting(draft, length, made["preallocation"], wanted.spec.for_format()):
            if offered(draft.format):
                made["options"] = effective(draft.format, pool.open_draft(draft))
            with draft_file(pool, draft) as target:
                options = {"compress": wanted.compress, "snapshot": wanted.snapshot}
                options["placed"] = made["preallocation"] != "off"
                job.run("convert", source, {"image": files, "target": [target]}, **options)
            with pool.publishing(draft), store.catalog.write() as connection:
                connection.execute(insert(schema.images).values(**made, virtual_size_bytes=length))
                job.succeeded(connection, {"image": made["name"], "virtual_size_bytes": length})


def _new_row(pool: Pool, name: str, spec: ImageSpec, labels: Mapping[str, str] | None) -> dict[str, Any]:
    """What the catalog will have, but for the length."""
    row = {**birth(), "labels": check_labels(labels or {}), "name": name, "pool_id": pool.id, "options": {}}
    row |= {"format": spec.format, "file": file_name(name, spec.format), "preallocation": spec.preallocation}
    return {**row, "secret": spec.secret}


def _key(pool: Pool, row: Row[Any]) -> str:
    return f"{pool.name}/{row.name}"


def _new_parents(connection: Connection, row: Row[Any], bases: Chain) -> Chain:
    """The chain that the image shall stand on. Raises InvalidArgument, InUse."""
    if not bases:
        return []
    base = bases[0]
    above = parents(connection, base.id)
    assert row.id not in [base.id, *(each.id for each in above)], "what has no overlays is nobody's ancestor"
    if base.file is None:
        raise InvalidArgument("parent", f"{base.format} images have no file", "choose an image that has one")
    check_depth(base, len(above))
    check_still(connection, base, "a parent")
    return [base, *above]


def _check_target(spec: ImageSpec, *, compress: bool) -> None:
    if file_name("", spec.format) is None:
        raise InvalidArgument("format", f"{spec.format} images keep no bytes", "choose a format that lies in a file")
    if compress and spec.format != "qcow2":
        raise InvalidArgument("compress", f"{spec.format} images hold nothing compressed", "choose qcow2")
    if compress and spec.secret is not None:
        raise InvalidArgument("compress", "what is compressed is not encrypted", "leave one of them out")
    if compress and spec.preallocation != "off":
        raise InvalidArgument("compress", "what is compressed cannot be preallocated", "leave one of them out")


def _check_range(field: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise InvalidArgument(field, f"{value} is out of range", f"choose 1 to {most}")
