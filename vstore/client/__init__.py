"""An independent initiator: a vhost-user-scsi front-end in Python, and a PYSCSI device on top of it."""

from vstore.client.device import VstoreDevice
from vstore.client.driver import DriverSettings, ScsiDriver
from vstore.client.errors import BackendFault, BackendGone, BackendRefused, BackendTimeout, ClientError
from vstore.client.request import CommandResult
from vstore.client.virtio_scsi import LunFormat, Response, TaskManagementFunction

__all__ = [
    "BackendFault",
    "BackendGone",
    "BackendRefused",
    "BackendTimeout",
    "ClientError",
    "CommandResult",
    "DriverSettings",
    "LunFormat",
    "Response",
    "ScsiDriver",
    "TaskManagementFunction",
    "VstoreDevice",
]
