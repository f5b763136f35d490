"""Verbs that move whole disks, or read all of them: each is a job.

What it writes to, a job has for itself: no LUN, no overlay, no other job. What it only reads may be read by others.
A new image is made as a draft, and appears in the catalog once it is complete.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Row, select

from vstore.store import schema
from vstore.store.chains import check_childless, check_depth, named, parents
from vstore.store.conversion import Conversion, changed_row, check_goal, check_target, convert, new_row
from vstore.store.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, StoreError, Unsupported
from vstore.store.identifiers import check_name
from vstore.store.image_spec import ImageSpec, takes_parent
from vstore.store.jobs import JobPlan, RunningJob
from vstore.store.looks import Looking
from vstore.store.mappings import check_still, check_unmapped
from vstore.store.parts import check_revision, image_row, renew
from vstore.store.pool import Pool
from vstore.store.reconcile import following, named_parent
from vstore.store.records import Job
from vstore.store.secrets import claim_of
from vstore.store.work import image_files
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
        into: str | None = None,
        in_place: bool = False,
        format: str = "qcow2",
        preallocation: str = "off",
        options: Mapping[str, Any] | None = None,
        compress: bool = False,
        snapshot: str | None = None,
        secret: str | None = None,
        labels: Mapping[str, str] | None = None,
        revision: int | None = None,
    ) -> Job:
        """A job that makes the image `into` with the same content and no parent, in any format that lies in a file;
        with `snapshot`, the content as it was then, which is the way for an image that a guest writes to; with
        `secret`, the name of one, encrypted. Or one that makes the image itself such, `in_place`, while nobody uses it.

        Raises InvalidArgument, NotFound, Stale, AlreadyExists, Conflict, InUse (mapped, overlays, a job), Unsupported,
        Busy.
        """
        where, spec = self.pool(pool), ImageSpec.checked(format, preallocation, options, secret=secret)
        check_goal(name, into, snapshot, labels, in_place=in_place)
        check_target(spec, compress=compress)
        made = {} if into is None else new_row(where, check_name("into", into), spec, labels)
        with self._rows(where, name, into, missing=True, secret=secret) as (connection, (row, *taken)):
            check_revision(row, revision, f"image {name}")
            if taken:
                raise AlreadyExists(f"there is an image {into}; choose another name", field="into")
            chain, length = [row, *parents(connection, row.id)], row.virtual_size_bytes
            if in_place:
                self._check_replaceable(connection, where, row)
                made = changed_row(row, spec)
            elif snapshot is None:
                check_still(connection, row, "converted", "unmap it, or convert a snapshot of it (--snapshot)")
            if snapshot is not None:
                length = self.snapshot(where, row, snapshot).virtual_size_bytes
            return self._convert(Conversion(where, chain, made, spec, compress, snapshot, length, in_place))

    def _convert(self, wanted: Conversion) -> Job:
        """Starts it. The caller holds the images."""
        row, spec = wanted.chain[0], wanted.spec
        arguments = {"into": wanted.name, "format": spec.format, "compress": wanted.compress}
        plan = JobPlan(
            "convert_image",
            _key(wanted.pool, row),
            {**arguments, "snapshot": wanted.snapshot},
            lambda job: convert(self, job, wanted),
        )
        goal = f"{wanted.pool.name}/{wanted.name}"
        read = {_key(wanted.pool, each) for each in wanted.chain} - {goal}
        return self._start(plan, alone=[goal], shared=[*read, *([claim_of(spec.secret)] if spec.secret else [])])

    def _check_replaceable(self, connection: Connection, pool: Pool, row: Row[Any]) -> None:
        """Raises InUse, Conflict: it keeps what a new image would not have."""
        self._check_changeable(connection, row, "converted in place")
        if row.format != "qcow2":
            return
        for verb, what in (("list_snapshots", "snapshots"), ("bitmaps", "bitmaps")):
            kept = [each["name"] for each in self.look(pool, [row], verb)[what]]
            if kept:
                raise Conflict(
                    f"image {row.name} keeps {what} ({named(kept)}), which would be lost; delete them first, or "
                    "convert it into another image"
                )

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


def _check_range(field: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise InvalidArgument(field, f"{value} is out of range", f"choose 1 to {most}")
