"""Verbs on LUNs: an image behind a target. The process maps first and the catalog records then.

A crash between the two leaves the process with a LUN that nobody was promised; the next start takes it away. Unmapping
runs the same way round, and there the next start maps it again, because nobody was told that it is gone.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, delete, insert, or_, select

from formats.image import Discard
from vstore.store import schema
from vstore.store.catalog import birth
from vstore.store.chains import check_childless, parents
from vstore.store.errors import InUse, InvalidArgument, NotFound
from vstore.store.identifiers import LunAddress, check_labels, check_serial
from vstore.store.mappings import mappings
from vstore.store.parts import (
    Parts,
    check_revision,
    decode_cursor,
    encode_cursor,
    image_row,
    page_limit,
    same_or_taken,
    target_row,
)
from vstore.store.plans import LUN_ROWS, LunPlan
from vstore.store.pool import Pool
from vstore.store.records import Lun, Page

LOGICAL_BLOCK_LENGTHS = (512, 4096)
DISCARDS = tuple(each.value for each in Discard)


class LunVerbs(Parts):
    def map_lun(
        self,
        target: str,
        lun: str,
        *,
        image: str,
        pool: str = "default",
        read_only: bool = False,
        direct: bool = False,
        logical_block_length_bytes: int = 512,
        discard: str = "unref",
        shared: bool = False,
        serial: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> tuple[Lun, bool]:
        """Puts an image behind `lun` (LUN or TARGET:LUN), also under a running guest, and True; or False: it is there.
        `shared`: several targets of one process may have it so, as one logical unit.

        Raises NotFound, InvalidArgument, AlreadyExists, InUse (mapped elsewhere), Locked, Conflict, TargetUnavailable.
        """
        address, where = LunAddress.parse(lun), self.pool(pool)
        wanted: dict[str, Any] = {"read_only": read_only, "direct": direct, "shared": shared}
        wanted |= _checked(discard, logical_block_length_bytes)
        if labels is not None:
            wanted["labels"] = check_labels(labels)
        with self.holding(images=[f"{pool}/{image}"], target=target):
            with self.catalog.read() as connection:
                source, host = image_row(connection, where, image), target_row(connection, target)
                wanted["image_id"] = source.id
                wanted["serial"] = check_serial(source.id.replace("-", "") if serial is None else serial)
                present = connection.execute(_at(host.id, address)).one_or_none()
                if present is not None:
                    same_or_taken(present, wanted, f"LUN {address} of target {target}")
                    return _record(present), False
                _check_mappable(connection, source, host, wanted)
                above = parents(connection, source.id)
            self._check_claims(pool, source, above, read_only=read_only)
            row = {"labels": {}, **birth(), **wanted, **_place(host, address)}
            self._map(target, _planned(where, source, row, above), row)
            return self.show_lun(target, lun), True

    def list_luns(self, target: str, *, limit: int | None = None, cursor: str | None = None) -> Page[Lun]:
        """The LUNs of a target in order. Raises NotFound, InvalidArgument (limit, cursor)."""
        limit, table, after = page_limit(limit), schema.luns.c, decode_cursor(cursor)
        with self.catalog.read() as connection:
            query = LUN_ROWS.where(table.target_id == target_row(connection, target).id)
            if after:
                last = LunAddress.parse(after)
                same = and_(table.scsi_target == last.scsi_target, table.lun > last.lun)
                query = query.where(or_(table.scsi_target > last.scsi_target, same))
            rows = connection.execute(query.order_by(table.scsi_target, table.lun).limit(limit + 1)).all()
        items = [_record(row) for row in rows[:limit]]
        return Page(items, encode_cursor(items[-1].name) if len(rows) > limit else None)

    def show_lun(self, target: str, lun: str) -> Lun:
        """Raises NotFound, InvalidArgument."""
        with self.catalog.read() as connection:
            return _record(_lun_row(connection, target, LunAddress.parse(lun)))

    def unmap_lun(self, target: str, lun: str, *, revision: int | None = None) -> bool:
        """Takes a LUN away, also from a running guest, once its commands are done; False when there was none.

        Raises InvalidArgument, NotFound (the target), Stale, TargetUnavailable.
        """
        address = LunAddress.parse(lun)
        with self.catalog.read() as connection:
            host = target_row(connection, target)
            row = connection.execute(_at(host.id, address)).one_or_none()
        if row is None:
            return False
        check_revision(row, revision, f"LUN {address} of target {target}")
        with self.holding(images=[f"{row.pool}/{row.image}"], target=target):
            with self.catalog.read() as connection:  # while it waited, another may have put another image there
                present = connection.execute(_at(target_row(connection, target).id, address)).one_or_none()
            if present is None or present.id != row.id:
                return False
            self.supervisor.unmap_lun(target, address)
            with self.catalog.write() as connection:
                gone = bool(connection.execute(delete(schema.luns).where(schema.luns.c.id == row.id)).rowcount)
                last = not mappings(connection, row.image_id)
            if last and row.file is not None:
                self.pool(row.pool).drop_state(row.file, if_empty=True)
            return gone

    def _check_claims(self, pool: str, source: Row[Any], above: Sequence[Row[Any]], *, read_only: bool) -> None:
        """Raises InUse when a job has the image, or changes a parent of it."""
        self.claims.check(f"{pool}/{source.name}", alone=not read_only)
        for each in above:
            self.claims.check(f"{pool}/{each.name}", alone=False)

    def _map(self, target: str, plan: LunPlan, row: dict[str, Any]) -> None:
        with ExitStack() as undo:
            self.supervisor.map_lun(target, plan)
            undo.callback(self.supervisor.unmap_lun, target, plan.address)
            with self.catalog.write() as connection:
                connection.execute(insert(schema.luns).values(**row))
            undo.pop_all()


def _place(host: Row[Any], address: LunAddress) -> dict[str, Any]:
    return {"target_id": host.id, "scsi_target": address.scsi_target, "lun": address.lun}


def _planned(pool: Pool, source: Row[Any], row: Mapping[str, Any], above: Sequence[Row[Any]]) -> LunPlan:
    """The plan of a LUN that is not in the catalog yet."""
    return LunPlan.of(pool, source.name, SimpleNamespace(**{**source._mapping, **row}), above)


def _checked(discard: str, logical_block_length: int) -> dict[str, Any]:
    return {
        "discard": _check_discard(discard),
        "logical_block_length_bytes": _check_block_length(logical_block_length),
    }


def _check_block_length(length: int) -> int:
    if length not in LOGICAL_BLOCK_LENGTHS:
        right = f"choose {' or '.join(map(str, LOGICAL_BLOCK_LENGTHS))}"
        raise InvalidArgument("logical_block_length_bytes", f"{length} is not offered", right)
    return length


def _check_discard(discard: str) -> str:
    if discard not in DISCARDS:
        raise InvalidArgument("discard", f"{discard[:20]!r} is not offered", f"choose {', '.join(DISCARDS)}")
    return discard


def _check_mappable(connection: Connection, source: Row[Any], host: Row[Any], wanted: Mapping[str, Any]) -> None:
    """One writer, many readers, or targets of one process; whole logical blocks; no two disks under one serial."""
    if not wanted["read_only"]:
        check_childless(connection, source, "mapped writable")
    block = wanted["logical_block_length_bytes"]
    if source.virtual_size_bytes % block:
        raise InvalidArgument(
            "logical_block_length_bytes",
            f"image {source.name} has {source.virtual_size_bytes} bytes, which is not a multiple of {block}",
            "choose 512, or resize the image",
        )
    lun = schema.luns.c
    for other in connection.execute(LUN_ROWS.where(or_(lun.image_id == source.id, lun.serial == wanted["serial"]))):
        where = f"{other.target}/{LunAddress(other.scsi_target, other.lun)}"
        if other.image_id != source.id:
            # a guest's multipath takes two disks with one serial number for one disk
            raise InvalidArgument(
                "serial", f"LUN {where} has {other.serial!r} for image {other.image}", "choose another or leave it out"
            )
        if other.shared or wanted["shared"]:
            _check_shareable(connection, other, host, wanted, f"image {source.name} is mapped as LUN {where}")
        elif not (other.read_only and wanted["read_only"]):
            raise InUse(
                f"image {source.name} is mapped as LUN {where}; only read-only mappings may share an image, or those "
                "with `shared` behind targets of one process"
            )


_ALIKE = ("shared", "read_only", "direct", "logical_block_length_bytes", "discard", "serial")


def _check_shareable(
    connection: Connection, other: Row[Any], host: Row[Any], wanted: Mapping[str, Any], mapped: str
) -> None:
    """Raises InUse. One logical unit has one process, one set of settings, and one place in each target."""
    for field in _ALIKE:
        if getattr(other, field) != wanted[field]:
            raise InUse(f"{mapped} with {field} {getattr(other, field)!r}; who shares it has to have the same")
    if other.target_id == host.id:
        raise InUse(f"{mapped}; a target has a shared image once")
    table = schema.targets.c
    there = connection.execute(select(table.id, table.beside_id).where(table.id == other.target_id)).one()
    if (there.beside_id or there.id) != (host.beside_id or host.id):
        raise InUse(
            f"{mapped}, and target {host.name} is served by another process; only targets that were created with "
            "`beside` share a disk"
        )


def _record(row: Row[Any]) -> Lun:
    return Lun(
        id=row.id,
        name=str(LunAddress(row.scsi_target, row.lun)),
        target=row.target,
        scsi_target=row.scsi_target,
        lun=row.lun,
        pool=row.pool,
        image=row.image,
        virtual_size_bytes=row.virtual_size_bytes,
        read_only=row.read_only,
        direct=row.direct,
        logical_block_length_bytes=row.logical_block_length_bytes,
        discard=row.discard,
        shared=row.shared,
        serial=row.serial,
        created_at=row.created_at,
        revision=row.revision,
        labels=row.labels,
    )


def _lun_row(connection: Connection, target: str, address: LunAddress) -> Row[Any]:
    row = connection.execute(_at(target_row(connection, target).id, address)).one_or_none()
    if row is None:
        raise NotFound(f"target {target} has no LUN {address}", field="lun")
    return row


def _at(target_id: str, address: LunAddress) -> Select[Any]:
    lun = schema.luns.c
    return LUN_ROWS.where(lun.target_id == target_id, lun.scsi_target == address.scsi_target, lun.lun == address.lun)
