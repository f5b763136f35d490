"""The mode pages of a logical unit: current, changeable and default values (SPC-4 7.5)."""

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from vstore.scsi.advisory_pages import (
    NO_HINTS,
    NO_TAGS,
    ApplicationTag,
    DisconnectReconnect,
    IoAdviceHintsGrouping,
)
from vstore.scsi.field import CHANGEABLE, Layout
from vstore.scsi.kept_state import KeptBytes
from vstore.scsi.pages import (
    Caching,
    Control,
    ControlExtension,
    InformationalExceptionsControl,
    ModePageHeader,
    ModeSubpageHeader,
    PowerCondition,
    ProvisioningThresholds,
    ReadWriteErrorRecovery,
)

ALL_PAGES = 0x3F
ALL_SUBPAGES = 0xFF


class PageControl(IntEnum):
    """SPC-4 table 160."""

    CURRENT = 0
    CHANGEABLE = 1
    DEFAULT = 2
    SAVED = 3


class PageAddress(NamedTuple):
    page: int
    subpage: int = 0

    def __str__(self) -> str:
        return f"{self.page:02x}/{self.subpage:02x}"


class ModePage(NamedTuple):
    name: str
    layout: type[Layout]


READ_WRITE_ERROR_RECOVERY = PageAddress(0x01)
DISCONNECT_RECONNECT = PageAddress(0x02)
CACHING = PageAddress(0x08)
CONTROL = PageAddress(0x0A)
CONTROL_EXTENSION = PageAddress(0x0A, 0x01)
APPLICATION_TAG = PageAddress(0x0A, 0x02)
IO_ADVICE_HINTS_GROUPING = PageAddress(0x0A, 0x05)
POWER_CONDITION = PageAddress(0x1A)
INFORMATIONAL_EXCEPTIONS_CONTROL = PageAddress(0x1C)
PROVISIONING_THRESHOLDS = PageAddress(0x1C, 0x02)

MODE_PAGES: Mapping[PageAddress, ModePage] = {
    READ_WRITE_ERROR_RECOVERY: ModePage("Read-Write Error Recovery", ReadWriteErrorRecovery),
    DISCONNECT_RECONNECT: ModePage("Disconnect-Reconnect", DisconnectReconnect),
    CACHING: ModePage("Caching", Caching),
    CONTROL: ModePage("Control", Control),
    CONTROL_EXTENSION: ModePage("Control Extension", ControlExtension),
    APPLICATION_TAG: ModePage("Application Tag", ApplicationTag),
    IO_ADVICE_HINTS_GROUPING: ModePage("IO Advice Hints Grouping", IoAdviceHintsGrouping),
    POWER_CONDITION: ModePage("Power Condition", PowerCondition),
    INFORMATIONAL_EXCEPTIONS_CONTROL: ModePage("Informational Exceptions Control", InformationalExceptionsControl),
    PROVISIONING_THRESHOLDS: ModePage("Logical Block Provisioning", ProvisioningThresholds),
}


_FIXED: dict[PageAddress, Layout] = {
    # The clock is the host's until SET TIMESTAMP, which then has precedence (SPC-4 5.2).
    CONTROL_EXTENSION: ControlExtension.of(tcmos=1, scsip=1),
    APPLICATION_TAG: NO_TAGS,
    IO_ADVICE_HINTS_GROUPING: NO_HINTS,
    INFORMATIONAL_EXCEPTIONS_CONTROL: InformationalExceptionsControl.of(dexcpt=1),
    # Soft thresholds: what is available (01h) is armed for its decrease, what is used (02h) for its increase.
    PROVISIONING_THRESHOLDS: ProvisioningThresholds.of(
        available_threshold_resource=1, used_threshold_arming=1, used_threshold_resource=2
    ),
}


def page_header(address: PageAddress, body_length: int, *, saveable: bool = False) -> bytes:
    if address.subpage:
        return ModeSubpageHeader.of(
            ps=int(saveable), spf=1, page_code=address.page, subpage_code=address.subpage, page_length=body_length
        ).encode()
    return ModePageHeader.of(ps=int(saveable), page_code=address.page, page_length=body_length).encode()


class ModeParameters:
    """One layout per page address; what a page holds without its header. `kept`: where saved values outlive the unit;
    a page can be saved if there is such a place, and something in it can change."""

    def __init__(self, caching: Caching, control: Control, kept: KeptBytes | None = None, *, thin: bool = True) -> None:
        """Of a page that neither is given nor has values that never change, every default is zero. Only a thin unit has
        thresholds."""
        zeros: dict[PageAddress, Layout] = {address: page.layout() for address, page in MODE_PAGES.items()}
        self.defaults: Mapping[PageAddress, Layout] = zeros | _FIXED | {CACHING: caching, CONTROL: control}
        if not thin:
            self.defaults = {at: page for at, page in self.defaults.items() if at != PROVISIONING_THRESHOLDS}
        self._kept = kept or KeptBytes(None)
        self.saved = {address: self._restored(address, page) for address, page in self.defaults.items()}
        self.current = dict(self.saved)

    def _restored(self, address: PageAddress, default: Layout) -> Layout:
        """What was saved of the changeable parameters; all else is as it is today."""
        kept = self._kept.values.get(str(address), b"")
        if len(kept) != default.length:
            return default
        changeable = default.mask_of(CHANGEABLE)
        return type(default)(default.value & ~changeable | int.from_bytes(kept) & changeable)

    @property
    def saves(self) -> bool:
        """Whether anything can be saved."""
        return self._kept.keeps

    def _saveable(self, page: Layout) -> bool:
        return self.saves and bool(page.mask_of(CHANGEABLE))

    async def save(self) -> None:
        """The current values become the saved ones (SPC-4 6.11: of all pages). Raises OSError."""
        now = dict(self.current)
        await self._kept.save(**{str(address): page.encode() for address, page in now.items() if self._saveable(page)})
        self.saved = now

    @property
    def caching(self) -> Caching:
        page = self.current[CACHING]
        assert isinstance(page, Caching)
        return page

    @property
    def control(self) -> Control:
        page = self.current[CONTROL]
        assert isinstance(page, Control)
        return page

    @property
    def thresholds(self) -> ProvisioningThresholds:
        """Of a unit that is not thin, none is enabled."""
        page = self.current.get(PROVISIONING_THRESHOLDS)
        return page if isinstance(page, ProvisioningThresholds) else ProvisioningThresholds()

    def revert(self) -> None:
        """To the saved values, as every reset does; where nothing was saved these are the default ones."""
        self.current = dict(self.saved)

    def select(self, page: int, subpage: int) -> list[PageAddress]:
        """The pages that a MODE SENSE names, ascending; 3Fh and FFh stand for all. Empty when there is none."""
        if page == ALL_PAGES and subpage not in (0, ALL_SUBPAGES):
            return []  # reserved (SPC-4 table 161)
        return sorted(
            address
            for address in self.current
            if page in (ALL_PAGES, address.page) and subpage in (ALL_SUBPAGES, address.subpage)
        )

    def values(self, address: PageAddress, control: PageControl) -> bytes:
        """The page with its header."""
        page = self.current[address]
        if control is PageControl.CHANGEABLE:
            page = type(page)(page.mask_of(CHANGEABLE))
        elif control is PageControl.DEFAULT:
            page = self.defaults[address]
        elif control is PageControl.SAVED:
            page = self.saved[address]
        return page_header(address, page.length, saveable=self._saveable(page)) + page.encode()
