"""Parameter data of PERSISTENT RESERVE IN, byte for byte as SPC-4 6.15 lays it out."""

import pytest

from tests.scsi.cluster import (
    APTPL,
    CAPABILITIES,
    FULL_STATUS,
    KEYS,
    REGISTER,
    RESERVATION,
    RESERVE,
    TYPES,
    WE_AR,
    WE_RO,
    MemoryRecord,
    cluster,
    in_cdb,
    transport_id,
)


def test_of_a_new_unit_there_is_nothing() -> None:
    (one,) = cluster("one")
    for action in (KEYS, RESERVATION, FULL_STATUS):
        assert one.asks(action) == bytes(8)


def test_keys_and_reservation_as_they_are_printed() -> None:
    one, other = cluster("one", "other")
    one.does(REGISTER, 0, 0x1122334455667788)
    other.does(REGISTER, 0, 0xA)
    assert one.asks(KEYS).hex() == "00000002" + "00000010" + "1122334455667788" + "000000000000000a"
    one.does(RESERVE, 0x1122334455667788, kind=WE_RO)
    head = "00000002" + "00000010"
    assert one.asks(RESERVATION).hex() == head + "1122334455667788" + "00000000" + "00" + "05" + "0000"


def test_the_key_of_what_all_registrants_hold_is_zero() -> None:
    (one,) = cluster("one")
    one.does(REGISTER, 0, 3)
    one.does(RESERVE, 3, kind=WE_AR)
    assert one.asks(RESERVATION)[8:].hex() == "0000000000000000" + "00000000" + "00" + "07" + "0000"


def test_the_full_status_names_each_machine() -> None:
    one, other = cluster("one", "other_machine")
    one.does(REGISTER, 0, 1)
    other.does(REGISTER, 0, 2)
    one.does(RESERVE, 1, kind=WE_RO)
    data = one.asks(FULL_STATUS)
    named = transport_id("one")
    assert data[:8].hex() == "00000002" + f"{len(data) - 8:08x}"
    first = data[8 : 32 + len(named)]
    assert first[:24].hex() == "0000000000000001" + "00000000" + "01" + "05" + "00000000" + "0001" + "00000024"
    assert first[24:] == named
    second = data[32 + len(named) :]
    assert second[:20].hex() == "0000000000000002" + "00000000" + "00" + "00" + "00000000" + "0002"
    assert second[24:].startswith(b"\x05\0")
    assert int.from_bytes(second[20:24]) == len(second) - 24
    # an iSCSI name has no underscore
    assert second[28:].rstrip(b"\0").startswith(b"iqn.2024-08.internal.vstore.id:")


def test_all_registrants_are_shown_as_holders() -> None:
    one, other = cluster("one", "other")
    one.does(REGISTER, 0, 1)
    other.does(REGISTER, 0, 2)
    one.does(RESERVE, 1, kind=WE_AR)
    data = one.asks(FULL_STATUS)
    size = 24 + len(transport_id("one"))
    assert [data[8 + 12 : 8 + 14], data[8 + size + 12 : 8 + size + 14]] == [b"\x01\x07"] * 2


@pytest.mark.parametrize("keeps", [False, True])
def test_capabilities_are_those_that_there_are(keeps: bool) -> None:
    (one,) = cluster("one", record=MemoryRecord() if keeps else None)
    # RLR_C, CRH, SIP_C, ATP_C, PTPL_C; TMV, ALLOW COMMANDS 011b, PTPL_A; the six types
    assert one.asks(CAPABILITIES).hex() == "0008" + ("9d" if keeps else "1c") + "b0" + "ea01" + "0000"
    if keeps:
        one.does(REGISTER, 0, 1, flags=APTPL)
        assert one.asks(CAPABILITIES).hex() == "0008" + "9d" + "b1" + "ea01" + "0000"
        one.does(REGISTER, 1, 1)
        assert one.asks(CAPABILITIES)[3] == 0xB0


def test_every_type_of_the_mask_can_be_had() -> None:
    for kind in TYPES:
        (one,) = cluster("one")
        one.does(REGISTER, 0, 1)
        one.does(RESERVE, 1, kind=kind)
        assert one.asks(RESERVATION)[21] == kind


@pytest.mark.parametrize("action", [KEYS, RESERVATION, CAPABILITIES, FULL_STATUS])
def test_data_in_is_cut_at_the_allocation_length(action: int) -> None:
    (one,) = cluster("one")
    one.does(REGISTER, 0, 1)
    one.does(RESERVE, 1, kind=WE_RO)
    whole = one.asks(action)
    for length in range(len(whole) + 2):
        assert one.good(in_cdb(action, length)) == whole[:length]


@pytest.mark.parametrize("action", range(4, 32))
def test_other_service_actions_are_refused(action: int) -> None:
    (one,) = cluster("one")
    assert one.refused(in_cdb(action)) == (1, 4)
    if action > 8:
        assert one.refused(bytes([0x5F, action, 1, 0, 0, 0, 0, 0, 24, 0]), bytes(24)) == (1, 4)
