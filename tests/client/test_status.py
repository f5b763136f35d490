"""raise_for and the exceptions: every status has its own, and each says in one line what happened."""

import pytest

from vstore.client import VstoreDevice
from vstore.client.errors import BackendFault
from vstore.client.request import CommandResult
from vstore.client.status import CheckCondition, StatusError, TransportFailure, raise_for
from vstore.client.virtio_scsi import Response

FIXED = bytes.fromhex("700005000000000a000000002400000000000000")[:18]
DESCRIPTOR = bytes.fromhex("72052400 00000000")


def _result(status: int, response: Response = Response.OK, sense: bytes = b"") -> CommandResult:
    return CommandResult(status, response, sense, b"", 0)


def test_good_raises_nothing() -> None:
    raise_for(_result(0))


@pytest.mark.parametrize("sense", [FIXED, DESCRIPTOR], ids=["fixed", "descriptor"])
def test_check_condition_decodes_both_sense_formats(sense: bytes) -> None:
    with pytest.raises(VstoreDevice.CheckCondition, match=r"Illegal Request\(0x05\).*0x2400") as caught:
        raise_for(_result(2, sense=sense))
    assert (caught.value.data["sense_key"], caught.value.asc, caught.value.ascq) == (5, 0x24, 0)
    assert caught.value.sense == sense


def test_sense_data_unknown_to_pyscsi_still_has_a_sentence() -> None:
    assert str(CheckCondition(bytes.fromhex("720c2479 00000000"))) == "Check Condition: sense key(0x0C) 24/79"


def test_check_condition_without_sense_data_is_a_fault() -> None:
    with pytest.raises(BackendFault, match="without sense data"):
        raise_for(_result(2))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (0x04, VstoreDevice.ConditionsMet),
        (0x08, VstoreDevice.BusyStatus),
        (0x18, VstoreDevice.ReservationConflict),
        (0x28, VstoreDevice.TaskSetFull),
        (0x30, VstoreDevice.ACAActive),
        (0x40, VstoreDevice.TaskAborted),
        (0x7E, StatusError),
    ],
)
def test_every_other_status_has_its_exception(status: int, error: type[StatusError]) -> None:
    with pytest.raises(error, match=f"status {status:#04x}") as caught:
        raise_for(_result(status))
    assert type(caught.value) is error


def test_a_response_that_is_not_ok_is_named_whatever_the_status() -> None:
    with pytest.raises(TransportFailure, match="BAD_TARGET"):
        raise_for(_result(2, Response.BAD_TARGET, FIXED))
