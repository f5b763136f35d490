"""Verbs on targets: a row of the catalog and a process of the supervisor."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, or_, select

from vstore.store import attach, schema
from vstore.store.access import SocketAccess
from vstore.store.catalog import birth
from vstore.store.errors import InUse, InvalidArgument, NotFound, TargetUnavailable
from vstore.store.identifiers import check_labels, check_name
from vstore.store.parts import (
    Parts,
    change,
    check_revision,
    decode_cursor,
    encode_cursor,
    lun_names,
    merged_labels,
    page_limit,
    same_or_taken,
    target_row,
)
from vstore.store.plans import beside_of
from vstore.store.records import Attach, Page, Target

MAX_REQUEST_QUEUES = 64  # the data plane has 66 vrings: control, event, 64 request queues
MAX_POLL_US = 1_000_000
DEFAULT_REQUEST_QUEUES = 4
DEFAULT_GUEST_MEMORY = 4 << 30


class TargetVerbs(Parts):
    def create_target(
        self,
        name: str,
        *,
        request_queues: int = DEFAULT_REQUEST_QUEUES,
        threads: int = 1,
        poll_us: int | None = None,
        config_space: bool = False,
        socket_mode: str | None = None,
        socket_owner: str | None = None,
        socket_group: str | None = None,
        beside: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> tuple[Target, bool]:
        """A new target whose process listens for a VMM, and True; or the one that is there just so, and False.
        `beside`: the target in whose process this one is served, so that both can share LUNs.

        Raises InvalidArgument, AlreadyExists (it is there and differs), Conflict, TargetUnavailable.
        """
        wanted: dict[str, Any] = {
            "request_queues": _check_count("request_queues", request_queues, 1, MAX_REQUEST_QUEUES),
            "threads": _check_count("threads", threads, 1, request_queues),
            "poll_us": poll_us if poll_us is None else _check_count("poll_us", poll_us, 0, MAX_POLL_US),
            "config_space": config_space,
            **asdict(SocketAccess.checked(socket_mode, socket_owner, socket_group)),
        }
        if labels is not None:
            wanted["labels"] = check_labels(labels)
        self.supervisor.check_socket_path(check_name("target", name))
        with self.holding(target=name):
            with self.catalog.read() as connection:
                wanted["beside_id"] = None if beside is None else _leader(connection, name, beside).id
            with self.catalog.read() as connection, suppress(NotFound):
                row = same_or_taken(target_row(connection, name), wanted, f"target {name}")
                return self._target(connection, row), False
            self.supervisor.check_free(name)
            self._insert({"labels": {}, **birth(), **wanted, "name": name}, beside)
            self.supervisor.start(name)
        self._wait_until_up(name)
        return self.show_target(name), True

    def _insert(self, values: Mapping[str, Any], beside: str | None) -> None:
        with self.catalog.write() as connection:
            port = _free_port(connection, values["name"], beside)
            connection.execute(insert(schema.targets).values(**values, port=port))

    def list_targets(self, *, limit: int | None = None, cursor: str | None = None) -> Page[Target]:
        """The targets by name. Raises InvalidArgument (limit, cursor)."""
        limit, table = page_limit(limit), schema.targets
        query = select(table).where(table.c.name > decode_cursor(cursor)).order_by(table.c.name).limit(limit + 1)
        with self.catalog.read() as connection:
            rows = connection.execute(query).all()
            items = [self._target(connection, row) for row in rows[:limit]]
        return Page(items, encode_cursor(items[-1].name) if len(rows) > limit else None)

    def show_target(self, name: str) -> Target:
        """Raises NotFound."""
        with self.catalog.read() as connection:
            row = target_row(connection, name)
            return self._target(connection, row)

    def update_target(
        self, name: str, *, labels: Mapping[str, str | None] | None = None, revision: int | None = None
    ) -> Target:
        """Merges labels; the other settings are for life. Raises NotFound, Stale, InvalidArgument."""
        with self.holding(target=name):
            with self.catalog.write() as connection:
                row = target_row(connection, name)
                check_revision(row, revision, f"target {name}")
                change(connection, schema.targets, row, labels=merged_labels(row.labels, labels))
            return self.show_target(name)

    def delete_target(self, name: str, *, revision: int | None = None) -> bool:
        """Ends the target and its process; False when there was none. Raises InUse naming the LUNs, Stale."""
        with self.holding(target=name):
            return self._end(name, revision)

    def attach_lines(self, name: str, *, memory_bytes: int = DEFAULT_GUEST_MEMORY) -> Attach:
        """How each VMM attaches, for a guest with `memory_bytes` of memory. Raises NotFound, InvalidArgument."""
        return attach.lines(self.show_target(name), attach.check_memory(memory_bytes))

    def _wait_until_up(self, name: str) -> None:
        """A new target whose process does not come up was not created. Raises TargetUnavailable."""
        try:
            self.supervisor.wait_until_up(name)
        except TargetUnavailable:
            with self.locks.hold(f"target:{name}"):  # however many wait: it has to go
                self._end(name, None)
            raise

    def _end(self, name: str, revision: int | None) -> bool:
        """The caller holds the target."""
        try:
            with self.catalog.write() as connection:
                row = target_row(connection, name)
                check_revision(row, revision, f"target {name}")
                mapped = _mapped(connection, row)
                if mapped:
                    raise InUse(f"target {name} has LUN {', '.join(mapped)}; unmap it first")
                _check_alone(connection, row)
                connection.execute(delete(schema.targets).where(schema.targets.c.id == row.id))
        except NotFound:
            return False
        self.supervisor.stop(name)
        return True

    def _target(self, connection: Connection, row: Row[Any]) -> Target:
        return Target(
            id=row.id,
            name=row.name,
            socket=str(self.supervisor.socket_path(row.name)),
            request_queues=row.request_queues,
            threads=row.threads,
            poll_us=row.poll_us,
            config_space=row.config_space,
            socket_mode=row.socket_mode,
            socket_owner=row.socket_owner,
            socket_group=row.socket_group,
            beside=beside_of(connection, row),
            port=row.port,
            process=self.supervisor.process(row.name),
            luns=_mapped(connection, row),
            created_at=row.created_at,
            revision=row.revision,
            labels=row.labels,
        )


def _mapped(connection: Connection, row: Row[Any]) -> list[str]:
    lun = schema.luns.c
    query = select(lun.target_id, schema.targets.c.name, lun.scsi_target, lun.lun).join(schema.targets)
    query = query.where(lun.target_id == row.id).order_by(lun.scsi_target, lun.lun)
    return [name.partition("/")[2] for name in lun_names(connection, query).get(row.id, [])]


def _leader(connection: Connection, name: str, beside: str) -> Row[Any]:
    """The target that has a process. Raises InvalidArgument."""
    try:
        row = target_row(connection, beside)
    except NotFound as error:
        raise InvalidArgument("beside", error.detail, "name a target that there is") from None
    if beside == name or row.beside_id is not None:
        own = beside_of(connection, row)
        right = "leave it out" if own is None else f"choose {own}"
        raise InvalidArgument("beside", f"target {beside} has no process of its own yet", right)
    return row


def _free_port(connection: Connection, name: str, beside: str | None) -> int:
    """The lowest identifier that no other target of the process has."""
    if beside is None:
        return 1
    leader, table = _leader(connection, name, beside), schema.targets.c
    query = select(table.port).where(or_(table.id == leader.id, table.beside_id == leader.id))
    taken = set(connection.scalars(query))
    return next(port for port in range(1, 65536) if port not in taken)


def _check_alone(connection: Connection, row: Row[Any]) -> None:
    """Raises InUse when other targets are served by its process."""
    table = schema.targets.c
    beside = list(connection.scalars(select(table.name).where(table.beside_id == row.id).order_by(table.name)))
    if beside:
        raise InUse(f"the process of target {row.name} serves {', '.join(beside)} too; delete that first")


def _check_count(field: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidArgument(field, f"{value} is out of range", f"choose {low} to {high}")
    return value
