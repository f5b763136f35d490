"""What verbs need that put an image on a parent: whether an image can be one, now."""

from typing import Any

from sqlalchemy import Row

from vstore.store.chains import check_depth, depths
from vstore.store.errors import InvalidArgument, NotFound
from vstore.store.mappings import check_still
from vstore.store.parts import Parts, image_row
from vstore.store.pool import Pool


class Parenting(Parts):
    def to_be_parent(self, pool: Pool, name: str) -> Row[Any]:
        """The row of an image that can become a parent. Raises NotFound, InvalidArgument, InUse."""
        with self.catalog.read() as connection:
            try:
                row = image_row(connection, pool, name)
            except NotFound as error:
                raise NotFound(error.detail, field="parent") from None
            check_depth(row, depths(connection, [row.id])[row.id])
            instead = "unmap it, or convert a snapshot of it and take that"
            check_still(connection, row, "a parent", instead)
        if row.file is None:
            raise InvalidArgument("parent", f"{row.format} images have no file", "choose an image that has one")
        self.claims.check(f"{pool.name}/{name}", alone=False)
        return row
