"""Task management functions (SAM-5 clause 7), and which tasks each one concerns.

The transport holds the tasks that are running; it asks `affects` which of them a function ends, or asks about. What a
reset does to a logical unit, `LogicalUnit.reset` says.
"""

from enum import IntEnum

from vstore.scsi.task import ITNexus, Task


class TaskManagementFunction(IntEnum):
    """Numbered as virtio-scsi does."""

    ABORT_TASK = 0
    ABORT_TASK_SET = 1
    CLEAR_ACA = 2
    CLEAR_TASK_SET = 3
    I_T_NEXUS_RESET = 4
    LOGICAL_UNIT_RESET = 5
    QUERY_TASK = 6
    QUERY_TASK_SET = 7

    @property
    def queries(self) -> bool:
        """It only asks; the tasks that it concerns go on."""
        return self in (self.QUERY_TASK, self.QUERY_TASK_SET)


def affects(function: TaskManagementFunction, nexus: ITNexus, lun: int, tag: int, task: Task) -> bool:
    """Whether the function, received on this nexus with this LUN and tag, concerns the task.

    The task set is one for all nexuses (TST is 000b), so CLEAR TASK SET and LOGICAL UNIT RESET reach those of others.
    """
    if function is TaskManagementFunction.CLEAR_ACA:
        return False
    if function is TaskManagementFunction.I_T_NEXUS_RESET:
        return task.nexus is nexus
    if task.lun != lun:
        return False
    if function in (TaskManagementFunction.CLEAR_TASK_SET, TaskManagementFunction.LOGICAL_UNIT_RESET):
        return True
    if function in (TaskManagementFunction.ABORT_TASK, TaskManagementFunction.QUERY_TASK):
        return task.nexus is nexus and task.tag == tag
    return task.nexus is nexus
