"""Registering an image: a file that somebody laid into the pool's directory becomes one of the catalog's.

What the image says of itself is held against what the caller says, in a worker, because nobody knows who wrote it: its
format, its parent and that its secret opens it. From then on it is an image as any other, also when it is deleted.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from vstore.sizes import SECTOR
from vstore.store import schema
from vstore.store.catalog import birth
from vstore.store.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, SecretNeeded
from vstore.store.identifiers import NAME, check_labels, check_name
from vstore.store.image_records import image_record
from vstore.store.image_spec import ImageSpec, file_name, files_of, options_told
from vstore.store.parenting import Parenting
from vstore.store.parts import image_row, same_or_taken
from vstore.store.pool import STATE, Pool
from vstore.store.records import Image
from vstore.store.work import plain
from vstore.worker.wire import ImageFile


class RegistrationVerbs(Parenting):
    def register_image(
        self,
        pool: str,
        name: str,
        *,
        file: str,
        format: str,
        parent: str | None = None,
        secret: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> tuple[Image, bool]:
        """Takes a file of the pool's directory, which belongs to no image, for the image `name`, and True; or False: it
        is that already. `parent`: the image that it is an overlay on; `secret`: the name of what opens it.

        Raises InvalidArgument, NotFound (pool, parent, secret), AlreadyExists, Conflict (it is not what it is said to
        be), InUse, Locked, SecretNeeded, SecretWrong, Unsupported.
        """
        where = self.pool(pool)
        spec = ImageSpec.checked(format, "off", None, overlay=parent is not None, secret=secret)
        _check_file(file, format)
        held = [f"{pool}/{each}" for each in (check_name("image", name), parent) if each is not None]
        with self.holding(images=held, secrets=[secret]):
            base = None if parent is None else self.to_be_parent(where, parent)
            wanted = {"format": format, "file": file, "secret": secret, "parent_id": base and base.id}
            if labels is not None:
                wanted["labels"] = check_labels(labels)
            with self.catalog.read() as connection, suppress(NotFound):
                row = same_or_taken(image_row(connection, where, name), wanted, f"image {name}")
                return image_record(connection, where, row), False
            self.claims.check(f"{pool}/{name}", alone=True)
            told = self._told(where, file, spec)
            _check_told(file, told, base, spec)
            self._register(where, {"labels": {}, **birth(), **wanted, "name": name, "preallocation": "off"}, told)
            with self.catalog.read() as connection:
                return image_record(connection, where, image_row(connection, where, name)), True

    def _told(self, pool: Pool, file: str, spec: ImageSpec) -> dict[str, Any]:
        value = self.secret_value(spec.secret)
        with pool.open(file, read_only=True) as opened:
            secret = None if value is None else plain(value)
            source = ImageFile(spec.format, file, opened.descriptor, read_only=True, secret=secret)
            return self.workers.do("info", file, {"image": [source]})

    def _register(self, pool: Pool, row: dict[str, Any], told: Mapping[str, Any]) -> None:
        row |= {"pool_id": pool.id, "virtual_size_bytes": told["virtual-size"]}
        row["options"] = options_told(row["format"], told)
        with self.catalog.write() as connection:
            _check_nobodys(connection, pool, row["file"])
            connection.execute(insert(schema.images).values(**row))


def _check_file(file: str, format: str) -> None:
    if file_name("", format) is None:
        raise InvalidArgument("format", f"{format} images have no file", "choose a format that lies in a file")
    if not NAME.fullmatch(file) or file.endswith(STATE):
        right = "give the plain name of a file in the pool's directory, of a-z 0-9 . _ -"
        raise InvalidArgument("file", f"{file[:80]!r} cannot be an image's file", right)


def _check_told(file: str, told: Mapping[str, Any], parent: Row[Any] | None, spec: ImageSpec) -> None:
    """Raises Conflict, SecretNeeded."""
    backing, expected = told.get("backing-filename"), parent and parent.file
    if backing != expected:
        raise Conflict(
            f"{file} says that its parent is {backing or 'nobody'}, not {expected or 'nobody'}; name its parent, which "
            "has to be an image of the pool, or rebase the file first (vstore file rebase)",
            field="parent",
        )
    if bool(told.get("encrypted")) != (spec.secret is not None):
        if spec.secret is not None:
            raise Conflict(f"{file} is not encrypted; leave the secret out", field="secret")
        raise SecretNeeded(f"{file} is encrypted; name the secret that opens it (--secret)", field="secret")
    if told["virtual-size"] % SECTOR or not told["virtual-size"]:
        raise Conflict(f"{file} has a disk of {told['virtual-size']} bytes, which is not whole sectors of {SECTOR}")


def _check_nobodys(connection: Connection, pool: Pool, file: str) -> None:
    """Raises AlreadyExists."""
    for row in connection.execute(select(schema.images).where(schema.images.c.pool_id == pool.id)):
        if file in files_of(row):
            raise AlreadyExists(f"{file} belongs to image {row.name}", field="file")
