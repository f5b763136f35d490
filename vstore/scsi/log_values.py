"""What LOG SELECT has made of the counters of the log pages: the counts themselves go on, seen from another zero."""

from vstore.scsi.mode_parameters import PageAddress

_Field = tuple[PageAddress, int, str]  # page, parameter code, field


class LogParameters:
    """A field's value is what was counted, less its base."""

    def __init__(self) -> None:
        self._bases: dict[_Field, int] = {}

    def value(self, field: _Field, counted: int) -> int:
        return max(counted - self._bases.get(field, 0), 0)

    def set(self, field: _Field, counted: int, value: int) -> None:
        """From now on the field counts on from this value."""
        self._bases[field] = counted - value
