import shutil
from pathlib import Path

import pytest

from formats.registry import open_chain
from tests.transfer.chains import CLUSTER, chain_of, create, qemu, write
from vstore.transfer.compare import Difference, Kind, compare

LENGTHS = (40 * CLUSTER, 30 * CLUSTER + 1536, 50 * CLUSTER)


def compared(one: tuple[Path, str], two: tuple[Path, str], *, strict: bool = False) -> Difference | None:
    chains = [open_chain(format, path, read_only=True) for path, format in (one, two)]
    try:
        return compare(chains[0], chains[1], strict=strict)
    finally:
        for image in [image for images in chains for image in images]:
            image.close()


@pytest.mark.parametrize("options", ["", "extended_l2=on", "cluster_size=512"])
def test_a_chain_equals_what_qemu_img_makes_of_it(tmp_path: Path, options: str) -> None:
    top = chain_of(tmp_path, LENGTHS, (options,) * 3)[-1]
    qemu("convert", "-f", "qcow2", "-O", "raw", top, tmp_path / "flat.raw")
    qemu("convert", "-c", "-f", "qcow2", "-O", "qcow2", top, tmp_path / "packed.qcow2")
    for other in ((tmp_path / "flat.raw", "raw"), (tmp_path / "packed.qcow2", "qcow2")):
        assert compared((top, "qcow2"), other) is None
        assert compared(other, (top, "qcow2")) is None


@pytest.mark.parametrize("offset", [0, 511, CLUSTER - 1, CLUSTER, 3 * CLUSTER + 7, (1 << 20) - 1, 50 * CLUSTER - 1])
def test_the_first_byte_that_differs_is_told(tmp_path: Path, offset: int) -> None:
    top = chain_of(tmp_path, LENGTHS)[-1]
    flat = tmp_path / "flat.raw"
    qemu("convert", "-f", "qcow2", "-O", "raw", top, flat)
    with flat.open("r+b") as file:
        for at in (offset, 50 * CLUSTER - 1):
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))
            if offset == 50 * CLUSTER - 1:
                break
    assert compared((top, "qcow2"), (flat, "raw")) == Difference(Kind.CONTENT, offset)


def test_a_longer_disk_is_equal_as_long_as_it_is_zeros(tmp_path: Path) -> None:
    short = create(tmp_path / "short.raw", "raw", CLUSTER)
    longer = create(tmp_path / "longer.qcow2", "qcow2", 4 * CLUSTER)
    assert compared((short, "raw"), (longer, "qcow2")) is None
    assert compared((short, "raw"), (longer, "qcow2"), strict=True) == Difference(Kind.LENGTH, CLUSTER)
    write(longer, "qcow2", f"write -P 0 {CLUSTER} {CLUSTER}")
    assert compared((longer, "qcow2"), (short, "raw")) is None
    write(longer, "qcow2", f"write -P 1 {2 * CLUSTER + 9 * 512} 512")
    assert compared((longer, "qcow2"), (short, "raw")) == Difference(Kind.CONTENT, 2 * CLUSTER + 9 * 512)


def test_strictly_zeros_that_are_written_differ_from_holes(tmp_path: Path) -> None:
    one, two = (create(tmp_path / name, "qcow2", 4 * CLUSTER) for name in ("one", "two"))
    write(two, "qcow2", f"write -P 0 {CLUSTER} {CLUSTER}")
    assert compared((one, "qcow2"), (two, "qcow2")) is None
    assert compared((one, "qcow2"), (two, "qcow2"), strict=True) == Difference(Kind.ALLOCATION, CLUSTER)
    shutil.copy(two, tmp_path / "three")
    assert compared((two, "qcow2"), (tmp_path / "three", "qcow2"), strict=True) is None


def test_what_lies_in_the_same_place_is_not_read(tmp_path: Path) -> None:
    """Two overlays over one base whose bytes cannot be read, because they are not there any more."""
    base = create(tmp_path / "base.qcow2", "qcow2", 4 * CLUSTER)
    write(base, "qcow2", f"write -c -P 7 0 {CLUSTER}", f"write -P 8 {CLUSTER} {CLUSTER}")
    tops = [create(tmp_path / name, "qcow2", 4 * CLUSTER, (base, "qcow2")) for name in ("one", "two")]
    seen: list[int] = []
    chains = [open_chain("qcow2", top, read_only=True) for top in tops]
    compare(chains[0], chains[1], cancelled=lambda: bool(seen.append(1)))
    for image in [image for images in chains for image in images]:
        image.close()
    assert len(seen) == 1  # one window was looked at, for the compressed block, which has no place
