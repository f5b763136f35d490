import pytest

from vstore.scsi.mode_parameters import CACHING, CONTROL, ModeParameters, PageAddress, PageControl, page_header
from vstore.scsi.pages import Caching, Control


def parameters() -> ModeParameters:
    return ModeParameters(Caching.of(wce=1), Control.of(gltsd=1))


@pytest.mark.parametrize(
    ("address", "header"), [(PageAddress(0x08), "08 12"), (PageAddress(0x0A, 0x05), "4a 05 00 12")]
)
def test_a_subpage_has_the_longer_header(address: PageAddress, header: str) -> None:
    assert page_header(address, 0x12).hex(" ") == header


@pytest.mark.parametrize(
    ("page", "subpage", "pages"),
    [
        (0x3F, 0x00, [0x01, 0x02, 0x08, 0x0A, 0x1A, 0x1C]),
        (0x3F, 0xFF, [0x01, 0x02, 0x08, 0x0A, 0x0A, 0x0A, 0x0A, 0x1A, 0x1C, 0x1C]),
        (0x3F, 0x01, []),
        (0x08, 0x00, [0x08]),
        (0x08, 0xFF, [0x08]),
        (0x08, 0x01, []),
        (0x1C, 0x00, [0x1C]),
        (0x1D, 0x00, []),
    ],
)
def test_pages_are_selected_by_code(page: int, subpage: int, pages: list[int]) -> None:
    assert [address.page for address in parameters().select(page, subpage)] == pages


def test_subpages_are_selected_when_they_are_asked_for() -> None:
    modes = parameters()
    modes.current[PageAddress(0x0A, 0x06)] = Caching()
    assert modes.select(0x0A, 0) == [CONTROL]
    assert modes.select(0x0A, 6) == [PageAddress(0x0A, 6)]
    assert modes.select(0x0A, 0xFF) == [CONTROL, *(PageAddress(0x0A, subpage) for subpage in (1, 2, 5, 6))]
    assert PageAddress(0x0A, 5) not in modes.select(0x3F, 0)
    assert PageAddress(0x0A, 5) in modes.select(0x3F, 0xFF)


def test_reverting_restores_the_defaults() -> None:
    modes = parameters()
    modes.current[CACHING] = Caching()
    assert not modes.caching.wce
    assert modes.values(CACHING, PageControl.DEFAULT)[2] == 4
    modes.revert()
    assert modes.caching.wce
    assert modes.control.gltsd
