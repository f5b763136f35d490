import pytest

from tests.scsi.initiator import POWER_ON, Initiator, make_unit
from vstore.scsi.logical_unit import NoLogicalUnit, ReportLunsWellKnown
from vstore.scsi.target import WELL_KNOWN_REPORT_LUNS, Target

LUNS_CHANGED = (6, 0x3F, 0x0E)


def test_a_lun_can_be_used_once() -> None:
    target = Target()
    target.add(3, make_unit())
    with pytest.raises(ValueError, match="LUN 3 is in use already"):
        target.add(3, make_unit())


@pytest.mark.parametrize("lun", [-1, 16384, WELL_KNOWN_REPORT_LUNS])
def test_a_lun_out_of_range_is_refused(lun: int) -> None:
    with pytest.raises(ValueError, match=f"LUN {lun} is out of range; it must be 0 to 16383"):
        Target().add(lun, make_unit())


def test_removing_what_is_not_there_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Target().remove(0)


def test_something_answers_at_every_lun() -> None:
    target = Target()
    unit = make_unit()
    target.add(0, unit)
    assert target.unit(0) is unit
    assert isinstance(target.unit(1), NoLogicalUnit)
    assert isinstance(target.unit(WELL_KNOWN_REPORT_LUNS), ReportLunsWellKnown)
    assert target.remove(0) is unit
    assert isinstance(target.unit(0), NoLogicalUnit)


def test_the_map_cannot_be_changed_from_outside() -> None:
    target = Target()
    with pytest.raises(TypeError):
        target.luns[0] = make_unit()  # type: ignore[index]


def test_the_other_units_tell_of_a_unit_that_came_or_went() -> None:
    initiator = Initiator()
    initiator.target.add(1, make_unit())
    assert initiator.check("00").code == LUNS_CHANGED
    assert initiator.check("00", lun=1).code == POWER_ON  # the new one has more to tell
    initiator.good("00", lun=1)
    initiator.target.remove(1)
    assert initiator.check("00").code == LUNS_CHANGED
    initiator.good("00")


def test_units_do_not_share_their_bytes() -> None:
    target = Target()
    target.add(0, make_unit())
    target.add(300, make_unit())
    initiator = Initiator(target)
    initiator.check("00", lun=300)
    initiator.good("2a 00 00000000 00 0001 00", b"\xff" * 512, lun=300)
    assert initiator.good("28 00 00000000 00 0001 00", lun=0) == bytes(512)
    assert initiator.good("28 00 00000000 00 0001 00", lun=300) == b"\xff" * 512
