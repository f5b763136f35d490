"""The structures of virtio-scsi have the sizes and offsets that linux/virtio_scsi.h gives them."""

import struct

import pytest

from vstore.vhost_user import layout
from vstore.vhost_user.structure import U8, U16, U64, Structure, StructureError

# As a C compiler lays out the structures of linux/virtio_scsi.h.
SIZES = {
    layout.Configuration: 36,
    layout.CommandHeader: 51,
    layout.CommandResponse: 108,
    layout.TaskManagementRequest: 24,
    layout.TaskManagementResponse: 1,
    layout.NotificationRequest: 16,
    layout.NotificationResponse: 5,
    layout.Event: 16,
}


class Mixed(Structure, byte_order="<"):
    first: U8
    second: U64
    third: U16


@pytest.mark.parametrize(("structure", "size"), SIZES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_structure_has_its_size_in_c(structure: type[Structure], size: int) -> None:
    assert structure.octets == size
    assert structure.unpack(bytes(range(size))).pack() == bytes(range(size))


def test_the_configuration_space_has_its_fields_where_drivers_look() -> None:
    packed = layout.Configuration(num_queues=7).pack()
    assert struct.unpack("<IIIIIIIHHI", packed) == (7, 126, 0xFFFF, 128, 16, 96, 32, 0, 255, 16383)


def test_fields_are_packed_without_gaps_in_their_own_byte_order() -> None:
    assert Mixed(1, 2, 3).pack() == bytes.fromhex("0102000000000000000300")
    assert Mixed.unpack(Mixed(1, 2, 3).pack()) == Mixed(1, 2, 3)


@pytest.mark.parametrize("length", [0, 10, 12])
def test_bytes_of_another_length_are_not_the_structure(length: int) -> None:
    with pytest.raises(StructureError, match=f"{length} bytes where Mixed has 11"):
        Mixed.unpack(bytes(length))


def test_a_value_that_does_not_fit_its_field_is_our_fault() -> None:
    with pytest.raises(struct.error):
        Mixed(256, 0, 0).pack()


def test_events_name_units_in_flat_space_addressing() -> None:
    assert layout.lun_octets(3, 0x1234) == bytes.fromhex("0103523400000000")
