"""Verbs on the snapshots that an image keeps inside it. The image alone says which there are; the catalog has none.

Under a running guest the target process takes, lists and deletes them, because it is the one that writes to the image;
otherwise a worker does. Applying one changes the disk, so no guest may have it.
"""

from dataclasses import asdict, replace
from typing import Any

from vstore.store import schema
from vstore.store.chains import check_childless
from vstore.store.errors import InvalidArgument, NotFound, Stale
from vstore.store.identifiers import check_name
from vstore.store.inside import ChangingInside, Run, address
from vstore.store.jobs import JobPlan, RunningJob
from vstore.store.looks import snapshot_record
from vstore.store.mappings import check_unmapped
from vstore.store.parts import (
    check_revision,
    decode_cursor,
    encode_cursor,
    image_row,
    page_limit,
    renew,
)
from vstore.store.reconcile import following
from vstore.store.records import Job, Page, Snapshot
from vstore.store.work import image_files


class SnapshotVerbs(ChangingInside):
    def create_snapshot(
        self, pool: str, image: str, snapshot: str, *, detached: bool = False
    ) -> tuple[Snapshot, bool] | Job:
        """Keeps the disk as it is now, also under a running guest, and True; or False: there is one of that name.
        `detached`: one that is not there yet is taken by a job.

        Raises InvalidArgument, NotFound, InUse (mapped read-only, overlays, a job), Unsupported, PoolFull, Locked,
        TargetUnavailable.
        """
        check_name("snapshot", snapshot)
        where = self.pool(pool)
        with self.holding(images=[f"{pool}/{image}"]):
            row, lun = self.to_change(where, image, "given snapshots")
            present = next((each for each in self.snapshots(where, row) if each.name == snapshot), None)
            if present is not None:
                return present, False

            def work(run: Run | None = None) -> Snapshot:
                if lun is None:
                    return snapshot_record(
                        image, self.change_offline(where, row, "take_snapshot", run=run, name=snapshot)
                    )
                with self.holding_lun(lun):
                    pause_us = self.supervisor.take_snapshot(lun.target, address(lun), snapshot)
                return replace(self.snapshot(where, row, snapshot), pause_us=pause_us)

            if not detached:
                return work(), True
            arguments = {"snapshot": snapshot}
            return self.start_alone("create_snapshot", where, row, arguments, lambda run: asdict(work(run)))

    def list_snapshots(
        self, pool: str, image: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Page[Snapshot]:
        """The snapshots in the order in which they were taken. Raises NotFound, InvalidArgument, Unsupported."""
        limit, after = page_limit(limit), _position(decode_cursor(cursor))
        where = self.pool(pool)
        with self.catalog.read() as connection:
            row = image_row(connection, where, image)
        everything = self.snapshots(where, row)
        items = everything[after : after + limit]
        more = after + limit < len(everything)
        return Page(items, encode_cursor(str(after + limit)) if more else None)

    def show_snapshot(self, pool: str, image: str, snapshot: str) -> Snapshot:
        """Raises NotFound, Unsupported."""
        where = self.pool(pool)
        with self.catalog.read() as connection:
            row = image_row(connection, where, image)
        return self.snapshot(where, row, snapshot)

    def delete_snapshot(
        self, pool: str, image: str, snapshot: str, *, revision: int | None = None, detached: bool = False
    ) -> bool | Job:
        """Forgets it and frees what it alone held, also under a running guest; False when there was none. `detached`: a
        job does it.

        Raises NotFound (the image), Stale, InUse, Locked, TargetUnavailable.
        """
        where = self.pool(pool)
        with self.holding(images=[f"{pool}/{image}"]):
            row, lun = self.to_change(where, image, "rid of snapshots")
            try:
                present = self.snapshot(where, row, snapshot)
            except NotFound:
                return False
            if revision not in (None, present.revision):
                raise Stale(f"snapshot {snapshot} was taken again meanwhile; read it again and repeat the request")

            def work(run: Run | None = None) -> dict[str, Any]:
                if lun is None:
                    return self.change_offline(where, row, "delete_snapshot", run=run, name=snapshot)
                with self.holding_lun(lun):
                    self.supervisor.delete_snapshot(lun.target, address(lun), present.id)
                return {}

            if detached:
                return self.start_alone("delete_snapshot", where, row, {"snapshot": snapshot}, work)
            work()
            return True

    def apply_snapshot(self, pool: str, image: str, snapshot: str, *, revision: int | None = None) -> Job:
        """A job that makes the disk what it was then, its length included; what it is now is lost. `revision`: the
        image's.

        Raises NotFound, Stale, InUse (mapped, overlays on it, a job), Unsupported, Locked, Busy.
        """
        where = self.pool(pool)
        with self.holding(images=[f"{pool}/{image}"]):
            with self.catalog.read() as connection:
                row = image_row(connection, where, image)
                check_revision(row, revision, f"image {image}")
                check_unmapped(connection, row, "changed to a snapshot of it")
                check_childless(connection, row, "changed to a snapshot of it")
            self.claims.check(f"{pool}/{image}", alone=True)
            self.snapshot(where, row, snapshot)

            def work(job: RunningJob) -> None:
                files_of = image_files(where, [row], writable=1, sealed=True)
                with following(self.catalog, where, row), files_of as files:
                    told = job.run("apply_snapshot", row.file, {"image": files}, name=snapshot)
                with self.catalog.write() as connection:
                    now = image_row(connection, where, image)
                    renew(connection, schema.images, now, virtual_size_bytes=told["length"])
                    job.succeeded(connection, {"virtual_size_bytes": told["length"]})

            name = f"{pool}/{image}"
            plan = JobPlan("apply_snapshot", name, {"snapshot": snapshot}, work)
            return self.jobs.show(self.jobs.start(plan, alone=[name]))


def _position(text: str) -> int:
    """Raises InvalidArgument."""
    if text and not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InvalidArgument("cursor", "this is no cursor", "pass the one that the last page gave")
    return int(text or 0)
