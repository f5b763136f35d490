from vstore.scsi.kept_state import MemoryState


async def test_each_section_keeps_what_was_saved_last() -> None:
    state = MemoryState()
    one, other = state.section("one"), state.section("other")
    assert one.load() is None
    await one.save(b"a")
    await one.save(b"b")
    assert (one.load(), other.load(), state.section("one").load()) == (b"b", None, b"b")
