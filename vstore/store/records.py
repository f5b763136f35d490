"""What Store verbs answer: plain records whose fields are the fields of the REST bodies, name for name."""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Image:
    """A disk image of a pool. Sizes in bytes; `state` is `ready`, or `missing` when its file is gone."""

    id: str
    name: str
    pool: str
    format: str
    file: str | None
    state: str
    virtual_size_bytes: int
    actual_size_bytes: int
    preallocation: str
    options: dict[str, Any]  # of the format, as the image has them
    secret: str | None  # the name of what opens it; None: it is not encrypted
    parent: str | None  # the image whose content shows through
    backing: str | None  # the parent's file, as the image names it
    chain_depth: int  # how many parents stand behind it
    children: list[str]  # the overlays right on it
    luns: list[str]  # where it is mapped, as TARGET/LUN
    created_at: str
    revision: int
    labels: dict[str, str]


@dataclass(frozen=True)
class Snapshot:
    """A state of an image that is kept inside it. `revision` is the microsecond in which it was taken."""

    id: str  # the format's own, unique in its image
    name: str
    image: str
    virtual_size_bytes: int
    vm_state_size_bytes: int
    created_at: str
    revision: int
    pause_us: int | None = None  # how long the guest's writes stood still, where it was taken under a guest


@dataclass(frozen=True)
class Bitmap:
    """A persistent dirty bitmap. Not `consistent`: its last writer never closed the image, so it can only be removed.
    `revision` tells these two states apart."""

    name: str
    image: str
    granularity_bytes: int  # bytes of the disk per bit
    enabled: bool  # it records what is written
    consistent: bool
    revision: int


@dataclass(frozen=True)
class Secret:
    """What opens encrypted images, but for its value. `revision` is the microsecond in which it was set."""

    name: str
    images: list[str]  # that name it, as POOL/IMAGE
    set_at: str
    revision: int


@dataclass(frozen=True)
class Job:
    """Long work on an image. `result` is the verb's own, `error` has `code` and `detail` as a problem has them."""

    id: str
    verb: str
    pool: str
    image: str
    arguments: dict[str, Any]
    state: str  # queued, running, succeeded, failed, cancelled
    done_bytes: int
    total_bytes: int  # 0: not known yet
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    revision: int


@dataclass(frozen=True)
class Process:
    """The target process behind a target, as the supervisor sees it now."""

    state: str  # starting, running, failed
    pid: int | None
    restarts: int
    problem: str | None  # why it is not running, or which LUN it lacks


@dataclass(frozen=True)
class Target:
    """A virtual SCSI target: one vhost-user socket; its process may be another target's."""

    id: str
    name: str
    socket: str
    request_queues: int
    threads: int
    poll_us: int | None
    config_space: bool
    socket_mode: str  # octal
    socket_owner: str | None  # None: the daemon's user
    socket_group: str | None  # None: the daemon's group
    beside: str | None  # the target in whose process it is served; None: in its own
    port: int  # relative target port identifier
    process: Process
    luns: list[str]
    created_at: str
    revision: int
    labels: dict[str, str]


@dataclass(frozen=True)
class Lun:
    """An image mapped to a logical unit number of a target. `name` is LUN or TARGET:LUN."""

    id: str
    name: str
    target: str
    scsi_target: int
    lun: int
    pool: str
    image: str
    virtual_size_bytes: int
    read_only: bool
    direct: bool
    logical_block_length_bytes: int
    discard: str  # unref, punch, keep: what becomes of a discarded cluster's place in the image
    shared: bool  # one logical unit with that of other targets of the same process
    serial: str
    created_at: str
    revision: int
    labels: dict[str, str]


@dataclass(frozen=True)
class AttachLine:
    """How one virtual machine monitor attaches to a target.

    `argv` is what to run (or, for a library, the call and its arguments), `command_line` the same as one string to
    paste. `ready` is false when the target's settings do not suit this monitor; `notes` says what to change.
    """

    vmm: str
    versions: str
    kind: str  # command, c_call
    command_line: str
    argv: list[str]
    ready: bool
    notes: list[str]


@dataclass(frozen=True)
class Attach:
    """All the lines of one target."""

    target: str
    socket: str
    lines: list[AttachLine] = field(default_factory=list)


@dataclass(frozen=True)
class Page(Generic[Item]):
    """One page of a list; `cursor` asks for the next one, None at the end."""

    items: list[Item]
    cursor: str | None
