"""What can go wrong between a front-end and its back-end: one exception class per cause, each with a sentence."""

# ruff: noqa: N818  (the names say what is wrong; the base class says that it is an error)


class ClientError(Exception):
    """Any failure of the connection to a back-end; SCSI status and sense data are answers, not failures."""


class BackendRefused(ClientError):
    """The back-end lacks a feature that is needed, or answered a message with an error."""


class BackendGone(ClientError):
    """The back-end is not there, or closed the connection."""


class BackendTimeout(ClientError):
    """The back-end did not answer a message or complete a command in time."""


class BackendFault(ClientError):
    """The back-end broke a rule of vhost-user or virtio: what it wrote cannot be trusted."""


class RingFull(ClientError):
    """A virtqueue has too few free descriptors for a chain now."""
