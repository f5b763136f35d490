"""The one error of this layer: a code to match on, and a sentence that says what was wrong and what would be right."""

from enum import StrEnum


class ErrorCode(StrEnum):
    """What a program may tell apart; they stand in answers as printed."""

    INVALID_REQUEST = "invalid_request"  # malformed packet, unknown verb or field, value out of range
    NOT_ALLOWED = "not_allowed"  # the peer's uid may not steer this process
    ALREADY_CONFIGURED = "already_configured"  # configured otherwise
    LUN_EXISTS = "lun_exists"
    NOT_OPEN = "not_open"  # no other target of this process has mapped that image as shared: send its files
    NO_SUCH_LUN = "no_such_lun"
    SOCKET_IN_USE = "socket_in_use"
    IMAGE_REFUSED = "image_refused"  # the format says why: locked, invalid, wrong size, read-only
    SECRET_NEEDED = "secret_needed"  # it is encrypted, and its secret did not come along
    SECRET_WRONG = "secret_wrong"  # the secret that came does not open it
    IMAGE_LOCKED = "image_locked"  # another program holds it
    HOST_ERROR = "host_error"  # the operating system refused
    BUSY = "busy"  # too many requests at once
    STOPPING = "stopping"
    INTERNAL = "internal"  # a bug of vstore; the log has the traceback
    TIMED_OUT = "timed_out"  # told by the client alone: no answer in time
    DISCONNECTED = "disconnected"  # told by the client alone: the process is gone
    NOT_STARTED = "not_started"  # told by the client alone: the process did not come up


class TargetError(Exception):
    """Why a verb was not done; `code` is for programs, `detail` for people."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
