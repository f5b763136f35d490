"""The fast path in C and the slow path in Python give the same answer to every CDB that both can serve."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from formats.memory import Memory
from tests.differential.cases import FAST_ROWS, Case
from tests.differential.configurations import CONFIGURATIONS
from tests.differential.twins import Configuration, Disagreement, Twins
from vstore.scsi.commands import Read10, Read16, StartStopUnit, Write10, Write16

CASES = 400
_WRITES = {row.name for row in FAST_ROWS if row.access.name == "WRITE"}


@pytest.fixture
def memory_twins(tmp_path: Path) -> Iterator[Twins]:
    configuration = Configuration("memory", lambda _: Memory(40 << 20))
    with Twins(tmp_path, configuration, guest_memory=128 << 20) as twins:
        yield twins


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_both_paths_answer_alike_and_leave_the_same_bytes(tmp_path: Path, configuration: Configuration) -> None:
    with Twins(tmp_path, configuration) as twins:
        twins.run_random(Random(configuration.name), CASES)
        assert sum(twins.fast.values()) > CASES // 10, "too few cases reached the fast path"
        assert sum(twins.slow.values()) > CASES // 10, "too few cases were left to the slow path"


def test_every_command_of_the_table_is_served_by_the_fast_path_somewhere(tmp_path: Path) -> None:
    fast: Counter[str] = Counter()
    for index in range(12):  # WRITE SAME rarely is what the fast path serves
        if {row.name for row in FAST_ROWS} <= set(fast):
            return
        folder = tmp_path / str(index)
        folder.mkdir()
        with Twins(folder, CONFIGURATIONS[0]) as twins:
            twins.run_random(Random(index), CASES)
            fast += twins.fast
    assert {row.name for row in FAST_ROWS} <= set(fast)


def test_the_slow_twin_never_uses_the_fast_path(tmp_path: Path) -> None:
    with Twins(tmp_path, CONFIGURATIONS[0]) as twins:
        twins.run_random(Random(0), 100)
        counters = twins.slow_counters
        assert counters.fetched == counters.slow > 100


def test_a_wrong_answer_would_be_seen(tmp_path: Path) -> None:
    with Twins(tmp_path, CONFIGURATIONS[0]) as twins:
        twins.corrupt_fast_medium()
        with pytest.raises(Disagreement, match=r"READ \(10\) 28000000000000000100"):
            twins.run(Case(Read10, Read10.build(transfer_length=1), data_in_length=512))
        with pytest.raises(Disagreement, match="byte 0 is"):
            twins.compare_media("the corruption")


@pytest.mark.parametrize("count", [65535, 65536, 65537])
def test_the_longest_transfer_is_the_same_on_both_paths(memory_twins: Twins, count: int) -> None:
    data = Random(count).randbytes(count * 512)
    write = Case(Write16, Write16.build(lba=5, transfer_length=count), data_out=data)
    read = Case(Read16, Read16.build(lba=5, transfer_length=count), data_in_length=len(data))
    written, found = memory_twins.run(write), memory_twins.run(read)
    assert (written.status, found.status) == ((0, 0) if count <= 65536 else (2, 2))
    assert found.data_in == (data if count <= 65536 else b"")


def test_a_stopped_unit_answers_no_media_command_on_either_path(memory_twins: Twins) -> None:
    read = Case(Read10, Read10.build(transfer_length=1), data_in_length=512)
    memory_twins.run(Case(StartStopUnit, StartStopUnit.build(start=0)))
    assert memory_twins.run(read).status == 2
    memory_twins.run(Case(StartStopUnit, StartStopUnit.build(start=1)))
    assert memory_twins.run(read).status == 0
    assert memory_twins.fast["READ (10)"] == 1


def test_a_unit_attention_shuts_the_gate_until_it_is_told(memory_twins: Twins) -> None:
    read = Case(Read10, Read10.build(transfer_length=1), data_in_length=512)
    write = Case(Write10, Write10.build(transfer_length=1), data_out=bytes(512))
    memory_twins.reset()
    assert memory_twins.run(write).sense[12:14] == b"\x29\x03"
    assert memory_twins.run(read).status == 0
    assert (memory_twins.fast["WRITE (10)"], memory_twins.fast["READ (10)"]) == (0, 1)


def test_a_shrunk_unit_is_out_of_range_on_both_paths(memory_twins: Twins) -> None:
    read = Case(Read10, Read10.build(lba=70000, transfer_length=1), data_in_length=512)
    assert memory_twins.run(read).status == 0
    memory_twins.resize(32 << 20)
    assert memory_twins.run(read).sense[12:14] == b"\x2a\x09"
    assert memory_twins.run(read).sense[12:14] == b"\x21\x00"
    memory_twins.resize(40 << 20)
    memory_twins.attend()
    assert memory_twins.run(read).status == 0
