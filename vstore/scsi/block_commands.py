"""The CDBs of SBC-3 in the order of operation codes: see commands.py."""

from vstore.scsi.cdb import Access, Beside, Cdb, Fast
from vstore.scsi.field import HINT, IGNORED, ZERO, Field, bit, bits, u8, u16, u32, u64


class FormatUnit(Cdb, name="FORMAT UNIT", opcode=0x04, length=6, access=Access.ERASE):
    fmtpinfo = bits(1, 7, 6, ZERO)
    longlist = bit(1, 5)
    fmtdata = bit(1, 4)
    cmplst = bit(1, 3, HINT)  # a list of defects is empty, complete or not
    defect_list_format = bits(1, 2, 0, HINT)
    ffmt = bits(4, 1, 0, ZERO)


class Read6(Cdb, name="READ (6)", opcode=0x08, length=6, access=Access.READ, fast=Fast.READ):
    lba = Field(1, 4, 21)
    transfer_length = u8(4)


class Write6(Cdb, name="WRITE (6)", opcode=0x0A, length=6, access=Access.WRITE, fast=Fast.WRITE):
    lba = Field(1, 4, 21)
    transfer_length = u8(4)


class StartStopUnit(Cdb, name="START STOP UNIT", opcode=0x1B, length=6, beside_if=("start", 1)):
    immed = bit(1, 0)
    power_condition_modifier = bits(3, 3, 0, ZERO)
    power_condition = bits(4, 7, 4, ZERO)
    no_flush = bit(4, 2)
    loej = bit(4, 1, ZERO)
    start = bit(4, 0)


class PreventAllowMediumRemoval(
    Cdb, name="PREVENT ALLOW MEDIUM REMOVAL", opcode=0x1E, length=6, beside_if=("prevent", 0)
):
    obsolete = bit(4, 1, ZERO)  # of PREVENT
    prevent = bit(4, 0)


class ReadCapacity10(
    Cdb, name="READ CAPACITY (10)", opcode=0x25, length=10, passes_reservation=True, beside=Beside.SERVED
):
    lba = u32(2, ZERO)  # obsolete, as PMI is
    pmi = bit(8, 0, ZERO)


class Read10(Cdb, name="READ (10)", opcode=0x28, length=10, access=Access.READ, fast=Fast.READ):
    rdprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    fua = bit(1, 3)
    rarc = bit(1, 2, ZERO)
    lba = u32(2)
    group_number = bits(6, 4, 0, IGNORED)
    transfer_length = u16(7)


class Write10(Cdb, name="WRITE (10)", opcode=0x2A, length=10, access=Access.WRITE, fast=Fast.WRITE):
    wrprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    fua = bit(1, 3)
    lba = u32(2)
    group_number = bits(6, 4, 0, IGNORED)
    transfer_length = u16(7)


class WriteAndVerify10(Cdb, name="WRITE AND VERIFY (10)", opcode=0x2E, length=10, access=Access.WRITE):
    wrprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    bytchk = bits(1, 2, 1)
    lba = u32(2)
    group_number = bits(6, 4, 0, IGNORED)
    transfer_length = u16(7)


class Verify10(Cdb, name="VERIFY (10)", opcode=0x2F, length=10, access=Access.READ):
    vrprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    bytchk = bits(1, 2, 1)
    lba = u32(2)
    group_number = bits(6, 4, 0, IGNORED)
    verification_length = u16(7)


class PreFetch10(Cdb, name="PRE-FETCH (10)", opcode=0x34, length=10, access=Access.READ):
    immed = bit(1, 1)
    lba = u32(2)
    group_number = bits(6, 4, 0, IGNORED)
    prefetch_length = u16(7)


class SynchronizeCache10(
    Cdb, name="SYNCHRONIZE CACHE (10)", opcode=0x35, length=10, access=Access.FLUSH, fast=Fast.SYNCHRONIZE
):
    immed = bit(1, 1)
    lba = u32(2)
    group_number = bits(6, 4, 0, IGNORED)
    number_of_logical_blocks = u16(7)


class ReadDefectData10(Cdb, name="READ DEFECT DATA (10)", opcode=0x37, length=10, beside=Beside.SERVED_AS_READ):
    req_plist = bit(2, 4)
    req_glist = bit(2, 3)
    defect_list_format = bits(2, 2, 0)
    allocation_length = u16(7)


class WriteSame10(Cdb, name="WRITE SAME (10)", opcode=0x41, length=10, access=Access.WRITE, fast=Fast.WRITE_SAME):
    wrprotect = bits(1, 7, 5, ZERO)
    anchor = bit(1, 4)
    unmap = bit(1, 3)
    lba = u32(2)
    group_number = bits(6, 4, 0, IGNORED)
    number_of_logical_blocks = u16(7)


class Unmap(Cdb, name="UNMAP", opcode=0x42, length=10, access=Access.WRITE, fast=Fast.UNMAP):
    anchor = bit(1, 0)
    group_number = bits(6, 4, 0, IGNORED)
    parameter_list_length = u16(7)


class SanitizeOverwrite(
    Cdb, name="SANITIZE (OVERWRITE)", opcode=0x48, service_action=0x01, length=10, access=Access.ERASE
):
    immed = bit(1, 7)
    znr = bit(1, 6, ZERO)
    ause = bit(1, 5)
    parameter_list_length = u16(7)


class SanitizeBlockErase(
    Cdb, name="SANITIZE (BLOCK ERASE)", opcode=0x48, service_action=0x02, length=10, access=Access.ERASE
):
    immed = bit(1, 7)
    znr = bit(1, 6, ZERO)
    ause = bit(1, 5)
    parameter_list_length = u16(7, ZERO)


class SanitizeCryptographicErase(
    Cdb, name="SANITIZE (CRYPTOGRAPHIC ERASE)", opcode=0x48, service_action=0x03, length=10, access=Access.ERASE
):
    immed = bit(1, 7)
    znr = bit(1, 6, ZERO)
    ause = bit(1, 5)
    parameter_list_length = u16(7, ZERO)


class SanitizeExitFailureMode(Cdb, name="SANITIZE (EXIT FAILURE MODE)", opcode=0x48, service_action=0x1F, length=10):
    immed = bit(1, 7, IGNORED)
    znr = bit(1, 6, ZERO)
    ause = bit(1, 5, IGNORED)
    parameter_list_length = u16(7, ZERO)


class Read16(Cdb, name="READ (16)", opcode=0x88, length=16, access=Access.READ, fast=Fast.READ):
    rdprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    fua = bit(1, 3)
    rarc = bit(1, 2, ZERO)
    lba = u64(2)
    transfer_length = u32(10)
    group_number = bits(14, 4, 0, IGNORED)


class CompareAndWrite(Cdb, name="COMPARE AND WRITE", opcode=0x89, length=16, access=Access.WRITE):
    wrprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    fua = bit(1, 3)
    lba = u64(2)
    number_of_logical_blocks = u8(13)
    group_number = bits(14, 4, 0, IGNORED)


class Write16(Cdb, name="WRITE (16)", opcode=0x8A, length=16, access=Access.WRITE, fast=Fast.WRITE):
    wrprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    fua = bit(1, 3)
    lba = u64(2)
    transfer_length = u32(10)
    group_number = bits(14, 4, 0, IGNORED)


class OrWrite16(Cdb, name="ORWRITE (16)", opcode=0x8B, length=16, access=Access.WRITE):
    orprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    fua = bit(1, 3)
    lba = u64(2)
    transfer_length = u32(10)
    group_number = bits(14, 4, 0, IGNORED)


class WriteAndVerify16(Cdb, name="WRITE AND VERIFY (16)", opcode=0x8E, length=16, access=Access.WRITE):
    wrprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    bytchk = bits(1, 2, 1)
    lba = u64(2)
    transfer_length = u32(10)
    group_number = bits(14, 4, 0, IGNORED)


class Verify16(Cdb, name="VERIFY (16)", opcode=0x8F, length=16, access=Access.READ):
    vrprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    bytchk = bits(1, 2, 1)
    lba = u64(2)
    verification_length = u32(10)
    group_number = bits(14, 4, 0, IGNORED)


class PreFetch16(Cdb, name="PRE-FETCH (16)", opcode=0x90, length=16, access=Access.READ):
    immed = bit(1, 1)
    lba = u64(2)
    prefetch_length = u32(10)
    group_number = bits(14, 4, 0, IGNORED)


class SynchronizeCache16(
    Cdb, name="SYNCHRONIZE CACHE (16)", opcode=0x91, length=16, access=Access.FLUSH, fast=Fast.SYNCHRONIZE
):
    immed = bit(1, 1)
    lba = u64(2)
    number_of_logical_blocks = u32(10)
    group_number = bits(14, 4, 0, IGNORED)


class WriteSame16(Cdb, name="WRITE SAME (16)", opcode=0x93, length=16, access=Access.WRITE, fast=Fast.WRITE_SAME):
    wrprotect = bits(1, 7, 5, ZERO)
    anchor = bit(1, 4)
    unmap = bit(1, 3)
    ndob = bit(1, 0)
    lba = u64(2)
    number_of_logical_blocks = u32(10)
    group_number = bits(14, 4, 0, IGNORED)


class WriteAtomic16(Cdb, name="WRITE ATOMIC (16)", opcode=0x9C, length=16, access=Access.WRITE):
    wrprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    fua = bit(1, 3, HINT)  # it is durable in any case
    lba = u64(2)
    atomic_boundary = u16(10)
    transfer_length = u16(12)
    group_number = bits(14, 5, 0, IGNORED)


class ReadCapacity16(
    Cdb,
    name="READ CAPACITY (16)",
    opcode=0x9E,
    service_action=0x10,
    length=16,
    passes_reservation=True,
    beside=Beside.SERVED,
):
    lba = u64(2, ZERO)  # obsolete, as PMI is
    allocation_length = u32(10)
    pmi = bit(14, 0, ZERO)


class GetLbaStatus16(Cdb, name="GET LBA STATUS (16)", opcode=0x9E, service_action=0x12, length=16, access=Access.READ):
    lba = u64(2)
    allocation_length = u32(10)


class Read12(Cdb, name="READ (12)", opcode=0xA8, length=12, access=Access.READ, fast=Fast.READ):
    rdprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    fua = bit(1, 3)
    rarc = bit(1, 2, ZERO)
    lba = u32(2)
    transfer_length = u32(6)
    group_number = bits(10, 4, 0, IGNORED)


class Write12(Cdb, name="WRITE (12)", opcode=0xAA, length=12, access=Access.WRITE, fast=Fast.WRITE):
    wrprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    fua = bit(1, 3)
    lba = u32(2)
    transfer_length = u32(6)
    group_number = bits(10, 4, 0, IGNORED)


class WriteAndVerify12(Cdb, name="WRITE AND VERIFY (12)", opcode=0xAE, length=12, access=Access.WRITE):
    wrprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    bytchk = bits(1, 2, 1)
    lba = u32(2)
    transfer_length = u32(6)
    group_number = bits(10, 4, 0, IGNORED)


class Verify12(Cdb, name="VERIFY (12)", opcode=0xAF, length=12, access=Access.READ):
    vrprotect = bits(1, 7, 5, ZERO)
    dpo = bit(1, 4, HINT)
    bytchk = bits(1, 2, 1)
    lba = u32(2)
    verification_length = u32(6)
    group_number = bits(10, 4, 0, IGNORED)


class ReadDefectData12(Cdb, name="READ DEFECT DATA (12)", opcode=0xB7, length=12, beside=Beside.SERVED_AS_READ):
    req_plist = bit(1, 4)
    req_glist = bit(1, 3)
    defect_list_format = bits(1, 2, 0)
    address_descriptor_index = u32(2, IGNORED)  # whichever it is, none follows
    allocation_length = u32(6)
