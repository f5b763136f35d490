import pytest

from vstore.scsi.sense import CheckCondition
from vstore.scsi.task import BytesOut, ITNexus, Status, Task, TaskAttribute


def make_task(data_out: bytes) -> Task:
    return Task(ITNexus("one"), 0, 7, TaskAttribute.SIMPLE, bytes(32), BytesOut(data_out))


def test_a_nexus_equals_itself_alone() -> None:
    one, other = ITNexus("same"), ITNexus("same")
    assert one != other
    assert len({one, other}) == 2
    assert repr(one) == "ITNexus('same')"


def test_data_out_is_counted_as_far_as_it_was_fetched() -> None:
    task = make_task(bytes(range(100)))
    assert task.fetch(10) == bytes(range(10))
    assert task.fetch(5, 50) == bytes(range(50, 55))
    assert task.fetch(1) == b"\0"
    assert task.data_out_used == 55


@pytest.mark.parametrize(("length", "offset"), [(101, 0), (1, 100), (1 << 64, 0)])
def test_data_out_is_never_read_beyond_its_end(length: int, offset: int) -> None:
    task = make_task(bytes(100))
    with pytest.raises(CheckCondition, match="ILLEGAL_REQUEST INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT"):
        task.fetch(length, offset)
    assert task.data_out_used == 0


def test_a_buffer_that_hands_out_less_than_it_promised_is_a_defect() -> None:
    class Liar(BytesOut):
        @property
        def length(self) -> int:
            return 200

    task = make_task(b"")
    task.data_out = Liar(bytes(100))
    with pytest.raises(AssertionError):
        task.fetch(150)


def test_statuses_have_the_codes_of_sam() -> None:
    # SAM-5 table 33
    assert {status.name: status.value for status in Status} == {
        "GOOD": 0x00,
        "CHECK_CONDITION": 0x02,
        "CONDITION_MET": 0x04,
        "BUSY": 0x08,
        "RESERVATION_CONFLICT": 0x18,
        "TASK_SET_FULL": 0x28,
        "ACA_ACTIVE": 0x30,
        "TASK_ABORTED": 0x40,
    }


def test_task_attributes_are_numbered_as_virtio_scsi_does() -> None:
    # virtio 1.2 5.6.6.1: VIRTIO_SCSI_S_SIMPLE, _ORDERED, _HEAD, _ACA
    assert [(attribute.name, attribute.value) for attribute in TaskAttribute] == [
        ("SIMPLE", 0),
        ("ORDERED", 1),
        ("HEAD_OF_QUEUE", 2),
        ("ACA", 3),
    ]
