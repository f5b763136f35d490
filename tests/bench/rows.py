"""The tables of what is measured: one row per claim, with the ratio that the claim needs."""

from dataclasses import dataclass
from enum import Enum

from tests.bench import subjects
from tests.bench.subjects import EXTENDED, GIB, MIB, SMALL, Place, Subject


class Quantity(Enum):
    """What a row compares, and its unit."""

    IOPS = "kIOPS"
    IOPS_PER_CPU = "kI/O per CPU second"
    IDLE_CPU = "% of a core, idle"


# CDB, and room for what it answers.
COMMANDS = {"TEST UNIT READY": ["000000000000"], "INQUIRY": ["12000000ff00", "--data-in", "255"]}


@dataclass(frozen=True)
class Load:
    """One load of vubench on one queue; polling: the front-end spins on the used ring and wants no interrupts.

    `requests`: that many instead of a time, for images that a load can use up; `flush_every`: a flush after so many
    writes; `command`: nothing but this one, by name.
    """

    rw: str = "randread"
    block: int = 4096
    depth: int = 32
    polling: bool = False
    requests: int | None = None
    flush_every: int | None = None
    command: str | None = None

    def arguments(self, seconds: float) -> list[str]:
        mode = "--poll" if self.polling else "--irq"
        length = ["--ios", str(self.requests)] if self.requests else ["--runtime", str(seconds), "--ramp", "1"]
        flush = ["--flush-every", str(self.flush_every)] if self.flush_every else []
        what = ["--cdb", *COMMANDS[self.command]] if self.command else ["--rw", self.rw]
        return [*what, "--bs", str(self.block), "--iodepth", str(self.depth), mode, *length, *flush]

    def __str__(self) -> str:
        completion = "polling" if self.polling else "interrupts"
        flush = f", a flush every {self.flush_every}" if self.flush_every else ""
        if self.command:
            return f"{self.command} qd {self.depth}, {completion}"
        return f"{self.rw} {self.block // 1024} KiB qd {self.depth}, {completion}{flush}"


class Side(Enum):
    """Whose process is measured."""

    VSTORE = "vstore"
    PEER = "peer"


@dataclass(frozen=True)
class Row:
    """vstore with one subject against another side with one, under `load`: the ratio has to reach `bar`.

    Against nobody, `bar` is a number in the row's unit: the most of what an idle target may take, the least of others.
    `bar` 0: told, not judged.
    """

    vstore: Subject
    against: Subject | None
    load: Load
    bar: float
    quantity: Quantity = Quantity.IOPS
    side: Side = Side.PEER
    measured: Side = Side.VSTORE

    def __str__(self) -> str:
        if self.quantity is Quantity.IDLE_CPU:
            return "idle target with a front-end attached"
        other = f"{self.side.value}: {self.against}"
        same = self.against in (None, self.vstore) and self.side is Side.PEER
        against = "" if same else f" ({other})"
        suffix = ", per backend CPU" if self.quantity is Quantity.IOPS_PER_CPU else ""
        who = "peer's " if self.measured is Side.PEER else ""
        return f"{who}{self.vstore}, {self.load}{suffix}{against}"


TMPFS = Subject("raw", Place.TMPFS, make=subjects.raw)
DISK = Subject("raw", Place.DISK, make=subjects.raw)
MEMORY = Subject("memory image", Place.NOWHERE, "memory")
NULL = Subject("null image", Place.NOWHERE, "null")

DATA_PLANE = (
    Row(TMPFS, TMPFS, Load(), 1.6),
    Row(TMPFS, TMPFS, Load(polling=True), 1.3),
    Row(TMPFS, TMPFS, Load(depth=1, polling=True), 1.6),
    Row(TMPFS, TMPFS, Load(depth=1), 2.5),
    Row(TMPFS, TMPFS, Load(rw="randwrite"), 1.5),
    Row(TMPFS, TMPFS, Load(block=128 * 1024, depth=8), 1.1),
    Row(DISK, DISK, Load(), 1.5),
    Row(MEMORY, TMPFS, Load(polling=True), 3.5),
    Row(NULL, NULL, Load(polling=True), 0.9),
    Row(TMPFS, TMPFS, Load(), 1.6, Quantity.IOPS_PER_CPU),
    Row(TMPFS, None, Load(), 0.5, Quantity.IDLE_CPU),
)

# Allocating loads are so many requests, fewer than there are clusters, and the same for both sides: what is measured is
# the making of blocks, not the writing to those that are there already.
_CLUSTERS = Load("randwrite", requests=40_000)
_SUBCLUSTERS = Load("randwrite", requests=300_000)
_FLUSHING = Load("randwrite", requests=20_000, flush_every=32)
_SEQUENTIAL = Load("write", block=128 * 1024, depth=8, requests=16_000)
_LENGTH = 4 * GIB  # 65,536 clusters, or a million sub-clusters


def copy_on_write(place: Place) -> tuple[Row, ...]:
    """The rows of images that allocate, in one place."""
    flat = Subject("raw", place, make=subjects.raw)
    full = Subject("fully allocated qcow2", place, "qcow2", subjects.full)
    new = Subject("fresh qcow2", place, "qcow2", subjects.fresh(SMALL), _LENGTH, fresh=True)
    extended = Subject("fresh qcow2, extended L2", place, "qcow2", subjects.fresh(EXTENDED), _LENGTH, fresh=True)
    over = Subject("overlay", place, "qcow2", subjects.overlay(SMALL), _LENGTH, fresh=True)
    extended_over = Subject("overlay, extended L2", place, "qcow2", subjects.overlay(EXTENDED), _LENGTH, fresh=True)
    packed = Subject("compressed qcow2", place, "qcow2", subjects.compressed)
    shallow = Subject("chain of depth 1", place, "qcow2", subjects.chain(1), 512 * MIB)
    deep = Subject("chain of depth 100", place, "qcow2", subjects.chain(100), 512 * MIB)
    return (
        Row(full, full, Load(), 1.6),
        Row(full, flat, Load(), 0.95, side=Side.VSTORE),
        Row(new, new, _CLUSTERS, 5),
        Row(over, over, _CLUSTERS, 5),
        Row(extended, extended, _SUBCLUSTERS, 1.4),
        Row(extended_over, extended_over, _SUBCLUSTERS, 1.4),
        Row(new, new, _FLUSHING, 2),
        Row(over, over, _FLUSHING, 2),
        Row(new, new, _SEQUENTIAL, 1.3),
        Row(packed, packed, Load(block=64 * 1024), 1.0),
        Row(packed, packed, Load(), 1.0),
        Row(deep, shallow, Load(), 0.91, side=Side.VSTORE),
        Row(deep, shallow, Load(), 0, side=Side.PEER, measured=Side.PEER),
    )


# Commands that Python answers.
SLOW_PATH = (Row(MEMORY, None, Load(command="TEST UNIT READY"), 50), Row(MEMORY, None, Load(command="INQUIRY"), 0))

TABLES = {
    "data-plane": DATA_PLANE,
    "slow-path": SLOW_PATH,
    "copy-on-write": copy_on_write(Place.TMPFS),
    "copy-on-write-disk": copy_on_write(Place.DISK),
}
