"""Sizes in and out: everything qemu-img takes means the same here."""

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore.sizes import format_size, parse_size, parse_size_change

K, M, G = 1024, 1024**2, 1024**3


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("1048576", M),
        ("0x100000", M),
        ("0X100000", M),
        ("1k", K),
        ("1K", K),
        ("1m", M),
        ("1.5G", 3 * G // 2),
        (".5G", G // 2),
        ("2T", 2 * K * G),
        ("1P", M * G),
        ("7e", 7 * G * G),
        ("1KiB", K),
        ("1gib", G),
        ("10 GiB", 10 * G),
        (" 1G ", G),
        ("512B", 512),
        ("512KB", 512_000),
        ("64gb", 64 * 10**9),
    ],
)
def test_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "G",
        "1e3",
        "9" * 5000,
        "1E3",
        "-1",
        "-1G",
        "+1G",
        "1.G",
        "1,5G",
        "1_000",
        "1iB",
        "1Gb/s",
        "0x10k",
        "0x",
        "1 G B",
        "١k",
    ],
)
def test_what_is_no_size_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size: write a number of bytes"):
        parse_size(text)


def test_size_off_the_sector_names_both_neighbours() -> None:
    with pytest.raises(ValueError, match="1000' is not a whole number of 512-byte blocks; nearest: 512 or 1024 bytes"):
        parse_size("1000")


def test_size_below_one_block_names_only_the_block() -> None:
    with pytest.raises(ValueError, match="nearest: 4096 bytes"):
        parse_size("100", multiple=4096)


def test_fraction_of_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="nearest: 512 bytes"):
        parse_size("0.1k")


def test_size_beyond_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than a file can be"):
        parse_size("8E")


@pytest.mark.parametrize(
    ("text", "size"), [("+1G", 3 * G), ("-1G", G), ("+512", 2 * G + 512), ("4G", 4 * G), ("- 2G", 0)]
)
def test_resize_takes_a_difference_or_a_size(text: str, size: int) -> None:
    assert parse_size_change(text, 2 * G) == size


def test_resize_below_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="takes away more than the 1024 bytes there are"):
        parse_size_change("-1M", 1024)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536 * M, "1.50 GiB"),
        (15 * G, "15.0 GiB"),
        (150 * G, "150 GiB"),
        (1023 * M, "1023 MiB"),
        (G - 1, "1.00 GiB"),
        (G + G // 100, "1.01 GiB"),
        (10 * G - 1, "10.0 GiB"),
        (2**63, "8.00 EiB"),
    ],
)
def test_size_is_written_with_three_digits(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 2**63 - 1))
def test_written_size_is_within_half_a_percent_of_the_size(size: int) -> None:
    number, unit = format_size(size).split()
    power = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].index(unit)
    assert abs(float(number) * 1024**power - size) <= max(size * 0.0051, 0)


@pytest.mark.parametrize("text", ["512", "1k", "1K", "1.5G", "0x100000", "3M", "1T", "1b"])
def test_qemu_img_understands_the_same_size(text: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", image, text], check=True)
    told = json.loads(subprocess.check_output(["qemu-img", "info", "-f", "raw", "--output=json", image]))
    assert told["virtual-size"] == parse_size(text, multiple=1) + -parse_size(text, multiple=1) % 512
