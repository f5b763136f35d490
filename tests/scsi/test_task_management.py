import pytest

from vstore.scsi.task import ITNexus, Task, TaskAttribute
from vstore.scsi.task_management import TaskManagementFunction, affects

ONE, OTHER = ITNexus("one"), ITNexus("other")
TASKS = {
    "own": Task(ONE, 0, 7, TaskAttribute.SIMPLE, bytes(32)),
    "own, other tag": Task(ONE, 0, 8, TaskAttribute.SIMPLE, bytes(32)),
    "own, other unit": Task(ONE, 1, 7, TaskAttribute.SIMPLE, bytes(32)),
    "another's": Task(OTHER, 0, 7, TaskAttribute.SIMPLE, bytes(32)),
}
F = TaskManagementFunction


@pytest.mark.parametrize(
    ("function", "concerned"),
    [
        (F.ABORT_TASK, {"own"}),
        (F.QUERY_TASK, {"own"}),
        (F.ABORT_TASK_SET, {"own", "own, other tag"}),
        (F.QUERY_TASK_SET, {"own", "own, other tag"}),
        (F.CLEAR_TASK_SET, {"own", "own, other tag", "another's"}),
        (F.LOGICAL_UNIT_RESET, {"own", "own, other tag", "another's"}),
        (F.I_T_NEXUS_RESET, {"own", "own, other tag", "own, other unit"}),
        (F.CLEAR_ACA, set()),
    ],
)
def test_a_function_concerns_the_tasks_that_sam_says(function: TaskManagementFunction, concerned: set[str]) -> None:
    assert {name for name, task in TASKS.items() if affects(function, ONE, 0, 7, task)} == concerned


def test_only_the_queries_leave_tasks_alone() -> None:
    assert [function for function in F if function.queries] == [F.QUERY_TASK, F.QUERY_TASK_SET]


def test_functions_are_numbered_as_virtio_scsi_does() -> None:
    # virtio 1.2 5.6.6.2: VIRTIO_SCSI_T_TMF_*
    assert [function.name for function in sorted(F)] == [
        "ABORT_TASK",
        "ABORT_TASK_SET",
        "CLEAR_ACA",
        "CLEAR_TASK_SET",
        "I_T_NEXUS_RESET",
        "LOGICAL_UNIT_RESET",
        "QUERY_TASK",
        "QUERY_TASK_SET",
    ]
    assert sorted(F) == list(range(8))
