"""An executable model of persistent reservations: the tables of SPC-4 5.12 as rows, and nothing of vstore.

A row says for a service action, and for what the nexus and its keys are, what the command ends with and what it does.
The model keeps a list of (nexus, key), one reservation and what each nexus has to be told, and is deliberately slow
and plain: it is read against the standard.
"""

from dataclasses import dataclass, field, replace

WE, EA, WE_RO, EA_RO, WE_AR, EA_AR = TYPES = (1, 3, 5, 6, 7, 8)
RO, AR, WRITE_EXCLUSIVE = (WE_RO, EA_RO), (WE_AR, EA_AR), (WE, WE_RO, WE_AR)

GOOD, CONFLICT = "good", "conflict"
INVALID_LIST, INVALID_CDB, INVALID_RELEASE = (5, 0x26, 0x00), (5, 0x24, 0x00), (5, 0x26, 0x04)
PREEMPTED, RELEASED, REGISTRATIONS = (6, 0x2A, 0x03), (6, 0x2A, 0x04), (6, 0x2A, 0x05)

Outcome = str | tuple[int, int, int]


@dataclass(frozen=True)
class Request:
    """`other`: whom REGISTER AND MOVE names."""

    action: str
    nexus: str
    key: int = 0
    action_key: int = 0
    kind: int = 0
    aptpl: bool = False
    other: str = ""
    unreg: bool = False


@dataclass
class Model:
    keys: dict[str, int] = field(default_factory=dict)
    holder: str | None = None  # "*": all registrants
    kind: int = 0
    generation: int = 0
    aptpl: bool = False
    reserved_by: str | None = None  # RESERVE of SPC-2
    told: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)

    # ---- what is what -----------------------------------------------------------------------------------

    def holds(self, nexus: str) -> bool:
        return nexus in self.keys if self.holder == "*" else self.holder == nexus

    def may(self, nexus: str) -> str:
        """`rw`, `r` or nothing."""
        if self.reserved_by not in (None, nexus):
            return ""
        if not self.holder or self.holds(nexus) or (self.kind not in (WE, EA) and nexus in self.keys):
            return "rw"
        return "r" if self.kind in WRITE_EXCLUSIVE else ""

    def reservation(self) -> tuple[int, int] | None:
        if not self.holder:
            return None
        return 0 if self.holder == "*" else self.keys[self.holder], self.kind

    # ---- commands ---------------------------------------------------------------------------------------

    def run(self, request: Request) -> Outcome:
        if self.reserved_by:
            return CONFLICT
        known = request.nexus in self.keys
        if request.action not in ("register", "ignore") and (not known or self.keys[request.nexus] != request.key):
            return CONFLICT
        outcome: Outcome = getattr(self, request.action)(request)
        counts = ("register", "ignore", "clear", "preempt", "preempt_and_abort", "move")
        if outcome == GOOD and request.action in counts:
            self.generation += 1
        if outcome == GOOD and request.action in ("register", "ignore", "move"):
            self.aptpl = request.aptpl
        return outcome

    def register(self, request: Request) -> Outcome:
        if self.keys.get(request.nexus, 0) != request.key:
            return CONFLICT
        return self.ignore(request)

    def ignore(self, request: Request) -> Outcome:
        if request.action_key:
            self.keys[request.nexus] = request.action_key
        elif request.nexus in self.keys:
            self.unregister(request.nexus)
        return GOOD

    def unregister(self, nexus: str) -> None:
        held = self.holder == nexus
        del self.keys[nexus]
        if held or (self.holder == "*" and not self.keys):
            if self.kind in RO:
                self.tell(list(self.keys), RELEASED)
            self.holder, self.kind = None, 0

    def reserve(self, request: Request) -> Outcome:
        if not self.holder:
            self.establish(request)
            return GOOD
        return GOOD if self.holds(request.nexus) and self.kind == request.kind else CONFLICT

    def establish(self, request: Request) -> None:
        self.holder, self.kind = "*" if request.kind in AR else request.nexus, request.kind

    def release(self, request: Request) -> Outcome:
        if not self.holder or not self.holds(request.nexus):
            return GOOD
        if self.kind != request.kind:
            return INVALID_RELEASE
        if self.kind in RO + AR:
            self.tell([each for each in self.keys if each != request.nexus], RELEASED)
        self.holder, self.kind = None, 0
        return GOOD

    def clear(self, request: Request) -> Outcome:
        self.tell([each for each in self.keys if each != request.nexus], PREEMPTED)
        self.keys, self.holder, self.kind = {}, None, 0
        return GOOD

    def preempt(self, request: Request) -> Outcome:
        takes = (
            request.action_key == 0
            if self.holder == "*"
            else bool(self.holder) and self.keys[str(self.holder)] == request.action_key
        )
        if takes:
            return self.take(request)
        if request.action_key == 0:
            return INVALID_LIST
        gone = [each for each, key in self.keys.items() if key == request.action_key]
        if not gone:
            return CONFLICT
        self.tell([each for each in gone if each != request.nexus], REGISTRATIONS)
        for each in gone:
            del self.keys[each]
        if self.holder == "*" and not self.keys:
            self.holder, self.kind = None, 0
        return GOOD

    preempt_and_abort = preempt

    def take(self, request: Request) -> Outcome:
        everyone, before = self.holder == "*", self.kind
        for each, key in list(self.keys.items()):
            if each != request.nexus and (everyone or key == request.action_key):
                del self.keys[each]
                self.tell([each], REGISTRATIONS)
        if before != request.kind:
            self.tell([each for each in self.keys if each != request.nexus], RELEASED)
        self.establish(request)
        return GOOD

    def move(self, request: Request) -> Outcome:
        if not self.holder:
            return INVALID_CDB
        if self.holder == "*" or not self.holds(request.nexus):
            return CONFLICT
        if not request.action_key:
            return INVALID_LIST
        self.keys[request.other] = request.action_key
        self.holder = request.other
        if request.unreg:
            del self.keys[request.nexus]
        return GOOD

    def spc2(self, nexus: str, *, reserve: bool) -> Outcome:
        """RESERVE and RELEASE."""
        if self.reserved_by not in (None, nexus):
            return CONFLICT if reserve else GOOD
        if self.holder and (self.holds(nexus) or (self.kind in RO + AR and nexus in self.keys)):
            return GOOD
        if self.keys:
            return CONFLICT
        self.reserved_by = nexus if reserve else None
        return GOOD

    # ---- events -----------------------------------------------------------------------------------------

    def lose_power(self) -> "Model":
        return Model() if not self.aptpl else replace(self, generation=0, reserved_by=None, told={})

    def lose_nexus(self, nexus: str) -> None:
        if self.reserved_by == nexus:
            self.reserved_by = None

    def tell(self, nexuses: list[str], what: tuple[int, int, int]) -> None:
        for nexus in nexuses:
            waiting = self.told.setdefault(nexus, [])
            if what not in waiting:
                waiting.append(what)
