"""`vstore image info|map|check|rebase|commit|compare|bench`: looking into images, and long work on them."""

from collections.abc import Callable, Mapping
from typing import Any

import click

from api.cli import exits
from api.cli.client import Client
from api.cli.errors import ApiProblem
from api.cli.output import Column, emit_json, emit_list, emit_object, size, text
from api.cli.parameters import Size, given, json_option, pass_client, pool_option, url_path
from api.cli.waiting import detach_option, result_of


def _kind(row: Mapping[str, Any]) -> str:
    if row["zero"]:
        return "zero" if row["present"] else "hole"
    return "compressed" if row["compressed"] else "data"


_EXTENTS: tuple[Column, ...] = (
    ("START", text("start")),
    ("LENGTH", size("length")),
    ("DEPTH", text("depth")),
    ("KIND", _kind),
    ("OFFSET", lambda row: str(row.get("offset", "-"))),
)


def _path(pool: str, *name: str) -> str:
    return url_path("pools", pool, "images", *name)


def _job(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that starts a job."""
    return detach_option(pool_option(json_option(pass_client(function))))


@click.command("info")
@click.argument("name")
@pool_option
@json_option
@pass_client
def info(client: Client, /, *, name: str, pool: str, as_json: bool) -> None:
    """Tell what an image is made of, as qemu-img info does, also while a guest uses it."""
    emit_object(client.call("GET", _path(pool, name, "info")), as_json=as_json)


@click.command("map")
@click.argument("name")
@pool_option
@json_option
@pass_client
def map_(client: Client, /, *, name: str, pool: str, as_json: bool) -> None:
    """Tell where the bytes of an image lie, as qemu-img map does, over its whole chain."""
    emit_list(list(client.items(_path(pool, name, "map") + "?limit=10000")), _EXTENTS, as_json=as_json)


@click.command("check")
@click.argument("name")
@click.option("--repair", type=click.Choice(["leaks", "all"]), help="Mend what is found.")
@_job
def check(client: Client, /, *, name: str, pool: str, repair: str | None, detach: bool, as_json: bool) -> int:
    """Look for leaks and corruptions. Exits with 0: none, 2: corrupt, 3: leaks only, 63: nothing to check."""
    try:
        job = client.call("POST", _path(pool, name, "check"), given(repair=repair))
    except ApiProblem as problem:
        if problem.body.get("code") != "unsupported":
            raise
        click.echo(f"vstore: {problem}", err=True)
        return exits.UNSUPPORTED
    if detach:
        emit_object(job, as_json=as_json)
        return exits.OK
    found = result_of(client, job)
    if as_json:
        emit_json(found)
    else:
        _print_findings(found)
    return exits.CORRUPT if found.get("corruptions") else exits.LEAKS if found.get("leaks") else exits.OK


@click.command("rebase")
@click.argument("name")
@click.option("--parent", help="The new parent.")
@click.option("--flatten", is_flag=True, help="No parent: the image holds everything itself.")
@click.option("-u", "--unsafe", is_flag=True, help="Change the parent and look at nothing.")
@_job
def rebase(client: Client, /, *, name: str, pool: str, flatten: bool, detach: bool, as_json: bool, **how: Any) -> None:
    """Put an image on another parent; its content stays what it is."""
    if (how["parent"] is None) != flatten:
        raise click.UsageError("give either --parent BASE or --flatten")
    job = client.call("POST", _path(pool, name, "rebase"), how)
    emit_object(job if detach else result_of(client, job), as_json=as_json)


@click.command("commit")
@click.argument("name")
@_job
def commit(client: Client, /, *, name: str, pool: str, detach: bool, as_json: bool) -> None:
    """Write what an overlay has into its parent. The overlay is empty afterwards."""
    job = client.call("POST", _path(pool, name, "commit"), {})
    emit_object(job if detach else result_of(client, job), as_json=as_json)


@click.command("compare")
@click.argument("name")
@click.argument("other")
@click.option("--strict", is_flag=True, help="Lengths and allocation have to be equal too.")
@_job
def compare(client: Client, /, *, name: str, other: str, strict: bool, pool: str, detach: bool, as_json: bool) -> int:
    """Tell whether two images hold the same. Exits with 0 if they do, with 1 if they differ."""
    job = client.call("POST", _path(pool, name, "compare"), {"other": other, "strict": strict})
    if detach:
        emit_object(job, as_json=as_json)
        return exits.OK
    found = result_of(client, job)
    if as_json:
        emit_json(found)
    elif found["identical"]:
        click.echo("Images are identical.")
    else:
        click.echo(f"Images differ in {found['kind']} at offset {found['offset_bytes']}.")
    return exits.OK if found["identical"] else exits.DIFFER


@click.command("bench")
@click.argument("name")
@click.option("--count", "requests", type=int, help="Requests (75000).")
@click.option("--depth", type=int, help="Requests at once (64).")
@click.option("--size", "request_bytes", type=Size(), help="Bytes of a request (4k).")
@_job
def bench(client: Client, /, *, name: str, pool: str, detach: bool, as_json: bool, **load: Any) -> None:
    """Read from an image, and tell how fast it was."""
    job = client.call("POST", _path(pool, name, "bench"), given(**load))
    emit_object(job if detach else result_of(client, job), as_json=as_json)


COMMANDS = (info, map_, check, rebase, commit, compare, bench)


def _print_findings(found: dict[str, Any]) -> None:
    for finding in found["findings"]:
        click.echo(finding)
    for count in ("corruptions-fixed", "leaks-fixed"):
        if found.get(count):
            click.echo(f"{found[count]} {count.removesuffix('-fixed')} were repaired.")
    corruptions, leaks = found.get("corruptions", 0), found.get("leaks", 0)
    if corruptions or leaks:
        click.echo(f"{corruptions} corruptions and {leaks} leaked clusters were found.")
    else:
        click.echo("No errors were found on the image.")
