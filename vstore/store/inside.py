"""What an image keeps inside it beside its disk (snapshots, bitmaps), and who may change that: under a running guest
its target process, because it is the one that writes to the image; otherwise a worker."""

from typing import Any

from sqlalchemy import Row

from vstore.store.chains import check_childless
from vstore.store.errors import InUse
from vstore.store.identifiers import LunAddress
from vstore.store.looks import Looking
from vstore.store.mappings import mappings, place
from vstore.store.parts import image_row
from vstore.store.pool import Pool
from vstore.store.work import image_files


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

    def change_offline(self, pool: Pool, row: Row[Any], verb: str, **options: Any) -> dict[str, Any]:
        """Of an image that nobody has open."""
        with image_files(pool, [row], writable=1) as files:
            return self.workers.do(verb, str(row.file), {"image": files}, **options)


def address(lun: Row[Any]) -> LunAddress:
    return LunAddress(lun.scsi_target, lun.lun)
