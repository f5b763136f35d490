"""What an image keeps inside it beside its disk (snapshots, bitmaps), and who may change that: under a running guest
its target process, because it is the one that writes to the image; otherwise a worker."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Row

from vstore.store.chains import check_childless
from vstore.store.errors import InUse
from vstore.store.identifiers import LunAddress
from vstore.store.jobs import JobPlan
from vstore.store.looks import Looking
from vstore.store.mappings import check_there, mappings, place
from vstore.store.parts import image_row
from vstore.store.pool import Pool
from vstore.store.records import Job
from vstore.store.work import image_files

Run = Callable[..., dict[str, Any]]  # as Workers.do and RunningJob.run
Detached = Callable[[Run], Mapping[str, Any]]


class ChangingInside(Looking):
    """What verbs need that change it."""

    def to_change(self, pool: Pool, image: str, doing: str) -> tuple[Row[Any], Row[Any] | None]:
        """The image's row, and the LUN under which a guest writes to it. Raises NotFound, InUse."""
        with self.catalog.read() as connection:
            row = image_row(connection, pool, image)
            luns = mappings(connection, row.id)
            check_childless(connection, row, doing)
        for lun in luns:
            if lun.read_only:
                raise InUse(
                    f"image {image} is mapped read-only as LUN {place(lun)}, so nobody can write to it meanwhile; "
                    "unmap it first"
                )
        self.claims.check(f"{pool.name}/{image}", alone=True)
        return row, luns[0] if luns else None

    def change_offline(
        self, pool: Pool, row: Row[Any], verb: str, *, run: Run | None = None, **options: Any
    ) -> dict[str, Any]:
        """Of an image that nobody has open. `run`: who has a worker do it, if it is a job."""
        with image_files(pool, [row], writable=1, sealed=True) as files:
            return (run or self.workers.do)(verb, str(row.file), {"image": files}, **options)

    @contextmanager
    def holding_lun(self, lun: Row[Any]) -> Iterator[None]:
        """Its target's lock, while the LUN is there. Raises Conflict."""
        with self.holding(target=lun.target):
            with self.catalog.read() as connection:
                check_there(connection, lun)
            yield

    def start_alone(self, verb: str, pool: Pool, row: Row[Any], arguments: Mapping[str, Any], work: Detached) -> Job:
        """A job that has the image for itself. The caller holds its lock. Raises InUse, Busy."""
        name = f"{pool.name}/{row.name}"
        plan = JobPlan(verb, name, arguments, lambda job: work(job.run))
        return self.jobs.show(self.jobs.start(plan, alone=[name]))


def address(lun: Row[Any]) -> LunAddress:
    return LunAddress(lun.scsi_target, lun.lun)
