"""What the verbs stand on: the catalog, the pools, the supervisor, and the small questions that several verbs ask."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Row, Select, Table, select, update

from vstore.store import schema
from vstore.store.catalog import Catalog
from vstore.store.claims import Claims
from vstore.store.errors import AlreadyExists, InvalidArgument, NotFound, Stale
from vstore.store.identifiers import LunAddress, check_labels
from vstore.store.locks import NamedLocks
from vstore.store.pool import Pool
from vstore.store.secret_files import SecretFiles
from vstore.store.supervisor import Supervisor
from vstore.store.work import Workers

if TYPE_CHECKING:
    from vstore.store.jobs import Jobs

LONGEST_PAGE = 500
DEFAULT_PAGE = 100
Fields = TypeVar("Fields")  # whatever has the columns as attributes

MOST_WAITING = 12  # verbs on one object; provisioning tools send ten side by side, and HTTP has 40 threads


class Parts:
    """Base of the verb classes that make up the Store."""

    catalog: Catalog
    pools: Mapping[str, Pool]
    supervisor: Supervisor
    locks: NamedLocks
    claims: Claims
    workers: Workers
    jobs: "Jobs"
    secrets: SecretFiles

    def pool(self, name: str) -> Pool:
        """Raises NotFound."""
        if name not in self.pools:
            raise NotFound(f"there is no pool {name[:80]!r}; the pools are {', '.join(self.pools)}", field="pool")
        return self.pools[name]

    def secret_value(self, name: str | None) -> bytes | None:
        """What has that name; None where there is none. Raises NotFound."""
        value = None if name is None else self.secrets.read(name)
        if name is not None and value is None:
            right = f"keep it first (vstore secret set {name})"
            raise NotFound(f"there is no secret {name}; {right}", field="secret")
        return value

    def holding(
        self, *, images: Iterable[str] = (), target: str | None = None, secrets: Iterable[str | None] = ()
    ) -> AbstractContextManager[None]:
        """Keeps other verbs (and the supervisor) off images, by POOL/NAME, off a target, off secrets. Raises Busy."""
        names = [f"image:{name}" for name in images] + ([] if target is None else [f"target:{target}"])
        names += [f"secret:{name}" for name in secrets if name is not None]
        return self.locks.hold(*names, most_waiting=MOST_WAITING)


def image_row(connection: Connection, pool: Pool, name: str) -> Row[Any]:
    """Raises NotFound."""
    table = schema.images
    row = connection.execute(select(table).where(table.c.pool_id == pool.id, table.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no image {name[:80]!r} in pool {pool.name}", field="image")
    return row


def target_row(connection: Connection, name: str) -> Row[Any]:
    """Raises NotFound."""
    row = connection.execute(select(schema.targets).where(schema.targets.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no target {name[:80]!r}", field="target")
    return row


def lun_names(connection: Connection, query: Select[Any]) -> dict[str, list[str]]:
    """For a query of (key, target name, scsi_target, lun): TARGET/LUN by key, in order."""
    names: dict[str, list[str]] = {}
    for key, target, scsi_target, lun in connection.execute(query):
        names.setdefault(key, []).append(f"{target}/{LunAddress(scsi_target, lun)}")
    return names


def check_revision(row: Row[Any], expected: int | None, what: str) -> None:
    """Raises Stale when the caller saw another revision."""
    if expected is not None and expected != row.revision:
        raise Stale(f"{what} is at revision {row.revision}, not {expected}; read it again and repeat the change")


def same_or_taken(row: Fields, wanted: Mapping[str, object], what: str) -> Fields:
    """`row`, if it is all that was asked for, so asking twice is no error. Raises AlreadyExists: it differs."""
    for field, value in wanted.items():
        if getattr(row, field) != value:
            raise AlreadyExists(
                f"{what} exists with {field} {getattr(row, field)!r}, not {value!r}; change it or choose another name",
                field=field,
            )
    return row


def merged_labels(current: Mapping[str, str], patch: Mapping[str, str | None] | None) -> dict[str, str]:
    """RFC 7396 for one level: null takes a label away. Raises InvalidArgument."""
    merged: dict[str, str | None] = {**current, **(patch or {})}
    return check_labels({key: value for key, value in merged.items() if value is not None})


def change(connection: Connection, table: Table, row: Row[Any], **values: object) -> None:
    """Writes the new values, if any differ, and counts the revision up."""
    changed = {name: value for name, value in values.items() if getattr(row, name) != value}
    if changed:
        connection.execute(update(table).where(table.c.id == row.id).values(**changed, revision=table.c.revision + 1))


def renew(connection: Connection, table: Table, row: Row[Any], **values: object) -> None:
    """Writes the values and counts the revision up, because what the row stands for has changed."""
    connection.execute(update(table).where(table.c.id == row.id).values(**values, revision=table.c.revision + 1))


def page_limit(limit: int | None, longest: int = LONGEST_PAGE) -> int:
    """Raises InvalidArgument."""
    limit = DEFAULT_PAGE if limit is None else limit
    if not 1 <= limit <= longest:
        raise InvalidArgument("limit", f"{limit} is no page length", f"choose 1 to {longest}")
    return limit


def encode_cursor(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> str:
    """The key after which the page begins. Raises InvalidArgument."""
    if not cursor:
        return ""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument("cursor", "this is no cursor", "pass the one that the last page gave") from error
