"""TRANSFERS: the verbs that move or read whole disks, each by its function of `vstore.transfer`."""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from typing import Any

from formats.image import Reference
from vstore.transfer.bench import Load
from vstore.transfer.bench import bench as measure
from vstore.transfer.commit import commit as commit_chain
from vstore.transfer.compare import compare as compare_chains
from vstore.transfer.convert import Convert, fill
from vstore.transfer.map import map_rows
from vstore.transfer.rebase import rebase as rebase_chain
from vstore.transfer.rebase import rename_parent
from vstore.worker import images
from vstore.worker.context import Chains, Context


def map_(chains: Chains, _context: Context, *, start: int, limit: int) -> dict[str, Any]:
    with images.opened(chains["image"]) as chain:
        rows = list(islice(map_rows(chain, start), limit + 1))
    extents = [row.as_json() for row in rows[:limit]]
    return {"extents": extents, "next": rows[limit].start if len(rows) > limit else None}


def convert(chains: Chains, context: Context, *, compress: bool, snapshot: str | None, placed: bool) -> dict[str, Any]:
    chain = chains["image"]
    opening = images.opened(chain) if snapshot is None else images.at_snapshot(chain, snapshot)
    with opening as source, images.alone(chains["target"][0]) as target:
        how = Convert(compress=compress)
        fill(source, target, how, placed=placed, progress=context.progress, cancelled=context.cancelled)
    return {}


def compare(chains: Chains, context: Context, *, strict: bool) -> dict[str, Any]:
    with images.opened(chains["one"]) as one, images.opened(chains["two"]) as two:
        difference = compare_chains(one, two, strict=strict, progress=context.progress, cancelled=context.cancelled)
    if difference is None:
        return {"identical": True, "kind": None, "offset_bytes": None}
    return {"identical": False, "kind": difference.kind.value, "offset_bytes": difference.offset}


def rebase(chains: Chains, context: Context, *, reference: tuple[str, str] | None, unsafe: bool) -> dict[str, Any]:
    named = None if reference is None else Reference(*reference)
    with ExitStack() as closing:
        if unsafe:
            rename_parent(closing.enter_context(images.alone(chains["image"][0])), named)
            return {}
        new = closing.enter_context(images.opened(chains["parents"])) if chains["parents"] else []
        old = closing.enter_context(images.opened(chains["image"]))
        images.check_no_snapshots(old[0], chains["image"][0].name)
        rebase_chain(old, new, named, progress=context.progress, cancelled=context.cancelled)
    return {}


def commit(chains: Chains, context: Context) -> dict[str, Any]:
    with images.opened(chains["image"]) as chain:
        images.check_no_snapshots(chain[0], chains["image"][0].name)
        length = chain[0].geometry.length
        commit_chain(chain, progress=context.progress, cancelled=context.cancelled)
    return {"length": length}


def bench(chains: Chains, context: Context, *, requests: int, depth: int, request_bytes: int) -> dict[str, Any]:
    load = Load(count=requests, depth=depth, size=request_bytes)

    def progress(done: int, total: int) -> None:
        context.progress(done * request_bytes, total * request_bytes)

    with images.opened(chains["image"]) as chain:
        outcome = measure(chain, load, progress=progress, cancelled=context.cancelled)
    return outcome.as_json()


TRANSFERS: dict[str, Callable[..., dict[str, Any]]] = {
    "map": map_,
    "convert": convert,
    "compare": compare,
    "rebase": rebase,
    "commit": commit,
    "bench": bench,
}
