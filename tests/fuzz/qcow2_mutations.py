"""Mutations: damage to a whole qcow2 image that its readers must survive, drawn with knowledge of its layout.

A number becomes one that is nearly right (one more, one sector off), one that is right elsewhere (so that structures
lie on each other, name themselves, go round in circles), one that is huge, or one of other flags. A Damage is a plain
value, kept as text: lines of offset and bytes, and a length where the file was cut or grew.
"""

import random
from dataclasses import dataclass

from tests.fuzz.qcow2_layout import Layout, Place

_FLAGS = (1 << 63, 1 << 62, 1, 1 << 56, 3 << 62)
_LONGEST = 1 << 43  # a sparse file grows to no more


@dataclass(frozen=True)
class Damage:
    """What is written over a base, and how long the file is then."""

    base: str
    patches: tuple[tuple[int, bytes], ...]
    length: int | None = None

    def __str__(self) -> str:
        lines = [f"base {self.base}", *(f"{offset} {data.hex()}" for offset, data in self.patches)]
        return "\n".join(lines + [f"length {self.length}"] * (self.length is not None)) + "\n"

    def apply(self, data: bytes) -> bytes:
        """The damaged bytes; a longer length is the file's to take."""
        image = bytearray(data)
        for offset, patch in self.patches:
            image[offset : offset + len(patch)] = patch
        return bytes(image[: self.length])


def parse(text: str) -> Damage:
    """The reverse of str(); lines that begin with # are for people."""
    base, length, patches = "", None, []
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "base":
            base = rest
        elif word == "length":
            length = int(rest)
        elif word and word != "#":
            patches.append((int(word), bytes.fromhex(rest)))
    return Damage(base, tuple(patches), length)


class Mutator:
    """Draws damage of one base."""

    def __init__(self, base: str, data: bytes) -> None:
        self._base, self._data = base, data
        self._layout = Layout(data)

    def draw(self, source: random.Random) -> Damage:
        count = source.choice([1, 1, 1, 2, 2, 3, 6])
        patches = tuple(self._patch(source) for _ in range(count))
        return Damage(self._base, patches, self._length(source) if source.random() < 0.06 else None)

    def _length(self, source: random.Random) -> int:
        size, length = self._layout.cluster_size, len(self._data)
        return max(
            0, source.choice([length - 1, length - size, length + size, length // 2, 512, _LONGEST, length + 1, 110])
        )

    def _patch(self, source: random.Random) -> tuple[int, bytes]:
        place = source.choice(self._layout.places[source.choice(list(self._layout.places))])
        if place.size > 8 or source.random() < 0.1:
            at = place.offset + source.randrange(place.size)
            return at, source.randbytes(source.choice([1, 1, 4, 8]))
        value = self._value(source, place) % (1 << 8 * place.size)
        return place.offset, value.to_bytes(place.size, "big")

    def _value(self, source: random.Random, place: Place) -> int:
        old = int.from_bytes(self._data[place.offset : place.offset + place.size], "big")
        match source.randrange(6):
            case 0:
                return self._near(source, old)
            case 1:
                return self._elsewhere(source, old)
            case 2:
                return self._huge(source)
            case 3:
                return old ^ source.choice([*_FLAGS, 1 << source.randrange(8 * place.size)])
            case 4:
                return self._other(source, place)
            case _:
                return source.choice([0, 1, 2, 3, 4, 7, 8, 9, 21, 22, 63, 64, 511, 512, 513, 1023, 1024, 4095, 65536])

    def _near(self, source: random.Random, old: int) -> int:
        step = source.choice([1, 2, 8, 16, 256, 512, self._layout.cluster_size])
        return max(0, old + source.choice([-step, step]))

    def _elsewhere(self, source: random.Random, old: int) -> int:
        """Names another structure, with the flags that were there, or none."""
        target = source.choice([*sorted(self._layout.clusters), len(self._data) & ~511])
        return target | source.choice([0, old & 0xFF << 56, 1 << 63, 1 << 62, 1])

    def _huge(self, source: random.Random) -> int:
        bits = source.choice([15, 16, 20, 24, 31, 32, 33, 40, 47, 48, 55, 56, 62, 63, 64])
        return (1 << bits) - source.choice([0, 1, 512, self._layout.cluster_size]) | source.choice(
            [0, 1 << 63, 1 << 62]
        )

    def _other(self, source: random.Random, place: Place) -> int:
        """What another place of the same kind says."""
        other = source.choice(self._layout.places[place.kind])
        return int.from_bytes(self._data[other.offset : other.offset + min(place.size, other.size)], "big")
