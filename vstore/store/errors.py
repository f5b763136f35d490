"""The one error family of management: every Store verb fails with one of these and nothing else.

Each class is one row of the table in `api/errors.py`; `code` is the stable word that programs match on, the message
says what was wrong and what would be right, and no message shows a path outside the pool.
"""

# ruff: noqa: N818  (the names say what is wrong; the base class says that it is an error)

from typing import ClassVar


class StoreError(Exception):
    """Base of all. `field` names the request field at fault, where one is."""

    code: ClassVar[str] = "store_error"

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class InvalidArgument(StoreError):
    """A value that can never be right: `wrong` says what it is, `right` what it should be."""

    code = "invalid_argument"

    def __init__(self, field: str, wrong: str, right: str) -> None:
        super().__init__(f"{field}: {wrong}; {right}", field=field)
        self.wrong = wrong
        self.right = right


class NotFound(StoreError):
    code = "not_found"


class AlreadyExists(StoreError):
    """The name is taken by something that differs from what was asked for."""

    code = "already_exists"


class Conflict(StoreError):
    """The state of things forbids it now; the message says what has to change first."""

    code = "conflict"


class InUse(Conflict):
    """Something depends on it; the message names the dependents."""

    code = "in_use"


class Unsupported(Conflict):
    """The image's format cannot do that."""

    code = "unsupported"


class SecretNeeded(Conflict):
    """An image is encrypted, and its secret is not there; the message names both."""

    code = "secret_needed"


class SecretWrong(Conflict):
    """The secret that an image names does not open it."""

    code = "secret_wrong"


class Stale(StoreError):
    """The caller's revision is not the current one."""

    code = "stale"


class Locked(StoreError):
    """Another process holds the image."""

    code = "locked"


class PoolFull(StoreError):
    code = "pool_full"


class PoolUnavailable(StoreError):
    """The pool's file system refused; the message carries its reason."""

    code = "pool_unavailable"


class TargetUnavailable(StoreError):
    """The target process is not there or does not answer; trying again may help."""

    code = "target_unavailable"


class Busy(StoreError):
    """Too many verbs wait for the same object; trying again helps."""

    code = "busy"


class WorkFailed(StoreError):
    """The process that did the work ended without a result."""

    code = "work_failed"


class CatalogUnavailable(StoreError):
    """The state directory cannot be used: another daemon has it, or a newer version wrote it."""

    code = "catalog_unavailable"
