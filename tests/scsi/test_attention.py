import gc

from vstore.scsi.attention import Attentions
from vstore.scsi.sense import AdditionalSense, Sense, SenseKey
from vstore.scsi.task import ITNexus

ONE, OTHER = ITNexus("one"), ITNexus("other")
CAPACITY = AdditionalSense.CAPACITY_DATA_HAS_CHANGED
LUNS = AdditionalSense.REPORTED_LUNS_DATA_HAS_CHANGED
POWER = AdditionalSense.POWER_ON_OCCURRED
RESET = AdditionalSense.BUS_DEVICE_RESET_FUNCTION_OCCURRED
LOSS = AdditionalSense.I_T_NEXUS_LOSS_OCCURRED
ERROR = Sense(SenseKey.MEDIUM_ERROR, AdditionalSense.WRITE_ERROR)


def settled() -> Attentions:
    attentions = Attentions()
    for nexus in (ONE, OTHER):
        attentions.add(nexus)
        attentions.take(nexus)
    return attentions


def told(attentions: Attentions, nexus: ITNexus = ONE) -> list[AdditionalSense]:
    codes = []
    while sense := attentions.take(nexus):
        codes.append(sense.code)
    return codes


def test_a_new_nexus_is_told_of_the_power_on_once() -> None:
    attentions = Attentions()
    assert attentions.add(ONE)
    assert not attentions.add(ONE)
    assert not attentions.none_wait(ONE)
    assert told(attentions) == [POWER]
    assert attentions.none_wait(ONE)


def test_an_unknown_nexus_is_told_nothing_and_is_not_settled() -> None:
    attentions = Attentions()
    attentions.establish(CAPACITY, [ONE])
    attentions.defer(ONE, ERROR)
    attentions.clear(CAPACITY, ONE)
    assert attentions.take(ONE) is None
    assert not attentions.none_wait(ONE)


def test_conditions_are_told_in_order_and_each_once() -> None:
    attentions = settled()
    for code in (CAPACITY, LUNS, CAPACITY):
        attentions.establish(code, [ONE])
    assert told(attentions) == [CAPACITY, LUNS]


def test_each_nexus_has_its_own_queue() -> None:
    attentions = settled()
    attentions.establish(CAPACITY, attentions.nexuses())
    assert told(attentions, ONE) == [CAPACITY]
    assert told(attentions, OTHER) == [CAPACITY]


def test_a_reset_is_told_first_and_the_latest_alone() -> None:
    attentions = settled()
    for code in (CAPACITY, LOSS, RESET):
        attentions.establish(code, [ONE])
    assert told(attentions) == [RESET, CAPACITY]


def test_a_power_on_is_not_replaced_by_a_weaker_reset() -> None:
    attentions = Attentions()
    attentions.add(ONE)
    attentions.establish(RESET, [ONE])
    assert told(attentions) == [POWER]


def test_a_deferred_error_goes_before_everything() -> None:
    attentions = settled()
    attentions.establish(CAPACITY, [ONE])
    attentions.defer(ONE, ERROR)
    attentions.establish(RESET, [ONE])
    first = attentions.take(ONE)
    assert first is not None
    assert (first.code, first.deferred) == (ERROR.code, True)
    assert told(attentions) == [RESET, CAPACITY]


def test_a_condition_can_be_cleared_without_being_told() -> None:
    attentions = settled()
    attentions.establish(LUNS, [ONE])
    attentions.establish(CAPACITY, [ONE])
    attentions.clear(LUNS, ONE)
    assert told(attentions) == [CAPACITY]


def test_a_removed_nexus_is_new_again() -> None:
    attentions = settled()
    attentions.remove(ONE)
    attentions.remove(ONE)
    assert attentions.add(ONE)


def test_a_nexus_that_is_gone_is_forgotten() -> None:
    attentions = Attentions()
    attentions.add(ITNexus("short-lived"))
    gc.collect()
    assert attentions.nexuses() == []
