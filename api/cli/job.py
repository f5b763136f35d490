"""`vstore job`: long work that the daemon does."""

import click

from api.cli import exits
from api.cli.client import Client
from api.cli.output import Column, emit_list, emit_object, text
from api.cli.parameters import json_option, pass_client, url_path
from api.cli.waiting import ENDED, ended

_COLUMNS: tuple[Column, ...] = (
    ("ID", text("id")),
    ("VERB", text("verb")),
    ("IMAGE", text("image")),
    ("STATE", text("state")),
    ("DONE", lambda job: f"{job['done_bytes'] / job['total_bytes']:.0%}" if job["total_bytes"] else "-"),
    ("CREATED", text("created_at")),
)
_STATES = ("queued", "running", *ENDED)


@click.group("job")
def job() -> None:
    """List, show, cancel and wait for jobs."""


@job.command("list")
@click.option("--state", type=click.Choice(_STATES), help="Only those in this state.")
@json_option
@pass_client
def list_(client: Client, /, *, state: str | None, as_json: bool) -> None:
    """List the jobs, the newest first."""
    path = url_path("jobs") + ("" if state is None else f"?state={state}")
    emit_list(list(client.items(path)), _COLUMNS, as_json=as_json)


@job.command("show")
@click.argument("job_id", metavar="JOB")
@json_option
@pass_client
def show(client: Client, /, *, job_id: str, as_json: bool) -> None:
    """Show one job."""
    emit_object(client.call("GET", url_path("jobs", job_id)), as_json=as_json)


@job.command("cancel")
@click.argument("job_id", metavar="JOB")
@json_option
@pass_client
def cancel(client: Client, /, *, job_id: str, as_json: bool) -> None:
    """Ask a job to end. What it made so far is cleared away."""
    emit_object(client.call("DELETE", url_path("jobs", job_id)), as_json=as_json)


@job.command("wait")
@click.argument("job_id", metavar="JOB")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Longest wait; then exit with 75.")
@json_option
@pass_client
def wait(client: Client, /, *, job_id: str, timeout: float | None, as_json: bool) -> int:
    """Wait until a job has ended, and fail if it has failed. Ctrl-C ends the waiting, not the job."""
    record = ended(client, client.call("GET", url_path("jobs", job_id)), timeout)
    emit_object(record, as_json=as_json)
    if record["state"] not in ENDED:
        return exits.TIMED_OUT
    return exits.OK if record["state"] == "succeeded" else exits.FAILED
