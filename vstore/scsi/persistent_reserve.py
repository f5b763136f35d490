"""PERSISTENT RESERVE IN and OUT as SPC-4 6.15 and 6.16 print them: CDBs, parameter data and parameter lists.

A row per service action. What a PERSISTENT RESERVE OUT meets beside a reservation is not said by its row's column but
by the tables of its service action (SPC-4 table 67), which persistent_reserve_out.py follows.
"""

from vstore.scsi.cdb import Beside, Cdb
from vstore.scsi.field import IGNORED, Layout, bit, bits, u16, u32, u64

# ---- PERSISTENT RESERVE IN ------------------------------------------------------------------------------


class ReadKeys(
    Cdb,
    name="PERSISTENT RESERVE IN (READ KEYS)",
    opcode=0x5E,
    service_action=0x00,
    length=10,
    beside=Beside.SERVED,
):
    allocation_length = u16(7)


class ReadReservation(
    Cdb,
    name="PERSISTENT RESERVE IN (READ RESERVATION)",
    opcode=0x5E,
    service_action=0x01,
    length=10,
    beside=Beside.SERVED,
):
    allocation_length = u16(7)


class ReportCapabilities(
    Cdb,
    name="PERSISTENT RESERVE IN (REPORT CAPABILITIES)",
    opcode=0x5E,
    service_action=0x02,
    length=10,
    beside=Beside.SERVED,
):
    allocation_length = u16(7)


class ReadFullStatus(
    Cdb,
    name="PERSISTENT RESERVE IN (READ FULL STATUS)",
    opcode=0x5E,
    service_action=0x03,
    length=10,
    beside=Beside.SERVED,
):
    allocation_length = u16(7)


class KeysHeader(Layout, length=8):
    """6.15.2; reservation keys follow, or the descriptors of 6.15.3 and 6.15.5."""

    prgeneration = u32(0)
    additional_length = u32(4)


class ReservationDescriptor(Layout, length=16):
    """6.15.3.2."""

    reservation_key = u64(0)
    scope = bits(13, 7, 4)
    type = bits(13, 3, 0)


class Capabilities(Layout, length=8):
    """6.15.4."""

    report_length = u16(0)
    rlr_c = bit(2, 7)
    crh = bit(2, 4)
    sip_c = bit(2, 3)
    atp_c = bit(2, 2)
    ptpl_c = bit(2, 0)
    tmv = bit(3, 7)
    allow_commands = bits(3, 6, 4)
    ptpl_a = bit(3, 0)
    wr_ex_ar = bit(4, 7)
    ex_ac_ro = bit(4, 6)
    wr_ex_ro = bit(4, 5)
    ex_ac = bit(4, 3)
    wr_ex = bit(4, 1)
    ex_ac_ar = bit(5, 0)


class FullStatusDescriptor(Layout, length=24):
    """6.15.5; the TransportID follows."""

    reservation_key = u64(0)
    all_tg_pt = bit(12, 1)
    r_holder = bit(12, 0)
    scope = bits(13, 7, 4)
    type = bits(13, 3, 0)
    relative_target_port_identifier = u16(18)
    additional_descriptor_length = u32(20)


# ---- PERSISTENT RESERVE OUT -----------------------------------------------------------------------------


class Register(
    Cdb,
    name="PERSISTENT RESERVE OUT (REGISTER)",
    opcode=0x5F,
    service_action=0x00,
    length=10,
    beside=Beside.SERVED,
):
    scope = bits(2, 7, 4, IGNORED)
    type = bits(2, 3, 0, IGNORED)
    parameter_list_length = u32(5)


class Reserve(
    Cdb,
    name="PERSISTENT RESERVE OUT (RESERVE)",
    opcode=0x5F,
    service_action=0x01,
    length=10,
    beside=Beside.SERVED,
):
    scope = bits(2, 7, 4)
    type = bits(2, 3, 0)
    parameter_list_length = u32(5)


class Release(
    Cdb,
    name="PERSISTENT RESERVE OUT (RELEASE)",
    opcode=0x5F,
    service_action=0x02,
    length=10,
    beside=Beside.SERVED,
):
    scope = bits(2, 7, 4)
    type = bits(2, 3, 0)
    parameter_list_length = u32(5)


class Clear(
    Cdb,
    name="PERSISTENT RESERVE OUT (CLEAR)",
    opcode=0x5F,
    service_action=0x03,
    length=10,
    beside=Beside.SERVED,
):
    scope = bits(2, 7, 4, IGNORED)
    type = bits(2, 3, 0, IGNORED)
    parameter_list_length = u32(5)


class Preempt(
    Cdb,
    name="PERSISTENT RESERVE OUT (PREEMPT)",
    opcode=0x5F,
    service_action=0x04,
    length=10,
    beside=Beside.SERVED,
):
    scope = bits(2, 7, 4)
    type = bits(2, 3, 0)
    parameter_list_length = u32(5)


class PreemptAndAbort(
    Cdb,
    name="PERSISTENT RESERVE OUT (PREEMPT AND ABORT)",
    opcode=0x5F,
    service_action=0x05,
    length=10,
    beside=Beside.SERVED,
):
    scope = bits(2, 7, 4)
    type = bits(2, 3, 0)
    parameter_list_length = u32(5)


class RegisterAndIgnoreExistingKey(
    Cdb,
    name="PERSISTENT RESERVE OUT (REGISTER AND IGNORE EXISTING KEY)",
    opcode=0x5F,
    service_action=0x06,
    length=10,
    beside=Beside.SERVED,
):
    scope = bits(2, 7, 4, IGNORED)
    type = bits(2, 3, 0, IGNORED)
    parameter_list_length = u32(5)


class RegisterAndMove(
    Cdb,
    name="PERSISTENT RESERVE OUT (REGISTER AND MOVE)",
    opcode=0x5F,
    service_action=0x07,
    length=10,
    beside=Beside.SERVED,
):
    scope = bits(2, 7, 4, IGNORED)
    type = bits(2, 3, 0, IGNORED)
    parameter_list_length = u32(5)


class ReplaceLostReservation(
    Cdb,
    name="PERSISTENT RESERVE OUT (REPLACE LOST RESERVATION)",
    opcode=0x5F,
    service_action=0x08,
    length=10,
    beside=Beside.SERVED,
):
    scope = bits(2, 7, 4)
    type = bits(2, 3, 0)
    parameter_list_length = u32(5)


class BasicParameters(Layout, length=24):
    """6.16.3; with SPEC_I_PT the length of TransportIDs in 4 bytes, and these, follow."""

    reservation_key = u64(0)
    service_action_reservation_key = u64(8)
    obsolete = u32(16, IGNORED)
    spec_i_pt = bit(20, 3)
    all_tg_pt = bit(20, 2)
    aptpl = bit(20, 0)
    obsolete_too = u16(22, IGNORED)


class MoveParameters(Layout, length=24):
    """6.16.4; the TransportID follows."""

    reservation_key = u64(0)
    service_action_reservation_key = u64(8)
    unreg = bit(17, 1)
    aptpl = bit(17, 0)
    relative_target_port_identifier = u16(18)
    transportid_length = u32(20)
