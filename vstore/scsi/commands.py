"""Every CDB that vstore knows, laid out as SPC-4 (primary_commands.py, persistent_reserve.py) and SBC-3
(block_commands.py) print them.

A row holds no behaviour and no conditions. From it come the decoder, the refusals, CDB USAGE DATA, the rows of the data
plane's fast path, the fuzzer's generator and docs/scsi. A command is its row there and its handler in spc.py,
modes.py, persistent_reserve_in.py, sbc.py, verify.py and so on: logical_unit.py lists these.
"""

from collections.abc import Mapping, Sequence

from vstore.scsi.block_commands import *  # noqa: F403 - all rows, so that a new one is said once
from vstore.scsi.cdb import Cdb
from vstore.scsi.fast_path import FastRow, fast_row
from vstore.scsi.persistent_reserve import *  # noqa: F403
from vstore.scsi.primary_commands import *  # noqa: F403

COMMANDS: Sequence[type[Cdb]] = tuple(
    sorted(
        (row for row in globals().values() if isinstance(row, type) and issubclass(row, Cdb) and row is not Cdb),
        key=lambda row: (row.opcode, row.service_action or 0),
    )
)


def _by_operation_code() -> Mapping[int, Mapping[int | None, type[Cdb]]]:
    table: dict[int, dict[int | None, type[Cdb]]] = {}
    for row in COMMANDS:
        table.setdefault(row.opcode, {})[row.service_action] = row
    return table


# Operation code -> service action (None: the command has none) -> row.
BY_OPERATION_CODE = _by_operation_code()


def fast_rows() -> list[FastRow]:
    """What the data plane must know of each command that it may serve by itself."""
    return [fast_row(row) for row in COMMANDS if row.fast is not None]
