"""A direct access block device: the state that the block commands and the mode parameters work on.

Everything runs on one event loop, so there are no locks; between two `await`s nothing else happens to a unit.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from enum import Enum
from typing import Any

from vstore.scsi.atomic_writes import MAXIMUM_ATOMIC_BYTES, AtomicWrites
from vstore.scsi.atomic_writes import SECTION as ATOMIC_WRITES
from vstore.scsi.buffers import Buffers
from vstore.scsi.cdb import Access, Beside, Cdb
from vstore.scsi.clock import Clock
from vstore.scsi.commands import (
    SanitizeBlockErase,
    SanitizeCryptographicErase,
    SetIdentifyingInformation,
    Unmap,
    WriteAtomic16,
)
from vstore.scsi.counting import Counting
from vstore.scsi.device_server import reading, sense_of
from vstore.scsi.fast_path import FastPath
from vstore.scsi.held_copies import HeldCopies
from vstore.scsi.identity import Identity
from vstore.scsi.kept_state import KeptBytes, State
from vstore.scsi.medium import Medium
from vstore.scsi.mode_parameters import ModeParameters
from vstore.scsi.operable import Operable
from vstore.scsi.pages import Caching, Control
from vstore.scsi.sense import NOT_STARTED, SOFTWARE_WRITE_PROTECTED, WRITE_PROTECTED, AdditionalSense, CheckCondition
from vstore.scsi.task import ITNexus, Response, Status, Task
from vstore.scsi.task_set import TaskSet
from vstore.scsi.transport_id import NexusName

MIB = 1 << 20
MAXIMUM_TRANSFER_BYTES = 32 * MIB
MAXIMUM_WRITE_SAME_BYTES = 1024 * MIB
MAXIMUM_COMPARE_AND_WRITE = 255  # blocks, all that the CDB can name
MAXIMUM_PREFETCH_BYTES = 64 * MIB  # what one command may bring into the host's cache
MAXIMUM_UNMAP_DESCRIPTORS = 256
MAXIMUM_BACKGROUND = 16  # works begun with IMMED that wait for their end; those of more commands keep the command
_LENGTHS = ("transfer_length", "verification_length", "prefetch_length", "number_of_logical_blocks")
LOGICAL_BLOCK_LENGTHS = (512, 1024, 2048, 4096)
PHYSICAL_BLOCK_LENGTH = 4096  # where nothing is said, as nearly every disk and file system has today


class ResetCause(Enum):
    """What reset a unit, each as the unit attention that tells of it (SAM-5 6.3)."""

    POWER_ON = AdditionalSense.POWER_ON_OCCURRED
    HARD_RESET = AdditionalSense.SCSI_BUS_RESET_OCCURRED
    LOGICAL_UNIT_RESET = AdditionalSense.BUS_DEVICE_RESET_FUNCTION_OCCURRED
    I_T_NEXUS_LOSS = AdditionalSense.I_T_NEXUS_LOSS_OCCURRED


def _check_settings(logical_block_length: int, physical_block_exponent: int, rotation_rate: int) -> None:
    if logical_block_length not in LOGICAL_BLOCK_LENGTHS:
        lengths = ", ".join(map(str, LOGICAL_BLOCK_LENGTHS))
        raise ValueError(f"the logical block length is {logical_block_length}; it must be one of {lengths}")
    if not 0 <= physical_block_exponent <= 15:
        raise ValueError(f"the physical block exponent is {physical_block_exponent}; it must be 0 to 15")
    if rotation_rate not in (0, 1) and not 0x401 <= rotation_rate <= 0xFFFE:
        raise ValueError(
            f"the rotation rate is {rotation_rate}; it must be 1025 to 65534 a minute, 1 for a disk that does not "
            "rotate, or 0 to say nothing"
        )


def _mode_parameters(*, write_cache: bool, state: State | None, thin: bool) -> ModeParameters:
    return ModeParameters(
        Caching.of(wce=int(write_cache)),
        # One task set for all nexuses, reordered at will; no log page is saved, no ACA, no protection.
        Control.of(gltsd=1, queue_algorithm_modifier=1),
        KeptBytes(state.section("modes") if state else None),
        thin=thin,
    )


class DirectAccessDevice(Counting, Operable):
    """One disk. ValueError when the medium or the settings cannot make one."""

    def __init__(
        self,
        medium: Medium,
        identity: Identity,
        *,
        logical_block_length: int = 512,
        physical_block_exponent: int | None = None,
        thin: bool | None = None,
        read_only: bool = False,
        write_cache: bool = True,
        rotation_rate: int = 1,
        state: State | None = None,
        shared: bool = False,
    ) -> None:
        """`state`: what outlives a loss of power. `shared`: it has power whoever is there."""
        super().__init__(state)
        self.shared = shared
        if physical_block_exponent is None:
            physical_block_exponent = (PHYSICAL_BLOCK_LENGTH // max(logical_block_length, 1)).bit_length() - 1
        _check_settings(logical_block_length, physical_block_exponent, rotation_rate)
        self.medium = medium
        self.identity = identity
        self.logical_block_length = logical_block_length
        self.physical_block_exponent = physical_block_exponent
        self._thin = medium.deallocates if thin is None else thin
        self.rotation_rate = rotation_rate
        self.stopped = False
        self.identifying_information = KeptBytes(state.section("identifying_information") if state else None)
        self.atomic_writes = AtomicWrites(state.section(ATOMIC_WRITES) if state else None)
        self._read_only = read_only
        self.modes = _mode_parameters(write_cache=write_cache, state=state, thin=self.thin)
        self._listeners: list[Callable[[], None]] = []
        self.changes = 0  # how often changed() was called
        self.task_set = TaskSet(self.changed)
        self.clock, self.buffers, self.copies = Clock(), Buffers(), HeldCopies()
        self._receiving = 0
        self._received = asyncio.Event()
        self.blocks = self._count_blocks()

    def _count_blocks(self) -> int:
        blocks = self.medium.length // self.logical_block_length
        if not blocks:
            raise ValueError(
                f"the medium has {self.medium.length} bytes, less than one block of {self.logical_block_length}"
            )
        return blocks

    # ---- what commands ask ------------------------------------------------------------------------------

    @property
    def read_only(self) -> bool:
        return self._read_only or self.medium.read_only

    @property
    def write_protected(self) -> bool:
        """For good, or until SWP is zero again."""
        return self.read_only or bool(self.modes.control.swp)

    @property
    def thin(self) -> bool:
        """Whether blocks can be deallocated: not where nothing can be written, so that no page tells of commands that
        are refused."""
        return self._thin and not self.read_only

    @property
    def anchors(self) -> bool:
        """Whether what is unmapped can keep its room on the host (ANCHOR)."""
        return self.thin and self.medium.anchors

    @property
    def replaces_key(self) -> bool:
        """Whether all that was written can be lost with the key that it is encrypted with."""
        return self.medium.replaces_key and not self.read_only

    @property
    def descriptor_sense(self) -> bool:
        return bool(self.modes.control.d_sense)

    @property
    def write_through(self) -> bool:
        """Every write is made durable before it completes."""
        return not self.modes.caching.wce

    @property
    def maximum_transfer(self) -> int:
        """Blocks."""
        return MAXIMUM_TRANSFER_BYTES // self.logical_block_length

    @property
    def maximum_write_same(self) -> int:
        """Blocks."""
        return MAXIMUM_WRITE_SAME_BYTES // self.logical_block_length

    @property
    def writes_atomically(self) -> bool:
        """An intent has the bytes themselves: those of an encrypted disk would lie beside it in clear."""
        return self.atomic_writes.kept and not self.medium.encrypted

    @property
    def maximum_atomic(self) -> int:
        """Blocks; 0: none are written atomically."""
        if self.read_only or not self.writes_atomically:
            return 0
        return MAXIMUM_ATOMIC_BYTES // self.logical_block_length

    async def resume(self) -> None:
        """Ends what a loss of power has broken off; before anything is served. OSError."""
        await self.atomic_writes.heal(self.medium)
        await super().resume()

    def supports(self, row: type[Cdb]) -> bool:
        if row is WriteAtomic16 and not self.writes_atomically:
            return False
        if row is SetIdentifyingInformation and not self.identifying_information.keeps:
            return False
        if row is SanitizeCryptographicErase and not self.replaces_key:
            return False
        return super().supports(row) and (row not in (Unmap, SanitizeBlockErase) or self.thin)

    def admit(self, cdb: Cdb, task: Task) -> None:
        row = type(cdb)
        self.check_reservations(cdb, task.nexus)
        if self.operation and not row.passes_attention:
            raise CheckCondition(self.operation.sense)
        if self.failure and self.failure.refuses(row):
            raise CheckCondition(self.failure.sense)
        if row.access is Access.NONE:
            return
        if self.stopped:
            raise CheckCondition(NOT_STARTED)
        if row.access in (Access.WRITE, Access.ERASE) and self.write_protected:
            raise CheckCondition(WRITE_PROTECTED if self.read_only else SOFTWARE_WRITE_PROTECTED)

    async def execute(self, task: Task) -> Response:
        entry = await self.task_set.enter(task.attribute)
        try:
            return await super().execute(task)
        finally:
            self.task_set.leave(entry)

    async def serve(self, row: type[Cdb], cdb: Cdb, task: Task) -> bytes | Status:
        if self.atomic_writes.torn and row.access not in (Access.NONE, Access.FLUSH):
            with reading() if row.access is Access.READ else contextlib.nullcontext():
                await self.mend(self._span(cdb), only_read=row.access is Access.READ)
        if row.access is Access.ERASE:
            await self.atomic_writes.conclude(self.medium)
        if row.access is not Access.WRITE:
            return await super().serve(row, cdb, task)
        with self.writing():
            return await super().serve(row, cdb, task)

    def _span(self, cdb: Cdb) -> range:
        """The bytes that it is about, or all."""
        told = dict(cdb.items())
        lba, size = told.get("lba"), self.logical_block_length
        count = next((told[name] for name in _LENGTHS if name in told), 0)
        if lba is None or not count:
            return range(self.blocks * size)
        return range(lba * size, (lba + count) * size)

    async def write_atomically(self, offset: int, data: bytes) -> None:
        """As `AtomicWrites.write`; the data plane keeps off from then on where that leaves something torn."""
        try:
            await self.atomic_writes.write(self.medium, offset, data)
        finally:
            if self.atomic_writes.torn:
                self.changed()

    async def mend(self, span: range, *, only_read: bool) -> None:
        """Before these bytes are read or written; as `AtomicWrites.mend`."""
        if self.atomic_writes.torn:
            await self.atomic_writes.mend(self.medium, span, only_read=only_read)
            if not self.atomic_writes.torn:
                self.changed()

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """Around a write that a command of another unit makes: `abort` waits for it, and cannot end it."""
        self._receiving += 1
        try:
            yield
        finally:
            self._receiving -= 1
            if not self._receiving:
                self._received.set()

    async def abort(self, nexuses: Collection[NexusName], but: Task | None) -> None:
        """Also what came by EXTENDED COPY is written then, and what comes later is admitted as things are now."""
        await super().abort(nexuses, but)
        if self._receiving:
            self._received.clear()
            await self._received.wait()

    # ---- what others are told ---------------------------------------------------------------------------

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls it whenever an answer of fast_path() or a unit attention may have changed."""
        self._listeners.append(listener)

    def forget_change(self, listener: Callable[[], None]) -> None:
        self._listeners.remove(listener)

    def changed(self) -> None:
        self.changes += 1
        for listener in self._listeners:
            listener()

    def fast_path(self, nexus: ITNexus) -> FastPath:
        """What the data plane may do for this nexus until the next change."""
        shut = self.stopped or self.operation or self.failure or not self.task_set.open or self.atomic_writes.torn
        ready = not shut and self.attentions.none_wait(nexus)
        changes = ready and not self.shuts_out(nexus, Beside.CONFLICT)
        return FastPath(
            read=ready and not self.shuts_out(nexus, Beside.SERVED_AS_READ),
            write=changes and not self.write_protected,
            flush=changes,
            write_through=self.write_through,
            blocks=self.blocks,
            block_shift=self.logical_block_length.bit_length() - 1,
            max_transfer=self.maximum_transfer,
            max_unmap_descriptors=MAXIMUM_UNMAP_DESCRIPTORS if self.thin else 0,
            max_write_same=self.maximum_write_same,
            deallocates=self.thin,
        )

    # ---- what happens to it -----------------------------------------------------------------------------

    def capacity_changed(self) -> None:
        """Call it when the medium has another length. ValueError when it no longer holds one block."""
        self.blocks = self._count_blocks()
        self.self_tests.abort()
        self.establish(AdditionalSense.CAPACITY_DATA_HAS_CHANGED)

    @contextlib.contextmanager
    def limited(self, length: int) -> Iterator[None]:
        """Inside, no new command reaches past byte `length`: the medium is about to be cut off there."""
        self.blocks = min(self.blocks, length // self.logical_block_length)
        self.self_tests.abort()
        self.changed()
        try:
            yield
        finally:
            self.blocks = self._count_blocks()
            self.changed()

    def reset(self, cause: ResetCause, nexus: ITNexus | None = None) -> None:
        """Tells every nexus; the loss of one nexus is told to that one alone and leaves the unit as it is."""
        if cause is ResetCause.I_T_NEXUS_LOSS:
            told: Iterable[ITNexus] = [nexus] if nexus else []
            self.reservation.release(nexus)
            if nexus:
                self.copies.forget(nexus)
        else:
            self.copies.forget(None)
            told = self.attentions.nexuses()
            self.stopped = False
            self.self_tests.abort()
            self.reservation.clear()
            self.modes.revert()
            self.watch_space()
            if cause is ResetCause.POWER_ON:
                self.persistent = self.persistent.power_on()
                self.clock.power_on()
                self.tell_again()
                self.buffers = Buffers()  # what a former machine left there is no other's business
        self.attentions.establish(cause.value, told)
        self.changed()

    def add_nexus(self, nexus: ITNexus) -> None:
        super().add_nexus(nexus)
        self.watch_space()

    def remove_nexus(self, nexus: ITNexus) -> None:
        self.reservation.release(nexus)
        super().remove_nexus(nexus)

    # ---- background work --------------------------------------------------------------------------------

    async def later(self, nexus: ITNexus, access: Access, work: Coroutine[Any, Any, None]) -> None:
        """For IMMED: runs the work after the command has completed; an error becomes a deferred error (SPC-4 4.5.7).

        Without an event loop, or with much to be done already, the work is done before this returns: an initiator that
        does not wait must not pile up work without end.
        """
        finishing = self._finish(nexus, access, work)
        if len(self.background) >= MAXIMUM_BACKGROUND or not self.background.start(finishing):
            await finishing

    async def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Returns while the work goes on; without an event loop, when it is done."""
        if self.background.start(work) is None:
            await work

    async def _finish(self, nexus: ITNexus, access: Access, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except OSError as error:
            self.attentions.defer(nexus, sense_of(error, access))
            self.changed()

    def give_up(self) -> None:
        """A long operation ends soon; where it is kept, it begins again when the unit comes back."""
        self.self_tests.abort()
        if self.operation:
            self.operation.interrupted = True

    async def settle(self) -> None:
        """Gives up, and returns when no background work is left; call it before the medium is closed."""
        self.give_up()
        self.watch_no_more()
        await self.background.settled()
        self.atomic_writes.settle()
