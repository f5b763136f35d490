"""The main job: a guest partitions, formats, fills, checks and trims a disk, and the host finds it all in the file."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.backend import Export
from tests.guest.disks import attribute, find_disk
from tests.guest.guest import Guest
from tests.guest.outside import allocated_bytes, check_ext4, make_image, read_ext4

MIB = 1 << 20
SERIAL = "FILESYSTEM-0001"
PARTITION_OFFSET = MIB
COPY = "cp /tmp/source /mnt/copy && sync"

pytestmark = pytest.mark.usefixtures("quiet_kernel")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("filesystem") / "disk.raw", 256)


@pytest.fixture(scope="module")
def export(image: Path) -> Iterator[Export]:
    with Export(image, "--serial", SERIAL) as running:
        yield running


@pytest.fixture(scope="module")
def guest(export: Export, image: Path) -> Iterator[Guest]:
    with Guest(image.parent, [export.controller()]) as running:
        yield running.boot()


@pytest.fixture(scope="module")
def disk(guest: Guest) -> str:
    return find_disk(guest, SERIAL)


@pytest.fixture(scope="module")
def partition(guest: Guest, disk: str) -> str:
    """The disk's only partition with a fresh ext4, and 64 MiB of random bytes in /tmp/source, not mounted."""
    guest.check(f"printf 'label: gpt\\nstart=2048, name=data\\n' | sfdisk --quiet {disk}")
    guest.wait_until(f"[ -b {disk}1 ]")
    guest.check(f"mkfs.ext4 -q {disk}1", timeout=60)
    guest.check("dd if=/dev/urandom of=/tmp/source bs=1M count=64", timeout=60)
    return f"{disk}1"


@pytest.fixture
def mounted(guest: Guest, partition: str) -> Iterator[str]:
    """The mount point; unmounted afterwards."""
    guest.check(f"mount {partition} /mnt")
    yield "/mnt"
    guest.check("umount /mnt")


def test_the_disk_is_found_by_its_serial(guest: Guest, disk: str) -> None:
    assert guest.check(f"lsblk --nodeps --noheadings --bytes -o SIZE,VENDOR,MODEL {disk}").split() == [
        str(256 * MIB),
        "VSTORE",
        "DISK",
    ]
    assert f"Unit serial number: {SERIAL}" in guest.check(f"sg_vpd --page=sn {disk}")


def test_the_kernel_believes_what_the_disk_says_of_itself(guest: Guest, disk: str) -> None:
    assert attribute(guest, disk, "queue/logical_block_size") == "512"
    assert attribute(guest, disk, "queue/physical_block_size") == "4096"
    assert attribute(guest, disk, "queue/rotational") == "0"
    assert attribute(guest, disk, "queue/write_cache") == "write back"
    assert attribute(guest, disk, "queue/fua") == "1"
    assert int(attribute(guest, disk, "queue/discard_max_bytes")) > 0
    assert attribute(guest, disk, "ro") == "0"


def test_a_copied_file_survives_unmounting_and_the_filesystem_is_clean(
    guest: Guest, image: Path, partition: str
) -> None:
    source = guest.check("sha256sum </tmp/source", timeout=60)
    guest.check(f"mount {partition} /mnt && {COPY} && umount /mnt", timeout=60)
    guest.check(f"fsck.ext4 -fn {partition}", timeout=60)
    guest.check("echo 3 >/proc/sys/vm/drop_caches")
    assert guest.check(f"mount {partition} /mnt && sha256sum </mnt/copy", timeout=60) == source
    guest.check("umount /mnt")
    check_ext4(image, PARTITION_OFFSET)
    assert hashlib.sha256(read_ext4(image, "/copy", PARTITION_OFFSET)).hexdigest() == source.split()[0]


def test_fstrim_gives_the_space_back_to_the_host(guest: Guest, image: Path, mounted: str) -> None:
    guest.check(f"dd if=/dev/urandom of={mounted}/ballast bs=1M count=32 conv=fsync", timeout=60)
    full = allocated_bytes(image)
    guest.check(f"rm {mounted}/ballast && sync -f {mounted}")
    guest.check(f"fstrim {mounted}", timeout=60)
    assert full - allocated_bytes(image) >= 32 * MIB
    check = guest.check(f"sha256sum </tmp/source; [ ! -e {mounted}/copy ] || sha256sum <{mounted}/copy", timeout=60)
    assert len(set(check.split()) - {"-"}) == 1


def test_the_image_is_clean_after_the_guest_powered_off_and_vstore_stopped(
    guest: Guest, export: Export, image: Path, partition: str
) -> None:
    written = guest.check(f"mount {partition} /mnt && seq 10000 >/mnt/last && sha256sum </mnt/last").split()[0]
    guest.check("umount /mnt")
    assert guest.disk_trouble() == []
    guest.shutdown()
    assert export.process.stop() == 0
    check_ext4(image, PARTITION_OFFSET)
    assert hashlib.sha256(read_ext4(image, "/last", PARTITION_OFFSET)).hexdigest() == written
    assert hashlib.sha256("".join(f"{n}\n" for n in range(1, 10001)).encode()).hexdigest() == written
