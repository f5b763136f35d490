"""The catalog's tables. A change of them raises VERSION and brings the step that lifts an older catalog.

    pools 1 --- * images 1 --- * luns * --- 1 targets          jobs
                  parent 1 --- * children

Every object has an id (UUIDv7) that never changes, a name that people use, and a revision that counts its changes.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

VERSION = 6

STEPS = {  # a version: what lifts a catalog from there to the next one
    1: (
        "ALTER TABLE targets ADD COLUMN socket_mode TEXT DEFAULT '0600' NOT NULL",
        "ALTER TABLE targets ADD COLUMN socket_owner TEXT",
        "ALTER TABLE targets ADD COLUMN socket_group TEXT",
    ),
    2: (
        "ALTER TABLE images ADD COLUMN parent_id TEXT REFERENCES images (id)",
        "ALTER TABLE images ADD COLUMN options JSON DEFAULT '{}' NOT NULL",
        "CREATE INDEX ix_images_parent_id ON images (parent_id)",
        "CREATE TABLE jobs (id TEXT NOT NULL, created_at TEXT NOT NULL, revision INTEGER NOT NULL, verb TEXT NOT NULL, "
        "subject TEXT NOT NULL, arguments JSON NOT NULL, state TEXT NOT NULL, done_bytes BIGINT NOT NULL, "
        "total_bytes BIGINT NOT NULL, result JSON, error JSON, started_at TEXT, ended_at TEXT, PRIMARY KEY (id))",
        "CREATE INDEX ix_jobs_state ON jobs (state)",
    ),
    3: ("ALTER TABLE luns ADD COLUMN discard TEXT DEFAULT 'unref' NOT NULL",),
    4: (
        "ALTER TABLE targets ADD COLUMN beside_id TEXT REFERENCES targets (id)",
        "ALTER TABLE targets ADD COLUMN port INTEGER DEFAULT '1' NOT NULL",
        "ALTER TABLE luns ADD COLUMN shared BOOLEAN DEFAULT '0' NOT NULL",
    ),
    5: ("ALTER TABLE images ADD COLUMN secret TEXT",),
}

metadata = MetaData()


def _object_columns() -> list[Column[Any]]:
    return [
        Column("id", Text, primary_key=True),
        Column("created_at", Text, nullable=False),
        Column("revision", Integer, nullable=False, default=1),
        Column("labels", JSON, nullable=False, default=dict),
    ]


schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

pools = Table(
    "pools",
    metadata,
    *_object_columns(),
    Column("name", Text, nullable=False, unique=True),
    Column("directory", Text, nullable=False),
)

images = Table(
    "images",
    metadata,
    *_object_columns(),
    Column("pool_id", ForeignKey("pools.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("format", Text, nullable=False),  # recorded at birth, never probed from bytes a guest can write
    Column("file", Text),  # name inside the pool's directory; NULL for formats without a file
    Column("virtual_size_bytes", BigInteger, nullable=False),
    Column("preallocation", Text, nullable=False),
    Column("parent_id", ForeignKey("images.id"), index=True),  # whose blocks show through; NULL: it stands alone
    Column("options", JSON, nullable=False, default=dict, server_default="{}"),  # of its format, as they came to be
    Column("secret", Text),  # the name of what opens it; NULL: it is not encrypted
    UniqueConstraint("pool_id", "name"),
    UniqueConstraint("pool_id", "file"),
    CheckConstraint("virtual_size_bytes % 512 = 0"),
)

targets = Table(
    "targets",
    metadata,
    *_object_columns(),
    Column("name", Text, nullable=False, unique=True),
    Column("request_queues", Integer, nullable=False),
    Column("threads", Integer, nullable=False),
    Column("poll_us", Integer),  # NULL: the target process chooses
    Column("config_space", Boolean, nullable=False),
    Column("socket_mode", Text, nullable=False, server_default="0600"),
    Column("socket_owner", Text),  # NULL: the daemon's user
    Column("socket_group", Text),  # NULL: the daemon's group
    Column("beside_id", ForeignKey("targets.id")),  # in whose process it is served; NULL: in its own
    Column("port", Integer, nullable=False, server_default="1"),  # relative identifier, unique in its process
)

luns = Table(
    "luns",
    metadata,
    *_object_columns(),
    Column("target_id", ForeignKey("targets.id"), nullable=False),
    Column("scsi_target", Integer, nullable=False),
    Column("lun", Integer, nullable=False),
    Column("image_id", ForeignKey("images.id"), nullable=False, index=True),
    Column("read_only", Boolean, nullable=False),
    Column("direct", Boolean, nullable=False),
    Column("logical_block_length_bytes", Integer, nullable=False),
    Column("serial", Text, nullable=False),
    Column("discard", Text, nullable=False, server_default="unref"),
    Column("shared", Boolean, nullable=False, server_default="0"),  # by several targets of one process
    UniqueConstraint("target_id", "scsi_target", "lun"),
)

jobs = Table(
    "jobs",
    metadata,
    *_object_columns()[:3],
    Column("verb", Text, nullable=False),
    Column("subject", Text, nullable=False),  # POOL/IMAGE
    Column("arguments", JSON, nullable=False),
    Column("state", Text, nullable=False, index=True),  # queued, running, succeeded, failed, cancelled
    Column("done_bytes", BigInteger, nullable=False),
    Column("total_bytes", BigInteger, nullable=False),
    Column("result", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("started_at", Text),
    Column("ended_at", Text),
)
