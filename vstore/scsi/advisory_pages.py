"""Mode pages that initiators ask for and that say here that nothing is so: of bursts on a bus, of application tags, of
hints for groups of blocks."""

from vstore.scsi.field import Layout, bit, bits, u8, u16, u64

GROUPS = 64  # as many as GROUP NUMBER, of six bits, can name
_RESERVED = bytes(12)


class DisconnectReconnect(Layout, length=14):
    """Mode page 02h (SPC-4 7.5.10), without the page header. A virtual machine's queues never disconnect."""

    buffer_full_ratio = u8(0)
    buffer_empty_ratio = u8(1)
    bus_inactivity_limit = u16(2)
    disconnect_time_limit = u16(4)
    connect_time_limit = u16(6)
    maximum_burst_size = u16(8)
    emdp = bit(10, 7)
    fair_arbitration = bits(10, 6, 4)
    dimm = bit(10, 3)
    dtdc = bits(10, 2, 0)
    first_burst_size = u16(12)


class ApplicationTag(Layout, length=36):
    """Mode page 0Ah/02h (SBC-3 6.5.3), without the page header: one descriptor, the last, of no blocks. There is no
    protection information, so no block has a tag."""

    last = bit(12, 7)
    logical_block_application_tag = u16(18)
    logical_block_address = u64(20)
    logical_block_count = u64(28)


class IoAdviceHints(Layout, length=16):
    """The descriptor of one group in mode page 0Ah/05h (SBC-4 6.5.7)."""

    io_advice_hints_mode = bits(0, 7, 6)
    st_enble = bit(0, 2)
    cs_enble = bit(0, 1)
    ic_enable = bit(0, 0)
    acdlu = bit(4, 7)
    rlbsr = bits(4, 5, 4)
    lbm_descriptor_type = bits(4, 3, 0)


class IoAdviceHintsGrouping(Layout, length=len(_RESERVED) + GROUPS * IoAdviceHints.length):
    """Mode page 0Ah/05h (SBC-4 6.5.7), without the page header: a descriptor for each GROUP NUMBER, in order, of which
    the first is told here. All are the same."""

    io_advice_hints_mode = bits(12, 7, 6)
    st_enble = bit(12, 2)
    cs_enble = bit(12, 1)
    ic_enable = bit(12, 0)


_INVALID = 1  # IO ADVICE HINTS MODE: the group has no hints

NO_TAGS = ApplicationTag.of(last=1)
NO_HINTS = IoAdviceHintsGrouping.parse(_RESERVED + IoAdviceHints.of(io_advice_hints_mode=_INVALID).encode() * GROUPS)
