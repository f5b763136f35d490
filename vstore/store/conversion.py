"""Converting an image: into a new one, or in place, which gives an image another format under its name.

    into      draft, filled by a worker --> gets its name | COMMIT: a row
    in place  draft, filled by a worker --> gets its name, the old files lose theirs | COMMIT: the row --> old files go

The draft's file is never called as the old one is, so whatever instant a crash picks, the row says which of the two the
image is, and `Pool.sweep` clears the other one away.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert

from vstore.store import schema
from vstore.store.catalog import birth
from vstore.store.errors import Conflict, InvalidArgument
from vstore.store.identifiers import check_labels
from vstore.store.image_spec import ImageSpec, data_file_of, effective, file_name, files_of, offered
from vstore.store.jobs import RunningJob
from vstore.store.parts import Parts, image_row, renew
from vstore.store.pool import Draft, Pool
from vstore.store.refusals import refusals_told
from vstore.store.work import draft_file, image_files


@dataclass(frozen=True)
class Conversion:
    """`made`: the row of the new image, or what changes in that of the old one; `length` in bytes of the disk."""

    pool: Pool
    chain: list[Row[Any]]
    made: Mapping[str, Any]
    spec: ImageSpec
    compress: bool
    snapshot: str | None
    length: int
    in_place: bool = False

    @property
    def name(self) -> str:
        return str(self.chain[0].name if self.in_place else self.made["name"])

    def draft(self) -> Draft:
        """Raises SecretNeeded."""
        made, secret = self.made, self.made["secret"]
        opening = None if secret is None else self.pool.secrets.of_image(self.name, secret)
        owner = self.chain[0].id if self.in_place else made["id"]
        return Draft(owner, made["file"], made["format"], opening, self.spec.data_file)

    def publishing(self, draft: Draft) -> AbstractContextManager[None]:
        return self.pool.replacing(draft, *files_of(self.chain[0])) if self.in_place else self.pool.publishing(draft)

    def record(self, connection: Connection, made: Mapping[str, Any]) -> None:
        if self.in_place:
            now = image_row(connection, self.pool, self.name)
            renew(connection, schema.images, now, **made, parent_id=None)
        else:
            connection.execute(insert(schema.images).values(**made, virtual_size_bytes=self.length))


def convert(store: Parts, job: RunningJob, wanted: Conversion) -> None:
    """The draft is the target from its first byte on; it gets its name in the transaction that ends the job."""
    pool, made, length = wanted.pool, dict(wanted.made), wanted.length
    live, source = wanted.snapshot is not None, str(wanted.chain[0].file)
    with image_files(pool, wanted.chain, live=live) as files:
        draft = wanted.draft()
        with pool.drafting(draft, length, made["preallocation"], wanted.spec.for_format()):
            with draft_file(pool, draft) as target:
                options = {"compress": wanted.compress, "snapshot": wanted.snapshot}
                options["placed"] = made["preallocation"] != "off"
                job.run("convert", source, {"image": files, "target": [target]}, **options)
            if offered(draft.format):
                made["options"] = _effective(pool, draft)
            with wanted.publishing(draft), store.catalog.write() as connection:
                wanted.record(connection, made)
                job.succeeded(connection, {"image": wanted.name, "virtual_size_bytes": length})


def _effective(pool: Pool, draft: Draft) -> dict[str, Any]:
    opener = None if draft.data_file is None else lambda _: pool.open_draft(draft, data=True, read_only=True)
    with refusals_told(f"cannot read {draft.file}", draft.entries):
        return effective(draft.format, pool.open_draft(draft, read_only=True), opener)


def new_row(pool: Pool, name: str, spec: ImageSpec, labels: Mapping[str, str] | None) -> dict[str, Any]:
    """What the catalog will have of a new image, but for the length."""
    row = {**birth(), "labels": check_labels(labels or {}), "name": name, "pool_id": pool.id}
    return {**row, **_changes(spec, file_name(name, spec.format))}


def changed_row(row: Row[Any], spec: ImageSpec) -> dict[str, Any]:
    """What changes in the row of an image that is converted in place. Raises InvalidArgument, Conflict."""
    if row.file is None:
        raise Conflict(f"image {row.name} has no file, so there is nothing to convert")
    if row.secret is not None and spec.secret is None:
        right = f"name its secret (--encrypt {row.secret}), or convert it into another image"
        raise InvalidArgument("secret", f"image {row.name} would not be encrypted any more", right)
    if spec.data_file is not None and spec.data_file == data_file_of(row):
        raise InvalidArgument("options/data_file", f"image {row.name} has its bytes there now", "choose another name")
    file = file_name(row.name, spec.format)
    return _changes(spec, file if file != row.file else file_name(f"{row.name}~1", spec.format))  # no name has a ~


def _changes(spec: ImageSpec, file: str | None) -> dict[str, Any]:
    how = {"format": spec.format, "preallocation": spec.preallocation, "secret": spec.secret}
    return {**how, "file": file, "options": {}}


def check_goal(name: str, into: str | None, snapshot: str | None, labels: object, *, in_place: bool) -> None:
    """Raises InvalidArgument."""
    if (into is None) != in_place:
        raise InvalidArgument("into", "one goal is needed", "name a new image, or ask for it in place (--in-place)")
    for field, value in (("snapshot", snapshot), ("labels", labels)):
        if in_place and value is not None:
            right = "leave it out, or convert into a new image"
            raise InvalidArgument(field, f"image {name} is converted in place, as it is", right)


def check_target(spec: ImageSpec, *, compress: bool) -> None:
    """Raises InvalidArgument."""
    if file_name("", spec.format) is None:
        raise InvalidArgument("format", f"{spec.format} images keep no bytes", "choose a format that lies in a file")
    if compress and spec.format != "qcow2":
        raise InvalidArgument("compress", f"{spec.format} images hold nothing compressed", "choose qcow2")
    for other, what in (
        (spec.secret, "is not encrypted"),
        (spec.data_file, "has no place in a data file"),
        (spec.preallocation != "off" or None, "cannot be preallocated"),
    ):
        if compress and other is not None:
            raise InvalidArgument("compress", f"what is compressed {what}", "leave one of them out")
