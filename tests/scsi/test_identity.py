from uuid import UUID

import pytest

from vstore import __version__
from vstore.scsi import identity
from vstore.scsi.identity import Identity


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"serial": ""}, "serial is ''; it must be 1 to 36 printable ASCII characters"),
        ({"serial": "x" * 37}, "serial is"),
        ({"serial": "é"}, "serial is"),
        ({"serial": "a\n"}, "serial is"),
        ({"serial": "a", "vendor": "ninechars"}, "vendor is 'ninechars'; it must be 1 to 8"),
        ({"serial": "a", "product": "x" * 17}, "product is"),
        ({"serial": "a", "revision": "12345"}, "revision is"),
    ],
)
def test_text_that_does_not_fit_its_field_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Identity(**settings)  # type: ignore[arg-type]


def test_a_uuid_fits_as_serial_number() -> None:
    Identity(str(UUID(int=0)))


def test_the_naa_identifier_is_locally_assigned_and_has_60_bits_of_the_uuid() -> None:
    assert Identity("a", UUID(int=(1 << 128) - 1)).naa == 0x3FFF_FFFF_FFFF_FFFF
    assert Identity("a", UUID(int=1)).naa == 0x3000_0000_0000_0001


def test_without_a_uuid_the_identifier_follows_from_the_serial_number() -> None:
    assert Identity("a").naa == Identity("a").naa
    assert Identity("a").naa != Identity("b").naa
    assert Identity("a").naa >> 60 == 3


def test_the_revision_is_that_of_the_package() -> None:
    assert identity._revision("12.34.5") == "12.3"
    assert identity._revision(__version__) == identity.REVISION
