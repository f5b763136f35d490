import asyncio
import logging

import pytest

from vstore.scsi.kept_state import KeptBytes, MemorySection, MemoryState, StateLost


async def test_each_section_keeps_what_was_saved_last() -> None:
    state = MemoryState()
    one, other = state.section("one"), state.section("other")
    assert one.load() is None
    await one.save(b"a")
    await one.save(b"b")
    assert (one.load(), other.load(), state.section("one").load()) == (b"b", None, b"b")


async def test_byte_strings_are_kept_by_name_and_an_empty_one_is_none() -> None:
    state = MemoryState()
    kept = KeptBytes(state.section("one"))
    assert kept.keeps
    await kept.save(a=b"1", b=b"2")
    await kept.save(b=b"", c=b"\0\xff")
    assert kept.values == KeptBytes(state.section("one")).values == {"a": b"1", "c": b"\0\xff"}


def test_without_a_section_nothing_is_kept() -> None:
    kept = KeptBytes(None)
    assert (kept.keeps, kept.values) == (False, {})


class SlowSection(MemorySection):
    """Another save comes before this one is done, and it fails if it is told to."""

    fails = False

    async def save(self, data: bytes) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise OSError(28, "no space")
        await super().save(data)


async def test_saves_at_once_undo_none_and_one_that_fails_changes_nothing() -> None:
    section = SlowSection({}, "one")
    kept = KeptBytes(section)
    await asyncio.gather(kept.save(a=b"1"), kept.save(b=b"2"))
    section.fails = True
    with pytest.raises(OSError, match="no space"):
        await kept.save(a=b"3")
    assert kept.values == KeptBytes(section).values == {"a": b"1", "b": b"2"}


class LostSection(MemorySection):
    def load(self) -> bytes | None:
        raise StateLost


def test_what_was_lost_is_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert KeptBytes(LostSection({}, "one")).values == {}
    assert "cannot be read any more" in caplog.text
