"""`vstore fuzz`: the SCSI device model, fuzzed in this process; no daemon, no guest, no image."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from api.cli import exits
from api.cli.output import emit_json

if TYPE_CHECKING:
    from vstore.fuzz.campaign import Budget, Ran

CASES = Path("vstore-fuzz")


@click.command("fuzz", short_help="Fuzz the SCSI device model with commands.")
@click.option("--seconds", type=click.FloatRange(min=0), help="Stop after so long (60, unless --commands says when).")
@click.option("--commands", type=click.IntRange(min=1), help="Stop after so many commands.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=1, show_default=True, help="Of the first process.")
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes, a seed each.")
@click.option("--bred", is_flag=True, help="Breed cases by the coverage they reach (needs Atheris: vstore[fuzz]).")
@click.option(
    "--cases",
    type=click.Path(file_okay=False, path_type=Path),
    default=CASES,
    show_default=True,
    metavar="DIR",
    help="Where findings are kept, and --bred begins from.",
)
@click.option("--grow", is_flag=True, help="Keep each case there that ends a command in a new way.")
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Run this kept case instead, and print every step; may come again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def fuzz(
    *,
    seconds: float | None,
    commands: int | None,
    seed: int,
    jobs: int,
    bred: bool,
    cases: Path,
    grow: bool,
    replay: tuple[Path, ...],
    as_json: bool,
) -> int:
    """Send random commands to disks in memory, and hold every answer to the rules.

    \b
    vstore fuzz --seconds 60
    vstore fuzz --commands 1000000 --jobs 4 --seed 7
    vstore fuzz --replay vstore-fuzz/finding-0123456789ab

    The rules: a status, never an exception; data within the allocation length; well-formed sense data; the bytes of
    every disk as a model of it says. The first broken rule ends it, with a minimised case, and exit code 1.
    """
    from vstore.fuzz.campaign import Budget

    if replay:
        return _replay(replay)
    if grow and (bred or jobs > 1):
        raise click.UsageError("--grow is for one process without --bred")
    if bred and (commands or jobs > 1):
        raise click.UsageError("--bred runs in one process, for --seconds")
    if seconds is None and commands is None:
        seconds = 60.0
    ran = _run(seed, Budget(seconds, commands), jobs, cases, bred=bred, grow=grow)
    return _tell(ran, seed, cases, as_json=as_json)


def _replay(files: tuple[Path, ...]) -> int:
    from vstore.fuzz.campaign import replay

    finding = replay(files, click.echo)
    if finding:
        click.echo(f"finding: {finding.error}")
    return exits.FAILED if finding else exits.OK


def _run(seed: int, budget: "Budget", jobs: int, cases: Path, *, bred: bool, grow: bool) -> "Ran":
    from vstore.fuzz.breed import CannotBreedError, breed
    from vstore.fuzz.campaign import keep, run, run_parallel

    if bred:
        try:
            return breed(seed, budget.seconds or 0, cases)
        except CannotBreedError as error:
            raise click.ClickException(str(error)) from error
    if jobs > 1:
        return run_parallel(seed, budget, jobs)
    return run(seed, budget, (lambda data: keep(cases, data, "case")) if grow else (lambda _: None))


def _tell(ran: "Ran", seed: int, cases: Path, *, as_json: bool) -> int:
    from vstore.fuzz.campaign import by_command, report

    finding = ran.finding and {"error": ran.finding.error, "case": str(_keep(ran.finding.data, cases))}
    if as_json:
        body = {"seed": seed, "cases": ran.cases, "commands": ran.commands, "finding": finding}
        emit_json(body | {"by_command": by_command(ran.outcomes)})
    else:
        click.echo(report(ran.outcomes))
        verdict = "a finding" if finding else "no finding"
        click.echo(f"{ran.cases} cases, {ran.commands} commands, seed {seed}: {verdict}")
    if finding:
        click.echo(f"finding: {finding['error']}\nkept; see it with: vstore fuzz --replay {finding['case']}", err=True)
    return exits.FAILED if finding else exits.OK


def _keep(data: bytes, cases: Path) -> Path:
    from vstore.fuzz.campaign import keep

    try:
        return keep(cases, data, "finding")
    except OSError as error:
        raise click.ClickException(f"cannot keep the finding in {cases}: {os.strerror(error.errno or 0)}") from error
