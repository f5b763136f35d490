"""Chains of images as the catalog knows them: who shows through whom, how deep, and who would notice a change.

An image's parent is a row of the catalog, never what the image's own bytes say. All parents of a pool's images lie in
the same pool, because an overlay names its parent relative to its own directory.
"""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import CTE, Connection, Row, func, literal, select

from formats.backing import MOST_IMAGES
from vstore.store import schema
from vstore.store.errors import InUse, InvalidArgument

_MOST_NAMED = 10
_image = schema.images


def chains(connection: Connection, tops: Collection[str]) -> dict[str, list[Row[Any]]]:
    """By the id of each top image: its parents' rows, nearest first."""
    found: dict[str, list[Row[Any]]] = {top: [] for top in tops}
    up = _upwards(tops)
    query = select(_image, up.c.top).join(up, up.c.id == _image.c.id).where(up.c.depth > 0)
    for row in connection.execute(query.order_by(up.c.top, up.c.depth)):
        found[row.top].append(row)
    return found


def parents(connection: Connection, image_id: str) -> list[Row[Any]]:
    """Nearest first."""
    return chains(connection, [image_id])[image_id]


def depths(connection: Connection, tops: Collection[str]) -> dict[str, int]:
    """How many parents stand behind each image."""
    up = _upwards(tops)
    rows = connection.execute(select(up.c.top, func.max(up.c.depth).label("most")).group_by(up.c.top))
    return {row.top: row.most for row in rows}


def children(connection: Connection, image_ids: Collection[str]) -> dict[str, list[str]]:
    """By the id of each image: the names of the overlays right on it."""
    query = select(_image.c.parent_id, _image.c.name).where(_image.c.parent_id.in_(image_ids)).order_by(_image.c.name)
    found: dict[str, list[str]] = {}
    for parent, name in connection.execute(query):
        found.setdefault(parent, []).append(name)
    return found


def check_childless(connection: Connection, row: Row[Any], doing: str, *, but: str | None = None) -> None:
    """Raises InUse naming the overlays (other than the one whose id is `but`) that would see the change."""
    query = select(_image.c.name).where(_image.c.parent_id == row.id).order_by(_image.c.name)
    if but is not None:
        query = query.where(_image.c.id != but)
    names = list(connection.scalars(query))
    if names:
        raise InUse(
            f"image {row.name} cannot be {doing}, because it is the parent of {named(names)}; "
            "delete or rebase them first"
        )


def check_depth(parent: Row[Any], depth: int) -> None:
    """Raises InvalidArgument when an overlay on `parent`, which has `depth` parents itself, is more than is served."""
    if depth + 2 > MOST_IMAGES:
        raise InvalidArgument(
            "parent", f"image {parent.name} has {depth} parents already", "commit or rebase some of them first"
        )


def named(names: Sequence[str]) -> str:
    """Names in a sentence, not more than a person reads."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _upwards(tops: Collection[str]) -> CTE:
    """(top, id, parent, depth): each image of each chain."""
    start = select(_image.c.id.label("top"), _image.c.id, _image.c.parent_id, literal(0).label("depth"))
    up = start.where(_image.c.id.in_(tops)).cte("up", recursive=True)
    above = select(up.c.top, _image.c.id, _image.c.parent_id, up.c.depth + 1)
    return up.union_all(above.join(up, up.c.parent_id == _image.c.id).where(up.c.depth < MOST_IMAGES))
