import pytest

from vstore.scsi.transport_id import LONGEST_NAME, NexusName, encode_transport_id, parse_transport_id


def test_machines_have_names_that_last_and_no_two_the_same() -> None:
    names = ["web", "web.1", "web_1", "Web", "WEB", "a b", "", "x" * 64, "x" * 63, "\N{SNOWMAN}", "-web"]
    initiators = {NexusName.of_machine(name, 1).initiator for name in names}
    assert len(initiators) == len(names)
    assert NexusName.of_machine("web", 3) == ("iqn.2024-08.internal.vstore:web", 3)
    for initiator in initiators:
        encoded = encode_transport_id(initiator)
        assert parse_transport_id(encoded) == (initiator, len(encoded))


def test_the_bytes_are_those_of_an_iscsi_initiator_device() -> None:
    # sg_persist reads a list of TransportIDs that begins with this one
    assert encode_transport_id("iqn.5886.com.acme.diskarrays") == bytes.fromhex(
        "05000020 69716e2e 35383836 2e636f6d 2e61636d 652e6469 736b6172 72617973 00000000"
    )
    assert encode_transport_id("iqn.x") == b"\x05\0\0\x14iqn.x" + bytes(15)


@pytest.mark.parametrize("length", range(5, LONGEST_NAME + 1, 3))
def test_names_of_every_length_fit(length: int) -> None:
    name = "iqn." + "x" * (length - 4)
    encoded = encode_transport_id(name)
    assert len(encoded) % 4 == 0
    assert len(encoded) >= 24
    assert parse_transport_id(encoded + b"more") == (name, len(encoded))
    for cut in range(0, len(encoded), 7):
        assert parse_transport_id(encoded[:cut]) is None


def test_case_makes_no_difference() -> None:
    assert parse_transport_id(b"\x05\0\0\x14IQN.Web" + bytes(13)) == ("iqn.web", 24)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x05\0\0",
        b"\x45\0\0\x14iqn.x" + bytes(15),  # with a session
        b"\x00\0\0\x14iqn.x" + bytes(15),  # Fibre Channel
        b"\x15\0\0\x14iqn.x" + bytes(15),  # reserved bits
        b"\x05\x01\0\x14iqn.x" + bytes(15),
        b"\x05\0\0\x10iqn.x" + bytes(11),  # shorter than 20
        b"\x05\0\0\x15iqn.x" + bytes(16),  # no multiple of 4
        b"\x05\0\0\x14iqn.x\0y" + bytes(13),  # something in the padding
        b"\x05\0\0\x14iqn.567890123456789X",  # no end
        b"\x05\0\0\x14" + bytes(20),
        b"\x05\0\0\x14xyz.x" + bytes(15),
        b"\x05\0\0\x14iqn.\xff" + bytes(15),
        b"\x05\0\0\x14iqn._" + bytes(15),
        b"\x05\0\0\xe4iqn." + b"x" * 222 + bytes(2),
    ],
)
def test_what_is_no_such_name_is_none(data: bytes) -> None:
    assert parse_transport_id(data) is None
