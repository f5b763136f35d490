from vstore.dataplane import LunCounters
from vstore.scsi.sense import AdditionalSense, Sense, SenseKey
from vstore.scsi.statistics import COUNTED, Statistics, Work


def test_what_the_data_plane_counts_is_added_and_stays_when_it_leaves() -> None:
    statistics, fast = Statistics(), [LunCounters(1, 2, 512, 1024)]

    def source() -> LunCounters:
        return fast[0]

    statistics.count(Work.READ, 512)
    statistics.follow(source)
    assert (statistics.total().reads, statistics.total().bytes_read) == (2, 1024)
    fast[0] = LunCounters(5, 2, 2560, 1024)
    statistics.leave(source)
    statistics.leave(source)
    fast[0] = LunCounters(100, 100, 100, 100)
    total = statistics.total()
    assert (total.reads, total.writes, total.bytes_read, total.bytes_written) == (6, 2, 3072, 1024)


def test_a_write_that_is_verified_counts_as_both() -> None:
    statistics = Statistics()
    statistics.count(Work.WRITE_AND_VERIFY, 512)
    statistics.count(Work.VERIFY, 1024)
    total = statistics.total()
    assert (total.writes, total.bytes_written, total.bytes_verified) == (1, 512, 1536)


def test_every_read_write_and_verify_is_counted() -> None:
    assert {row.name.split(" (")[0] for row in COUNTED} == {
        *("READ", "WRITE", "VERIFY", "WRITE AND VERIFY", "WRITE ATOMIC")
    }
    assert len(COUNTED) == 15


def test_other_medium_errors_belong_to_no_counter() -> None:
    statistics = Statistics()
    statistics.failed(0x28, Sense(SenseKey.MEDIUM_ERROR, AdditionalSense.MEDIUM_FORMAT_CORRUPTED))
    statistics.failed(0x28, Sense.illegal(AdditionalSense.INVALID_FIELD_IN_CDB))
    assert statistics.total() == Statistics().total()
