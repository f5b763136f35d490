"""The log pages of a logical unit, a row each (SPC-4 7.3, SBC-3 6.4): its parameters, and where their values are from.

What is counted stands in statistics.py. A parameter whose values are None is not there now. Nothing is kept over a
restart of the process (DS and TSD are one), and no counter is compared with a threshold.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.field import Layout
from vstore.scsi.log_parameters import (
    BackgroundScanStatus,
    DataCounter,
    GeneralStatistics,
    IdleTime,
    InformationalExceptions,
    PercentageUsed,
    ResourceCount,
    SelfTestResult,
    StartStopCycles,
    Temperature,
    TimeInterval,
)
from vstore.scsi.mode_parameters import PageAddress
from vstore.scsi.self_test import MOST_RESULTS
from vstore.scsi.statistics import Counts

Values = Callable[[Any], Mapping[str, int] | None]

_UNKNOWN_TEMPERATURE = 0xFF
_NO_TIMES = """\
Commands and blocks are counted, times are not measured: two looks at the clock for each command of the data plane are
not free. So the time interval is zero (EXPONENT and INTEGER), and all that would be a number of such intervals is zero
with it: the processing intervals, the weighted numbers and the idle time."""
_MAY_BE_SHARED, _DEDICATED = 0b10, 0b01  # SCOPE


class LogParameter(NamedTuple):
    """`values`: of the fields that are not zero. `counter`: a data counter, not a list. `resets`: LOG SELECT can."""

    code: int
    name: str
    layout: type[Layout]
    values: Values
    counter: bool = False
    resets: bool = False


class LogPage(NamedTuple):
    """`there`: whether a unit has it. `note`: what the reference says of it."""

    name: str
    parameters: tuple[LogParameter, ...] = ()
    there: Callable[[DirectAccessDevice], bool] = lambda _: True
    note: str = ""


def _counter(code: int, name: str, count: Callable[[Counts], int]) -> LogParameter:
    return LogParameter(
        code, name, DataCounter, lambda unit: {"counter": count(unit.statistics.total())}, counter=True, resets=True
    )


def _errors(verb: str, count: Callable[[Counts], int], length: Callable[[Counts], int]) -> tuple[LogParameter, ...]:
    """The parameters of an error counter page (SPC-4 7.3.8). The host's storage corrects errors and says nothing."""
    names = (
        "Errors corrected without substantial delay",
        "Errors corrected with possible delays",
        f"Total {verb}",
        "Total errors corrected",
        "Total times correction algorithm processed",
    )
    corrected = tuple(_counter(code, name, lambda _: 0) for code, name in enumerate(names))
    return (
        *corrected,
        _counter(5, "Total bytes processed", length),
        _counter(6, "Total uncorrected errors", count),
    )


def _self_test_result(number: int) -> Values:
    """The newest is number 0; those that never were are all zeros."""

    def values(unit: DirectAccessDevice) -> Mapping[str, int]:
        if number >= len(unit.self_tests.results):
            return {}
        test = unit.self_tests.results[number]
        return {
            "self_test_code": test.code,
            "self_test_results": test.result,
            "self_test_number": test.segment or 0,
            "accumulated_power_on_hours": test.hours,
            "address_of_first_failure": test.address,
            "sense_key": test.sense.key if test.sense else 0,
            "additional_sense_code": test.sense.code.value if test.sense else 0,
        }

    return values


def _statistics(unit: DirectAccessDevice) -> Mapping[str, int]:
    total, size = unit.statistics.total(), unit.logical_block_length
    return {
        "number_of_read_commands": total.reads,
        "number_of_write_commands": total.writes,
        "number_of_logical_blocks_received": total.bytes_written // size,
        "number_of_logical_blocks_transmitted": total.bytes_read // size,
    }


def _available(unit: DirectAccessDevice) -> Mapping[str, int] | None:
    """What the host's file system, or pool, has left for all that lies there."""
    if unit.space is None:
        return None
    return {"resource_count": unit.threshold_sets(unit.space.available), "scope": _MAY_BE_SHARED}


def _used(unit: DirectAccessDevice) -> Mapping[str, int] | None:
    """What the image takes of it."""
    if unit.space is None:
        return None
    return {"resource_count": unit.threshold_sets(unit.space.used), "scope": _DEDICATED}


SUPPORTED_PAGES = PageAddress(0x00)
SUPPORTED_SUBPAGES = PageAddress(0x00, 0xFF)
LOGICAL_BLOCK_PROVISIONING = PageAddress(0x0C)

LOG_PAGES: Mapping[PageAddress, LogPage] = {
    SUPPORTED_PAGES: LogPage("Supported Log Pages"),
    SUPPORTED_SUBPAGES: LogPage("Supported Log Pages and Subpages"),
    PageAddress(0x02): LogPage(
        "Write Error Counters", _errors("rewrites", lambda n: n.write_errors, lambda n: n.bytes_written)
    ),
    PageAddress(0x03): LogPage(
        "Read Error Counters", _errors("rereads", lambda n: n.read_errors, lambda n: n.bytes_read)
    ),
    PageAddress(0x05): LogPage(
        "Verify Error Counters", _errors("reverifies", lambda n: n.verify_errors, lambda n: n.bytes_verified)
    ),
    PageAddress(0x06): LogPage("Non-Medium Error", (_counter(0, "Non-medium error count", lambda n: n.other_errors),)),
    LOGICAL_BLOCK_PROVISIONING: LogPage(
        "Logical Block Provisioning",
        (
            LogParameter(1, "Available LBA mapping resource count", ResourceCount, _available),
            LogParameter(2, "Used LBA mapping resource count", ResourceCount, _used),
        ),
        lambda unit: unit.thin,
    ),
    PageAddress(0x0D): LogPage(
        "Temperature",
        (
            LogParameter(0, "Temperature", Temperature, lambda _: {"temperature": _UNKNOWN_TEMPERATURE}),
            LogParameter(1, "Reference temperature", Temperature, lambda _: {"temperature": _UNKNOWN_TEMPERATURE}),
        ),
    ),
    PageAddress(0x0E): LogPage(
        "Start-Stop Cycle Counter",
        (
            LogParameter(
                4,
                "Accumulated start-stop cycles",
                StartStopCycles,
                lambda unit: {"cycles": unit.statistics.total().start_stop_cycles},
            ),
        ),
    ),
    PageAddress(0x10): LogPage(
        "Self-Test Results",
        tuple(
            LogParameter(number + 1, "Self-test results", SelfTestResult, _self_test_result(number))
            for number in range(MOST_RESULTS)
        ),
    ),
    PageAddress(0x11): LogPage(
        "Solid State Media",
        (LogParameter(1, "Percentage used endurance indicator", PercentageUsed, lambda _: {}),),
        lambda unit: unit.rotation_rate == 1,
    ),
    PageAddress(0x15): LogPage(
        "Background Scan",
        (
            LogParameter(
                0,
                "Background scan status",
                BackgroundScanStatus,
                lambda unit: {"accumulated_power_on_minutes": unit.statistics.minutes},
            ),
        ),
    ),
    PageAddress(0x19): LogPage(
        "General Statistics and Performance",
        (
            LogParameter(1, "General access statistics and performance", GeneralStatistics, _statistics, resets=True),
            LogParameter(2, "Idle time", IdleTime, lambda _: {}),
            LogParameter(3, "Time interval", TimeInterval, lambda _: {}),
        ),
        note=_NO_TIMES,
    ),
    PageAddress(0x2F): LogPage(
        "Informational Exceptions",
        (
            LogParameter(
                0,
                "Informational exceptions general",
                InformationalExceptions,
                lambda _: {"most_recent_temperature_reading": _UNKNOWN_TEMPERATURE},
            ),
        ),
    ),
}


def pages_of(unit: DirectAccessDevice) -> list[PageAddress]:
    """Those that the unit has, ascending."""
    return sorted(address for address, page in LOG_PAGES.items() if page.there(unit))
