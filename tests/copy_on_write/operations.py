"""Operation: one random thing to do to a disk, as a plain value that means the same whatever was done before it.

Offsets are drawn for the disk as it was made; where it is shorter now, they wrap. So any of the operations of a run may
be left out, which is how a failing run is made small.
"""

import random
from dataclasses import dataclass

from tests.copy_on_write.recipe import Recipe

STRIPE = 16384  # bytes that one of several writers side by side has to itself
WRITERS = 4


@dataclass(frozen=True)
class Operation:
    """`stamp` gives the data, the name or whatever else is drawn while it is done. `parts`: of several writers side by
    side, what each does, one after the other, in stripes of its own."""

    kind: str
    offset: int = 0
    length: int = 0
    stamp: int = 0
    parts: tuple[tuple["Operation", ...], ...] = ()

    def __str__(self) -> str:
        if self.parts:
            return f"{self.kind} of {' | '.join('; '.join(map(str, part)) for part in self.parts)}"
        return f"{self.kind} {self.offset}+{self.length} #{self.stamp}"

    def data(self, length: int) -> bytes:
        """What a write writes: bytes that no other write has, now and then zeros."""
        return bytes(length) if self.stamp % 16 == 0 else random.Random(self.stamp).randbytes(length)


_BYTES = {"write": 12, "read": 5, "zero": 3, "discard": 3}  # within a range
_SINGLE = {"flush": 4, "resize": 1.2, "side by side": 0.8, "forget": 0.4, "pause": 0.3}
_SNAPSHOTS = {"take": 0.5, "take live": 0.7, "apply": 0.5, "delete": 0.3, "delete live": 0.4}
_CLOSED = {"reopen": 1.2, "kill": 1, "qemu": 0.8, "guest": 0.3, "bitmap": 0.8}  # nobody has it open
_CHAINS = {"commit": 0.3, "rebase": 0.3, "clone": 0.2, "convert": 0.2}
_WITH_PARTS = {"side by side", "forget", "guest", "take live", "delete live"}


def draw(source: random.Random, recipe: Recipe, count: int) -> list[Operation]:
    """`count` operations for the disk of a recipe."""
    weights = _BYTES | _SINGLE | _SNAPSHOTS | _CLOSED | _CHAINS
    kinds = source.choices(list(weights), list(weights.values()), k=count)
    places: list[int] = []
    return [_operation(source, recipe, kind, places) for kind in kinds]


def _operation(source: random.Random, recipe: Recipe, kind: str, places: list[int]) -> Operation:
    length, stamp = recipe.top.length, source.randrange(1 << 40)
    if kind in _WITH_PARTS:
        return Operation(kind, 0, 0, stamp, _parts(source, recipe))
    if kind == "resize":
        wanted = int(length * source.choice([0.2, 0.7, 0.95, 1, 1.01, 1.3, 2])) // 512 * 512
        return Operation(kind, 0, max(512, wanted + source.choice([0, 0, 512, -512])), stamp)
    if kind not in _BYTES:
        return Operation(kind, 0, 0, stamp)
    offset = _offset(source, recipe, places)
    places.append(offset)
    return Operation(kind, offset, _count(source, recipe), stamp)


def _offset(source: random.Random, recipe: Recipe, places: list[int]) -> int:
    """Near boundaries of clusters, sub-clusters, L2 tables and ends of images; where something was done before; or
    anywhere, of any alignment."""
    top, length = recipe.top, recipe.top.length
    boundary = source.choice(
        [
            source.randrange(length) // top.cluster * top.cluster,
            source.randrange(length) // top.sub_cluster * top.sub_cluster,
            source.randrange(length) // (top.cluster**2 // 8) * (top.cluster**2 // 8),
            source.choice(recipe.layers).length,
            source.choice(places) if places else 0,
            source.randrange(length),
            source.randrange(length) // 4096 * 4096,
        ]
    )
    return max(0, min(boundary + source.choice([0, 0, 0, 0, -1, 1, -512, 512, -4096]), length - 1))


def _count(source: random.Random, recipe: Recipe) -> int:
    cluster = recipe.top.cluster
    usual = [1, 511, 512, 513, 4096, 4096, 65536, recipe.top.sub_cluster, cluster, cluster + 512, 3 * cluster]
    return source.choice([*usual, source.randrange(1, 4 * cluster)])


def _parts(source: random.Random, recipe: Recipe) -> tuple[tuple[Operation, ...], ...]:
    kinds = source.choices(list(_BYTES), list(_BYTES.values()), k=12 * WRITERS)
    rows = max(1, min(recipe.top.length // (STRIPE * WRITERS), 20))
    first = source.randrange(max(1, recipe.top.length // (STRIPE * WRITERS) - rows + 1))
    parts: list[list[Operation]] = [[] for _ in range(WRITERS)]
    for number, kind in enumerate(kinds):
        writer = number % WRITERS
        stripe = ((first + source.randrange(rows)) * WRITERS + writer) * STRIPE
        at = source.randrange(0, STRIPE, 512)
        count = min(source.choice([512, 4096, 4096, STRIPE]), STRIPE - at)
        parts[writer].append(Operation(kind, stripe + at, count, source.randrange(1 << 40)))
    return tuple(map(tuple, parts))
