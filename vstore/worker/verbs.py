"""VERBS: what a worker can do, a function each, by the name that a request has.

A function takes the chains of the request by their part, the options, and the context that hears progress; its result
is an object of JSON, in the words of `qemu-img --output=json` where that has words for it.
"""

from collections.abc import Callable
from typing import Any

from formats.errors import UnsupportedFeature
from formats.qcow2 import bitmap_verbs
from formats.qcow2.check import check as check_qcow2
from formats.qcow2.snapshot_table import Snapshot
from vstore.disk import Disk
from vstore.worker import images
from vstore.worker.context import Chains, Context
from vstore.worker.wire import Work


def run(work: Work, context: Context) -> dict[str, Any]:
    """Raises ImageError, OSError."""
    if work.verb in VERBS:
        return VERBS[work.verb](work.chains, context, **work.options)
    from vstore.worker.transfers import TRANSFERS  # not before it is needed: most work is short

    return TRANSFERS[work.verb](work.chains, context, **work.options)


def info(chains: Chains, _context: Context) -> dict[str, Any]:
    source = chains["image"][0]
    with images.alone(source) as image:
        return {**image.info(), "filename": source.name}


def unlock(chains: Chains, _context: Context) -> dict[str, Any]:
    """Whether the image is encrypted; SecretWrong when the secret that came along does not open it."""
    with images.alone(chains["image"][0]) as image:
        return {"encrypted": image.encrypted}


def check(chains: Chains, _context: Context, *, repair: str) -> dict[str, Any]:
    source = chains["image"][0]
    if source.format != "qcow2":
        raise UnsupportedFeature(f"{source.format} images have no structure that could be checked")
    with images.host_file(source) as file:
        report = check_qcow2(file, repair=repair)
    return {**report.as_json(source.name), "findings": report.findings}


def resize(chains: Chains, context: Context, *, length: int) -> dict[str, Any]:
    with images.opened(chains["image"]) as chain:
        chain[0].going_on = _going_on(context)
        disk = Disk(*chain)
        try:
            disk.resize(length)
        finally:
            disk.close()
    return {"length": length}


def list_snapshots(chains: Chains, _context: Context) -> dict[str, Any]:
    source = chains["image"][0]
    with images.alone(source) as image:
        kept = images.with_snapshots(image, source.name)
        return {"snapshots": [_told(snapshot, kept.geometry.length) for snapshot in kept.snapshots]}


def take_snapshot(chains: Chains, context: Context, *, name: str) -> dict[str, Any]:
    source = chains["image"][0]
    with images.alone(source) as image:
        kept = images.with_snapshots(image, source.name)
        kept.going_on = _going_on(context)
        return _told(kept.snapshots.take(name), kept.geometry.length)


def delete_snapshot(chains: Chains, context: Context, *, name: str) -> dict[str, Any]:
    source = chains["image"][0]
    with images.alone(source) as image:
        kept = images.with_snapshots(image, source.name)
        kept.going_on = _going_on(context)
        kept.snapshots.delete(images.snapshot_named(kept, source.name, name).id)
    return {}


def apply_snapshot(chains: Chains, _context: Context, *, name: str) -> dict[str, Any]:
    source = chains["image"][0]
    with images.alone(source) as image:
        kept = images.with_snapshots(image, source.name)
        kept.snapshots.apply(images.snapshot_named(kept, source.name, name).id)
        return {"length": kept.geometry.length}


def bitmaps(chains: Chains, _context: Context) -> dict[str, Any]:
    source = chains["image"][0]
    with images.alone(source) as image:
        return {"bitmaps": bitmap_verbs.told(image)}


def change_bitmap(chains: Chains, _context: Context, *, action: str, name: str, **how: Any) -> dict[str, Any]:
    source = chains["image"][0]
    with images.alone(source) as image:
        bitmap_verbs.change(image, action, name, **how)
        return {"bitmaps": bitmap_verbs.told(image)}


def _going_on(context: Context) -> Callable[[], None]:
    """Tells whoever waits that the work goes on; how much of it is done is not known."""
    return lambda: context.progress(0, 0)


def _told(snapshot: Snapshot, length: int) -> dict[str, Any]:
    return {**snapshot.as_json(), "disk-size": length if snapshot.disk_size is None else snapshot.disk_size}


_SNAPSHOTS = (list_snapshots, take_snapshot, delete_snapshot, apply_snapshot)
VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    verb.__name__: verb for verb in (info, unlock, check, resize, *_SNAPSHOTS, bitmaps, change_bitmap)
}
