"""Two guests of a cluster share a disk and fence each other through sg_persist.

Exit status 24 of sg3_utils: RESERVATION CONFLICT.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.backend import Daemon
from tests.guest.disks import find_disk, generic
from tests.guest.guest import Guest

SERIAL = "QUORUM"
EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
CONFLICT = 24


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[tuple[Guest, Guest]]:
    with Daemon(tmp_path) as daemon:
        daemon.create_image("quorum", 16)
        daemon.create_target("vm0")
        daemon.create_target("vm1", beside="vm0")
        for target in ("vm0", "vm1"):
            daemon.map_lun(target, "0", "quorum", shared=True, serial=SERIAL)
        with (
            Guest(tmp_path / "g0", [daemon.controller("vm0")]) as one,
            Guest(tmp_path / "g1", [daemon.controller("vm1")]) as other,
        ):
            yield one.boot(), other.boot()


def persist(guest: Guest, words: str, *, status: int = 0) -> str:
    """What sg_persist prints of the shared disk."""
    device = generic(guest, find_disk(guest, SERIAL))
    return guest.check(f"sg_turs {device} >/dev/null 2>&1; sg_persist {words} {device}", status=status)


def writes(guest: Guest) -> int:
    """Exit status of a write of one block past the kernel's cache."""
    device = generic(guest, find_disk(guest, SERIAL))
    return guest.run(f"sg_turs {device} >/dev/null 2>&1; sg_write_same --num=1 --lba=9 --in=/dev/zero {device}").status


def test_two_guests_fence_each_other(guests: tuple[Guest, Guest]) -> None:
    one, other = guests
    kind = f"--prout-type={EXCLUSIVE_ACCESS_REGISTRANTS_ONLY}"
    persist(one, "--out --register --param-sark=1 --param-aptpl")
    persist(other, "--out --register --param-sark=2 --param-aptpl")
    persist(one, f"--out --reserve --param-rk=1 {kind}")
    assert (writes(one), writes(other)) == (0, 0)

    persist(one, f"--out --preempt-abort --param-rk=1 --param-sark=2 {kind}")
    assert (writes(one), writes(other)) == (0, CONFLICT)
    persist(other, f"--out --reserve --param-rk=2 {kind}", status=CONFLICT)

    persist(other, "--out --register --param-sark=2 --param-aptpl")
    persist(other, f"--out --preempt --param-rk=2 --param-sark=1 {kind}")
    assert (writes(one), writes(other)) == (CONFLICT, 0)

    told = persist(one, "--in --read-full-status")
    assert "iqn.2024-08.internal.vstore:vm1" in told
    assert "iqn.2024-08.internal.vstore:vm0" not in told
