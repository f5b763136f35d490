"""TargetKeeper: keeps one target's process alive and as the catalog says it should be.

    adopt ----+                      process ends
              |--> configure --> mend LUNs --> up ------------------> wait (0.1 s, 0.2 s ... 30 s) --> adopt or spawn
    spawn ----+                                 \\__ a LUN is lacking: mend again, as often

A process that answers on its control socket is adopted, whoever started it; otherwise one is spawned. It belongs to no
session and no pipe of the daemon, so the daemon may die under it. The keeper's thread works under the target's lock,
as verbs do, so neither sees the other's half-done change.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from vstore.store.errors import StoreError, TargetUnavailable
from vstore.store.held import Held
from vstore.store.identifiers import LunAddress
from vstore.store.plans import LunPlan, TargetPlan
from vstore.store.records import Process
from vstore.store.running import RunningTarget
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.verbs import Event, FrontendConnected, FrontendDisconnected, Mapped

_log = logging.getLogger(__name__)

FIRST_DELAY = 0.1  # seconds
LONGEST_DELAY = 30.0
SETTLED = 1.0  # a process that lived so long is followed by another one at once
MEND_INTERVAL = 30.0
_END_TIMEOUT = 5.0


@dataclass(frozen=True)
class Ground:
    """What a keeper needs of the world: how to reach a process, what it should be, and the lock to work under."""

    adopt: Callable[["TargetKeeper"], RunningTarget | None]
    spawn: Callable[["TargetKeeper", str | None], RunningTarget]  # beside another target, if it has no process
    plan: Callable[[], TargetPlan]
    lock: Callable[[], AbstractContextManager[None]]
    length_told: Callable[[LunPlan, int], None]  # the length that a mapped image really has
    trim_log: Callable[[], None]


class TargetKeeper:
    def __init__(self, name: str, ground: Ground) -> None:
        self.name = name
        self._ground = ground
        self._changed = threading.Condition()
        self._running: RunningTarget | None = None
        self._ended = False  # the connection of `_running` is gone
        self._leaving = False
        self._mend_wanted = False
        self._connected = False
        self._problem: str | None = None
        self._attempts = 0
        self._starts = 0
        self._held: Held | None = None  # of this process, or of the one before it
        self._thread = threading.Thread(target=self._keep, name=f"keeper {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_until_up(self, timeout: float) -> None:
        """Returns after the first success. Raises TargetUnavailable after the first failure."""
        with self._changed:
            self._changed.wait_for(lambda: self._attempts or self._leaving, timeout)
        self.running()

    def running(self) -> RunningTarget:
        """Raises TargetUnavailable."""
        with self._changed:
            if self._running is None or self._ended:
                why = self._problem or "it is starting"
                raise TargetUnavailable(f"the process of target {self.name} is not up ({why}); it will be tried again")
            return self._running

    def process(self) -> Process:
        with self._changed:
            up = self._running is not None and not self._ended
            state = "connected" if self._connected else "listening"
            if not up:
                state = "failed" if self._problem else "starting"
            pid = self._running.pid if up and self._running else None
            return Process(state=state, pid=pid, restarts=max(0, self._starts - 1), problem=self._problem)

    def mend_soon(self) -> None:
        """After a verb whose outcome nobody knows."""
        with self._changed:
            self._mend_wanted = True
            self._changed.notify_all()

    def leave(self) -> RunningTarget | None:
        """Ends the keeping, not the process, which is the caller's now. The caller holds the target's lock."""
        with self._changed:
            self._leaving = True
            running, self._running = self._running, None
            self._changed.notify_all()
        return running

    def on_event(self, event: Event) -> None:
        with self._changed:
            if isinstance(event, FrontendConnected | FrontendDisconnected):
                self._connected = isinstance(event, FrontendConnected)
        _log.info("target_event", extra={"target": self.name, "told": type(event).__name__})

    def on_end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _keep(self) -> None:
        delay = 0.0
        while not self._leaving:
            born = time.monotonic()
            if self._bring_up():
                self._watch()
            lived = time.monotonic() - born
            delay = 0.0 if lived > SETTLED else min(max(2 * delay, FIRST_DELAY), LONGEST_DELAY)
            with self._changed:
                self._changed.wait_for(lambda: self._leaving, delay)
        self._let_go()

    def _bring_up(self) -> bool:
        with self._ground.lock():
            if self._leaving:
                return False
            running, problem = None, None
            try:
                plan = self._ground.plan()
                self._ended = False
                running = self._ground.adopt(self) or self._spawn(plan.beside)
                if self._held and running.client.status().configuration is None:
                    self._resume(running, plan, self._held)
                _configure(running, plan)
                problem = self._mend(running, plan)
                self._hold(running)
            except Exception as error:  # whatever it is: a thread that ended would never try again
                problem = self._told("target_not_up", error)
                if running is not None:
                    running.release()
                    running = None
            self._settle(running, problem)
        return running is not None

    def _resume(self, running: RunningTarget, plan: TargetPlan, held: Held) -> None:
        """Hands over what the process before it had told, when all LUNs are there that its guest knows; raises
        TargetError until they are."""
        volatile = [str(address) for address, lun in plan.luns.items() if not lun.outlives]
        ended = held.ended(_END_TIMEOUT)
        if ended and not held.kept.names():
            return
        if volatile or not ended:
            why = f"writes to LUN {', '.join(volatile)} may be lost" if volatile else "the process before is not gone"
            _log.error("target_not_resumed", extra={"target": self.name, "problem": why})
            self._let_go()
            return
        if problem := self._mend(running, plan):
            raise TargetError(ErrorCode.HOST_ERROR, problem)
        running.client.resume(held.kept)
        _log.info("target_resumed", extra={"target": self.name, "pid": running.pid})

    def _hold(self, running: RunningTarget) -> None:
        """From now on it tells what it takes to go on without it. A process of an earlier version cannot."""
        held = Held()
        try:
            running.client.keep(held.theirs.fileno())
        except TargetError as error:
            held.close()
            _log.warning("target_not_held", extra={"target": self.name, "error": error.detail})
            return
        self._let_go()
        self._held = held.handed()

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held:
            held.close()

    def _spawn(self, beside: str | None) -> RunningTarget:
        self._starts += 1
        return self._ground.spawn(self, beside)

    def _settle(self, running: RunningTarget | None, problem: str | None) -> None:
        with self._changed:
            self._running, self._problem = running, problem
            self._attempts += 1
            self._changed.notify_all()

    def _watch(self) -> None:
        """Until the process is gone or the keeper has to leave."""
        pause = FIRST_DELAY  # most of what keeps a LUN from being mapped passes soon: a lock, a process that is dying
        while True:
            with self._changed:
                self._changed.wait_for(self._called, MEND_INTERVAL if self._problem is None else pause)
                pause = min(2 * pause, MEND_INTERVAL) if self._problem else FIRST_DELAY
                mend, self._mend_wanted = self._mend_wanted or self._problem is not None, False
                if self._leaving:
                    return
                running = self._running if self._ended else None
                if running is not None:
                    self._running, self._problem, self._connected = None, "it ended unexpectedly", False
            if running is not None:
                _log.error("target_ended", extra={"target": self.name, "pid": running.pid})
                running.wait_for_end(_END_TIMEOUT)
                return
            self._tend(mend)

    def _called(self) -> bool:
        return self._leaving or self._ended or self._mend_wanted

    def _tend(self, mend: bool) -> None:
        try:
            self._ground.trim_log()
        except OSError as error:
            self._told("target_log_not_trimmed", error)
        if mend:
            self._mend_again()

    def _mend_again(self) -> None:
        with self._ground.lock():
            running = self._running
            if running is None or self._ended:
                return
            try:
                problem = self._mend(running, self._ground.plan())
            except Exception as error:  # as in _bring_up
                problem = self._told("target_not_mended", error)
            with self._changed:
                self._problem = problem

    def _told(self, event: str, error: Exception) -> str:
        """What went wrong, in words; with a traceback in the log when nobody foresaw it."""
        foreseen = isinstance(error, TargetError | StoreError | OSError)
        problem = str(error) if foreseen else f"{type(error).__name__}: {error}"
        _log.error(event, extra={"target": self.name, "error": problem}, exc_info=None if foreseen else error)
        return problem

    def _mend(self, running: RunningTarget, plan: TargetPlan) -> str | None:
        """Makes the LUNs of the process those of the plan; what could not be mapped, as a sentence."""
        status = running.client.status()
        self._connected = status.state == "connected"
        present = set()
        for lun in status.luns:
            address = LunAddress(lun.settings.target, lun.settings.lun)
            planned = plan.luns.get(address)
            if planned is not None and planned.serves_the_same(lun.settings):
                present.add(address)
                self._ground.length_told(planned, lun.length)
            else:
                _log.warning("lun_not_in_catalog", extra={"target": self.name, "lun": lun.settings.lun})
                running.client.unmap_lun(lun.settings.lun, lun.settings.target)
        lacking = [wanted for address, wanted in plan.luns.items() if address not in present]
        problems = [problem for plan in lacking if (problem := self._map_again(running, plan))]
        return "; ".join(problems) or None

    def _map_again(self, running: RunningTarget, plan: LunPlan) -> str | None:
        try:
            self._ground.length_told(plan, map_lun(running, plan).length)
        except (TargetError, StoreError) as error:
            _log.error("lun_not_mapped", extra={"target": self.name, "lun": str(plan.address), "error": str(error)})
            return f"LUN {plan.address} is not mapped: {error}"
        return None


def _configure(running: RunningTarget, plan: TargetPlan) -> None:
    """A new process gets its socket; one that was adopted has it, and refuses settings that it does not have."""
    if running.client.status().configuration is None:
        with plan.listening() as descriptor:
            running.client.configure(plan.configure, descriptor)
    else:
        running.client.configure(plan.configure)


def map_lun(running: RunningTarget, plan: LunPlan) -> Mapped:
    """Raises TargetError, StoreError. Of a shared LUN the files are opened, and locked, once for all targets."""
    if plan.request.shared:
        try:
            return running.client.map_lun(plan.request)
        except TargetError as error:
            if error.code is not ErrorCode.NOT_OPEN:
                raise
    with plan.descriptors() as descriptors:
        return running.client.map_lun(plan.request, *descriptors)
