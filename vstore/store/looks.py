"""Verbs that look into an image and change nothing; while a guest uses it, they tell it as of a moment just past."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from vstore.store.chains import parents
from vstore.store.errors import InvalidArgument, NotFound
from vstore.store.parts import Parts, decode_cursor, encode_cursor, image_row, page_limit
from vstore.store.pool import Pool
from vstore.store.records import Page, Snapshot
from vstore.store.work import image_files

LONGEST_MAP = 10_000  # extents of one page: each page is a worker's work, so few long ones


class Looking(Parts):
    """What verbs need that look into an image."""

    def look(
        self, pool: Pool, chain: list[Row[Any]], verb: str, *, sealed: bool = True, **options: Any
    ) -> dict[str, Any]:
        """What a worker tells of a chain, the top image first, whoever uses it. Raises StoreError. `sealed`: what is
        encrypted stays so.

        A look locks the top image never: a dashboard that asks all the time would keep guests from getting it."""
        with image_files(pool, chain, live=True, sealed=sealed) as files:
            return self.workers.do(verb, chain[0].file, {"image": files}, **options)

    def snapshots(self, pool: Pool, row: Row[Any]) -> list[Snapshot]:
        told = self.look(pool, [row], "list_snapshots")
        return [snapshot_record(row.name, each) for each in told["snapshots"]]

    def snapshot(self, pool: Pool, row: Row[Any], name: str) -> Snapshot:
        """Raises NotFound."""
        for each in self.snapshots(pool, row):
            if each.name == name:
                return each
        raise NotFound(f"image {row.name} has no snapshot {name[:80]!r}", field="snapshot")


class LookVerbs(Looking):
    def info_image(self, pool: str, name: str) -> dict[str, Any]:
        """What `qemu-img info --output=json` tells, under the same keys.

        Raises NotFound, Conflict (its file is gone), Locked, Unsupported, WorkFailed.
        """
        where = self.pool(pool)
        with self.catalog.read() as connection:
            row = image_row(connection, where, name)
        return self.look(where, [row], "info")

    def map_image(
        self, pool: str, name: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Page[dict[str, Any]]:
        """Where its bytes lie: the extents that `qemu-img map --output=json` tells, in order, page by page.

        Raises NotFound, InvalidArgument (limit, cursor), Conflict, Locked, WorkFailed.
        """
        limit, start = page_limit(limit, LONGEST_MAP), _offset(decode_cursor(cursor))
        where = self.pool(pool)
        with self.catalog.read() as connection:
            row = image_row(connection, where, name)
            chain = [row, *parents(connection, row.id)]
        told = self.look(where, chain, "map", sealed=False, start=start, limit=limit)
        return Page(told["extents"], None if told["next"] is None else encode_cursor(str(told["next"])))


def _offset(text: str) -> int:
    """Raises InvalidArgument."""
    if text and not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise InvalidArgument("cursor", "this is no cursor", "pass the one that the last page gave")
    return int(text or 0)


def snapshot_record(image: str, told: Mapping[str, Any]) -> Snapshot:
    """`told` as qemu-img has it, and the disk's length."""
    microsecond = min(told["date-nsec"] // 1000, 999_999)  # the field holds more than a second has
    taken = datetime.fromtimestamp(told["date-sec"], UTC).replace(microsecond=microsecond)
    return Snapshot(
        id=told["id"],
        name=told["name"],
        image=image,
        virtual_size_bytes=told["disk-size"],
        vm_state_size_bytes=told["vm-state-size"],
        created_at=taken.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        revision=told["date-sec"] * 1_000_000 + microsecond,
    )
