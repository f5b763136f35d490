"""Vital product data: the values of each page (SPC-4 7.8, SBC-3 6.6). SUPPORTED VPD PAGES is the registry itself.

Each is asked through a target port, whose relative identifier the functions get beside the unit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from vstore.scsi.device_server import DeviceServer
from vstore.scsi.direct_access import MAXIMUM_COMPARE_AND_WRITE, MAXIMUM_UNMAP_DESCRIPTORS, DirectAccessDevice
from vstore.scsi.field import Layout
from vstore.scsi.mode_parameters import ALL_PAGES, ALL_SUBPAGES
from vstore.scsi.pages import (
    BlockDeviceCharacteristics,
    BlockLimits,
    DesignationDescriptor,
    ExtendedInquiry,
    LogicalBlockProvisioning,
    ModePagePolicy,
    ScsiPort,
)
from vstore.scsi.target_ports import group_of, ports_of

Body = Callable[[Any, int], bytes]

_BINARY, _ASCII = 1, 2
_T10_VENDOR_ID, _NAA, _RELATIVE_PORT, _TARGET_PORT_GROUP = 1, 3, 4, 5
_TARGET_PORT = 1  # association
_THIN_PROVISIONED = 2
_READ_AT_ONCE = 0b01  # WABEREQ, WACEREQ: with GOOD status, whatever the data are
_NO_LIMIT = 0xFFFF_FFFF


class VpdPage(NamedTuple):
    """`layout`: where the page is one structure; what it holds otherwise, the docstring of `body` says."""

    name: str
    body: Body
    layout: type[Layout] | None = None


def supported_pages(_: DirectAccessDevice, __: int) -> bytes:
    """The codes of these pages, ascending."""
    return bytes(sorted(VPD_PAGES))


def unit_serial_number(unit: DirectAccessDevice, _: int) -> bytes:
    """The serial number, in ASCII."""
    return unit.identity.serial.encode("ascii")


def device_identification(unit: DirectAccessDevice, port: int) -> bytes:
    """Two designators of the logical unit: NAA, locally assigned, 8 bytes; T10 vendor identification and serial. Two of
    the target port that the command came through: its relative identifier, and its target port group."""
    named = b"".join(
        DesignationDescriptor.of(code_set=code_set, designator_type=kind, designator_length=len(designator)).encode()
        + designator
        for code_set, kind, designator in designators(unit)
    )
    return named + _of_port(_RELATIVE_PORT, port) + _of_port(_TARGET_PORT_GROUP, group_of(port))


def designators(unit: DirectAccessDevice) -> list[tuple[int, int, bytes]]:
    """Code set, designator type and designator of each that the logical unit has: NAA first, which initiators prefer;
    both are short, because long ones break some (virtio-win 1622)."""
    identity = unit.identity
    t10 = f"{identity.vendor:8}{identity.serial}".encode("ascii")
    return [(_BINARY, _NAA, identity.naa.to_bytes(8)), (_ASCII, _T10_VENDOR_ID, t10)]


def _of_port(kind: int, value: int) -> bytes:
    """A designator of the target port: two reserved bytes, and a number."""
    header = DesignationDescriptor.of(
        code_set=_BINARY, association=_TARGET_PORT, designator_type=kind, designator_length=4
    )
    return header.encode() + value.to_bytes(4)


def extended_inquiry(_: DirectAccessDevice, __: int) -> bytes:
    """Every task attribute but ACA; a volatile cache; LUICLR: REPORT LUNS ends its attention for whoever asks."""
    return ExtendedInquiry.of(headsup=1, ordsup=1, simpsup=1, v_sup=1, luiclr=1).encode()


def mode_page_policy(_: DirectAccessDevice, __: int) -> bytes:
    """Every page is shared by all nexuses."""
    return ModePagePolicy.of(policy_page_code=ALL_PAGES, policy_subpage_code=ALL_SUBPAGES).encode()


def scsi_ports(unit: DirectAccessDevice, port: int) -> bytes:
    """The target ports that lead to the unit by their relative identifiers; they have no names."""
    return b"".join(ScsiPort.of(relative_port=each).encode() for each in ports_of(unit, port))


def block_limits(unit: DirectAccessDevice, _: int) -> bytes:
    """The limits that the block commands hold to; without thin provisioning, those of UNMAP are zero. Atomic writes may
    begin anywhere and be of any length up to their limit; a unit that keeps nothing over a restart has none."""
    physical_block = 1 << unit.physical_block_exponent
    return BlockLimits.of(
        wsnz=1,
        maximum_compare_and_write_length=MAXIMUM_COMPARE_AND_WRITE,
        optimal_transfer_length_granularity=physical_block,
        maximum_transfer_length=unit.maximum_transfer,
        maximum_unmap_lba_count=_NO_LIMIT if unit.thin else 0,
        maximum_unmap_block_descriptor_count=MAXIMUM_UNMAP_DESCRIPTORS if unit.thin else 0,
        optimal_unmap_granularity=physical_block if unit.thin else 0,
        ugavalid=int(unit.thin),
        maximum_write_same_length=unit.maximum_write_same,
        maximum_atomic_transfer_length=unit.maximum_atomic,
        maximum_atomic_transfer_length_with_atomic_boundary=unit.maximum_atomic,
        maximum_atomic_boundary_size=unit.maximum_atomic,
    ).encode()


def block_device_characteristics(unit: DirectAccessDevice, _: int) -> bytes:
    """A medium that does not rotate, unless told otherwise. WABEREQ, WACEREQ: after a SANITIZE of that kind, where
    there is one, blocks can be read before they are written."""
    return BlockDeviceCharacteristics.of(
        medium_rotation_rate=unit.rotation_rate,
        wabereq=_READ_AT_ONCE if unit.thin else 0,
        wacereq=_READ_AT_ONCE if unit.replaces_key else 0,
        fuab=1,
        vbuls=1,
    ).encode()


def logical_block_provisioning(unit: DirectAccessDevice, _: int) -> bytes:
    """UNMAP, WRITE SAME (10) and WRITE SAME (16) deallocate, and what is deallocated reads as zeros; or all zero.
    ANC_SUP where discarded blocks keep their places in the image (`--discard keep` of a qcow2 image). A raw image has
    none: what its file system has reserved and not written is told as such only after all was written back, by some
    file systems and by no block device, so a block there is mapped or deallocated."""
    if not unit.thin:
        return LogicalBlockProvisioning().encode()
    return LogicalBlockProvisioning.of(
        threshold_exponent=unit.threshold_exponent,
        lbpu=1,
        lbpws=1,
        lbpws10=1,
        lbprz=1,
        anc_sup=int(unit.anchors),
        provisioning_type=_THIN_PROVISIONED,
    ).encode()


VPD_PAGES = {
    0x00: VpdPage("Supported VPD Pages", supported_pages),
    0x80: VpdPage("Unit Serial Number", unit_serial_number),
    0x83: VpdPage("Device Identification", device_identification),
    0x86: VpdPage("Extended INQUIRY Data", extended_inquiry, ExtendedInquiry),
    0x87: VpdPage("Mode Page Policy", mode_page_policy, ModePagePolicy),
    0x88: VpdPage("SCSI Ports", scsi_ports, ScsiPort),
    0xB0: VpdPage("Block Limits", block_limits, BlockLimits),
    0xB1: VpdPage("Block Device Characteristics", block_device_characteristics, BlockDeviceCharacteristics),
    0xB2: VpdPage("Logical Block Provisioning", logical_block_provisioning, LogicalBlockProvisioning),
}


# ---- the well known logical unit -----------------------------------------------------------------------


def well_known_supported_pages(_: DeviceServer, __: int) -> bytes:
    """The codes of these pages, ascending."""
    return bytes(sorted(WELL_KNOWN_VPD_PAGES))


def well_known_identification(_: DeviceServer, port: int) -> bytes:
    """One designator, of the target port it is reached by: its relative identifier. A well known logical unit has none
    of its own (SPC-4 7.8.6.2.2)."""
    return _of_port(_RELATIVE_PORT, port)


WELL_KNOWN_VPD_PAGES = {
    0x00: VpdPage("Supported VPD Pages", well_known_supported_pages),
    0x83: VpdPage("Device Identification", well_known_identification),
}
