"""Waiting for a job: a bar on a terminal, Ctrl-C cancels it, and its failure is the command's.

Data goes to standard output, the bar to standard error, and only where that is a terminal.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from api.cli.client import Client
from api.cli.parameters import url_path
from vstore.sizes import format_size

ENDED = ("succeeded", "failed", "cancelled")
_ASK_EVERY = 1  # seconds that the daemon holds a question whether the job has ended
_WIDTH = 30

detach_option = click.option("--detach", is_flag=True, help="Do not wait: print the job.")


ASYNC = {"Prefer": "respond-async"}  # RFC 7240 4.1: work that the daemon would wait for becomes a job


def result_of(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """Waits for the job's end; its result. Raises ClickException when it fails or is cancelled."""
    try:
        job = ended(client, job)
    except KeyboardInterrupt:
        client.call("DELETE", url_path("jobs", job["id"]))
        ended(client, job)
        raise
    if job["state"] == "succeeded":
        return dict(job["result"])
    detail = job["error"]["detail"] if job["error"] else f"job {job['id']} was cancelled"
    raise click.ClickException(detail)


def ended(client: Client, job: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
    """The job once it has ended, or when `timeout`, in seconds, is over."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with _bar() as draw:
        while job["state"] not in ENDED:
            draw(job)
            left = _ASK_EVERY if deadline is None else min(_ASK_EVERY, deadline - time.monotonic())
            if left <= 0:
                break
            job = client.call("GET", f"{url_path('jobs', job['id'])}?wait={left:.3f}")
    return job


@contextmanager
def _bar() -> Iterator[Callable[[dict[str, Any]], None]]:
    if not sys.stderr.isatty():
        yield lambda _job: None
        return
    try:
        yield _draw
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _draw(job: dict[str, Any]) -> None:
    done, total = job["done_bytes"], job["total_bytes"]
    share = done / total if total else 0.0
    filled = int(share * _WIDTH)
    amounts = f"{format_size(done)} of {format_size(total)}" if total else job["state"]
    sys.stderr.write(f"\r\x1b[K{job['verb']} [{'=' * filled:<{_WIDTH}}] {share:4.0%} {amounts}")
    sys.stderr.flush()
