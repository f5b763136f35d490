"""Parameter lists and data of EXTENDED COPY (LID1) and RECEIVE COPY as SPC-4 6.4 and 6.20 to 6.23 print them. Only
bytes stand here."""

from vstore.scsi.field import Field, Layout, bit, bits, u8, u16, u32, u64


class CopyHeader(Layout, length=16):
    """SPC-4 6.4.2; CSCD descriptors, segment descriptors and inline data follow."""

    list_identifier = u8(0)
    str = bit(1, 5)
    list_id_usage = bits(1, 4, 3)
    priority = bits(1, 2, 0)
    cscd_descriptor_list_length = u16(2)
    segment_descriptor_list_length = u32(8)
    inline_data_length = u32(12)


class IdentificationCscd(Layout, length=32):
    """SPC-4 6.4.5.2: a logical unit by one of its designators."""

    descriptor_type_code = u8(0)
    lu_id_type = bits(1, 7, 6)
    nul = bit(1, 5)
    peripheral_device_type = bits(1, 4, 0)
    relative_initiator_port_identifier = u16(2)
    code_set = bits(4, 3, 0)
    association = bits(5, 5, 4)
    designator_type = bits(5, 3, 0)
    designator_length = u8(7)
    designator = Field(8, 7, 160)
    pad = bit(28, 2)
    disk_block_length = Field(29, 7, 24)


class BlockToBlockSegment(Layout, length=28):
    """SPC-4 6.4.6.3."""

    descriptor_type_code = u8(0)
    dc = bit(1, 1)
    cat = bit(1, 0)
    descriptor_length = u16(2)
    source_cscd_descriptor_id = u16(4)
    destination_cscd_descriptor_id = u16(6)
    block_device_number_of_blocks = u16(10)
    source_lba = u64(12)
    destination_lba = u64(20)


class CopyStatus(Layout, length=12):
    """SPC-4 6.23."""

    available_data = u32(0)
    hdd = bit(4, 7)
    copy_manager_status = bits(4, 6, 0)
    segments_processed = u16(5)
    transfer_count_units = u8(7)
    transfer_count = u32(8)


class CopyOperatingParameters(Layout, length=44):
    """SPC-4 6.21; the implemented descriptor type codes follow."""

    available_data = u32(0)
    snlid = bit(4, 0)
    maximum_cscd_descriptor_count = u16(8)
    maximum_segment_descriptor_count = u16(10)
    maximum_descriptor_list_length = u32(12)
    maximum_segment_length = u32(16)
    maximum_inline_data_length = u32(20)
    held_data_limit = u32(24)
    maximum_stream_device_transfer_size = u32(28)
    total_concurrent_copies = u16(34)
    maximum_concurrent_copies = u8(36)
    data_segment_granularity = u8(37)
    inline_data_granularity = u8(38)
    held_data_granularity = u8(39)
    implemented_descriptor_list_length = u8(43)


class CopyFailureDetails(Layout, length=60):
    """SPC-4 6.20; sense data follow."""

    available_data = u32(0)
    extended_copy_command_status = u8(56)
    sense_data_length = u16(58)
