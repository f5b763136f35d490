"""Parameter data of REPORT TARGET PORT GROUPS and REPORT IDENTIFYING INFORMATION, as SPC-4 prints them. Only bytes
stand here."""

from vstore.scsi.field import Layout, bit, bits, u8, u16, u32


class TargetPortGroupsExtendedHeader(Layout, length=8):
    """SPC-4 6.36.2; target port group descriptors follow. Without the header their length alone precedes them."""

    return_data_length = u32(0)
    format_type = bits(4, 6, 4)
    implicit_transition_time = u8(5)


class TargetPortGroup(Layout, length=8):
    """SPC-4 6.36.2; a descriptor for each of its target ports follows."""

    pref = bit(0, 7)
    asymmetric_access_state = bits(0, 3, 0)
    t_sup = bit(1, 7)
    o_sup = bit(1, 6)
    lbd_sup = bit(1, 4)
    u_sup = bit(1, 3)
    s_sup = bit(1, 2)
    an_sup = bit(1, 1)
    ao_sup = bit(1, 0)
    target_port_group = u16(2)
    status_code = u8(5)
    target_port_count = u8(7)


class TargetPortDescriptor(Layout, length=4):
    relative_target_port = u16(2)


class IdentifyingInformationHeader(Layout, length=4):
    """SPC-4 6.34.2; the information follows, or descriptors of the supported types."""

    identifying_information_length = u16(2)


class IdentifyingInformationDescriptor(Layout, length=4):
    """SPC-4 6.34.3."""

    identifying_information_type = bits(0, 7, 1)
    maximum_identifying_information_length = u16(2)
