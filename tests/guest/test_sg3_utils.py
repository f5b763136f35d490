"""sg3_utils inside the guest against a scratch disk: what the tools print, and what then stands in the host's file.

The image is filled by the host before the guest starts: block N holds `block(N)`, so both sides know every byte.
Exit statuses are sg3_utils': 5 illegal request, 6 unit attention, 14 miscompare, 22 LBA out of range.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.backend import Export
from tests.guest.disks import attribute, find_disk
from tests.guest.guest import Guest
from tests.guest.outside import allocated_bytes, make_image

MIB = 1 << 20
BLOCK = 512
SERIAL = "SG3-UTILS-0001"
LENGTH = 64 * MIB
BLOCKS = LENGTH // BLOCK
FILLED = 4 * MIB // BLOCK  # blocks that hold their pattern; the rest of the image is a hole

VPD_PAGES = {0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2}
MODE_PAGES = {0x01, 0x08, 0x0A}
# Operation code and, where it has one, service action.
COMMANDS = {
    *("00", "03", "08", "0a", "12", "15", "1a", "1b", "25", "28", "2a", "2f", "35", "41", "42", "55", "5a"),
    *("88", "8a", "8f", "91", "93", "9e,10", "a0", "a3,c", "a8", "aa", "af"),
}

pytestmark = pytest.mark.usefixtures("quiet_kernel")


def block(number: int) -> bytes:
    """What the host wrote to a block: its number, over and over."""
    return number.to_bytes(8, "big") * (BLOCK // 8)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_image(tmp_path_factory.mktemp("sg3") / "disk.raw", LENGTH // MIB)
    with path.open("r+b") as file:
        file.write(b"".join(map(block, range(FILLED))))
    return path


@pytest.fixture(scope="module")
def guest(image: Path) -> Iterator[Guest]:
    with (
        Export(image, "--serial", SERIAL) as export,
        Guest(image.parent, [export.controller()]) as running,
    ):
        yield running.boot()


@pytest.fixture(scope="module")
def disk(guest: Guest) -> str:
    return find_disk(guest, SERIAL)


def on_host(image: Path, first: int, count: int = 1) -> bytes:
    with image.open("rb") as file:
        file.seek(first * BLOCK)
        return file.read(count * BLOCK)


def mode_page(guest: Guest, disk: str, page: int, control: int = 0) -> bytes:
    """A mode page in binary, without the header and the block descriptor (SPC-4 7.5.5)."""
    printed = guest.check(f"sg_modes --page={page:#x} --control={control} --raw {disk} | od -An -v -tx1")
    data = bytes.fromhex(printed)
    descriptors = int.from_bytes(data[6:8], "big")
    return data[8 + descriptors :]


def test_inquiry_names_the_product_and_the_serial(guest: Guest, disk: str) -> None:
    printed = guest.check(f"sg_inq {disk}")
    for expected in ("PDT=0", "[SPC-", "CmdQue=1", "Vendor identification: VSTORE", "Product identification: DISK"):
        assert expected in printed
    assert f"Unit serial number: {SERIAL}" in printed


def test_every_vital_product_data_page_is_decoded(guest: Guest, disk: str) -> None:
    header = bytes.fromhex(guest.check(f"sg_vpd --page=0 --raw {disk} | od -An -v -tx1"))
    assert set(header[4:]) >= VPD_PAGES
    result = guest.run(f"sg_vpd --all {disk}")
    assert (result.status, result.errors) == (0, "")
    for title in (
        "Supported VPD pages",
        "Unit serial number",
        "Device Identification",
        "Block limits",
        "Block device characteristics",
        "Logical block provisioning",
    ):
        assert f"{title} VPD page" in result.output
    assert "[malformed" not in result.output


def test_the_device_is_identified_by_a_name_and_its_serial(guest: Guest, disk: str) -> None:
    printed = guest.check(f"sg_vpd --page=di {disk}")
    assert re.search(r"designator type: NAA,.*\n *0x3[0-9a-f]{15}\n", printed)  # SPC-4 7.8.6.6: 3h, locally assigned
    assert re.search(rf"T10 vendor identification,.*\n *vendor id: VSTORE *\n *vendor specific: {SERIAL}\n", printed)
    assert attribute(guest, disk, "device/wwid") == f"t10.VSTORE  {SERIAL}"  # Linux prefers it to a local NAA


def test_the_disk_is_thin_and_unmapped_blocks_read_as_zeros(guest: Guest, disk: str) -> None:
    provisioning = guest.check(f"sg_vpd --page=lbpv {disk}")
    for field in ("(LBPU): 1", "(LBPWS): 1", "(LBPWS10): 1", "(LBPRZ): 1"):
        assert field in provisioning
    assert "Provisioning type: 2 (thin provisioned)" in provisioning
    assert "Non-rotating medium" in guest.check(f"sg_vpd --page=bdc {disk}")
    limits = dict(re.findall(r"Maximum ([a-zA-Z ]+): (-?\w+)", guest.check(f"sg_vpd --page=bl {disk}")))
    for limit in ("transfer length", "unmap LBA count", "unmap block descriptor count", "write same length"):
        assert int(limits[limit], 0) > 0 or limits[limit] == "-1"  # -1 stands for unbounded


def test_a_page_that_is_not_there_is_refused(guest: Guest, disk: str) -> None:
    assert guest.run(f"sg_vpd --force --page=0xee {disk}").status == 5


def test_report_supported_operation_codes_lists_the_commands(guest: Guest, disk: str) -> None:
    lines = guest.check(f"sg_opcodes {disk}").splitlines()
    rows = (re.match(r" *([0-9a-f]{2}) +([0-9a-f]*) +(\d+) +(\S.*)", line) for line in lines)
    listed = {row[1] + (f",{row[2]}" if row[2] else "") for row in rows if row}
    assert listed >= COMMANDS


def test_the_usage_data_of_one_command_names_the_bits_that_count(guest: Guest, disk: str) -> None:
    printed = guest.check(f"sg_opcodes --opcode=0x28 --rctd {disk}")
    usage = re.search(r"usage data: ((?:[0-9a-f]{2} ?){10})", printed, re.IGNORECASE)
    assert usage is not None
    mask = bytes.fromhex(usage[1])
    assert mask[0] == 0x28
    assert mask[2:6] == b"\xff" * 4  # LOGICAL BLOCK ADDRESS
    assert mask[7:9] == b"\xff" * 2  # TRANSFER LENGTH
    assert mask[1] & 0x18 == 0x18  # DPO, FUA
    assert mask[1] & 0x03 == 0  # reserved and obsolete bits are not looked at


def test_an_operation_code_that_is_not_there_is_reported_so(guest: Guest, disk: str) -> None:
    assert "Command is NOT supported" in guest.check(f"sg_opcodes --opcode=0xff {disk}")


def test_read_capacity_tells_the_size_and_the_provisioning(guest: Guest, disk: str) -> None:
    for option in ("", "--16"):
        printed = guest.check(f"sg_readcap {option} {disk}")
        assert f"Number of logical blocks={BLOCKS}" in printed
        assert f"Logical block length={BLOCK} bytes" in printed
    assert "lbpme=1, lbprz=1" in printed
    assert "Logical blocks per physical block exponent=3" in printed


def test_mode_sense_prints_the_pages_in_both_lengths(guest: Guest, disk: str) -> None:
    for option in ("", "--six"):
        printed = guest.check(f"sg_modes --all {option} {disk}")
        for title in ("Read-Write error recovery", "Caching", "Control"):
            assert title in printed
        assert "WP=0, DpoFua=1" in printed
    for page in MODE_PAGES:
        current, default = (mode_page(guest, disk, page, control) for control in (0, 2))
        assert current[0] & 0x3F == page
        assert len(current) == len(default) == current[1] + 2


def test_the_write_cache_can_be_turned_off_and_on(guest: Guest, disk: str) -> None:
    setting = f"/sys/block/{disk.removeprefix('/dev/')}/device/scsi_disk/*/cache_type"
    wce = 0x04  # SBC-4 6.5.6: byte 2 of the caching page
    assert mode_page(guest, disk, 0x08, control=1)[2] & wce
    assert mode_page(guest, disk, 0x08)[2] & wce
    guest.check(f'echo "write through" >$(echo {setting})')
    assert not mode_page(guest, disk, 0x08)[2] & wce
    assert attribute(guest, disk, "queue/write_cache") == "write through"
    guest.check(f'echo "write back" >$(echo {setting})')
    assert mode_page(guest, disk, 0x08)[2] & wce
    assert attribute(guest, disk, "queue/write_cache") == "write back"


def test_test_unit_ready_a_hundred_times(guest: Guest, disk: str) -> None:
    assert "Completed 100 Test Unit Ready commands with 0 errors" in guest.check(f"sg_turs --number=100 {disk}")


def test_request_sense_has_nothing_to_tell(guest: Guest, disk: str) -> None:
    printed = guest.check(f"sg_requests {disk} 2>&1; sg_requests --desc {disk} 2>&1")
    assert "Fixed format, current; Sense key: No Sense" in printed
    assert "Descriptor format, current; Sense key: No Sense" in printed


def test_a_stopped_unit_is_not_ready_until_it_is_started(guest: Guest, disk: str) -> None:
    guest.check(f"sg_start --stop {disk}")
    assert guest.run(f"sg_turs {disk}").status == 2  # SG_LIB_CAT_NOT_READY
    guest.check(f"sg_start --start {disk} && sg_turs {disk}")


@pytest.mark.parametrize("length", [6, 10, 12, 16])
def test_reads_and_writes_of_every_cdb_length_move_the_right_blocks(
    guest: Guest, disk: str, image: Path, length: int
) -> None:
    first, there = 1024 + length, 2048 + 64 * length
    options = f"bs={BLOCK} count=32 bpt=8 blk_sgio=1 cdbsz={length}"
    guest.check(f"sg_dd if={disk} of=/tmp/read skip={first} {options}")
    assert guest.check("head -c 16 /tmp/read | od -An -tx1").split() == [f"{byte:02x}" for byte in block(first)[:16]]
    guest.check(f"sg_dd if=/tmp/read of={disk} seek={there} {options} && sg_sync {disk}")
    assert on_host(image, there, 32) == b"".join(map(block, range(first, first + 32)))
    assert on_host(image, there + 32) == block(there + 32)


@pytest.mark.parametrize("option", ["", "--16"])
class TestVerify:
    def test_verify_without_comparing_reads_the_medium(self, guest: Guest, disk: str, option: str) -> None:
        guest.check(f"sg_verify {option} --lba=0 --count=128 {disk}")

    def test_verify_compares_the_bytes(self, guest: Guest, disk: str, option: str) -> None:
        guest.check(f"dd if={disk} of=/tmp/same bs={BLOCK} skip=8 count=8 iflag=direct")
        words = f"sg_verify {option} --count=8 --ebytchk=1 --ndo=4096 --in=/tmp/same"
        guest.check(f"{words} --lba=8 {disk}")
        assert guest.run(f"{words} --lba=9 {disk}").status == 14

    def test_verify_compares_one_block_with_many(self, guest: Guest, disk: str, option: str) -> None:
        words = f"sg_verify {option} --ebytchk=3 --ndo={BLOCK} --in=/dev/zero"
        guest.check(f"{words} --lba={FILLED + 8} --count=16 {disk}")
        assert guest.run(f"{words} --lba=16 --count=16 {disk}").status == 14

    def test_verify_past_the_last_block_is_out_of_range(self, guest: Guest, disk: str, option: str) -> None:
        assert guest.run(f"sg_verify {option} --lba={BLOCKS - 8} --count=16 --bpc=16 {disk}").status in (5, 22)


@pytest.mark.parametrize("option", ["--10", "--16"])
def test_write_same_repeats_a_block(guest: Guest, disk: str, image: Path, option: str) -> None:
    first = 3400 if option == "--10" else 3500
    guest.check(f"dd if={disk} of=/tmp/one bs={BLOCK} skip=7 count=1 iflag=direct")
    guest.check(f"sg_write_same {option} --lba={first} --num=20 --in=/tmp/one --xferlen={BLOCK} {disk}")
    guest.check(f"sg_sync {disk}")
    assert on_host(image, first - 1, 22) == block(first - 1) + block(7) * 20 + block(first + 20)


@pytest.mark.parametrize("options", ["--10 --unmap", "--16 --unmap", "--16 --ndob", "--16 --ndob --unmap"])
def test_write_same_zeroes_and_unmaps(guest: Guest, disk: str, image: Path, options: str) -> None:
    first, count = 4096, 512
    guest.check(
        f"dd if={disk} of={disk} bs={BLOCK} skip=1024 seek={first} count={count} iflag=direct oflag=direct,nonblock"
    )
    before = allocated_bytes(image)
    guest.check(f"sg_write_same {options} --lba={first} --num={count} {disk}")
    assert on_host(image, first - 1, count + 2) == block(first - 1) + bytes(count * BLOCK) + block(first + count)
    if "--unmap" in options:
        assert before - allocated_bytes(image) >= count * BLOCK


def test_unmap_gives_blocks_back_and_they_read_as_zeros(guest: Guest, disk: str, image: Path) -> None:
    before = allocated_bytes(image)
    guest.check(f"sg_unmap --force --lba=5120,6144 --num=512,256 {disk}")
    assert before - allocated_bytes(image) >= 768 * BLOCK
    assert on_host(image, 5119, 514) == block(5119) + bytes(512 * BLOCK) + block(5632)
    assert on_host(image, 6143, 258) == block(6143) + bytes(256 * BLOCK) + block(6400)
    assert guest.check(f"dd if={disk} bs={BLOCK} skip=5120 count=512 iflag=direct | tr -d '\\0' | wc -c").strip() == "0"


def test_the_kernel_discards_and_zeroes_by_its_own_commands(guest: Guest, disk: str, image: Path) -> None:
    for first, option in ((7000, ""), (7504, "--zeroout")):
        guest.check(f"blkdiscard {option} --offset {first * BLOCK} --length {128 * BLOCK} {disk}")
        assert on_host(image, first - 1, 130) == block(first - 1) + bytes(128 * BLOCK) + block(first + 128)


def test_report_luns_lists_luns_and_well_known_ones(guest: Guest, disk: str) -> None:
    assert "0000000000000000" in guest.check(f"sg_luns {disk}")
    well_known = guest.check(f"sg_luns --select=1 {disk}")
    assert "c101000000000000" in well_known
    assert "0000000000000000" not in well_known
    both = guest.check(f"sg_luns --select=2 {disk}")
    assert "c101000000000000" in both
    assert "0000000000000000" in both


def test_a_device_reset_is_told_once_and_io_goes_on(guest: Guest, disk: str) -> None:
    guest.check(f"sg_reset --device {disk}")
    first = guest.run(f"sg_turs -v {disk}")
    assert first.status == 6
    assert "Bus device reset function occurred" in first.errors  # 29h/03h
    guest.check(f"sg_turs {disk}")
    guest.check(f"dd if={disk} of=/dev/null bs=1M count=4 iflag=direct")
    (message,) = guest.disk_trouble()
    assert message.endswith("device reset")  # the driver's own word, not an error


@pytest.mark.parametrize("scope", ["target", "bus", "host"])
def test_a_reset_that_the_driver_does_not_offer_leaves_the_disk_alone(guest: Guest, disk: str, scope: str) -> None:
    result = guest.run(f"sg_reset --no-esc --{scope} {disk}")  # Linux 6.1's virtio_scsi only resets devices
    assert "may not be available" in result.output + result.errors
    guest.check(f"sg_turs {disk} && dd if={disk} of=/dev/null bs=1M count=1 iflag=direct")
