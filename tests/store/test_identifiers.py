"""Names, labels, sizes and LUN addresses: what is taken, and what the refusal says."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore.scsi.identity import SERIAL_LENGTH, Identity
from vstore.store.errors import InvalidArgument
from vstore.store.identifiers import (
    MAX_LUN,
    MAX_SCSI_TARGET,
    LunAddress,
    check_labels,
    check_name,
    check_serial,
    check_size,
    new_id,
    timestamp,
)


@pytest.mark.parametrize("name", ["a", "0", "web-root.v2_x", "a" * 63])
def test_plain_names_are_taken(name: str) -> None:
    assert check_name("image", name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "A", "a" * 64, "a/b", "../a", "a\0", "a\n", "a b", "ä", "a\udcff"]
)
def test_names_that_could_mean_something_else_are_refused_with_the_rule(name: str) -> None:
    with pytest.raises(InvalidArgument, match="use 1 to 63 of a-z 0-9") as refusal:
        check_name("image", name)
    assert refusal.value.field == "image"


@given(st.integers(0, MAX_SCSI_TARGET), st.integers(0, MAX_LUN))
def test_a_lun_address_reads_as_it_is_written(scsi_target: int, lun: int) -> None:
    address = LunAddress(scsi_target, lun)
    assert LunAddress.parse(str(address)) == address


def test_target_zero_is_left_out_of_a_lun_address() -> None:
    assert str(LunAddress.parse("0:7")) == "7"


@pytest.mark.parametrize("text", ["", "x", "-1", "1:", ":1", "1:2:3", "256:0", "16384", "0x1", " 1", "1\n", "٣"])
def test_a_lun_address_out_of_range_or_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        LunAddress.parse(text)
    assert refusal.value.field == "lun"


def test_a_size_between_sectors_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(InvalidArgument, match="nearest: 1024 or 1536"):
        check_size("virtual_size_bytes", 1100)


@pytest.mark.parametrize("size", [-512, 0, 511, 2**63])
def test_a_size_that_no_disk_has_is_refused(size: int) -> None:
    with pytest.raises(InvalidArgument, match="choose 512 to"):
        check_size("virtual_size_bytes", size)


def test_labels_are_bounded_in_number_key_and_value() -> None:
    assert check_labels({"a/b.c": "x y", "n": ""}) == {"a/b.c": "x y", "n": ""}
    for labels in ({"A": "x"}, {"a": "x" * 256}, {"a": "\n"}, {"a": "\udfff"}, {f"k{n}": "" for n in range(65)}):
        with pytest.raises(InvalidArgument):
            check_labels(labels)


@pytest.mark.parametrize("serial", ["", "a b", "ä", "x" * 37, "a\n"])
def test_a_serial_that_is_no_printable_ascii_is_refused(serial: str) -> None:
    with pytest.raises(InvalidArgument, match="ASCII"):
        check_serial(serial)


def test_a_serial_is_taken_up_to_the_length_that_a_unit_may_have() -> None:
    longest = "x" * SERIAL_LENGTH
    assert Identity(check_serial(longest)).serial == longest
    with pytest.raises(InvalidArgument, match=f"use 1 to {SERIAL_LENGTH} ASCII"):
        check_serial(longest + "x")


def test_an_id_is_a_uuid_of_version_7_and_sorts_by_time() -> None:
    ids = [new_id() for _ in range(100)]
    assert all(uuid.UUID(each).version == 7 and uuid.UUID(each).variant == uuid.RFC_4122 for each in ids)
    assert [each[:13] for each in ids] == sorted(each[:13] for each in ids)


def test_a_timestamp_is_rfc_3339_in_utc() -> None:
    assert timestamp()[10] == "T"
    assert timestamp().endswith("Z")
