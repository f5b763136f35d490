"""The catalog file: one transaction per verb, foreign keys, versions."""

import contextlib
import sqlite3
import stat
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import IntegrityError

from vstore.store import schema
from vstore.store.catalog import Catalog, birth
from vstore.store.errors import CatalogUnavailable


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "catalog.sqlite")


def _target(name: str) -> dict[str, object]:
    return {
        **birth(),
        "labels": {"a": "b"},
        "name": name,
        "request_queues": 1,
        "threads": 1,
        "config_space": False,
    }


def _names(catalog: Catalog) -> list[str]:
    with catalog.read() as connection:
        return list(connection.scalars(select(schema.targets.c.name)))


def test_what_was_written_is_there_after_opening_again(catalog: Catalog, tmp_path: Path) -> None:
    with catalog.write() as connection:
        connection.execute(insert(schema.targets).values(**_target("t")))
    catalog.close()
    again = Catalog(tmp_path / "catalog.sqlite")
    assert _names(again) == ["t"]
    again.close()


def test_a_transaction_that_fails_leaves_nothing(catalog: Catalog) -> None:
    with contextlib.suppress(ZeroDivisionError), catalog.write() as connection:
        connection.execute(insert(schema.targets).values(**_target("t")))
        _ = 1 / 0
    assert _names(catalog) == []
    catalog.close()


def test_a_reader_sees_one_snapshot_while_a_writer_commits(catalog: Catalog) -> None:
    with catalog.read() as reader:
        assert reader.scalar(select(schema.targets.c.name)) is None
        with catalog.write() as writer:
            writer.execute(insert(schema.targets).values(**_target("t")))
        assert reader.scalar(select(schema.targets.c.name)) is None
    assert _names(catalog) == ["t"]
    catalog.close()


def test_a_lun_without_its_image_is_refused_by_the_database(catalog: Catalog) -> None:
    target = _target("t")
    lun = {**birth(), "labels": {}, "target_id": target["id"], "scsi_target": 0, "lun": 0, "image_id": "gone"}
    lun |= {"read_only": False, "direct": False, "logical_block_length_bytes": 512, "serial": "s"}
    with catalog.write() as connection:
        connection.execute(insert(schema.targets).values(**target))
        with pytest.raises(IntegrityError):
            connection.execute(insert(schema.luns).values(**lun))
    catalog.close()


def test_a_commit_is_on_disk_before_it_returns(catalog: Catalog) -> None:
    with catalog.read() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2  # FULL
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
    catalog.close()


def _modes(directory: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}


def test_the_catalog_and_the_files_beside_it_are_private_also_those_that_were_not(
    catalog: Catalog, tmp_path: Path
) -> None:
    private = {f"catalog.sqlite{suffix}": 0o600 for suffix in ("", "-wal", "-shm")}
    assert _names(catalog) == []
    assert _modes(tmp_path) == private
    for name in private:
        (tmp_path / name).chmod(0o644)
    again = Catalog(tmp_path / "catalog.sqlite")
    assert _modes(tmp_path) == private
    again.close()
    catalog.close()


def _shape(file: Path) -> dict[str, list[tuple[object, ...]]]:
    """What each table is made of: its columns and keys, in the order of their names."""
    shape: dict[str, list[tuple[object, ...]]] = {}
    with contextlib.closing(sqlite3.connect(file)) as plain:
        for (table,) in plain.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
            shape[table] = [row[1:] for row in plain.execute(f"PRAGMA table_info({table})")]
            shape[table] += sorted(row[2:5] for row in plain.execute(f"PRAGMA foreign_key_list({table})"))
            shape[table] += sorted(row[1:4] for row in plain.execute(f"PRAGMA index_list({table})"))
    return shape


def _older(file: Path, version: int) -> None:
    """The catalog that vstore wrote at that version, word for word."""
    dump = (Path(__file__).parents[2] / f"fixtures/catalog/version-{version}.sql").read_text()
    with contextlib.closing(sqlite3.connect(file)) as plain:
        plain.executescript(dump)


def test_a_catalog_of_an_older_version_becomes_what_a_new_one_is(catalog: Catalog, tmp_path: Path) -> None:
    older = tmp_path / "older.sqlite"
    _older(older, 2)
    Catalog(older).close()
    assert _shape(older) == _shape(tmp_path / "catalog.sqlite")
    catalog.close()


def test_a_catalog_of_version_5_keeps_what_is_in_it_and_none_of_it_is_encrypted(
    catalog: Catalog, tmp_path: Path
) -> None:
    _older(tmp_path / "older.sqlite", 5)
    lifted = Catalog(tmp_path / "older.sqlite")
    with lifted.read() as connection:
        assert connection.scalar(select(schema.schema_version.c.version)) == schema.VERSION
        images = {row.name: row for row in connection.execute(select(schema.images))}
        assert images["top"].parent_id == images["base"].id
        assert images["top"].options == {"cluster_size_bytes": 131072, "extended_l2": True}
        assert [row.secret for row in images.values()] == [None, None]
        lun = connection.execute(select(schema.luns)).one()
        assert (lun.image_id, lun.discard, lun.shared) == (images["top"].id, "punch", True)
        assert connection.execute(select(schema.jobs.c.result)).scalar_one() == {"check-errors": 0}
    lifted.close()
    assert _shape(tmp_path / "older.sqlite") == _shape(tmp_path / "catalog.sqlite")
    catalog.close()


def test_a_catalog_of_version_2_keeps_what_is_in_it(tmp_path: Path) -> None:
    _older(tmp_path / "catalog.sqlite", 2)
    lifted = Catalog(tmp_path / "catalog.sqlite")
    with lifted.read() as connection:
        assert connection.scalar(select(schema.schema_version.c.version)) == schema.VERSION
        images = {row.name: row for row in connection.execute(select(schema.images))}
        assert set(images) == {"root", "scratch"}
        root = images["root"]
        assert (root.format, root.file, root.virtual_size_bytes, root.labels) == (
            *("raw", "root.raw", 1048576),
            {"owner": "web"},
        )
        assert [(row.parent_id, row.options) for row in images.values()] == [(None, {}), (None, {})]
        assert connection.execute(select(schema.luns.c.image_id)).scalar_one() == root.id
        assert connection.execute(select(schema.targets.c.socket_mode)).scalar_one() == "0660"
        assert connection.execute(select(schema.jobs)).all() == []
    lifted.close()


def test_a_catalog_of_the_first_version_is_lifted_with_what_is_in_it(catalog: Catalog, tmp_path: Path) -> None:
    _older(tmp_path / "first.sqlite", 2)
    with contextlib.closing(sqlite3.connect(tmp_path / "first.sqlite")) as plain:
        for column in ("socket_mode", "socket_owner", "socket_group"):
            plain.execute(f"ALTER TABLE targets DROP COLUMN {column}")
        plain.execute("UPDATE schema_version SET version = 1")
        plain.commit()
    lifted = Catalog(tmp_path / "first.sqlite")
    with lifted.read() as connection:
        row = connection.execute(select(schema.targets)).one()
        assert (row.name, row.socket_mode, row.socket_owner, row.socket_group) == ("web", "0600", None, None)
    lifted.close()
    assert _shape(tmp_path / "first.sqlite") == _shape(tmp_path / "catalog.sqlite")
    catalog.close()


def test_a_step_that_fails_leaves_the_older_catalog_as_it_is(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ("ALTER TABLE targets ADD COLUMN x TEXT", "ALTER TABLE nowhere ADD COLUMN x TEXT")
    catalog.close()
    monkeypatch.setattr(schema, "STEPS", {schema.VERSION: steps})
    with pytest.raises(CatalogUnavailable, match="no such table: nowhere"):
        Catalog(tmp_path / "catalog.sqlite")
    monkeypatch.setattr(schema, "STEPS", {})
    again = Catalog(tmp_path / "catalog.sqlite")
    with again.read() as connection:
        assert "x" not in [row.name for row in connection.execute(text("PRAGMA table_info(targets)"))]
    again.close()


def test_a_newer_catalog_is_refused_and_left_as_it_is(catalog: Catalog, tmp_path: Path) -> None:
    with catalog.write() as connection:
        connection.execute(update(schema.schema_version).values(version=schema.VERSION + 1))
    catalog.close()
    with pytest.raises(CatalogUnavailable, match="run the version that wrote it"):
        Catalog(tmp_path / "catalog.sqlite")
    with sqlite3.connect(tmp_path / "catalog.sqlite") as plain:
        assert plain.execute("SELECT version FROM schema_version").fetchone() == (schema.VERSION + 1,)
    plain.close()


def test_a_file_that_is_no_catalog_is_refused(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CatalogUnavailable, match="not a database"):
        Catalog(tmp_path / "catalog.sqlite")
