"""The table of what is measured: one row per claim, with the ratio that the claim needs."""

from dataclasses import dataclass
from enum import Enum


class Medium(Enum):
    """Where the bytes lie; the same raw file is exported by both sides in turn."""

    TMPFS = "raw on tmpfs"
    DISK = "raw on disk, page-cached"
    MEMORY = "memory image"
    NULL = "null image"


class Quantity(Enum):
    """What a row compares, and its unit."""

    IOPS = "kIOPS"
    IOPS_PER_CPU = "kI/O per CPU second"
    IDLE_CPU = "% of a core, idle"


@dataclass(frozen=True)
class Load:
    """One load of vubench on one queue; polling: the front-end spins on the used ring and wants no interrupts."""

    rw: str = "randread"
    block: int = 4096
    depth: int = 32
    polling: bool = False

    def arguments(self) -> list[str]:
        mode = "--poll" if self.polling else "--irq"
        return ["--rw", self.rw, "--bs", str(self.block), "--iodepth", str(self.depth), mode]

    def __str__(self) -> str:
        completion = "polling" if self.polling else "interrupts"
        return f"{self.rw} {self.block // 1024} KiB qd {self.depth}, {completion}"


@dataclass(frozen=True)
class Row:
    """`vstore` against `peer` under `load`: the ratio has to reach `bar`. An idle row has no peer: `bar` is a limit."""

    vstore: Medium
    peer: Medium | None
    load: Load
    bar: float
    quantity: Quantity = Quantity.IOPS

    def __str__(self) -> str:
        if self.quantity is Quantity.IDLE_CPU:
            return "idle target with a front-end attached"
        against = f" (peer: {self.peer.value})" if self.peer and self.peer is not self.vstore else ""
        suffix = ", per backend CPU" if self.quantity is Quantity.IOPS_PER_CPU else ""
        return f"{self.vstore.value}, {self.load}{suffix}{against}"


TMPFS, DISK, MEMORY, NULL = Medium

ROWS = (
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
