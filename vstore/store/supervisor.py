"""The supervisor: one keeper per target, and the verbs of target processes in management's words and errors."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vstore.store.directories import PASSABLE, make
from vstore.store.errors import (
    Conflict,
    InvalidArgument,
    Locked,
    PoolUnavailable,
    SecretNeeded,
    SecretWrong,
    StoreError,
    TargetUnavailable,
)
from vstore.store.identifiers import LunAddress
from vstore.store.keeper import Ground, TargetKeeper, map_lun
from vstore.store.locks import NamedLocks
from vstore.store.plans import LunPlan, TargetPlan
from vstore.store.records import Process
from vstore.store.running import RunningTarget, Spawn
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.spawn import START_TIMEOUT, spawn
from vstore.target.verbs import BitmapLun, BitmapRow
from vstore.vhost_user.listener import LONGEST_PATH

_log = logging.getLogger(__name__)

_CONTROL, _SOCKET, _LOG = "ctl.sock", "vhost.sock", "log"  # the control socket's name is the shorter one
_LONGEST_LOG = 4 << 20  # bytes; a guest's doings fill it
_STOPPERS = 16  # targets that are stopped side by side
# The process may have done it all the same: a LUN whose last flush failed is gone from it.
_HALF_DONE = (ErrorCode.TIMED_OUT, ErrorCode.HOST_ERROR, ErrorCode.INTERNAL)


def _value_refused(detail: str) -> StoreError:
    return InvalidArgument("lun", detail, "correct the value that is named")


_REFUSALS: dict[ErrorCode, Callable[[str], StoreError]] = {
    ErrorCode.INVALID_REQUEST: _value_refused,
    ErrorCode.LUN_EXISTS: Conflict,
    ErrorCode.NO_SUCH_LUN: Conflict,
    ErrorCode.SOCKET_IN_USE: Conflict,
    ErrorCode.IMAGE_REFUSED: Conflict,
    ErrorCode.SECRET_NEEDED: SecretNeeded,
    ErrorCode.SECRET_WRONG: SecretWrong,
    ErrorCode.IMAGE_LOCKED: Locked,
    ErrorCode.HOST_ERROR: PoolUnavailable,
}


class Supervisor:
    def __init__(
        self,
        directory: Path,
        locks: NamedLocks,
        plan: Callable[[str, str], TargetPlan],
        length_told: Callable[[LunPlan, int], None],
        spawn: Spawn = spawn,
    ) -> None:
        """`directory` holds one directory per target; `plan` answers for (target, path of its socket)."""
        self._directory = directory
        self._locks = locks
        self._plan = plan
        self._length_told = length_told
        self._spawn_process = spawn
        self._keepers: dict[str, TargetKeeper] = {}

    def socket_path(self, name: str) -> Path:
        """Where the VMM connects."""
        return self._directory / name / _SOCKET

    def check_socket_path(self, name: str) -> None:
        """Raises InvalidArgument: a UNIX socket's path has a limit."""
        excess = len(os.fsencode(self.socket_path(name))) - LONGEST_PATH
        if excess > 0:
            right = f"choose a name at least {excess} characters shorter, or a shorter runtime directory"
            raise InvalidArgument("target", f"its socket's path would be longer than {LONGEST_PATH} bytes", right)

    def check_free(self, name: str) -> None:
        """Raises Conflict when a process that the catalog does not know serves that name."""
        with self._adopted(name) as stranger:
            if stranger is not None:
                raise Conflict(
                    f"process {stranger.pid}, which this catalog does not know, serves a target {name}; "
                    "end it or choose another name"
                )

    def start(self, name: str) -> None:
        """Begins to keep a target; its process comes up beside."""
        make(self._directory / name, PASSABLE)
        ground = Ground(
            adopt=self._adopt,
            spawn=self._spawn,
            plan=partial(self._plan, name, str(self.socket_path(name))),
            lock=partial(self._locks.hold, f"target:{name}"),
            length_told=self._length_told,
            trim_log=partial(_trim, self._directory / name / _LOG),
        )
        self._keepers[name] = TargetKeeper(name, ground)
        self._keepers[name].start()

    def wait_until_up(self, name: str) -> None:
        """Raises TargetUnavailable."""
        self._keeper(name).wait_until_up(2 * START_TIMEOUT)

    def process(self, name: str) -> Process:
        keeper = self._keepers.get(name)
        return keeper.process() if keeper else Process(state="starting", pid=None, restarts=0, problem=None)

    def map_lun(self, name: str, plan: LunPlan) -> None:
        """Raises StoreError."""
        with self._told(name):
            map_lun(self._keeper(name).running(), plan)

    def unmap_lun(self, name: str, address: LunAddress) -> None:
        """Waits until its commands are done and durable. A process that is not up has no LUN. Raises StoreError."""
        try:
            running = self._keeper(name).running()
        except TargetUnavailable:
            return
        with self._told(name):
            try:
                running.client.unmap_lun(address.lun, address.scsi_target)
            except TargetError as error:
                if error.code != ErrorCode.NO_SUCH_LUN:
                    raise

    def resize_lun(self, name: str, address: LunAddress, length: int) -> None:
        """`length` in bytes. Raises StoreError."""
        with self._told(name):
            self._keeper(name).running().client.resize_lun(address.lun, length, address.scsi_target)

    def take_snapshot(self, name: str, address: LunAddress, snapshot: str) -> int:
        """Of the image behind a LUN, while the guest goes on: how long its writes stood still, in microseconds.

        Raises StoreError.
        """
        with self._told(name):
            client = self._keeper(name).running().client
            return client.create_snapshot(address.lun, snapshot, address.scsi_target).pause_us or 0

    def delete_snapshot(self, name: str, address: LunAddress, snapshot: str) -> None:
        """`snapshot`: its id. Raises StoreError."""
        with self._told(name):
            self._keeper(name).running().client.delete_snapshot(address.lun, snapshot, address.scsi_target)

    def change_bitmap(self, name: str, request: BitmapLun) -> tuple[BitmapRow, ...]:
        """Of the image behind a LUN, while the guest goes on: those that there are afterwards. Raises StoreError."""
        with self._told(name):
            return self._keeper(name).running().client.change_bitmap(request)

    def stop(self, name: str) -> None:
        """Ends a target's process, flushed, and removes its directory. The caller holds the target's lock."""
        keeper = self._keepers.pop(name, None)
        running = keeper.leave() if keeper else None
        try:
            running = running or RunningTarget.adopt(self._directory / name / _CONTROL)
        except TargetError as error:  # its socket has to stay, for the next start to find it
            _log.error("target_left_behind", extra={"target": name, "error": error.detail})
            return
        if running is not None:
            self._stop_process(name, running)
        self._remove_directory(name)

    def stop_all(self) -> None:
        with ThreadPoolExecutor(_STOPPERS, "stop") as stoppers:
            list(stoppers.map(self._stop_one, list(self._keepers)))

    def release_all(self) -> None:
        """Leaves all processes running, for the next daemon to adopt."""
        for name in list(self._keepers):
            with self._locks.hold(f"target:{name}"):
                running = self._keepers.pop(name).leave()
                if running is not None:
                    running.release()

    def tidy(self, known: Sequence[str]) -> None:
        """Ends processes whose target was deleted; one that still serves LUNs is left alone, and told."""
        make(self._directory, PASSABLE)
        for name in sorted(set(os.listdir(self._directory)) - set(known)):
            try:
                with self._adopted(name) as stranger:
                    luns = stranger.client.status().luns if stranger is not None else ()
            except (StoreError, TargetError) as error:
                _log.error("unknown_target_does_not_answer", extra={"target": name, "error": str(error)})
                continue
            if luns:
                _log.warning("unknown_target_left_running", extra={"target": name, "luns": len(luns)})
            else:
                self.stop(name)

    def _adopt(self, keeper: TargetKeeper) -> RunningTarget | None:
        directory = self._directory / keeper.name
        return RunningTarget.adopt(directory / _CONTROL, on_event=keeper.on_event, on_end=keeper.on_end)

    def _spawn(self, keeper: TargetKeeper, beside: str | None) -> RunningTarget:
        directory = self._directory / keeper.name
        make(directory, PASSABLE)
        if beside is not None:
            return self._host(keeper, beside)
        child = self._spawn_process(str(directory / _CONTROL), directory / _LOG)
        try:
            running = RunningTarget.adopt(directory / _CONTROL, child, on_event=keeper.on_event, on_end=keeper.on_end)
            if running is None:
                raise TargetError(ErrorCode.NOT_STARTED, f"the target process {child.pid} ended at once")
        except BaseException:  # it serves nothing yet, and nobody else would end it
            child.kill()
            child.wait()
            raise
        return running

    def _host(self, keeper: TargetKeeper, beside: str) -> RunningTarget:
        """In the process of another target, which has to be up."""
        self._keeper(beside).running().client.host(str(self._directory / keeper.name / _CONTROL))
        running = self._adopt(keeper)
        if running is None:
            raise TargetError(ErrorCode.NOT_STARTED, f"the process of target {beside} does not serve it")
        return running

    def _keeper(self, name: str) -> TargetKeeper:
        try:
            return self._keepers[name]
        except KeyError:
            raise TargetUnavailable(f"target {name} is not kept; the daemon is stopping") from None

    def _stop_process(self, name: str, running: RunningTarget) -> None:
        try:
            running.stop()
        except TargetError as error:
            _log.error("target_not_flushed", extra={"target": name, "error": error.detail})

    def _stop_one(self, name: str) -> None:
        with self._locks.hold(f"target:{name}"):
            self.stop(name)

    def _remove_directory(self, name: str) -> None:
        directory = self._directory / name
        for entry in (_CONTROL, _SOCKET, _LOG):
            with contextlib.suppress(OSError):
                (directory / entry).unlink()
        with contextlib.suppress(OSError):  # what else lies in it is not ours to remove
            directory.rmdir()

    @contextmanager
    def _adopted(self, name: str) -> Iterator[RunningTarget | None]:
        """Whoever serves that name, for a look. Raises TargetUnavailable."""
        with self._told(name):
            running = RunningTarget.adopt(self._directory / name / _CONTROL)
        try:
            yield running
        finally:
            if running is not None:
                running.release()

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Turns a process's refusal into StoreError; the keeper finds out what was done, where that is unsure."""
        try:
            yield
        except TargetError as error:
            keeper = self._keepers.get(name)
            if error.code in _HALF_DONE and keeper is not None:
                keeper.mend_soon()
            raise _REFUSALS.get(error.code, TargetUnavailable)(f"target {name}: {error.detail}") from error


def _trim(log: Path) -> None:
    """The process appends to its log (O_APPEND), so it may be cut at any time."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _LONGEST_LOG:
            os.truncate(log, 0)
