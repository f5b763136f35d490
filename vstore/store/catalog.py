"""The catalog: what vstore knows, in one SQLite file that survives a crash at any instant.

WAL with synchronous=FULL, so a committed verb is on disk; foreign keys on, so no LUN outlives its image. Reads see one
snapshot; a write takes the one write lock at its beginning (BEGIN IMMEDIATE), so it never fails half way without it.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event, insert, inspect, select, update
from sqlalchemy.exc import DatabaseError, OperationalError

from vstore.store import schema
from vstore.store.errors import CatalogUnavailable
from vstore.store.identifiers import new_id, timestamp

_MODE = 0o600
_WRITES = "vstore_writes"
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000")


class Catalog:
    def __init__(self, file: Path) -> None:
        """Opens or makes the catalog. Raises CatalogUnavailable when it is no catalog or a newer version's."""
        self._closed = False
        _make_private(file)
        self._engine = create_engine(f"sqlite:///{file}", connect_args={"check_same_thread": False})
        event.listen(self._engine, "connect", _set_up_connection)
        event.listen(self._engine, "begin", _begin)
        try:
            self._bring_up_to_date(file)
        except (DatabaseError, CatalogUnavailable) as error:
            self.close()
            if isinstance(error, CatalogUnavailable):
                raise
            raise CatalogUnavailable(f"{file.name} cannot be opened as a catalog: {error.orig}") from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One snapshot of everything. Raises CatalogUnavailable."""
        with self._told(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: all of it is on disk when the block ends, or none of it if it raises. CatalogUnavailable."""
        with (
            self._told(),
            self._engine.connect().execution_options(**{_WRITES: True}) as connection,
            connection.begin(),
        ):
            yield connection

    def close(self) -> None:
        """A verb that still runs is refused from here on."""
        self._closed = True
        self._engine.dispose()

    @contextmanager
    def _told(self) -> Iterator[None]:
        if self._closed:
            raise CatalogUnavailable("the daemon is stopping")
        try:
            yield
        except OperationalError as error:
            raise CatalogUnavailable(f"the catalog cannot be used: {error.orig}") from error

    def _bring_up_to_date(self, file: Path) -> None:
        with self.write() as connection:
            if not inspect(connection).has_table(schema.schema_version.name):
                schema.metadata.create_all(connection)
                connection.execute(insert(schema.schema_version).values(version=schema.VERSION))
            version = _lifted(connection, connection.scalar(select(schema.schema_version.c.version)))
        if version != schema.VERSION:
            raise CatalogUnavailable(
                f"{file.name} has schema version {version}, this vstore knows {schema.VERSION}; "
                "run the version that wrote it"
            )


def _lifted(connection: Connection, version: int | None) -> int | None:
    """The catalog's version after all steps from its own."""
    while version in schema.STEPS:
        for statement in schema.STEPS[version]:
            connection.exec_driver_sql(statement)
        version += 1
        connection.execute(update(schema.schema_version).values(version=version))
    return version


def birth() -> dict[str, Any]:
    """The columns that every new object has."""
    return {"id": new_id(), "created_at": timestamp(), "revision": 1}


def _make_private(file: Path) -> None:
    """For the daemon's user alone; SQLite gives the files that it makes beside it the same mode.

    Raises CatalogUnavailable.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE))
        for suffix in ("", "-wal", "-shm"):  # by path: closing a descriptor would drop SQLite's locks of this process
            with contextlib.suppress(FileNotFoundError):
                os.chmod(f"{file}{suffix}", _MODE)
    except OSError as error:
        raise CatalogUnavailable(f"{file.name} cannot be made or kept private: {error.strerror}") from error


def _set_up_connection(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would come too late and without IMMEDIATE
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
