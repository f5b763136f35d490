"""Every verb of the control channel, declared once: its request, its answer, and the descriptors that go with it.

A request packet is the JSON object of the request's fields beside `id` and `verb`; its answer is
`{"id": …, "ok": {…}}` or `{"id": …, "error": {"code": …, "detail": …}}`. Events come unasked: `{"event": …, …}`.
The process has one method per verb, the client too, and both get their types from here.
"""

from formats.image import Discard
from vstore.record import Record
from vstore.scsi.identity import SERIAL_LENGTH
from vstore.target.declaration import (
    Check,
    Declaration,
    declared,
    flag,
    nested,
    one_of,
    optional,
    rows,
    seconds,
    text,
    whole,
)

PROTOCOL = 1  # grows when a verb changes its meaning; new verbs and fields with defaults need no new number
MOST_LUNS_PER_ANSWER = 8  # keeps an answer with 66 vrings, the longest chains and names below a message's limit
MOST_PARENTS = 999
LARGEST_LENGTH = 2**63 - 512

# SPC-4 6.6: identification is ASCII; the lengths are the standard INQUIRY data's fields.
_ASCII = r"[\x20-\x7e]+"
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def _ascii(most: int) -> Check:
    return text(most, _ASCII, "at least one, printable ASCII")


_target = whole(0, 255)  # virtio 1.2 5.6.6.1: one byte
_lun = whole(0, 16383)  # virtio 1.2 5.6.6.1: 14 bits
_length = whole(512, LARGEST_LENGTH)
_bytes_count = whole(0, 2**64 - 1)
_discard = one_of(*(each.value for each in Discard))
_told = text(65535, r"[\s\S]*", "whatever an image holds")


class Empty(Declaration):
    """No fields."""


class Configure(Declaration):
    """Make the virtio-scsi endpoint and listen for the VMM. With a descriptor, that is the listening socket and
    `socket` only tells its path; without, the process makes the socket (mode 0600) and removes it at its end."""

    name: str = declared(text(64))
    port: int = declared(whole(1, 65535), 1)  # relative target port identifier (SPC-4 7.6.1.2)
    socket: str = declared(text(4096))
    request_queues: int = declared(whole(1, 64), 1)  # dataplane.h VS_MAX_VRINGS: control, event, 64 request queues
    threads: int = declared(whole(1, 64), 1)
    poll_us: int = declared(optional(whole(0, 1_000_000)), None)  # None: the data plane's own bound
    config_space: bool = declared(flag, False)  # VHOST_USER_PROTOCOL_F_CONFIG: on for every VMM but QEMU


_format = text(32, r"[a-z0-9]+", "lower-case letters and digits")


class ParentSource(Declaration):
    """An image that another one is an overlay on; it is only read."""

    format: str = declared(_format)
    name: str = declared(text(256), "")  # only told
    file: str = declared(text(128), "")  # what the overlay has to call it; empty: whatever it does
    data_file: bool = declared(flag, False)
    secret: bool = declared(flag, False)


class ImageSource(Declaration):
    """What stands behind a LUN: files that came as descriptors, or a format that needs none.

    The descriptors: the image, its data file if it has one, a file with its secret if it is encrypted, the nearest
    parent, that one's data file and secret, and so on. Which files these are is the sender's word, never what the
    images say. What a secret's file holds is read once, and neither kept nor told.
    """

    format: str = declared(_format)
    length: int | None = declared(optional(_length), None)  # bytes; for formats without a file
    direct: bool = declared(flag, False)  # the descriptor was opened with O_DIRECT
    name: str = declared(text(512), "")  # what the one who maps it calls it; only told
    data_file: bool = declared(flag, False)
    secret: bool = declared(flag, False)
    parents: tuple[ParentSource, ...] = declared(rows(ParentSource, MOST_PARENTS), ())  # nearest first


class MapLun(Declaration):
    """Put an image behind a LUN; a running guest is told (virtio 1.2 5.6.6.3, TRANSPORT_RESET/RESCAN)."""

    target: int = declared(_target, 0)
    lun: int = declared(_lun)
    image: ImageSource = declared(nested(ImageSource))
    read_only: bool = declared(flag, False)
    logical_block_length: int = declared(one_of(512, 4096), 512)  # bytes
    physical_block_exponent: int | None = declared(optional(whole(0, 7)), None)  # None: 4096-byte physical blocks
    thin: bool | None = declared(optional(flag), None)  # None: as the image can
    write_cache: bool = declared(flag, True)
    state: bool = declared(flag, False)  # the first descriptor is of the file with what the unit keeps over a restart
    shared: bool = declared(flag, False)  # one unit with what other targets of this process map of that name
    discard: str = declared(_discard, "unref")  # what becomes of a discarded block's place
    vendor: str = declared(_ascii(8), "VSTORE")
    product: str = declared(_ascii(16), "DISK")
    serial: str = declared(_ascii(SERIAL_LENGTH))
    uuid: str | None = declared(optional(text(36, _UUID, "a UUID")), None)  # None: one from the serial


class Mapped(Declaration):
    length: int = declared(_bytes_count)  # bytes
    read_only: bool = declared(flag)
    thin: bool = declared(flag)


class LunAddress(Declaration):
    """The request of `unmap_lun`."""

    target: int = declared(_target, 0)
    lun: int = declared(_lun)


class ResizeLun(Declaration):
    target: int = declared(_target, 0)
    lun: int = declared(_lun)
    length: int = declared(_length)  # bytes, whole logical blocks


class Resized(Declaration):
    length: int = declared(_bytes_count)


class SnapshotLun(Declaration):
    """Internal snapshots of the image, while the guest goes on: `create` takes one, `delete` forgets the one of this ID
    or name, `list` changes nothing."""

    target: int = declared(_target, 0)
    lun: int = declared(_lun)
    action: str = declared(one_of("create", "delete", "list"))
    name: str = declared(text(255), "")  # for all but `list`


class SnapshotRow(Declaration):
    """As `qemu-img info --output=json` tells it."""

    id: str = declared(_told)
    name: str = declared(_told)
    created: float = declared(seconds)  # since 1970
    vm_state_bytes: int = declared(_bytes_count, 0)


class Snapshots(Declaration):
    """Those that there are afterwards, in the image's order, the one that was made last."""

    snapshots: tuple[SnapshotRow, ...] = declared(rows(SnapshotRow, 65536))
    pause_us: int | None = declared(optional(_bytes_count), None)  # of `create`: how long writes had to wait


class BitmapSource(Declaration):
    name: str = declared(text(1023))


class BitmapLun(Declaration):
    """Persistent dirty bitmaps of the image, while the guest goes on; all but `list` as `vstore file bitmap` does."""

    target: int = declared(_target, 0)
    lun: int = declared(_lun)
    action: str = declared(one_of("list", "add", "remove", "enable", "disable", "clear", "merge"))
    name: str = declared(text(1023), "")  # for all but `list`
    granularity: int | None = declared(optional(_bytes_count), None)  # of `add`: bytes of the disk per bit
    enabled: bool = declared(flag, True)  # of `add`
    sources: tuple[BitmapSource, ...] = declared(rows(BitmapSource, 65535), ())  # of `merge`


class BitmapRow(Declaration):
    name: str = declared(_told)
    granularity: int = declared(_bytes_count)
    enabled: bool = declared(flag)
    consistent: bool = declared(flag)  # what it says is true


class BitmapList(Declaration):
    """Those that there are afterwards."""

    bitmaps: tuple[BitmapRow, ...] = declared(rows(BitmapRow, 65535))


class Host(Declaration):
    """Serve one more target in this process, which is steered through a control socket of its own, made at `control`.
    It has the verbs that any target has, and shares what it maps as `shared`."""

    control: str = declared(text(4096))


class Keep(Declaration):
    """From now on the process tells through the socket that comes with this, packet by packet, what it takes to go on
    without it (vhost_user/keeping.py); at once all that there is."""


class KeptRow(Declaration):
    """One thing that was told so; `descriptors`: how many of those that come along are its own."""

    name: str = declared(text(256))
    request: int = declared(whole(0, 2**32 - 1))
    flags: int = declared(whole(0, 2**32 - 1))
    payload: str = declared(text(2**18, r"([0-9a-f]{2})*", "hexadecimal digits in pairs"), "")
    descriptors: int = declared(whole(0, 8), 0)


class Resume(Declaration):
    """Before `configure`: goes on with what a process before this one told, when its LUNs are mapped."""

    kept: tuple[KeptRow, ...] = declared(rows(KeptRow, 65536))


class StatusRequest(Declaration):
    first_lun: int = declared(whole(0, 2**22), 0)  # position in the LUN list to tell from


class VringStatus(Declaration):
    """Counters of one vring since it was made; 0 is control, 1 event, 2.. request."""

    vring: int = declared(whole(0, 65))
    started: bool = declared(flag)
    enabled: bool = declared(flag)
    broken: bool = declared(flag)
    in_flight: int = declared(_bytes_count)
    kicks: int = declared(_bytes_count)
    calls: int = declared(_bytes_count)
    fetched: int = declared(_bytes_count)
    completed: int = declared(_bytes_count)
    slow: int = declared(_bytes_count)  # requests that Python answered
    batches: int = declared(_bytes_count)
    bytes_read: int = declared(_bytes_count)  # data-in of commands that ended with GOOD, whoever answered them
    bytes_written: int = declared(_bytes_count)  # likewise data-out
    resumed: int = declared(_bytes_count, 0)  # chains that a process before this one had fetched and not answered


class LunStatus(Declaration):
    """A LUN as it was mapped, and as it is."""

    settings: MapLun = declared(nested(MapLun))
    length: int = declared(_bytes_count)
    read_only: bool = declared(flag)
    thin: bool = declared(flag)
    in_flight: int = declared(_bytes_count)  # commands


class Status(Declaration):
    """The whole configuration and the counters: what a new daemon needs to adopt the process."""

    protocol: int = declared(whole(1, 2**31))
    version: str = declared(text(64))
    pid: int = declared(whole(1, 2**31))
    state: str = declared(one_of("new", "listening", "connected", "stopping"))
    configuration: Configure | None = declared(optional(nested(Configure)))
    vrings: tuple[VringStatus, ...] = declared(rows(VringStatus, 66))
    luns: tuple[LunStatus, ...] = declared(rows(LunStatus, 2**22))
    hosted: bool = declared(flag, False)  # by a process that has other targets too: that one outlives this one's end
    next_lun: int | None = declared(optional(whole(0, 2**22)), None)  # ask again with this `first_lun` for the rest


class Verb(Record):
    name: str
    request: type
    answer: type
    descriptors: tuple[int, int] = (0, 0)  # fewest and most


VERBS = {
    verb.name: verb
    for verb in (
        Verb("configure", Configure, Empty, (0, 1)),
        Verb("map_lun", MapLun, Mapped, (0, 1 + 3 * (1 + MOST_PARENTS))),
        Verb("unmap_lun", LunAddress, Empty),
        Verb("resize_lun", ResizeLun, Resized),
        Verb("snapshot_lun", SnapshotLun, Snapshots),
        Verb("bitmap_lun", BitmapLun, BitmapList),
        Verb("status", StatusRequest, Status),
        Verb("host", Host, Empty),
        Verb("keep", Keep, Empty, (1, 1)),
        Verb("resume", Resume, Empty, (0, 2048)),
        Verb("stop", Empty, Empty),
    )
}


class FrontendConnected(Declaration):
    """A VMM connected to the vhost-user socket."""


class FrontendDisconnected(Declaration):
    """It left, and everything that it had set up is gone."""


class RingBroken(Declaration):
    """A guest put something on a vring that cannot be: that vring stands still until the guest resets it."""

    vring: int = declared(whole(0, 65))


class LunCapacityChanged(Declaration):
    target: int = declared(_target)
    lun: int = declared(_lun)
    length: int = declared(_bytes_count)


Event = FrontendConnected | FrontendDisconnected | RingBroken | LunCapacityChanged

EVENTS: dict[str, type[Event]] = {
    "frontend_connected": FrontendConnected,
    "frontend_disconnected": FrontendDisconnected,
    "ring_broken": RingBroken,
    "lun_capacity_changed": LunCapacityChanged,
}
