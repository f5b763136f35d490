"""Random commands of two to four nexuses, by vstore and by the model of the tables: after each step all is the same.

The long form: VSTORE_PR_STEPS=100000 pytest tests/scsi/test_persistent_model.py
"""

import os
from random import Random

import pytest

from tests.scsi import cluster
from tests.scsi.cluster import MemoryRecord, Node, generation_of, held, keys_of
from tests.scsi.persistent_model import CONFLICT, GOOD, TYPES, Model, Outcome, Request
from vstore.scsi.logical_unit import ResetCause
from vstore.scsi.task import Response, Status

STEPS = int(os.environ.get("VSTORE_PR_STEPS", "3000"))
STEPS_OF_A_STORY = 750

ACTIONS = {
    "register": cluster.REGISTER,
    "reserve": cluster.RESERVE,
    "release": cluster.RELEASE,
    "clear": cluster.CLEAR,
    "preempt": cluster.PREEMPT,
    "preempt_and_abort": cluster.PREEMPT_AND_ABORT,
    "ignore": cluster.IGNORE,
    "move": cluster.MOVE,
}
# What makes a story: registering and reserving often, what ends it all seldom.
OFTEN = ["register"] * 8 + ["ignore"] * 4 + ["reserve"] * 6 + ["release"] * 3 + ["preempt"] * 4
OFTEN += ["preempt_and_abort"] * 2 + ["move"] * 3 + ["clear"]
KEYS = (0, 1, 2, 3)


class Story:
    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.names = ["a", "b", "c", "d"][: rng.randint(2, 4)]
        self.record = MemoryRecord()
        self.model = Model()
        self.nodes: dict[str, Node] = {}
        self.power_on()

    def power_on(self) -> None:
        self.nodes = {node.name: node for node in cluster.restarted(self.record, *self.names)}
        record = next(iter(self.nodes.values())).unit.record
        assert isinstance(record, MemoryRecord)
        self.record = record

    def step(self) -> str:
        kind = self.rng.randrange(100)
        name = self.rng.choice(self.names)
        if kind < 90:
            return self.persistent_reserve(name)
        if kind < 95:
            return self.spc2(name)
        if kind < 97:
            self.nodes[name].unit.reset(ResetCause.I_T_NEXUS_LOSS, self.nodes[name].nexus)
            self.model.lose_nexus(name)
            self.nodes[name].settle()
            self.model.told.pop(name, None)
            return f"loss of {name}"
        if kind < 99:
            self.nodes[name].unit.reset(ResetCause.LOGICAL_UNIT_RESET)
            self.model.reserved_by = None
            self.model.told.clear()
            for node in self.nodes.values():
                node.settle()
            return "reset"
        self.model = self.model.lose_power()
        self.power_on()
        return "power"

    def persistent_reserve(self, name: str) -> str:
        rng = self.rng
        known = self.model.keys.get(name, 0)
        request = Request(
            rng.choice(OFTEN),
            name,
            known if rng.random() < 0.8 else rng.choice(KEYS),
            rng.choice([*KEYS, *self.model.keys.values()]),
            self.model.kind if self.model.kind and rng.random() < 0.6 else rng.choice(TYPES),
            aptpl=rng.random() < 0.7,
            other=rng.choice([other for other in self.names if other != name]),
            unreg=rng.random() < 0.5,
        )
        expected = self.model.run(request)
        got = self.ask(request)
        assert outcome(got) == expected, request
        return str(request)

    def ask(self, request: Request) -> Response:
        node = self.nodes[request.nexus]
        flags = int(request.aptpl)
        if request.action == "move":
            flags |= request.unreg << 1
            return node.move(request.key, request.action_key, self.nodes[request.other], flags)
        return node.out(ACTIONS[request.action], request.key, request.action_key, request.kind, flags=flags)

    def spc2(self, name: str) -> str:
        reserve = self.rng.random() < 0.5
        expected = self.model.spc2(name, reserve=reserve)
        assert outcome(self.nodes[name].send("16 00 00 00 00 00" if reserve else "17 00 00 00 00 00")) == expected
        return f"{name} reserve={reserve}"

    def compare(self) -> None:
        for name, node in self.nodes.items():
            # TEST UNIT READY itself conflicts with RESERVE, so what is told is asked of the unit.
            waiting = [(6, sense.code.asc, sense.code.ascq) for sense in node.unit.attentions.waiting(node.nexus)]
            assert waiting == self.model.told.pop(name, [])
            node.unit.attentions.add(node.nexus)
            while node.unit.attentions.take(node.nexus):
                pass
        for name, node in self.nodes.items():
            assert node.may() == self.model.may(name), name
            if not self.model.reserved_by:
                assert sorted(keys_of(node)) == sorted(self.model.keys.values())
                assert held(node) == self.model.reservation()
                assert generation_of(node) == self.model.generation
        names = {nexus.initiator.partition(":")[2]: key for nexus, key in node.unit.persistent.keys.items()}
        assert names == self.model.keys


def outcome(response: Response) -> Outcome:
    if response.status is Status.CHECK_CONDITION:
        return cluster.code_of(response)
    return GOOD if response.status is Status.GOOD else CONFLICT


@pytest.mark.parametrize("seed", range(-(-STEPS // STEPS_OF_A_STORY)))
def test_whatever_nexuses_do_the_tables_are_kept(seed: int) -> None:
    story, told = Story(Random(seed)), []
    for _ in range(STEPS_OF_A_STORY):
        told.append(story.step())
        try:
            story.compare()
        except AssertionError as error:
            raise AssertionError("\n".join(["after", *told[-12:]])) from error
