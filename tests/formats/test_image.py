"""The base of all formats, and its numbers held against the C header."""

import re
from pathlib import Path

import pytest

import vstore
from formats.errors import InvalidArgument, ReadOnlyImage, UnsupportedFeature
from formats.image import BlockState, Geometry, Image, LayerFlags, Run, check_length, entry

HEADER = (Path(vstore.__file__).parent / "dataplane" / "dataplane.h").read_text()


class Unchangeable(Image):
    """A format that overrides nothing that it need not."""

    format = "unchangeable"

    @property
    def layers(self) -> list[object]:  # type: ignore[override]
        return []

    def load(self, first: int, count: int) -> list[Run]:
        return [Run(first, count, entry(BlockState.ZERO))]

    def info(self) -> dict[str, object]:
        return {}


def constants(prefix: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(rf"\b{prefix}([A-Z_]+) = (\d+)", HEADER)}


def test_block_states_have_the_numbers_of_the_header() -> None:
    assert {state.name: int(state) for state in BlockState}.items() <= constants("VS_").items()


def test_layer_flags_have_the_numbers_of_the_header() -> None:
    assert {flag.name: int(flag) for flag in LayerFlags} == constants("VS_FILE_")


def test_an_entry_has_state_layer_and_offset_where_the_header_says() -> None:
    assert "bits 63:60" in HEADER
    assert "bits 59:48" in HEADER
    assert "bits 47:0 the file offset / 512" in HEADER
    assert entry(BlockState.SHARED, 0xABC, 0x1000) == 0x4ABC_0000_0000_0008
    assert entry(BlockState.ZERO) == 2 << 60
    assert entry(BlockState.DATA, 0xFFF, (1 << 57) - 512) == 0x3FFF_FFFF_FFFF_FFFF


@pytest.mark.parametrize(("length", "blocks"), [(512, 1), (4096, 1), (4097, 2), (8191, 2), (8192, 2)])
def test_a_partial_last_block_counts(length: int, blocks: int) -> None:
    assert Geometry(length, 4096).blocks == blocks


def test_what_a_format_does_not_offer_is_refused_by_name() -> None:
    image = Unchangeable(Geometry(4096, 512))
    for refused in (
        lambda: image.resize(8192),
        lambda: image.reserve(3),
        lambda: image.commit([]),
        lambda: image.materialise(1),
        lambda: image.free([]),
    ):
        with pytest.raises(UnsupportedFeature, match="unchangeable images"):
            refused()


def test_a_read_only_image_names_the_change_that_it_refuses() -> None:
    image = Unchangeable(Geometry(4096, 512), read_only=True)
    with pytest.raises(ReadOnlyImage, match="cannot grow it: the image is open read-only"):
        image._require_writable("grow it")


@pytest.mark.parametrize("length", [512, 1 << 40, 1 << 56])
def test_lengths_of_whole_sectors_are_good(length: int) -> None:
    assert check_length(length) == length


@pytest.mark.parametrize("length", [-512, 0, 1, 511, 513, (1 << 56) + 512])
def test_other_lengths_are_refused_and_the_message_says_what_would_be_right(length: int) -> None:
    with pytest.raises(InvalidArgument, match=f"{length} bytes .* multiple of 512"):
        check_length(length)
