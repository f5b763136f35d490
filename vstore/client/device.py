"""VstoreDevice: a device for PYSCSI, so that any Python program can be the initiator of a vhost-user-scsi target.

    from pyscsi.pyscsi.scsi import SCSI
    from vstore.client import VstoreDevice

    with SCSI(VstoreDevice("/run/disk.sock"), 512) as disk:
        disk.write10(0, 1, bytes(512))
        print(disk.readcapacity16().result)

PYSCSI 2.1 builds no SYNCHRONIZE CACHE, UNMAP, VERIFY or PERSISTENT RESERVE; `command` takes any CDB as bytes.
"""

import os
from typing import Any, Self

from pyscsi.pyscsi import scsi_enum_command

from vstore.client import status
from vstore.client.driver import DriverSettings, ScsiDriver
from vstore.client.request import CommandResult
from vstore.client.virtio_scsi import LunFormat, Response, TaskManagementFunction, encode_lun


class VstoreDevice:
    """A logical unit behind a vhost-user-scsi socket, as PYSCSI wants a device to be.

    `socket_path`: where the back-end listens; or a ScsiDriver, which devices for several logical units may share and
    which `close` then leaves open. `timeout`: seconds that one command may take.
    `address` is the 8-byte LUN in use; set it to what `target` and `lun` cannot say, as WELL_KNOWN_REPORT_LUNS.
    Raises BackendGone, BackendRefused, BackendTimeout or BackendFault, here and in every command; ValueError for a LUN
    that the format cannot address.
    """

    CheckCondition = status.CheckCondition
    ConditionsMet = status.ConditionsMet
    BusyStatus = status.BusyStatus
    ReservationConflict = status.ReservationConflict
    TaskSetFull = status.TaskSetFull
    ACAActive = status.ACAActive
    TaskAborted = status.TaskAborted

    opcodes: Any = scsi_enum_command.spc
    devicetype: int | None = None

    def __init__(
        self,
        socket_path: str | os.PathLike[str] | ScsiDriver,
        target: int = 0,
        lun: int = 0,
        *,
        timeout: float = 30.0,
        lun_format: LunFormat = LunFormat.FLAT,
        settings: DriverSettings | None = None,
    ) -> None:
        self.address = encode_lun(target, lun, lun_format)
        self.timeout = timeout
        self._owns_driver = not isinstance(socket_path, ScsiDriver)
        self.driver = socket_path if isinstance(socket_path, ScsiDriver) else ScsiDriver(socket_path, settings)

    def command(self, cdb: bytes | bytearray, data_out: bytes = b"", data_in_length: int = 0) -> CommandResult:
        """Executes any CDB and returns whatever became of it; lengths in bytes. No status or response raises.

        ValueError for data both ways, which needs a feature that no back-end offers, and for a CDB beyond 32 bytes.
        """
        if data_out and data_in_length:
            raise ValueError("a command has data-out or data-in, not both")
        return self.driver.wait(self.driver.submit(self.address, cdb, data_out, data_in_length), self.timeout)

    def execute(self, cmd: Any, en_raw_sense: bool = False) -> CommandResult:
        """Executes a PYSCSI command: fills `cmd.datain` in place, sets `cmd.residual` and, where there is, `cmd.sense`.

        With `en_raw_sense` the sense data also stands in `cmd.raw_sense_data`. Raises CheckCondition, one of the status
        exceptions of this class, or TransportFailure.
        """
        result = self.command(cmd.cdb, bytes(cmd.dataout or b""), len(cmd.datain or b""))
        if result.data_in:
            cmd.datain[: len(result.data_in)] = result.data_in
        cmd.residual = result.residual
        cmd.sense = bytearray(result.sense) or None
        if en_raw_sense:
            cmd.raw_sense_data = cmd.sense
        status.raise_for(result)
        return result

    def manage(self, function: TaskManagementFunction, tag: int = 0) -> Response:
        """Asks for a task management function on this logical unit and waits for its response."""
        return self.driver.wait(self.driver.manage(function, self.address, tag), self.timeout)

    def open(self) -> None:
        """PYSCSI's optional method; the constructor has connected already."""

    def close(self) -> None:
        """Disconnects, unless the driver is shared."""
        if self._owns_driver:
            self.driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
