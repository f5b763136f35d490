"""Parameter data as SPC-4 and SBC-3 print it: INQUIRY data, VPD pages, mode parameters, and the rest; that of
the block commands stands in block_parameters.py.

Only bytes stand here; which values they take is said in vpd.py, mode_parameters.py, modes.py and spc.py.
"""

from vstore.scsi.field import CHANGEABLE, Field, Layout, bit, bits, text, u8, u16, u24, u32, u64


class StandardInquiry(Layout, length=96):
    """SPC-4 6.6.2."""

    peripheral = u8(0)  # PERIPHERAL QUALIFIER and PERIPHERAL DEVICE TYPE
    rmb = bit(1, 7)
    version = u8(2)
    normaca = bit(3, 5)
    hisup = bit(3, 4)
    response_data_format = bits(3, 3, 0)
    additional_length = u8(4)
    tpgs = bits(5, 5, 4)
    third_party_copy = bit(5, 3)
    protect = bit(5, 0)
    multip = bit(6, 4)
    cmdque = bit(7, 1)
    vendor = text(8, 8)
    product = text(16, 16)
    revision = text(32, 4)
    version_descriptor_1 = u16(58)
    version_descriptor_2 = u16(60)
    version_descriptor_3 = u16(62)


class VpdHeader(Layout, length=4):
    """SPC-4 7.8.1."""

    peripheral = u8(0)
    page_code = u8(1)
    page_length = u16(2)


class DesignationDescriptor(Layout, length=4):
    """SPC-4 7.8.6.1; the designator follows."""

    protocol_identifier = bits(0, 7, 4)
    code_set = bits(0, 3, 0)
    piv = bit(1, 7)
    association = bits(1, 5, 4)
    designator_type = bits(1, 3, 0)
    designator_length = u8(3)


class BlockLimits(Layout, length=60):
    """SBC-3 6.6.4, SBC-4 6.6.4, without the VPD header."""

    wsnz = bit(0, 0)
    maximum_compare_and_write_length = u8(1)
    optimal_transfer_length_granularity = u16(2)
    maximum_transfer_length = u32(4)
    optimal_transfer_length = u32(8)
    maximum_prefetch_length = u32(12)
    maximum_unmap_lba_count = u32(16)
    maximum_unmap_block_descriptor_count = u32(20)
    optimal_unmap_granularity = u32(24)
    ugavalid = bit(28, 7)
    unmap_granularity_alignment = Field(28, 6, 31)
    maximum_write_same_length = u64(32)
    maximum_atomic_transfer_length = u32(40)
    atomic_alignment = u32(44)
    atomic_transfer_length_granularity = u32(48)
    maximum_atomic_transfer_length_with_atomic_boundary = u32(52)
    maximum_atomic_boundary_size = u32(56)


class BlockDeviceCharacteristics(Layout, length=60):
    """SBC-4 6.6.2, without the VPD header."""

    medium_rotation_rate = u16(0)
    product_type = u8(2)
    wabereq = bits(3, 7, 6)
    wacereq = bits(3, 5, 4)
    nominal_form_factor = bits(3, 3, 0)
    fuab = bit(4, 1)
    vbuls = bit(4, 0)


class LogicalBlockProvisioning(Layout, length=4):
    """SBC-3 6.6.5, without the VPD header."""

    threshold_exponent = u8(0)
    lbpu = bit(1, 7)
    lbpws = bit(1, 6)
    lbpws10 = bit(1, 5)
    lbprz = bits(1, 4, 2)
    anc_sup = bit(1, 1)
    dp = bit(1, 0)
    provisioning_type = bits(2, 2, 0)


class ReportLunsHeader(Layout, length=8):
    """SPC-4 6.33; 8-byte logical unit numbers follow."""

    lun_list_length = u32(0)


class CommandDescriptor(Layout, length=8):
    """SPC-4 6.35.2."""

    operation_code = u8(0)
    service_action = u16(2)
    ctdp = bit(5, 1)
    servactv = bit(5, 0)
    cdb_length = u16(6)


class OneCommand(Layout, length=4):
    """SPC-4 6.35.3; CDB USAGE DATA follows."""

    ctdp = bit(1, 7)
    support = bits(1, 2, 0)
    cdb_size = u16(2)


class Timestamp(Layout, length=12):
    """SPC-4 6.37.2 and 6.49.2; of what is set, the timestamp alone."""

    timestamp_parameter_data_length = u16(0)
    timestamp_origin = bits(2, 2, 0)
    timestamp = Field(4, 7, 48)  # milliseconds since 1970-01-01T00:00:00Z


class BufferDescriptor(Layout, length=4):
    """SPC-4 6.19.5."""

    offset_boundary = u8(0)
    buffer_capacity = u24(1)


class EchoBufferDescriptor(Layout, length=4):
    """SPC-4 6.19.7."""

    ebos = bit(0, 0)
    buffer_capacity = bits(2, 4, 0)
    buffer_capacity_low = u8(3)


class ExtendedInquiry(Layout, length=60):
    """VPD page 86h (SPC-4 7.8.7), without the VPD header."""

    activate_microcode = bits(0, 7, 6)
    spt = bits(0, 5, 3)
    grd_chk = bit(0, 2)
    app_chk = bit(0, 1)
    ref_chk = bit(0, 0)
    uask_sup = bit(1, 5)
    group_sup = bit(1, 4)
    prior_sup = bit(1, 3)
    headsup = bit(1, 2)
    ordsup = bit(1, 1)
    simpsup = bit(1, 0)
    wu_sup = bit(2, 3)
    crd_sup = bit(2, 2)
    nv_sup = bit(2, 1)
    v_sup = bit(2, 0)
    p_i_i_sup = bit(3, 4)
    luiclr = bit(3, 0)
    r_sup = bit(4, 4)
    cbcs = bit(4, 0)
    multi_i_t_nexus_microcode_download = bits(5, 3, 0)
    extended_self_test_completion_minutes = u16(6)
    poa_sup = bit(8, 7)
    hra_sup = bit(8, 6)
    vsa_sup = bit(8, 5)
    maximum_supported_sense_data_length = u8(9)


class ModePagePolicy(Layout, length=4):
    """A descriptor of VPD page 87h (SPC-4 7.8.9)."""

    policy_page_code = bits(0, 5, 0)
    policy_subpage_code = u8(1)
    mlus = bit(2, 7)
    mode_page_policy = bits(2, 1, 0)


class ScsiPort(Layout, length=12):
    """A descriptor of VPD page 88h (SPC-4 7.8.13), of a port without names."""

    relative_port = u16(2)
    initiator_port_transportid_length = u16(6)
    target_port_descriptors_length = u16(10)


class CommandTimeouts(Layout, length=12):
    """SPC-4 6.35.4."""

    descriptor_length = u16(0)
    nominal_command_processing_timeout = u32(4)
    recommended_command_timeout = u32(8)


class SupportedTaskManagement(Layout, length=16):
    """SPC-4 6.36; the first four bytes are the basic format."""

    ats = bit(0, 7)
    atss = bit(0, 6)
    cacas = bit(0, 5)
    ctss = bit(0, 4)
    lurs = bit(0, 3)
    qts = bit(0, 2)
    qaes = bit(1, 2)
    qtss = bit(1, 1)
    itnrs = bit(1, 0)
    additional_data_length = u8(3)


class ModeParameterHeader6(Layout, length=4):
    """SPC-4 7.5.5."""

    mode_data_length = u8(0)
    medium_type = u8(1)
    device_specific_parameter = u8(2)
    block_descriptor_length = u8(3)


class ModeParameterHeader10(Layout, length=8):
    mode_data_length = u16(0)
    medium_type = u8(2)
    device_specific_parameter = u8(3)
    longlba = bit(4, 0)
    block_descriptor_length = u16(6)


class DeviceSpecificParameter(Layout, length=1):
    """SBC-3 6.5.1."""

    wp = bit(0, 7)
    dpofua = bit(0, 4)


class ShortBlockDescriptor(Layout, length=8):
    """SBC-3 6.5.2.2."""

    number_of_logical_blocks = u32(0)
    logical_block_length = u24(5)


class LongBlockDescriptor(Layout, length=16):
    """SBC-3 6.5.2.3."""

    number_of_logical_blocks = u64(0)
    logical_block_length = u32(12)


class ModePageHeader(Layout, length=2):
    """Of the page_0 format (SPC-4 7.5.7)."""

    ps = bit(0, 7)
    spf = bit(0, 6)
    page_code = bits(0, 5, 0)
    page_length = u8(1)


class ModeSubpageHeader(Layout, length=4):
    """Of the sub_page format (SPC-4 7.5.7)."""

    ps = bit(0, 7)
    spf = bit(0, 6)
    page_code = bits(0, 5, 0)
    subpage_code = u8(1)
    page_length = u16(2)


class ControlExtension(Layout, length=28):
    """Mode page 0Ah/01h (SPC-4 7.5.9), without the page header."""

    tcmos = bit(0, 2)
    scsip = bit(0, 1)
    ialuae = bit(0, 0)
    initial_command_priority = bits(1, 3, 0)
    maximum_sense_data_length = u8(2)


class PowerCondition(Layout, length=38):
    """Mode page 1Ah (SPC-4 7.5.13), without the page header. Active and stopped are all there are."""

    pm_bg_precedence = bits(0, 7, 6)
    standby_y = bit(0, 0)
    idle_c = bit(1, 3)
    idle_b = bit(1, 2)
    idle_a = bit(1, 1)
    standby_z = bit(1, 0)
    idle_a_condition_timer = u32(2)
    standby_z_condition_timer = u32(6)
    idle_b_condition_timer = u32(10)
    idle_c_condition_timer = u32(14)
    standby_y_condition_timer = u32(18)
    ccf_idle = bits(37, 7, 6)
    ccf_standby = bits(37, 5, 4)
    ccf_stopped = bits(37, 3, 2)


class InformationalExceptionsControl(Layout, length=10):
    """Mode page 1Ch (SPC-4 7.5.11), without the page header. There are none to report."""

    perf = bit(0, 7)
    ebf = bit(0, 5)
    ewasc = bit(0, 4)
    dexcpt = bit(0, 3)
    test = bit(0, 2)
    ebackerr = bit(0, 1)
    logerr = bit(0, 0)
    mrie = bits(1, 3, 0)
    interval_timer = u32(2)
    report_count = u32(6)


class ProvisioningThresholds(Layout, length=28):
    """Mode page 1Ch/02h, Logical Block Provisioning (SBC-3 6.5.7), without the page header: two threshold descriptors,
    of what is available and of what is used."""

    situa = bit(0, 0)
    available_enabled = bit(12, 7, CHANGEABLE)
    available_threshold_type = bits(12, 5, 3)
    available_threshold_arming = bits(12, 2, 0)
    available_threshold_resource = u8(13)
    available_threshold_count = u32(16, CHANGEABLE)
    used_enabled = bit(20, 7, CHANGEABLE)
    used_threshold_type = bits(20, 5, 3)
    used_threshold_arming = bits(20, 2, 0)
    used_threshold_resource = u8(21)
    used_threshold_count = u32(24, CHANGEABLE)


class ReadWriteErrorRecovery(Layout, length=10):
    """Mode page 01h (SBC-3 6.5.8), without the page header. Recovery is the business of the host's storage."""

    awre = bit(0, 7)
    arre = bit(0, 6)
    tb = bit(0, 5)
    rc = bit(0, 4)
    per = bit(0, 2)
    dte = bit(0, 1)
    read_retry_count = u8(1)
    write_retry_count = u8(6)
    recovery_time_limit = u16(8)


class Caching(Layout, length=18):
    """Mode page 08h (SBC-3 6.5.5), without the page header."""

    ic = bit(0, 7)
    wce = bit(0, 2, CHANGEABLE)
    mf = bit(0, 1)
    rcd = bit(0, 0)
    dra = bit(10, 5)
    nv_dis = bit(11, 0)


class Control(Layout, length=10):
    """Mode page 0Ah (SPC-4 7.5.8), without the page header."""

    tst = bits(0, 7, 5)
    tmf_only = bit(0, 4)
    d_sense = bit(0, 2, CHANGEABLE)
    gltsd = bit(0, 1)
    rlec = bit(0, 0)
    queue_algorithm_modifier = bits(1, 7, 4)
    qerr = bits(1, 2, 1)
    ua_intlck_ctrl = bits(2, 5, 4)
    swp = bit(2, 3, CHANGEABLE)
    ato = bit(3, 7)
    tas = bit(3, 6)
    busy_timeout_period = u16(6)
    extended_self_test_completion_time = u16(8)
