"""Two identical logical units behind two endpoints: one may use the fast path, the other never does.

    case --+--> fast: gate as the unit says      --> answer, medium --+
           |                                                          +--> equal in every byte, or Disagreement
           +--> slow: no row of the fast path    --> answer, medium --+

Which path answered is not guessed: the ring's counters tell.
"""

import mmap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Self

from formats.image import Image
from tests.client.live import LiveEndpoint
from tests.differential.cases import Case, Geometry, random_case
from vstore.client.driver import DriverSettings, ScsiDriver
from vstore.client.request import CommandResult
from vstore.client.transport import TransportSettings
from vstore.client.virtio_scsi import FIRST_REQUEST_QUEUE, TaskManagementFunction, encode_lun
from vstore.dataplane import Counters
from vstore.scsi.commands import TestUnitReady
from vstore.scsi.direct_access import MAXIMUM_UNMAP_DESCRIPTORS

_LUN = encode_lun(0, 0)
_TIMEOUT = 30.0
_RESET_CHANCE = 0.004


class Disagreement(AssertionError):  # noqa: N818  (the name says what is wrong)
    """The two paths gave different answers, or left different bytes."""


@dataclass(frozen=True)
class Configuration:
    """A kind of unit: `image` makes a twin's image in a folder of its own, `options` are LogicalUnit's."""

    name: str
    image: Callable[[Path], Image]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


class Side:
    """One of the twins. `guest_memory` in bytes."""

    def __init__(self, folder: Path, configuration: Configuration, *, fast: bool, guest_memory: int) -> None:
        folder.mkdir()
        self.live = LiveEndpoint(folder / "socket", fast=fast)
        try:
            self.unit = self.live.map(configuration.image(folder), serial="TWIN", **configuration.options)
            settings = DriverSettings(transport=TransportSettings(region_sizes=(guest_memory,)))
            self.driver = ScsiDriver(self.live.path, settings)
        except BaseException:
            self.live.close()
            raise

    @property
    def medium(self) -> bytes:
        """The whole file beneath the unit, by the host's own eyes."""
        with mmap.mmap(self.live.disks[0, 0].image.layers[0].descriptor, 0, access=mmap.ACCESS_READ) as contents:
            return contents[:]

    @property
    def counters(self) -> Counters:
        return self.live.endpoint.device.vring_count(FIRST_REQUEST_QUEUE)

    def execute(self, case: Case) -> CommandResult:
        pending = self.driver.submit(
            _LUN,
            case.cdb,
            case.data_out,
            case.data_in_length,
            attribute=case.attribute,
            segment_bytes=case.segment_bytes,
        )
        return self.driver.wait(pending, _TIMEOUT)

    def reset(self) -> None:
        self.driver.wait(self.driver.manage(TaskManagementFunction.LOGICAL_UNIT_RESET, _LUN), _TIMEOUT)

    def close(self) -> None:
        try:
            self.driver.close()
        finally:
            self.live.close()


class Twins:
    """Runs cases on both and compares. `fast`, `slow`: how many of each command either path of the fast twin served."""

    def __init__(self, folder: Path, configuration: Configuration, guest_memory: int = 16 << 20) -> None:
        self.configuration = configuration
        self.fast: Counter[str] = Counter()
        self.slow: Counter[str] = Counter()
        self._quick = Side(folder / "fast", configuration, fast=True, guest_memory=guest_memory)
        try:
            self._careful = Side(folder / "slow", configuration, fast=False, guest_memory=guest_memory)
        except BaseException:
            self._quick.close()
            raise
        self.attend()

    @property
    def geometry(self) -> Geometry:
        unit = self._quick.unit
        return Geometry(
            blocks=unit.blocks,
            block_length=unit.logical_block_length,
            max_transfer=unit.maximum_transfer,
            max_write_same=unit.maximum_write_same,
            max_unmap_descriptors=MAXIMUM_UNMAP_DESCRIPTORS,
        )

    @property
    def slow_counters(self) -> Counters:
        """Of the slow twin's request queue."""
        return self._careful.counters

    def corrupt_fast_medium(self) -> None:
        """Makes the twins differ in byte 0, to see that it is seen."""
        self._quick.live.disks[0, 0].volume.write(0, bytes([self._careful.medium[0] ^ 0xFF]))

    def resize(self, length: int) -> None:
        for side in (self._quick, self._careful):
            side.live.resize(length)

    def reset(self) -> None:
        for side in (self._quick, self._careful):
            side.reset()

    def attend(self) -> None:
        """Takes the unit attentions that are pending, so that the gate can open."""
        for side in (self._quick, self._careful):
            while side.execute(Case(TestUnitReady, TestUnitReady.build())).status:
                pass

    def run(self, case: Case) -> CommandResult:
        """Raises Disagreement."""
        before = self._quick.counters.slow
        quick, careful = self._quick.execute(case), self._careful.execute(case)
        served_fast = self._quick.counters.slow == before
        (self.fast if served_fast else self.slow)[case.row.name] += 1
        if quick != careful:
            raise Disagreement(f"{case}\n fast path: {quick}\n slow path: {careful}\n unit: {self.configuration}")
        return quick

    def compare_media(self, after: str) -> None:
        """Raises Disagreement with the first byte that differs."""
        quick, careful = self._quick.medium, self._careful.medium
        if quick != careful:
            at = next(index for index, pair in enumerate(zip(quick, careful, strict=True)) if pair[0] != pair[1])
            raise Disagreement(
                f"byte {at} is {quick[at]:#x} after the fast path and {careful[at]:#x} after the slow\n"
                f" after: {after}\n unit: {self.configuration}"
            )

    def run_random(self, rng: Random, count: int) -> None:
        """`count` cases, one after the other, and the media compared after each that may have written."""
        geometry = self.geometry
        for _ in range(count):
            if rng.random() < _RESET_CHANCE:
                self.reset()
            case = random_case(rng, geometry)
            self.run(case)
            if case.row.access.name == "WRITE":
                self.compare_media(str(case))

    def close(self) -> None:
        try:
            self._quick.close()
        finally:
            self._careful.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
