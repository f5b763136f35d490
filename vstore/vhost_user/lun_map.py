"""The logical units behind one endpoint, and for each the gate of its fast path.

The data plane serves reads and writes by itself while a unit's gate is open. Only the unit knows when it may be: it
says so by fast_path(), and calls its listeners when the answer may be another. A held gate stays shut whatever the unit
says: task management and removal hold it, so that what the data plane has in flight can only become less.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from vstore.dataplane import GATE_FLUSH, GATE_READ, GATE_WRITE, Device, LunCounters, LunSettings, Volume
from vstore.scsi.fast_path import FastPath
from vstore.scsi.handover import take_over
from vstore.scsi.logical_unit import LogicalUnit, ResetCause
from vstore.scsi.reservable import Abort
from vstore.scsi.target import Target
from vstore.scsi.task import ITNexus
from vstore.scsi.task_set import Drain

log = logging.getLogger(__name__)

MOST_TARGETS = 256
MOST_LUNS = 16384
FIRST_PAUSE = 0.0005  # seconds between looks at what is still in flight; doubles up to the longest
LONGEST_PAUSE = 0.02


@dataclass(eq=False)
class Mapped:
    """A logical unit at its address. Without a volume it has no fast path.

    `holds`: how many hold its gate shut. `pushed`: what the data plane knows. `counts`: what it has served by itself.
    `leaving`: no new command finds it. `heeds`, `drains`, `aborts`: what the unit calls.
    """

    target: int
    lun: int
    unit: LogicalUnit
    volume: Volume | None
    holds: int = 0
    pushed: LunSettings | None = None
    counts: Callable[[], LunCounters] | None = None
    leaving: bool = False
    heeds: Callable[[], None] | None = None
    drains: Drain | None = None
    aborts: Abort | None = None

    @property
    def alone(self) -> bool:
        """Whether no other target port leads to the unit."""
        return len(self.unit.ports) <= 1


class LunMap:
    def __init__(self, device: Device, port: int = 1) -> None:
        """`port`: relative target port identifier."""
        self._device = device
        self._port = port
        self._mapped: dict[tuple[int, int], Mapped] = {}
        self._nexus: ITNexus | None = None
        self.changed: set[Mapped] = set()  # whose state may be another than was kept last
        self.targets: dict[int, Target] = {}

    def __getitem__(self, address: tuple[int, int]) -> Mapped:
        """Raises LookupError for an address with no unit."""
        mapped = self._mapped.get(address)
        if mapped is None or mapped.leaving:
            raise LookupError("no logical unit at target {}, LUN {}".format(*address))
        return mapped

    def all(self) -> list[Mapped]:
        return list(self._mapped.values())

    def of_target(self, target: int) -> list[Mapped]:
        return [mapped for mapped in self._mapped.values() if mapped.target == target]

    @property
    def nexus(self) -> ITNexus | None:
        """The virtual machine at the other end, while there is one."""
        return self._nexus

    @nexus.setter
    def nexus(self, nexus: ITNexus | None) -> None:
        old, self._nexus = self._nexus, nexus
        for mapped in self._mapped.values():
            if old:
                mapped.unit.remove_nexus(old)
            if not mapped.unit.shared and not mapped.unit.attentions.nexuses():
                mapped.unit.reset(ResetCause.POWER_ON)  # nobody is left who could know what it was set to
            if nexus:
                mapped.unit.add_nexus(nexus)
            self._push(mapped)

    def resume(self, nexus: ITNexus | None, kept: Mapping[tuple[int, int], bytes]) -> None:
        """The units, and the machine if it is there, go on where another process left them, which told it so."""
        self._nexus = nexus
        for address, mapped in self._mapped.items():
            try:
                if address in kept:
                    take_over(mapped.unit, kept[address], nexus)
                    self._push(mapped)
                    continue
            except (ValueError, KeyError, TypeError):
                log.exception("target %d, LUN %d: what was kept of the unit cannot be read", *address)
            if nexus:
                mapped.unit.add_nexus(nexus)
            self._push(mapped)

    def reset(self) -> None:
        """The virtual machine was reset: a bus reset to units that are its alone, a lost nexus to shared ones."""
        assert self._nexus
        for mapped in self._mapped.values():
            alone = mapped.unit.attentions.nexuses() == [self._nexus]
            mapped.unit.reset(ResetCause.HARD_RESET if alone else ResetCause.I_T_NEXUS_LOSS, self._nexus)

    def add(self, target: int, lun: int, unit: LogicalUnit, volume: Volume | None) -> None:
        """Raises ValueError for an address that cannot be, or that is taken."""
        if not (0 <= target < MOST_TARGETS and 0 <= lun < MOST_LUNS):
            raise ValueError(f"target {target}, LUN {lun}: targets are 0..{MOST_TARGETS - 1}, LUNs 0..{MOST_LUNS - 1}")
        if (target, lun) in self._mapped:
            raise ValueError(f"target {target}, LUN {lun} has a logical unit already")
        mapped = self._mapped[target, lun] = Mapped(target, lun, unit, volume)
        unit.add_port(self._port)
        if self._nexus:
            unit.add_nexus(self._nexus)
        self.targets.setdefault(target, Target(self._port)).add(lun, unit)
        mapped.heeds = lambda: self._heed(mapped)
        self.changed.add(mapped)
        unit.on_change(mapped.heeds)
        mapped.drains = lambda: self.drained([mapped])
        unit.task_set.on_drain(mapped.drains)
        self._push(mapped)
        if volume is not None:
            mapped.counts = lambda: self._device.lun_count(target, lun)
            unit.statistics.follow(mapped.counts)

    def hide(self, mapped: Mapped) -> None:
        """Commands that come from now on find no unit there."""
        mapped.leaving = True
        target = self.targets[mapped.target]
        target.remove(mapped.lun)
        if not target.luns:
            del self.targets[mapped.target]

    def remove(self, mapped: Mapped) -> None:
        """Call when it is hidden, held and drained, and no command of it is in Python's hands."""
        if mapped.counts:
            mapped.unit.statistics.leave(mapped.counts)
        if mapped.pushed:
            self._device.lun_remove(mapped.target, mapped.lun)
        del self._mapped[mapped.target, mapped.lun]
        self.changed.discard(mapped)
        if mapped.heeds:
            mapped.unit.forget_change(mapped.heeds)
        if mapped.drains:
            mapped.unit.task_set.forget_drain(mapped.drains)
        if self._nexus:
            mapped.unit.remove_nexus(self._nexus)
        mapped.unit.remove_port(self._port)

    @contextlib.contextmanager
    def held(self, units: Collection[Mapped]) -> Iterator[None]:
        """Inside, the data plane starts nothing new on these units."""
        for mapped in units:
            mapped.holds += 1
            self._push(mapped)
        try:
            yield
        finally:
            for mapped in units:
                mapped.holds -= 1
                self._push(mapped)

    async def drained(self, units: Collection[Mapped], tag: int | None = None) -> None:
        """Returns when the data plane has nothing in flight on these (held) units, or nothing with this tag."""
        pause = FIRST_PAUSE
        while self.busy(units, tag):
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def busy(self, units: Collection[Mapped], tag: int | None = None) -> bool:
        """Whether the data plane has commands in flight on these units, or one with this tag."""
        return any(self.in_flight(mapped, tag) for mapped in units)

    def in_flight(self, mapped: Mapped, tag: int | None = None) -> int:
        """Commands of this unit that the data plane has in flight."""
        return self._device.lun_in_flight(mapped.target, mapped.lun, tag) if mapped.pushed else 0

    def _heed(self, mapped: Mapped) -> None:
        self.changed.add(mapped)
        self._push(mapped)

    def _push(self, mapped: Mapped) -> None:
        """Tells the data plane what it may do now, if that is not what it knows already."""
        if mapped.volume is None or self._mapped.get((mapped.target, mapped.lun)) is not mapped:
            return
        fast = mapped.unit.fast_path(self._nexus or _NOBODY)
        settings = _settings(fast, shut=self._nexus is None or bool(mapped.holds) or mapped.leaving)
        if settings != mapped.pushed:
            mapped.pushed = self._set(mapped, mapped.volume, settings)

    def _set(self, mapped: Mapped, volume: Volume, settings: LunSettings) -> LunSettings:
        try:
            self._device.lun_set(mapped.target, mapped.lun, volume, settings)
        except OSError as error:
            # A volume that is shorter than its unit says: the unit has not heard yet that its medium shrank.
            log.warning("target %d, LUN %d: no fast path: %s", mapped.target, mapped.lun, error)
            settings = settings._replace(gate=0, blocks=0)
            self._device.lun_set(mapped.target, mapped.lun, volume, settings)
        return settings


_NOBODY = ITNexus("nobody")


def _settings(fast: FastPath, *, shut: bool) -> LunSettings:
    return LunSettings(
        block_shift=fast.block_shift,
        gate=0 if shut else fast.read * GATE_READ | fast.write * GATE_WRITE | fast.flush * GATE_FLUSH,
        write_through=fast.write_through,
        max_transfer=fast.max_transfer,
        max_unmap_descriptors=fast.max_unmap_descriptors,
        deallocates=fast.deallocates,
        blocks=fast.blocks,
        max_write_same=fast.max_write_same,
    )
