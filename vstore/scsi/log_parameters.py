"""Log pages and their parameters as SPC-4 7.3 and SBC-3 6.4 print them. Only bytes stand here; log_pages.py says which
values they take."""

from vstore.scsi.field import Layout, bit, bits, u8, u16, u32, u64


class LogPageHeader(Layout, length=4):
    """SPC-4 7.3.2."""

    ds = bit(0, 7)
    spf = bit(0, 6)
    page_code = bits(0, 5, 0)
    subpage_code = u8(1)
    page_length = u16(2)


class LogParameterHeader(Layout, length=4):
    """SPC-4 7.3.2.2; the parameter control byte stands between code and length."""

    parameter_code = u16(0)
    du = bit(2, 7)
    tsd = bit(2, 5)
    format_and_linking = bits(2, 1, 0)
    parameter_length = u8(3)


class DataCounter(Layout, length=8):
    """A bounded data counter (SPC-4 7.3.2.2.2)."""

    counter = u64(0)


class ResourceCount(Layout, length=8):
    """SBC-3 6.4.4: in threshold sets."""

    resource_count = u32(0)
    scope = bits(4, 1, 0)


class Temperature(Layout, length=2):
    """SPC-4 7.3.21: degrees Celsius; FFh: not known."""

    temperature = u8(1)


class StartStopCycles(Layout, length=4):
    """SPC-4 7.3.19."""

    cycles = u32(0)


class SelfTestResult(Layout, length=16):
    """SPC-4 7.3.18."""

    self_test_code = bits(0, 7, 5)
    self_test_results = bits(0, 3, 0)
    self_test_number = u8(1)
    accumulated_power_on_hours = u16(2)
    address_of_first_failure = u64(4)
    sense_key = bits(12, 3, 0)
    additional_sense_code = u16(13)  # with its qualifier


class PercentageUsed(Layout, length=4):
    """SBC-3 6.4.7."""

    percentage_used_endurance_indicator = u8(3)


class BackgroundScanStatus(Layout, length=12):
    """SBC-3 6.4.2.2."""

    accumulated_power_on_minutes = u32(0)
    background_scan_status = u8(5)
    number_of_background_scans_performed = u16(6)
    background_scan_progress = u16(8)
    number_of_background_medium_scans_performed = u16(10)


class GeneralStatistics(Layout, length=64):
    """SPC-4 7.3.9.2."""

    number_of_read_commands = u64(0)
    number_of_write_commands = u64(8)
    number_of_logical_blocks_received = u64(16)
    number_of_logical_blocks_transmitted = u64(24)
    read_command_processing_intervals = u64(32)
    write_command_processing_intervals = u64(40)
    weighted_number_of_read_commands_plus_write_commands = u64(48)
    weighted_read_command_processing_plus_write_command_processing = u64(56)


class IdleTime(Layout, length=8):
    """SPC-4 7.3.9.3."""

    idle_time_intervals = u64(0)


class TimeInterval(Layout, length=8):
    """SPC-4 7.3.9.4; all zeros: time is not measured, and every number of intervals is zero."""

    exponent = u32(0)
    integer = u32(4)


class InformationalExceptions(Layout, length=4):
    """SPC-4 7.3.10."""

    additional_sense_code = u16(0)  # with its qualifier
    most_recent_temperature_reading = u8(2)
