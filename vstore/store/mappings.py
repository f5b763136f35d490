"""Where an image is mapped, and what that forbids: a guest's disk is not changed behind the guest's back."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from vstore.store import schema
from vstore.store.errors import Conflict, InUse
from vstore.store.identifiers import LunAddress

_LUNS = select(schema.luns, schema.targets.c.name.label("target")).join(schema.targets)


def mappings(connection: Connection, image_id: str) -> Sequence[Row[Any]]:
    """The LUNs that an image is behind, each with its target's name."""
    return connection.execute(_LUNS.where(schema.luns.c.image_id == image_id)).all()


def place(lun: Row[Any]) -> str:
    """TARGET/LUN."""
    return f"{lun.target}/{LunAddress(lun.scsi_target, lun.lun)}"


def check_there(connection: Connection, lun: Row[Any]) -> None:
    """Raises Conflict when the LUN was unmapped since: another image may be behind its address. Hold its target."""
    if connection.scalar(select(schema.luns.c.id).where(schema.luns.c.id == lun.id)) is None:
        raise Conflict(f"LUN {place(lun)} was unmapped meanwhile; repeat the request")


def check_unmapped(connection: Connection, row: Row[Any], doing: str) -> None:
    """Raises InUse naming the LUN."""
    for lun in mappings(connection, row.id):
        raise InUse(f"image {row.name} is mapped as LUN {place(lun)} and cannot be {doing} meanwhile; unmap it first")


def check_still(connection: Connection, row: Row[Any], doing: str, instead: str = "unmap it first") -> None:
    """Raises InUse when a guest may write to the image."""
    writers = [lun for lun in mappings(connection, row.id) if not lun.read_only]
    for lun in writers:
        raise InUse(
            f"image {row.name} is mapped writable as LUN {place(lun)} and cannot be {doing} meanwhile; {instead}"
        )
