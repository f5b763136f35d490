"""Marks these tests `guest`, gives them the time a software-emulated guest needs, and shows the logs when one fails."""

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.guest.guest import Guest
from tests.guest.process import LOGS

TEST_SECONDS = 240  # covers the boot of a fixture's guest on a loaded machine


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "guest: boots a real Linux guest under QEMU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and Path(__file__).parent in item.path.parents:
        report.sections.extend((log.title, log.read()) for log in LOGS)
    if call.when == "teardown":
        LOGS[:] = [log for log in LOGS if not log.closed]
    return report


@pytest.fixture
def quiet_kernel(guest: Guest) -> Iterator[None]:
    """The test must leave no trouble with a disk in the guest's kernel log. One that wants trouble reads it itself."""
    yield
    if guest.process is not None and guest.process.running:
        assert guest.disk_trouble() == []
