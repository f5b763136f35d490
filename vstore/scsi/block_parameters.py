"""Parameter data and parameter lists of the block commands, as SBC-3 prints them. Only bytes stand here."""

from vstore.scsi.field import Field, Layout, bit, bits, u8, u16, u32, u64


class Capacity10(Layout, length=8):
    """SBC-3 5.15.2."""

    returned_lba = u32(0)
    logical_block_length = u32(4)


class Capacity16(Layout, length=32):
    """SBC-3 5.16.2."""

    returned_lba = u64(0)
    logical_block_length = u32(8)
    p_type = bits(12, 3, 1)
    prot_en = bit(12, 0)
    p_i_exponent = bits(13, 7, 4)
    logical_blocks_per_physical_block_exponent = bits(13, 3, 0)
    lbpme = bit(14, 7)
    lbprz = bit(14, 6)
    lowest_aligned_lba = Field(14, 5, 14)


class UnmapHeader(Layout, length=8):
    """SBC-3 5.28.2; block descriptors follow."""

    unmap_data_length = u16(0)
    unmap_block_descriptor_data_length = u16(2)


class UnmapBlockDescriptor(Layout, length=16):
    lba = u64(0)
    number_of_logical_blocks = u32(8)


class FormatHeaderShort(Layout, length=4):
    """SBC-3 5.3.2.2; without LONGLIST."""

    protection_fields_usage = bits(0, 2, 0)
    fov = bit(1, 7)
    dpry = bit(1, 6)
    dcrt = bit(1, 5)
    stpf = bit(1, 4)
    ip = bit(1, 3)
    immed = bit(1, 1)
    defect_list_length = u16(2)


class FormatHeaderLong(Layout, length=8):
    """With LONGLIST."""

    protection_fields_usage = bits(0, 2, 0)
    fov = bit(1, 7)
    dpry = bit(1, 6)
    dcrt = bit(1, 5)
    stpf = bit(1, 4)
    ip = bit(1, 3)
    immed = bit(1, 1)
    p_i_information = bits(3, 7, 4)
    protection_interval_exponent = bits(3, 3, 0)
    defect_list_length = u32(4)


class InitializationPattern(Layout, length=4):
    """SBC-3 5.3.2.3; the pattern follows."""

    si = bit(0, 5)
    initialization_pattern_type = u8(1)
    initialization_pattern_length = u16(2)


class OverwriteParameters(Layout, length=4):
    """SBC-3 5.24.2.2; the pattern follows."""

    invert = bit(0, 7)
    test = bits(0, 6, 5)
    overwrite_count = bits(0, 4, 0)
    initialization_pattern_length = u16(2)


class LbaStatusHeader(Layout, length=8):
    """SBC-3 5.5.2; LBA status descriptors follow."""

    parameter_data_length = u32(0)


class LbaStatusDescriptor(Layout, length=16):
    lba = u64(0)
    number_of_logical_blocks = u32(8)
    provisioning_status = bits(12, 3, 0)


class DefectDataHeader10(Layout, length=4):
    """SBC-3 5.17.2; address descriptors would follow."""

    plistv = bit(1, 4)
    glistv = bit(1, 3)
    defect_list_format = bits(1, 2, 0)
    defect_list_length = u16(2)


class DefectDataHeader12(Layout, length=8):
    """SBC-3 5.18.2."""

    plistv = bit(1, 4)
    glistv = bit(1, 3)
    defect_list_format = bits(1, 2, 0)
    generation_code = u16(2)
    defect_list_length = u32(4)
