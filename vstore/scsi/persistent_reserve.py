"""PERSISTENT RESERVE IN and OUT as SPC-4 6.15 and 6.16 print them: CDBs, parameter data and parameter lists.

A row per service action. What a PERSISTENT RESERVE OUT meets beside a reservation is not said by its row's column but
by the tables of its service action (SPC-4 table 67), which persistent_reserve_out.py follows.
"""

from vstore.scsi.cdb import Beside, Cdb
from vstore.scsi.field import IGNORED, Layout, bit, bits, u16, u32, u64

# ---- PERSISTENT RESERVE IN ------------------------------------------------------------------------------


class _PersistentReserveIn(Cdb, name="", opcode=0x5E, length=10):
    """What its service actions have in common; no row of the table."""

    allocation_length = u16(7)

    def __init_subclass__(cls, *, action: str, service_action: int) -> None:
        super().__init_subclass__(
            name=f"PERSISTENT RESERVE IN ({action})",
            opcode=0x5E,
            length=10,
            service_action=service_action,
            beside=Beside.SERVED,
        )


class ReadKeys(_PersistentReserveIn, action="READ KEYS", service_action=0x00): ...


class ReadReservation(_PersistentReserveIn, action="READ RESERVATION", service_action=0x01): ...


class ReportCapabilities(_PersistentReserveIn, action="REPORT CAPABILITIES", service_action=0x02): ...


class ReadFullStatus(_PersistentReserveIn, action="READ FULL STATUS", service_action=0x03): ...


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


class _PersistentReserveOut(Cdb, name="", opcode=0x5F, length=10):
    """What its service actions have in common; no row of the table. SCOPE and TYPE are not ignored by all."""

    scope = bits(2, 7, 4, IGNORED)
    type = bits(2, 3, 0, IGNORED)
    parameter_list_length = u32(5)

    def __init_subclass__(cls, *, action: str, service_action: int) -> None:
        super().__init_subclass__(
            name=f"PERSISTENT RESERVE OUT ({action})",
            opcode=0x5F,
            length=10,
            service_action=service_action,
            beside=Beside.SERVED,
        )


class Register(_PersistentReserveOut, action="REGISTER", service_action=0x00): ...


class Reserve(_PersistentReserveOut, action="RESERVE", service_action=0x01):
    scope = bits(2, 7, 4)
    type = bits(2, 3, 0)


class Release(_PersistentReserveOut, action="RELEASE", service_action=0x02):
    scope = bits(2, 7, 4)
    type = bits(2, 3, 0)


class Clear(_PersistentReserveOut, action="CLEAR", service_action=0x03): ...


class Preempt(_PersistentReserveOut, action="PREEMPT", service_action=0x04):
    scope = bits(2, 7, 4)
    type = bits(2, 3, 0)


class PreemptAndAbort(_PersistentReserveOut, action="PREEMPT AND ABORT", service_action=0x05):
    scope = bits(2, 7, 4)
    type = bits(2, 3, 0)


class RegisterAndIgnoreExistingKey(
    _PersistentReserveOut, action="REGISTER AND IGNORE EXISTING KEY", service_action=0x06
): ...


class RegisterAndMove(_PersistentReserveOut, action="REGISTER AND MOVE", service_action=0x07): ...


class ReplaceLostReservation(_PersistentReserveOut, action="REPLACE LOST RESERVATION", service_action=0x08):
    scope = bits(2, 7, 4)
    type = bits(2, 3, 0)


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
