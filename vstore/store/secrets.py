"""Verbs on secrets: what opens encrypted images, under a name. A value goes in and never comes out again.

A secret that images name is neither replaced nor removed, because it may be the only copy of what opens them; another
one goes under another name, and the images are told of it.
"""

import base64
import binascii
from datetime import UTC, datetime
from hmac import compare_digest

from sqlalchemy import Connection, select

from vstore.store import schema
from vstore.store.chains import named
from vstore.store.errors import InUse, InvalidArgument, NotFound, Stale
from vstore.store.identifiers import check_name
from vstore.store.parts import Parts, decode_cursor, encode_cursor, page_limit
from vstore.store.records import Page, Secret
from vstore.store.secret_files import Kept
from vstore.target.chain import LONGEST_SECRET


class SecretVerbs(Parts):
    def set_secret(
        self, secret: str, *, value: str | None = None, value_base64: str | None = None, replace: bool = True
    ) -> tuple[Secret, bool]:
        """Keeps a passphrase, as text or as bytes in base64, and True; or False: there was one of that name. One that
        no image names is replaced, unless it shall not be.

        Raises InvalidArgument, InUse (images name it, and it differs).
        """
        new = _bytes(value, value_base64)
        with self.holding(secrets=[check_name("secret", secret)]):
            old = self.secrets.read(secret)
            if old is None or (replace and not compare_digest(old, new)):
                if old is not None:
                    self._check_unused(secret, "given another value", "set one of another name, and name that in them")
                self.secrets.keep(secret, new)
            return self.show_secret(secret), old is None

    def list_secrets(self, *, limit: int | None = None, cursor: str | None = None) -> Page[Secret]:
        """The secrets by name, without their values. Raises InvalidArgument (limit, cursor)."""
        limit, after = page_limit(limit), decode_cursor(cursor)
        kept = [each for each in self.secrets.kept() if each.name > after]
        with self.catalog.read() as connection:
            users = _users(connection)
        items = [_record(each, users.get(each.name, [])) for each in kept[:limit]]
        return Page(items, encode_cursor(items[-1].name) if len(kept) > limit else None)

    def show_secret(self, secret: str) -> Secret:
        """Raises InvalidArgument, NotFound."""
        kept = self.secrets.find(check_name("secret", secret))
        if kept is None:
            raise NotFound(f"there is no secret {secret!r}", field="secret")
        with self.catalog.read() as connection:
            return _record(kept, _users(connection).get(secret, []))

    def delete_secret(self, secret: str, *, revision: int | None = None) -> bool:
        """Forgets it; False when there was none. Raises InvalidArgument, InUse naming the images, Stale."""
        with self.holding(secrets=[check_name("secret", secret)]):
            kept = self.secrets.find(secret)
            if kept is None:
                return False
            if revision not in (None, _revision(kept)):
                raise Stale(f"secret {secret} was set again meanwhile; read it again and repeat the request")
            self._check_unused(secret, "removed", "delete them first, or give them another (vstore image update)")
            self.secrets.drop(secret)
            return True

    def _check_unused(self, secret: str, doing: str, instead: str) -> None:
        with self.catalog.read() as connection:
            users = _users(connection).get(secret, [])
        if users:
            raise InUse(f"secret {secret} cannot be {doing}, because it opens {named(users)}; {instead}")
        self.claims.check(claim_of(secret), alone=True)


def claim_of(secret: str) -> str:
    """What a job claims that makes an image of this secret; no pool has such a name."""
    return f"secret:/{secret}"


def _bytes(value: str | None, value_base64: str | None) -> bytes:
    """Raises InvalidArgument."""
    if (value is None) == (value_base64 is None):
        raise InvalidArgument("value", "a secret has one value", "give either value or value_base64")
    try:
        found = base64.b64decode(value_base64 or "", validate=True) if value is None else value.encode()
    except (binascii.Error, ValueError):  # nothing of it is told
        field = "value" if value_base64 is None else "value_base64"
        raise InvalidArgument(field, "it cannot be read", "send text, or bytes in base64 as value_base64") from None
    if not 0 < len(found) <= LONGEST_SECRET:
        raise InvalidArgument("value", f"it has {len(found)} bytes", f"a secret has 1 to {LONGEST_SECRET}")
    return found


def _users(connection: Connection) -> dict[str, list[str]]:
    """By the name of each secret: the images that name it, as POOL/IMAGE."""
    image, pool = schema.images.c, schema.pools.c
    query = select(image.secret, pool.name.label("pool"), image.name).join(schema.pools, pool.id == image.pool_id)
    found: dict[str, list[str]] = {}
    for row in connection.execute(query.where(image.secret.is_not(None)).order_by(pool.name, image.name)):
        found.setdefault(row.secret, []).append(f"{row.pool}/{row.name}")
    return found


def _revision(kept: Kept) -> int:
    return kept.set_ns // 1000


def _record(kept: Kept, users: list[str]) -> Secret:
    at = datetime.fromtimestamp(kept.set_ns / 1e9, UTC)
    told = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    return Secret(name=kept.name, images=users, set_at=told, revision=_revision(kept))
